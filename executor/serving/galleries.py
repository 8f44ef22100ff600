"""Galleries: pictures that an operator names, and that people then see page by page.

A gallery is a folder with all below it, a parquet file of the bulk command, or the train documents of a run. Its
pictures have numbers, from 0 on. Those of a run and of a file keep theirs; in a folder a new file comes in between.
"""

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from ..documents import Document
from ..errors import BadRequest
from ..images.policy import ImagePolicy
from ..images.uris import is_unicode
from ..store.cache import NOBODY
from ..store.runs import RunStore
from ..store.spool import DocumentArrayMemmap
from .gallery import COLUMNS, ENDINGS, UNSAYABLE, check_gallery

MOST_PICTURES = 1_000_000  # of a folder or a file: their names stay in memory, about 100 bytes each
KEPT_LISTS = 4  # galleries whose names stay in memory
GLANCE_SECONDS = 2.0  # so long a list is trusted before we look whether it is still right
_SHOWN = [name for name in COLUMNS if name != "embedding"]
_ROWS = 5_000  # embeddings read at a time


class Gallery(Protocol):
    """Some pictures in an order.

    Attributes: name: how it was named. owner: the number of its run, else `NOBODY`. state: equal while it has the same
        pictures. count: of pictures.
    """

    name: str
    owner: int
    state: object

    @property
    def count(self) -> int: ...

    def documents(self, start: int, stop: int) -> list[Document]:
        """Return pictures by their numbers, with id and content, as they were sent; of files the uri."""

    def vectors(self, space: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the embeddings in a space that the gallery brings along, if it does.

        (N, D) float16, and (N,) bool: which pictures have one.
        """


class FolderGallery:
    """The pictures of a folder and of all below it, by name; the id of each is its path from there.

    Those whose names are not UTF-8 are left out: neither JSON nor an address can name them.
    """

    owner = NOBODY

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.state = name, object()
        self._folder = folder.absolute()
        self._looked = time.monotonic()
        self._times: dict[str, int] = {}
        found = list(self._walk())
        self._names = sorted(filter(is_unicode, found))
        if not self._names:
            why = UNSAYABLE if found else "has no pictures, in it or below it"
            raise BadRequest(f"gallery={name!r} {why}.")

    def _walk(self) -> Iterator[str]:
        count = 0
        for place, folders, names in os.walk(self._folder):
            folders[:] = [each for each in folders if not each.startswith(".")]
            self._times[place] = _changed(place)
            below = os.path.relpath(place, self._folder)
            for name in names:
                if os.path.splitext(name)[1].lower() in ENDINGS and not name.startswith("."):
                    count += 1
                    yield name if below == "." else f"{below}/{name}"
            if count > MOST_PICTURES:
                raise BadRequest(
                    f"gallery={self.name!r} has more than {MOST_PICTURES:,} pictures; name a folder in it."
                )

    def is_current(self) -> bool:
        """Whether no file was added or removed since it was listed, as far as the folders' times say."""
        now = time.monotonic()
        if now - self._looked < GLANCE_SECONDS:
            return True
        self._looked = now
        return all(_changed(place) == at for place, at in self._times.items())

    @property
    def count(self) -> int:
        return len(self._names)

    def documents(self, start: int, stop: int) -> list[Document]:
        return [Document(id=name, uri=f"{self._folder}/{name}") for name in self._names[start:stop]]

    def vectors(self, space: str) -> None:
        return None


class TableGallery:
    """The rows of a parquet file that were embedded. Raises: BadRequest: it has other columns, or cannot be read."""

    owner = NOBODY

    def __init__(self, name: str, file: Path) -> None:
        from pyarrow import ArrowException, compute, parquet

        self.name, self.state = name, object()
        self._file = file
        self._time = _changed(str(file))
        try:
            with parquet.ParquetFile(file) as opened:
                rows, columns = opened.metadata.num_rows, opened.schema_arrow.names
            if not set(COLUMNS) <= set(columns):
                raise _unreadable(name, "was not written by `embed`")
            if rows > MOST_PICTURES:
                raise BadRequest(f"gallery={name!r} has {rows:,} rows; at most {MOST_PICTURES:,} can be shown.")
            table = parquet.read_table(file, columns=_SHOWN)
        except (ArrowException, OSError) as error:
            raise _unreadable(name, "is damaged, or was not written by `embed`") from error
        self._good = compute.is_null(table["error"]).to_numpy(zero_copy_only=False)
        self._table = table.filter(compute.is_null(table["error"])).combine_chunks()

    def is_current(self) -> bool:
        """Whether the file is the one that was read."""
        return _changed(str(self._file)) == self._time

    @property
    def count(self) -> int:
        return int(self._table.num_rows)

    def documents(self, start: int, stop: int) -> list[Document]:
        rows = self._table.slice(start, max(0, stop - start)).select(["id", "uri"]).to_pylist()
        return [Document(id=row["id"], uri=row["uri"]) for row in rows]

    def vectors(self, space: str) -> tuple[np.ndarray, np.ndarray] | None:
        from pyarrow import compute, parquet

        if compute.unique(self._table["space"]).drop_null().to_pylist() != [space]:
            return None
        found: np.ndarray | None = None
        there = np.zeros(self.count, bool)
        row = place = 0
        with parquet.ParquetFile(self._file) as opened:
            for batch in opened.iter_batches(batch_size=_ROWS, columns=["embedding"]):
                for value in batch.column(0).filter(self._good[row : row + batch.num_rows]).to_numpy(False):
                    if value is not None:
                        vector = np.asarray(value, np.float32)
                        found = np.zeros((self.count, len(vector)), np.float16) if found is None else found
                        found[place], there[place] = vector, True
                    place += 1
                row += batch.num_rows
        return None if found is None else (found, there)


class RunGallery:
    """The train documents of a run, as they were sent. Matches of sessions are not among them."""

    def __init__(self, store: RunStore, name: str) -> None:
        run = store.get(name)
        self.name, self.owner = name, run.number
        self._file = store.workspace.spool_file(name)

        self.count = self._counted()
        self.state: object = self.count

    def _counted(self) -> int:
        if not self._file.exists():
            return 0
        with DocumentArrayMemmap(self._file) as docs:
            return len(docs)

    def documents(self, start: int, stop: int) -> list[Document]:
        if not self._file.exists():
            return []
        with DocumentArrayMemmap(self._file) as docs:
            return list(docs[start:stop])

    def vectors(self, space: str) -> None:
        return None


class Galleries:
    """Opens galleries, and keeps the lists of those that were looked at last."""

    def __init__(self, store: RunStore, policy: ImagePolicy) -> None:
        self._store = store
        self._policy = policy
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, FolderGallery | TableGallery] = OrderedDict()

    def open(self, place: str | None, run: str | None) -> Gallery:
        """Return a gallery: that at a place, or that of a run.

        Raises: BadRequest: not one of the two is named, or it may not be read or has no pictures. UnknownRun.
        """
        if (place is None) == (run is None):
            raise BadRequest("Name one gallery: by 'gallery', a folder or a parquet file, or by 'run'.")
        if run is not None:
            return RunGallery(self._store, run)
        assert place is not None
        path = check_gallery(place, self._policy)
        with self._lock:  # of two who ask for the same one, the second waits for its list
            known = self._kept.get(place)
            if known is None or not known.is_current():
                known = self._kept[place] = FolderGallery(place, path) if path.is_dir() else TableGallery(place, path)
            self._kept.move_to_end(place)
            while len(self._kept) > KEPT_LISTS:
                self._kept.popitem(last=False)
            return known


def documents_at(gallery: Gallery, numbers: Sequence[int]) -> list[Document]:
    """Return the pictures with these numbers: all at once if each follows the one before it."""
    if numbers and list(numbers) == list(range(numbers[0], numbers[0] + len(numbers))):
        return gallery.documents(numbers[0], numbers[-1] + 1)
    return [doc for number in numbers for doc in gallery.documents(number, number + 1)]


def _unreadable(name: str, why: str) -> BadRequest:
    """Return the error for a parquet file that is none of the bulk command's."""
    return BadRequest(
        f"gallery={name!r} {why}: it cannot be read as a parquet file with the columns {', '.join(COLUMNS)}."
    )


def _changed(place: str) -> int:
    """When a file or folder was changed, in nanoseconds; 0: it is not there."""
    try:
        return os.stat(place).st_mtime_ns
    except OSError:
        return 0
