"""Export a model version to files that other programs read: `python -m executor export RUN …`.

We write ONNX with torch's tracing exporter. Its successor (`dynamo=True`) gives the same embeddings, but took ten
times as long on the models we tried, fails on Swin and needs another package. Tracing can turn a branch or a batch
size into a constant; `_check_onnx` finds such mistakes.
"""

import json
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from ..errors import ConfigurationError, UnknownModel, WorkspaceError
from ..store.files import publish_folder
from ..store.workspace import find_workspace
from .backbones import found_in
from .model import EmbeddingModel, WithNormalisation
from .preprocessing import Preprocessing
from .saving import load_model, save_model
from .versions import check_version

OPSET = 18
LEAST_COSINE = 0.9999  # between the exported model's embeddings and torch's
CHECKED_BATCHES = (slice(0, 100), slice(0, 1), slice(1, 8))
PIL_BILINEAR = 2  # of the filters that all image processors of transformers offer, the closest to ours


def find_model(folder: Path, version: str) -> Path:
    """Return the folder of a version (a run's name or `base`); the workspace is `folder` or lies below it.

    Raises: WorkspaceError: there is no workspace, or more than one. UnknownModel: it has no such version.
    """
    workspace = find_workspace(folder)
    check_version(workspace, version)
    if not workspace.model_folder(version).is_dir():
        raise UnknownModel(f"{workspace.root} has no base model yet; the service makes it at its first run or /embed.")
    return workspace.model_folder(version)


Card = Callable[[EmbeddingModel, str], str]


def export(model_folder: Path, output: Path, form: str, *, card: Card = lambda model, loading: loading) -> Path:
    """Write the model saved in `model_folder` into a new folder `output`, with a README.md that says how to load it.

    Args:
        output: If the export fails, it stays as it was. Missing parents are made.
        form: `onnx`: model.onnx, from (B, S, S, 3) uint8 RGB to the embeddings (B, D) float32. `safetensors`: the files
            of `save_model`. `transformers`: a folder for the `from_pretrained` of a transformers model.
        card: makes README.md of the model and of the page that says how to load it.
    Returns: `output`.
    Raises: ConfigurationError: `output` exists and is not empty, or this model has no such form. WorkspaceError: the
        model cannot be read, or the export cannot be written.
    """
    if form not in FORMS:
        raise ConfigurationError(f"format={form!r} is unknown; it is one of {', '.join(FORMS)}.")
    output = output.resolve()
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise ConfigurationError(f"{output} exists already; name a new folder, or an empty one.")
    model = load_model(model_folder)

    def write(folder: Path) -> None:
        readme = folder / "README.md"
        readme.write_text(card(model, FORMS[form](model, folder)), encoding="utf-8")
        for file in folder.iterdir():
            file.chmod(readme.stat().st_mode)  # safetensors makes files that only their owner can read

    try:
        publish_folder(output, write, replace=False)
    except (OSError, SafetensorError) as error:
        raise WorkspaceError(f"The export cannot be written to {output}: {error}.") from error
    return output


# ONNX


def _write_onnx(model: EmbeddingModel, folder: Path) -> str:
    missing = [name for name in ("onnx", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise ConfigurationError(f"ONNX export needs packages that are not here: pip install {' '.join(missing)}.")
    file = folder / "model.onnx"
    images = _varied_images(model.preprocessing)
    whole = WithNormalisation(model).eval()
    try:
        with warnings.catch_warnings():
            # The exporter warns that it is old and where tracing may go wrong; `_check_onnx` checks the result.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                whole,
                (torch.from_numpy(images[:2]),),
                str(file),
                input_names=["images"],
                output_names=["embeddings"],
                dynamic_axes={"images": {0: "batch"}, "embeddings": {0: "batch"}},
                opset_version=OPSET,
                dynamo=False,
            )
    except OSError:
        raise
    except Exception as error:  # a model or the exporter may raise anything
        reason = str(error).strip().partition("\n")[0]
        raise ConfigurationError(
            f"model={model.config.model!r} cannot be written as ONNX ({reason}); export it as safetensors."
        ) from error
    return _onnx_readme(model, _check_onnx(file, whole, images))


def _check_onnx(file: Path, whole: nn.Module, images: np.ndarray) -> float:
    """Compare the file's embeddings with torch's, in batches of several sizes; return the lowest cosine similarity.

    Raises: ConfigurationError: it is below `LEAST_COSINE`, or onnxruntime cannot run the file.
    """
    import onnxruntime

    with torch.inference_mode():
        expected = whole(torch.from_numpy(images)).numpy()
    try:
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        found = [session.run(None, {"images": images[batch]})[0] for batch in CHECKED_BATCHES]
    except Exception as error:  # onnxruntime's errors have no common base class
        raise ConfigurationError(
            f"onnxruntime cannot run the exported model ({str(error).splitlines()[0]}); export it as safetensors."
        ) from error
    lowest = min(
        float(_cosines(part, expected[batch]).min()) for part, batch in zip(found, CHECKED_BATCHES, strict=True)
    )
    if not lowest >= LEAST_COSINE:  # this way NaN is refused too
        raise ConfigurationError(
            f"The ONNX model's embeddings differ from PyTorch's: cosine similarity {lowest:.6f}, needed {LEAST_COSINE}."
            " The model may compute otherwise for other images or batch sizes; export it as safetensors."
        )
    return lowest


def _cosines(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(some, axis=1) * np.linalg.norm(others, axis=1)
    cosines: np.ndarray = (some * others).sum(axis=1) / norms
    return cosines


def _varied_images(preprocessing: Preprocessing) -> np.ndarray:
    """Return random images, (100, S, S, 3) uint8: flat colours, smooth textures and fine noise."""
    rng = np.random.default_rng(0)
    shapes = rng.integers(1, 2 * preprocessing.size, (CHECKED_BATCHES[0].stop, 2))
    return np.stack([preprocessing.resize(rng.integers(0, 256, (*shape, 3), dtype=np.uint8)) for shape in shapes])


# As `images.decoding` reads an image.
_OPENING = """\
image = Image.open("image.jpg")
bits = getattr(image, "tag_v2", {}).get(258, [16])[0]  # a TIFF may have 12
image = ImageOps.exif_transpose(image)
if image.mode.startswith("I;16"):  # Pillow would make all that is brighter than 255 of 65535 white
    image = Image.fromarray(np.rint(np.asarray(image) * np.float32(255 / (2**bits - 1))).astype(np.uint8))
if image.mode == "F" and np.asarray(image).max() <= 1:  # a TIFF of floats from 0 to 1
    image = Image.fromarray(np.rint(np.asarray(image) * 255).astype(np.uint8))
if image.has_transparency_data:
    white = Image.new("RGBA", image.size, "white")
    image = Image.alpha_composite(white, image.convert("RGBA"))
image = image.convert("RGB")"""


def _onnx_readme(model: EmbeddingModel, cosine: float) -> str:
    size, length = model.preprocessing.size, " of unit length" if model.normalise else ""
    return f"""# An image embedding model, as ONNX

`model.onnx` takes `images`, (B, {size}, {size}, 3) uint8 RGB, and gives `embeddings`, (B, {model.dim}) float32{length},
for any B. Normalisation is part of it. To embed an image, in this folder
(`pip install onnxruntime numpy Pillow opencv-python-headless`):

```python
import cv2
import numpy as np
import onnxruntime
from PIL import Image, ImageOps

{_OPENING}
{_resizing(model.preprocessing)}
session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
embeddings = session.run(None, {{"images": pixels[None]}})[0]
```

Prepare images as these lines do and as was done in training. By another way of resizing they get other embeddings.
Opset {OPSET}. Checked against PyTorch on {CHECKED_BATCHES[0].stop} images: cosine similarity at least {cosine:.6f}.
"""


def _resizing(preprocessing: Preprocessing) -> str:
    """Return lines that make `pixels` of the Pillow image `image`, as `Preprocessing.resize` does."""
    size, lines = preprocessing.size, []
    if preprocessing.crop:
        lines += [
            f"side = max(1, round(min(image.size) * {size} / {preprocessing.shrunk_to}))",
            "left, top = (image.width - side) // 2, (image.height - side) // 2",
            "image = image.crop((left, top, left + side, top + side))",
        ]
    if preprocessing.interpolation == "area":
        lines += [
            f"shrunk = min(image.width, {size}), min(image.height, {size})",
            "pixels = cv2.resize(np.asarray(image), shrunk, interpolation=cv2.INTER_AREA)",
            f"pixels = cv2.resize(pixels, ({size}, {size}), interpolation=cv2.INTER_CUBIC)",
        ]
    else:
        name = preprocessing.interpolation.upper()
        lines.append(f"pixels = np.asarray(image.resize(({size}, {size}), Image.Resampling.{name}))")
    return "\n".join(lines)


# safetensors


def _write_safetensors(model: EmbeddingModel, folder: Path) -> str:
    save_model(model, folder)
    from_factory = not model.description and model.config.model not in ("default", "small")
    factory = (
        f"\nThe weights fit what `{model.config.model}` makes, which must be importable.\n" if from_factory else ""
    )
    return f"""# An image embedding model, for this package

The weights, and how to build the model they belong to. With the package `executor` on the path, in this folder:

```python
from pathlib import Path

from executor import Document, DocumentArray, embed, load_uri_to_image_blob
from executor.models import load_model

model = load_model(Path("."))
docs = DocumentArray([Document(uri="image.jpg")])
embed(docs, model, preprocess_fn=load_uri_to_image_blob)
```

`docs[0].embedding` has {model.dim} values.
{factory}"""


# transformers


def _write_transformers(model: EmbeddingModel, folder: Path) -> str:
    if not model.description:
        raise ConfigurationError(
            f"model={model.config.model!r} is not a transformers model; export it as onnx, or as safetensors."
        )
    backbone: Any = model.backbone
    backbone.save_pretrained(folder)
    settings = json.dumps(_image_processor(model.preprocessing), indent=2)
    (folder / "preprocessor_config.json").write_text(settings, encoding="utf-8")
    if model.head is not None:
        save_file({"weight": model.head.weight.detach().contiguous()}, folder / "head.safetensors")
    return _transformers_readme(model)


def _image_processor(preprocessing: Preprocessing) -> dict[str, Any]:
    """Return our preprocessing as the settings of a transformers image processor."""
    square = {"height": preprocessing.size, "width": preprocessing.size}
    settings = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": square,
        "resample": PIL_BILINEAR,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": preprocessing.mean,
        "image_std": preprocessing.std,
    }
    if preprocessing.crop:
        settings |= {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": preprocessing.shrunk_to},
            "do_center_crop": True,
            "crop_size": square,
        }
    return settings


def _transformers_readme(model: EmbeddingModel) -> str:
    name = type(model.backbone).__name__
    options = "".join(f", {option}={value}" for option, value in model.options.items())
    load_head, apply_head, mention = "", "", ""
    if model.head is not None:
        load_head = "from safetensors.torch import load_file\n"
        apply_head = 'features = features @ load_file("head.safetensors")["weight"].T\n'
        mention = f"""
It was trained for embeddings of {model.dim} values, made from the backbone's {model.features} features by a linear
projection head, `head.safetensors`. Leave out the line that reads this file, and you have the features.
"""
    normalised = "torch.nn.functional.normalize(features, dim=1)" if model.normalise else "features"
    return f"""# An image embedding model, for transformers

The backbone is a `{name}`. To embed an image, in this folder:

```python
import numpy as np
import torch
from PIL import Image, ImageOps
{load_head}from transformers import AutoImageProcessor, {name}

{_OPENING}
model = {name}.from_pretrained(".").eval()
inputs = AutoImageProcessor.from_pretrained(".")(image, return_tensors="pt")
with torch.inference_mode():
    features = model(**inputs{options}){_features(model)}
{apply_head}embeddings = {normalised}
```
{mention}
Only resizing differs a little from what was done in training: the image processor interpolates, ours averages areas.
"""


def _features(model: EmbeddingModel) -> str:
    """Return, as an expression, the part of the backbone's output that `backbones.embedding_of` uses."""
    size = model.preprocessing.size
    with torch.inference_mode():
        name, found = found_in(model.backbone(torch.zeros(1, 3, size, size), **model.options))
    sequence = "[:, 0]" if model.reading.class_token else ".mean(1)"
    places = ".mean((1, 2))" if model.reading.channels_last else ".mean((2, 3))"
    return f".{name}" + {2: "", 3: sequence, 4: places}[found.ndim]


FORMS: dict[str, Callable[[EmbeddingModel, Path], str]] = {
    "onnx": _write_onnx,
    "safetensors": _write_safetensors,
    "transformers": _write_transformers,
}
