"""One picture has one embedding, whichever way it comes: file, bytes, array, `fit`'s loading, exported model."""

import base64
import io
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from executor import Document, DocumentArray, embed, load_uri_to_image_blob
from executor.images.policy import ImagePolicy
from executor.loading.content import ModelImages
from executor.models.building import build_model
from executor.models.export import export
from executor.models.model import EmbeddingModel, ModelConfig
from executor.models.preprocessing import Preprocessing
from executor.models.saving import save_model

pytestmark = pytest.mark.compute

SIZES = [(1280, 960), (640, 480), (333, 500), (150, 90), (48, 40)]  # width and height; the last is to be enlarged
LOOKALIKES = 3  # pictures of each size that differ little
LEAST = 0.999


def photograph(width: int, height: int, scene: int, take: int) -> Image.Image:
    """A picture with a photograph's spectrum: amplitude falls as 1 / frequency (Field 1987). Takes differ a bit."""
    frequency = np.hypot(*np.meshgrid(np.fft.rfftfreq(width), np.fft.fftfreq(height)))
    frequency[0, 0] = np.inf
    planes = []
    for channel in range(3):
        phases = [
            np.random.default_rng([scene, channel, *more]).uniform(0, 2 * np.pi, frequency.shape)
            for more in ([], [take])
        ]
        waves = np.exp(1j * phases[0]) + 0.3 * np.exp(1j * phases[1])
        plane = np.fft.irfft2(waves / frequency, (height, width))
        planes.append(128 + 55 * plane / plane.std())
    mixed = 0.7 * np.mean(planes, axis=0) + 0.3 * np.stack(planes)
    return Image.fromarray(mixed.transpose(1, 2, 0).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photographs")
    for number, (width, height) in enumerate(SIZES):
        for take in range(LOOKALIKES):
            photograph(width, height, number, take).save(folder / f"{number}-{take}.jpg", quality=90)
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def model() -> EmbeddingModel:
    return build_model(ModelConfig(input_size=64))


WAYS: dict[str, Callable[[Path], Document]] = {
    "uri": lambda file: Document(uri=str(file)),
    "buffer": lambda file: Document(buffer=file.read_bytes()),
    "data": lambda file: Document(uri="data:image/jpeg;base64," + base64.b64encode(file.read_bytes()).decode()),
    "blob": lambda file: Document(blob=np.asarray(Image.open(io.BytesIO(file.read_bytes())))),
}


def served(model: EmbeddingModel, docs: list[Document]) -> np.ndarray:
    """Embed as the service does."""
    load = ModelImages(model.preprocessing, ImagePolicy())
    images = torch.from_numpy(np.stack([load(doc) for doc in docs]))
    with torch.inference_mode():
        return model(model.preprocessing.normalise(images)).numpy()


def nearest(embeddings: np.ndarray) -> np.ndarray:
    similarity = embeddings @ embeddings.T
    np.fill_diagonal(similarity, -1)
    return similarity.argmax(axis=1)


def assert_the_same(found: np.ndarray, expected: np.ndarray) -> None:
    assert (found * expected).sum(axis=1).min() >= LEAST
    assert (nearest(found) == nearest(expected)).all()


@pytest.mark.parametrize("way", ["buffer", "data", "blob"])
def test_the_service_gives_a_picture_the_embedding_that_it_has_by_uri(model, files, way):
    by_uri, other = (served(model, [WAYS[name](file) for file in files]) for name in ("uri", way))
    assert_the_same(other, by_uri)


def test_the_python_api_gives_a_picture_the_embedding_that_the_service_gives(model, files):
    docs = DocumentArray([WAYS["uri"](file) for file in files])
    embed(docs, model, preprocess_fn=load_uri_to_image_blob, device="cpu")
    assert_the_same(np.stack([doc.embedding for doc in docs]), served(model, list(docs)))


def test_the_lines_of_an_exported_readme_give_a_picture_the_embedding_that_the_service_gives(
    model, files, tmp_path, monkeypatch
):
    save_model(model, tmp_path / "model")
    folder = export(tmp_path / "model", tmp_path / "out", "onnx")
    (lines,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(folder)
    embeddings = []
    for file in files:
        (folder / "image.jpg").write_bytes(file.read_bytes())
        left: dict[str, np.ndarray] = {}
        exec(lines, left)
        embeddings.append(left["embeddings"][0])
    assert_the_same(np.stack(embeddings), served(model, [WAYS["uri"](file) for file in files]))


def test_a_transparent_picture_has_one_embedding_too(model, tmp_path, monkeypatch):
    alpha = Image.fromarray(np.tile(np.linspace(0, 255, 120, dtype=np.uint8), (100, 1)))
    picture = photograph(120, 100, 9, 0)
    picture.putalpha(alpha)
    picture.save(tmp_path / "image.png")
    save_model(model, tmp_path / "model")
    folder = export(tmp_path / "model", tmp_path / "out", "onnx")
    (lines,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    left: dict[str, np.ndarray] = {}
    exec(lines.replace("image.jpg", "image.png").replace("model.onnx", str(folder / "model.onnx")), left)
    by_uri = served(model, [Document(uri=str(tmp_path / "image.png"))])
    assert (left["embeddings"] * by_uri).sum() >= LEAST


@pytest.mark.parametrize("name", ["bilinear", "bicubic", "lanczos"])
def test_a_filter_that_a_model_states_is_that_of_pillow(name):
    picture = photograph(90, 60, 3, 0)
    resized = Preprocessing(size=32, interpolation=name).resize(np.asarray(picture))
    np.testing.assert_array_equal(resized, np.asarray(picture.resize((32, 32), Image.Resampling[name.upper()])))
