"""What the fork server of `forked` imports: libraries of a Flow. Nothing of ours, which changes Jina where imported."""

import functools
import importlib

from jina_cli import lookup

for name in (
    "jina.serve.runtimes.gateway.request_handling",
    "jina.serve.runtimes.worker.request_handling",
    *("cv2", "fastapi", "filelock", "fsspec", "jinja2", "nanoarrow", "prometheus_client", "psutil", "pybase64"),
    *("python_multipart", "requests", "safetensors.torch", "starlette.applications", "starlette.staticfiles", "torch"),
    *("uvicorn.protocols.http.h11_impl", "uvicorn.protocols.websockets.auto"),
    *("PIL.ExifTags", "PIL.Image", "PIL.ImageOps", "PIL.JpegImagePlugin", "PIL.PngImagePlugin", "PIL.WebPImagePlugin"),
):
    importlib.import_module(name)

# Each Flow asks for this table of all of Jina's options, which are always the same, and making it takes 0.8 s.
lookup._build_lookup_table = functools.cache(lookup._build_lookup_table)
lookup._build_lookup_table()
