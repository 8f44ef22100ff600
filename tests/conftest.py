"""Fixtures that several test files share."""

import os

os.environ.setdefault("JINA_OPTOUT_TELEMETRY", "1")
# With small matrices threads mostly wait for each other: they cost more than they gain, above all on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from executor import Document, DocumentArray
from serving import Service, served

COLOURS = ((200, 40, 40), (40, 200, 40), (40, 40, 200), (200, 200, 40))


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One Flow for all tests of a file."""
    with served(tmp_path_factory.mktemp("service")) as running:
        yield running


def coloured(label: int, seed: int = 0, size: int = 24) -> np.ndarray:
    """Return an image, (size, size, 3) uint8, in the colour of its label, with noise."""
    noise = np.random.default_rng([label, seed]).integers(-40, 40, (size, size, 3))
    return np.clip(np.asarray(COLOURS[label % len(COLOURS)]) + noise, 0, 255).astype(np.uint8)


def encoded(image: np.ndarray, form: str = "PNG") -> bytes:
    """Return the image as the bytes of a file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, form)
    return buffer.getvalue()


@pytest.fixture
def labelled() -> Callable[..., DocumentArray]:
    """Make documents with an image as `blob` and labels 0 … classes-1 in turn; their ids begin with `prefix`."""

    def make(count: int, classes: int = 3, prefix: str = "d", first_seed: int = 0) -> DocumentArray:
        return DocumentArray(
            Document(
                id=f"{prefix}{number}",
                blob=coloured(number % classes, first_seed + number),
                tags={"finetuner_label": number % classes},
            )
            for number in range(count)
        )

    return make


@pytest.fixture
def image_files(tmp_path: Path) -> Callable[[int], list[Path]]:
    """Write `count` PNG files and return their paths."""

    def make(count: int) -> list[Path]:
        paths = [tmp_path / f"{number}.png" for number in range(count)]
        for number, path in enumerate(paths):
            path.write_bytes(encoded(coloured(number % 3, number)))
        return paths

    return make
