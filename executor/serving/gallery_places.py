"""Where galleries may be: folders with pictures, and files that `embed` wrote, not far below the allowed roots."""

import os
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..images.uris import is_unicode
from .gallery import ENDINGS, is_embedded

NAMED_DEPTH = 2  # folders so far below a root are named;
LOOKED_DEPTH = 4  # those below them are only looked into for pictures
MOST_FOLDERS = 200  # that are looked into, and
MOST_ENTRIES = 300  # in each of them
MOST_TABLES = 200  # parquet files that are looked into
TRUSTED_SECONDS = 30.0  # before they are looked for anew


class GalleryPlaces:
    """The places that can be named, looked for when they are asked for, and not too often."""

    def __init__(self, roots: Sequence[str], workspace: Path) -> None:
        self._roots = roots
        self._workspace = workspace
        self._lock = threading.Lock()
        self._found: tuple[float, list[tuple[Path, str]]] | None = None

    def all(self) -> list[tuple[Path, str]]:
        """Return them as `places_of` does."""
        with self._lock:
            if self._found is None or time.monotonic() - self._found[0] > TRUSTED_SECONDS:
                self._found = time.monotonic(), places_of(self._roots, self._workspace)
            return self._found[1]


def places_of(roots: Sequence[str], workspace: Path) -> list[tuple[Path, str]]:
    """Return places that can be named as galleries, each with `folder` or `parquet`, a root before what is in it.

    Large trees are looked at in part only: any other place may be named all the same.

    Args: workspace: is passed over.
    """
    found: dict[Path, str] = {}
    tables: list[Path] = []
    for root in map(Path, roots):
        for place, sort in _below(root, workspace):
            depth = len(place.relative_to(root).parts)
            for named in (place, *place.parents)[max(0, depth - NAMED_DEPTH) : depth + 1] if sort == "folder" else ():
                found[named] = sort
            if sort == "parquet" and depth <= NAMED_DEPTH + 1:
                tables.append(place)
    found |= {table: "parquet" for table in tables[:MOST_TABLES] if is_embedded(table)}
    return sorted(found.items())


def _below(root: Path, workspace: Path) -> Iterator[tuple[Path, str]]:
    """Yield the folders that have pictures in them, and parquet files."""
    looked = 0
    waiting = [(root, 0)]
    while waiting and looked < MOST_FOLDERS:
        folder, depth = waiting.pop(0)
        looked += 1
        folders, pictures, tables = _entries(folder)
        if pictures:
            yield folder, "folder"
        yield from ((each, "parquet") for each in tables)
        if depth < LOOKED_DEPTH:
            waiting += [(each, depth + 1) for each in folders if each != workspace]


def _entries(folder: Path) -> tuple[list[Path], bool, list[Path]]:
    folders: list[Path] = []
    tables: list[Path] = []
    pictures = False
    try:
        with os.scandir(folder) as entries:
            for number, entry in enumerate(entries):
                if number >= MOST_ENTRIES:
                    break
                ending = os.path.splitext(entry.name)[1].lower()
                if entry.name.startswith((".", "__")) or not is_unicode(entry.name):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    folders.append(Path(entry.path))
                pictures = pictures or ending in ENDINGS
                if ending == ".parquet" and entry.is_file(follow_symlinks=False):
                    tables.append(Path(entry.path))
    except OSError:  # it may not be read, or has just been removed
        pass
    return sorted(folders), pictures, sorted(tables)
