"""What the fork server of `forked` imports."""

import importlib

for name in (
    "jina.serve.runtimes.gateway.request_handling",
    "jina.serve.runtimes.worker.request_handling",
    "uvicorn.protocols.http.httptools_impl",
    "uvicorn.protocols.websockets.websockets_impl",
    "executor.gateway",
    "executor.service",
    "executor.serving.embedder",
    "executor.serving.inference",
):
    importlib.import_module(name)
