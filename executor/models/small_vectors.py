"""Shortened and encoded embeddings: fewer values, whole numbers of 8 bits, or bits.

A version keeps what this needs beside its weights, in `small_vectors.safetensors`, learned from its run's documents.
The file never changes, because vectors that were made by it are kept elsewhere. A version without such a file, such as
`base`, gets what can be had without any documents: a random rotation from a fixed seed in place of the components, and
a scale that fits vectors of unit length. Both are the same on every machine.
"""

import json
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from ..errors import InvalidParameter, WorkspaceError
from .space_map import unit_length
from .tensors import read_tensors

FILE = "small_vectors.safetensors"
FORMAT = "1"
WHOLE_BASIS = 4096  # values; of longer vectors only `MOST_OF_LONGER` components are kept
MOST_OF_LONGER = 1024
LARGEST = 127  # of an int8 value
FEW = 0.1  # a value that is negative, or positive, in fewer of the documents has a sign that says little
ROOM = 1.25  # how much larger than in the documents a value may be before it is cut off
USUAL_RANGE = 12.0  # a value of a unit vector is rarely so many times the root of their mean square
RANGE_OF_TURNED = 8.0  # the same after a random rotation
KEPT = 8  # numbers of dimensions whose matrix stays in memory, of each version; the largest has some MiB
Encoding = Literal["float", "int8", "binary"]


@dataclass(frozen=True, eq=False)
class SmallVectors:
    """Shortens and encodes the embeddings of one space.

    A shortened vector is the first `dimensions` principal components, turned by a random rotation from a fixed seed.
    That changes no cosine, and spreads what the first components know over all values: bits of components that differ
    in size lose much more (Gong & Lazebnik 2011, "Iterative quantization", start from it).

    Attributes:
        rotation: (D, K) float32, orthonormal columns, the most important first.
        scale: what 1 stands for in an int8 vector of all D values. lengths: (K,) float32, the root mean square length
            of shortened vectors, by their dimensions, if they are not scaled to unit length. None: not known, since
            nothing was learned.
        two_sided: whether the values are of both signs, so that bits of all D values are their signs; else they are
            those of the rotated values.
        unit: whether a shortened vector is scaled to unit length.
    """

    rotation: np.ndarray
    scale: float | None
    lengths: np.ndarray | None
    two_sided: bool
    unit: bool
    _turned: dict[int, np.ndarray] = field(default_factory=dict)  # (D, dimensions) by dimensions, the oldest first
    _making: threading.Lock = field(default_factory=threading.Lock)

    def check(self, dimensions: int | None, encoding: Encoding) -> None:
        """Raise InvalidParameter if there are no such vectors; the message says which there are."""
        size, most = self.rotation.shape
        if dimensions is not None and dimensions != size and dimensions > most:
            some = f" (shortened: at most {most})" if most < size else ""
            raise InvalidParameter(
                f"Parameter 'dimensions' is {dimensions}, but the embeddings have {size} values{some}; ask for fewer."
            )
        if encoding == "int8" and self.scale is None:
            raise InvalidParameter(
                "Parameter 'encoding' is 'int8', but this version has no scale for it: it learned from no documents, "
                "and its embeddings are not of unit length. There are: float, binary."
            )

    def suffix(self, dimensions: int | None, encoding: Encoding) -> str:
        """What the name of the space gets, such as `/64/int8`; empty for plain embeddings."""
        shorter = dimensions is not None and dimensions != len(self.rotation)
        return (f"/{dimensions}" if shorter else "") + ("" if encoding == "float" else f"/{encoding}")

    def __call__(
        self, vectors: np.ndarray, dimensions: int | None, encoding: Encoding, matrix: np.ndarray | None = None
    ) -> np.ndarray:
        """Return vectors (N, D) float32 as (N, d) float32 or int8, or as (N, ⌈d / 8⌉) uint8 with eight bits each.

        Args: matrix: that of these dimensions and this encoding, where it is at hand.
        """
        self.check(dimensions, encoding)
        if matrix is None:
            matrix = self.matrix(dimensions, encoding)
        values = vectors if matrix is None else self._through(matrix, vectors)
        if encoding == "int8":
            return self.quantised(values, None if matrix is None else dimensions)
        return np.packbits(values > 0, axis=1) if encoding == "binary" else values

    def matrix(self, dimensions: int | None, encoding: Encoding) -> np.ndarray | None:
        """Return what vectors are multiplied by, (D, d) float32; None: they stay as they are.

        Made the first time, which takes seconds where there are many dimensions: never on an event loop.
        """
        if dimensions is not None and dimensions != len(self.rotation):
            return self._turned_to(dimensions)
        # bits of all values are their signs, unless these say nothing
        return self._turned_to(self.rotation.shape[1]) if encoding == "binary" and not self.two_sided else None

    def shortened(self, vectors: np.ndarray, dimensions: int) -> np.ndarray:
        """The first principal components, turned: (N, dimensions) float32."""
        return self._through(self._turned_to(dimensions), vectors)

    def _through(self, matrix: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        values: np.ndarray = vectors @ matrix
        return unit_length(values) if self.unit else values

    def _turned_to(self, dimensions: int) -> np.ndarray:
        turned = self._turned.get(dimensions)  # whoever finds it does not wait for another that is being made
        if turned is not None:
            return turned
        with self._making:
            turned = self._turned.get(dimensions)
            if turned is None:
                turned = (self.rotation[:, :dimensions] @ _random_rotation(dimensions, dimensions)).astype(np.float32)
                self._turned[dimensions] = turned
                while len(self._turned) > KEPT:
                    del self._turned[next(iter(self._turned))]
        return turned

    def quantised(self, values: np.ndarray, dimensions: int | None) -> np.ndarray:
        """The nearest whole multiples of the scale, (N, d) int8."""
        assert self.scale is not None
        scale = self.scale
        if dimensions is not None:
            length = 1.0 if self.lengths is None else float(self.lengths[dimensions - 1])
            scale = length * min(1.0, RANGE_OF_TURNED / dimensions**0.5) / LARGEST
        return np.clip(np.rint(values / scale), -LARGEST, LARGEST).astype(np.int8)


def learn_small_vectors(embeddings: np.ndarray, *, unit: bool) -> SmallVectors:
    """Learn from embeddings (N, D) float32 of a version how to shorten and encode its embeddings.

    The components are those of the vectors as they are, not of their deviations from the mean: so the shortened ones
    keep as much of the dot products as that many values can (Eckart & Young 1936).
    """
    rotation = _components(embeddings.astype(np.float64)).astype(np.float32)
    squares = np.cumsum((embeddings @ rotation) ** 2, axis=1).mean(axis=0)
    largest = max(float(np.abs(embeddings).max()) * ROOM, 1e-12)
    return SmallVectors(
        rotation=rotation,
        scale=(min(largest, 1.0) if unit else largest) / LARGEST,
        lengths=None if unit else np.sqrt(np.maximum(squares, 1e-24)).astype(np.float32),
        two_sided=bool(FEW < np.median((embeddings < 0).mean(axis=0)) < 1 - FEW),
        unit=unit,
    )


def without_documents(size: int, *, unit: bool, two_sided: bool) -> SmallVectors:
    """Shorten and encode embeddings of `size` values, of a version that has learned nothing about them.

    Args: two_sided: whether the values are of both signs; where none is negative, their signs say nothing.
    """
    return SmallVectors(
        rotation=_random_rotation(size, size if size <= WHOLE_BASIS else MOST_OF_LONGER).astype(np.float32),
        scale=min(1.0, USUAL_RANGE / size**0.5) / LARGEST if unit else None,
        lengths=None,
        two_sided=two_sided,
        unit=unit,
    )


def write_small_vectors(folder: Path, found: SmallVectors) -> None:
    """Write it into the folder of its version. Raises: OSError, SafetensorError: it cannot be written."""
    tensors = {"rotation": found.rotation, "lengths": found.lengths}
    settings = {"scale": found.scale, "two_sided": found.two_sided, "unit": found.unit}
    metadata = {"format": FORMAT, "settings": json.dumps(settings)}
    present = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items() if tensor is not None}
    save_file(present, str(folder / FILE), metadata=metadata)


def read_small_vectors(folder: Path) -> SmallVectors | None:
    """Return what lies beside a version's weights, or None. Raises: WorkspaceError: damaged, or of a newer format."""
    file = folder / FILE
    if not file.is_file():
        return None
    try:
        tensors, metadata = read_tensors(file, FORMAT)
        return SmallVectors(
            rotation=tensors["rotation"],
            lengths=tensors.get("lengths"),
            **json.loads(metadata["settings"]),
        )
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise WorkspaceError(f"{file} is damaged ({error}); restore it.") from error


def _random_rotation(size: int, count: int) -> np.ndarray:
    """Orthonormal columns (size, count) float64, the same on every machine: the signs of a QR decomposition are not."""
    columns, triangle = np.linalg.qr(np.random.default_rng([size, count]).standard_normal((size, count)))
    signed: np.ndarray = columns * np.sign(np.diag(triangle))
    return signed


def _components(vectors: np.ndarray) -> np.ndarray:
    """Orthonormal columns, (D, K) float64: the principal components, then any others."""
    count, size = vectors.shape
    if size <= WHOLE_BASIS:
        return np.linalg.eigh(vectors.T @ vectors)[1][:, ::-1]
    _, found = np.linalg.eigh(vectors @ vectors.T)
    wanted = min(count, MOST_OF_LONGER)
    others = np.random.default_rng(0).standard_normal((size, MOST_OF_LONGER - wanted))
    return np.linalg.qr(np.hstack([vectors.T @ found[:, ::-1][:, :wanted], others]))[0]
