"""Vectors in another space than the model's own: mapped, shortened or encoded.

An embedding is converted after the model has made it. Which conversion it is depends on the space that it is in, not on
the name of a version, because names are used again. What a version has learned lies in its folder and is read again
when the folder was replaced.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..documents import ERROR_TAG, MAPPED_TAG, SPACE_TAG
from ..errors import Conflict, InvalidParameter, UnknownModel, WorkspaceError
from ..models.saving import read_settings, space_of
from ..models.small_vectors import Encoding, SmallVectors, read_small_vectors, without_documents
from ..models.space_map import KnownMap, SpaceMap, read_map
from ..parameters import EmbedParameters
from .pipeline import Version

KEPT = 8  # versions whose files stay in memory


@dataclass(frozen=True, eq=False)
class Conversion:
    """What to do with the embeddings of a version.

    Attributes:
        version: its name. source: its space; embeddings of another one are refused.
        target: the space that they are mapped into, by `map`; None: they stay in their own.
        small: shortens and encodes them; None: they stay as they are. matrix: what it multiplies them by, if anything,
            made before: `apply` is called where nothing may take seconds.
    """

    version: str
    source: str
    target: str
    map: SpaceMap | None
    small: SmallVectors | None
    dimensions: int | None
    encoding: Encoding
    matrix: np.ndarray | None = None

    @property
    def space(self) -> str:
        """What the converted vectors have as `tags['finetuner_space']`."""
        return self.target + ("" if self.small is None else self.small.suffix(self.dimensions, self.encoding))

    def __call__(self, embeddings: np.ndarray) -> np.ndarray:
        """Convert embeddings (N, D) float32."""
        mapped = embeddings if self.map is None else self.map(embeddings)
        return mapped if self.small is None else self.small(mapped, self.dimensions, self.encoding, self.matrix)

    def apply(self, docs: Sequence[Any]) -> None:
        """Convert the embeddings of documents in place; those that have none say why already.

        Raises: Conflict: an embedding is in another space, because another version has the name by now. Nothing is
            converted then.
        """
        made = [doc for doc in docs if doc.embedding is not None and ERROR_TAG not in doc.tags]
        if any(doc.tags.get(SPACE_TAG) != self.source for doc in made):
            raise Conflict(f"The version {self.version!r} was replaced while it embedded; send the documents again.")
        if not made:
            return
        for doc, vector in zip(made, self(np.stack([doc.embedding for doc in made])), strict=True):
            doc.embedding = vector
            doc.tags[SPACE_TAG] = self.space
            if self.map is not None:
                doc.tags[MAPPED_TAG] = self.source


@dataclass(frozen=True, eq=False)
class Leap:
    """A map for stored vectors.

    Attributes:
        version, to: names; `source`, `target`: their spaces. known: the file that the map is from.
        forward: whether `to` is the version that was tuned, so that its run has measured what the map loses.
    """

    version: str
    to: str
    source: str
    target: str
    map: SpaceMap
    known: KnownMap
    forward: bool


@dataclass(frozen=True, eq=False)
class _Known:
    """What lies in the folder of a version. Args: signature: tells whether the folder was replaced."""

    signature: tuple[int, ...]
    space: str
    map: KnownMap | None
    small: SmallVectors


class Spaces:
    """Finds conversions between the spaces of versions.

    Args:
        folder: returns the folder of a version. Raises: UnknownModel: there is no such version.
        names: returns the names of all versions.
        elsewhere: whether this is a reader, which has the served version only. A map then leads to the space that it
            was learned for, under the name that the version had.
    """

    def __init__(
        self, folder: Callable[[str], Path], names: Callable[[], list[str]], *, elsewhere: bool = False
    ) -> None:
        self._folder = folder
        self._names = names
        self._elsewhere = elsewhere
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._lock = threading.Lock()

    def space_of(self, version: str) -> str:
        """Return the space of a version. Raises: UnknownModel: there is no such version."""
        return self._read(version).space

    def conversion(self, version: Version, wanted: EmbedParameters) -> Conversion:
        """Return what makes the vectors that are wanted of the embeddings of a version. It may take seconds.

        Raises: UnknownModel: there is no version `space`. InvalidParameter: there is no map, or no such dimensions or
            encoding; the message names what there is.
        """
        name = wanted.space or version.name
        try:
            target = self._read(name)
        except UnknownModel as error:
            if self._elsewhere:
                return self._conversion_elsewhere(version, name, wanted)
            raise UnknownModel(f"space={name!r}: {error}") from error
        found = None if target.space == version.space else self._map(version, name, target)
        small = matrix = None
        if wanted.dimensions is not None or wanted.encoding != "float":
            small = target.small
            small.check(wanted.dimensions, wanted.encoding)
            matrix = small.matrix(wanted.dimensions, wanted.encoding)
        return Conversion(
            version=version.name,
            source=version.space,
            target=target.space,
            map=found,
            small=small,
            dimensions=wanted.dimensions,
            encoding=wanted.encoding,
            matrix=matrix,
        )

    def _conversion_elsewhere(self, version: Version, name: str, wanted: EmbedParameters) -> Conversion:
        known = self._read(version.name).map
        if known is None or known.version != name or known.own_space != version.space:
            there_is = "it has no map" if known is None else f"it has a map to that of {known.version!r}"
            raise InvalidParameter(
                f"space={name!r}: this reader serves {version.name!r}, and cannot map to the space of {name!r}; "
                f"{there_is}."
            )
        if wanted.dimensions is not None or wanted.encoding != "float":
            raise InvalidParameter(
                f"This reader does not have {name!r}, which knows how to shorten and encode vectors of its space; ask "
                "for the space alone, or for the service that trains."
            )
        return Conversion(version.name, version.space, known.space, known.backward, None, None, "float")

    def leap(self, version: str, to: str) -> Leap:
        """Return the map between the spaces of two versions, for vectors that are stored.

        Raises: UnknownModel: there is no such version. InvalidParameter: there is no map, or it is one space.
        """
        one, other = self._read(version), self._read(to)
        if one.space == other.space:
            raise InvalidParameter(f"{version!r} and {to!r} have one space, {one.space}: nothing is to be mapped.")
        found = _between(one.space, one.map, other.space, other.map)
        if found is None:
            raise InvalidParameter(self._no_map(version, one.space, to))
        through, known = found
        return Leap(version, to, one.space, other.space, through, known, forward=known.own_space == other.space)

    def _map(self, version: Version, name: str, target: _Known) -> SpaceMap:
        own = self._read(version.name)
        if name == version.name or own.space != version.space:
            raise Conflict(f"The version {version.name!r} is being replaced; send the documents again.")
        found = _between(version.space, own.map, target.space, target.map)
        if found is None:
            raise InvalidParameter(f"space={name!r}: {self._no_map(version.name, version.space, name)}")
        return found[0]

    def _no_map(self, source: str, space: str, target: str) -> str:
        reached = [name for name in self._names() if self._reaches(name, source, space)]
        there_are = f"maps lead from it to: {', '.join(reached)}" if reached else "no map leads from it"
        return (
            f"There is no map from the space of {source!r} to that of {target!r}; {there_are}. A map is learned "
            "between a run and the version that was served when the run ended."
        )

    def _reaches(self, name: str, source: str, space: str) -> bool:
        try:
            other, own = self._read(name), self._read(source)
        except (UnknownModel, WorkspaceError):  # deleted just now, or damaged
            return False
        return other.space != space and _between(space, own.map, other.space, other.map) is not None

    def _read(self, name: str) -> _Known:
        """Read what a version has. Raises: UnknownModel: there is no such version."""
        folder = self._folder(name)
        try:
            stat = os.stat(folder / "weights.safetensors")
        except FileNotFoundError:
            raise UnknownModel(f"There are no weights of {name!r} any more; ask again.") from None
        signature = (stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_size)
        with self._lock:
            known = self._known.get(name)
            if known is None or known.signature != signature:
                known = self._known[name] = _Known(signature, space_of(folder), *_learned(folder))
            self._known.move_to_end(name)
            while len(self._known) > KEPT:
                self._known.popitem(last=False)
            return known


def _between(
    source: str, own: KnownMap | None, target: str, theirs: KnownMap | None
) -> tuple[SpaceMap, KnownMap] | None:
    """Return the map from one space to another, if the file of one of the two versions has it."""
    if own is not None and (own.own_space, own.space) == (source, target):
        return own.backward, own
    if theirs is not None and (theirs.space, theirs.own_space) == (source, target):
        return theirs.forward, theirs
    return None


def _learned(folder: Path) -> tuple[KnownMap | None, SmallVectors]:
    small = read_small_vectors(folder)
    if small is None:
        settings = read_settings(folder)
        # A linear head gives values of both signs. Of other networks that is not known.
        small = without_documents(settings["dim"], unit=settings["normalise"], two_sided=settings["head"])
    return read_map(folder), small
