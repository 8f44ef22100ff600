"""A map between the spaces of two versions, which lies beside the weights of the one that was tuned.

A map is affine and then, if the target has unit vectors, scales to unit length. `evaluation/map_fitting.py` learns it.
The file `space_map.safetensors` holds two maps: `forward`, from the version that was served when the tuned one was
measured, and `backward`. Its metadata name both spaces, and the figures that were measured.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from ..errors import WorkspaceError
from .tensors import read_tensors

FILE = "space_map.safetensors"
FORMAT = "1"
AT_ONCE = 256  # vectors mapped at a time, so that they stay in the processor's cache


@dataclass(frozen=True, eq=False)
class SpaceMap:
    """x ↦ skip · x + x · dense + shift, of unit length if `unit`; `down` and `up` may take the place of `dense`.

    Attributes:
        shift: (B,) float32. dense: (A, B) float32, or None.
        down, up: (A, R) and (R, B) float32, or None: a matrix of rank R, which takes less time and room.
        skip: 0 where A and B differ.
    """

    shift: np.ndarray
    dense: np.ndarray | None = None
    down: np.ndarray | None = None
    up: np.ndarray | None = None
    skip: float = 0.0
    unit: bool = True

    @property
    def sizes(self) -> tuple[int, int]:
        """How many values a vector has before and after."""
        first = self.dense if self.dense is not None else self.down
        return len(self.shift) if first is None else len(first), len(self.shift)

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """Map vectors (N, A) float32; return (N, B) float32. Raises: ValueError: they have another size."""
        if vectors.ndim != 2 or vectors.shape[1] != self.sizes[0]:
            raise ValueError(f"The vectors have shape {vectors.shape}; this map takes (N, {self.sizes[0]}).")
        if len(vectors) <= AT_ONCE:
            return self._mapped(vectors)
        mapped = np.empty((len(vectors), self.sizes[1]), np.float32)
        for start in range(0, len(vectors), AT_ONCE):
            mapped[start : start + AT_ONCE] = self._mapped(vectors[start : start + AT_ONCE])
        return mapped

    def _mapped(self, vectors: np.ndarray) -> np.ndarray:
        if self.down is not None and self.up is not None:
            mapped: np.ndarray = (vectors @ self.down) @ self.up
        elif self.dense is not None:
            mapped = vectors @ self.dense
        else:
            mapped = np.zeros((len(vectors), len(self.shift)), np.float32)
        mapped += self.shift
        if self.skip:
            mapped += vectors if self.skip == 1 else np.float32(self.skip) * vectors
        if self.unit:
            lengths = np.sqrt(np.einsum("nd,nd->n", mapped, mapped))
            mapped /= np.where(lengths > 0, lengths, 1)[:, None]
        return mapped


@dataclass(frozen=True, eq=False)
class KnownMap:
    """What the file of a tuned version says.

    Attributes:
        version, space: the version served when this one was measured, and its space.
        own_space: the space of the tuned version.
        forward: from `space` to `own_space`. backward: from `own_space` to `space`, to be compared with vectors that
            `version` made itself.
        plan: as `index_plan` of a `RunStatus`; empty: nothing was measured.
        kinds: in words, which sort of map was chosen in each direction.
    """

    version: str
    space: str
    own_space: str
    forward: SpaceMap
    backward: SpaceMap
    plan: dict[str, Any] = field(default_factory=dict)
    kinds: tuple[str, str] = ("", "")


def unit_length(vectors: np.ndarray) -> np.ndarray:
    """Scale vectors (N, D) to unit length; a zero vector stays zero."""
    lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))[:, None]
    scaled: np.ndarray = vectors / np.where(lengths > 0, lengths, 1).astype(vectors.dtype)
    return scaled


def write_map(folder: Path, known: KnownMap) -> None:
    """Write a map into the folder of its version. Raises: OSError, SafetensorError: it cannot be written."""
    tensors: dict[str, np.ndarray] = {}
    for direction, found in (("forward", known.forward), ("backward", known.backward)):
        parts = {"shift": found.shift, "dense": found.dense, "down": found.down, "up": found.up}
        tensors |= {
            f"{direction}.{name}": np.ascontiguousarray(part, dtype=np.float32)
            for name, part in parts.items()
            if part is not None
        }
    scalars = {
        direction: {"skip": found.skip, "unit": found.unit}
        for direction, found in (("forward", known.forward), ("backward", known.backward))
    }
    metadata = {
        "format": FORMAT,
        "from_version": known.version,
        "from_space": known.space,
        "space": known.own_space,
        "maps": json.dumps(scalars),
        "plan": json.dumps(known.plan),
        "kinds": json.dumps(known.kinds),
    }
    save_file(tensors, str(folder / FILE), metadata=metadata)


def read_map(folder: Path) -> KnownMap | None:
    """Return the map that lies beside a version's weights; None: there is none, as with versions of earlier releases.

    Raises: WorkspaceError: it is damaged, or of a newer format.
    """
    file = folder / FILE
    if not file.is_file():
        return None
    try:
        tensors, metadata = read_tensors(file, FORMAT)
        scalars = json.loads(metadata["maps"])
        maps = {
            direction: SpaceMap(
                shift=tensors[f"{direction}.shift"],
                dense=tensors.get(f"{direction}.dense"),
                down=tensors.get(f"{direction}.down"),
                up=tensors.get(f"{direction}.up"),
                skip=float(scalars[direction]["skip"]),
                unit=bool(scalars[direction]["unit"]),
            )
            for direction in ("forward", "backward")
        }
        return KnownMap(
            version=metadata["from_version"],
            space=metadata["from_space"],
            own_space=metadata["space"],
            plan=json.loads(metadata["plan"]),
            kinds=tuple(json.loads(metadata["kinds"])),
            **maps,
        )
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise WorkspaceError(f"{file} is damaged ({error}); restore it, or delete it and embed anew.") from error
