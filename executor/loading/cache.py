"""Keep decoded images and features of a run in a file, as numbered records of one size; the file grows on demand."""

import os
import tempfile
import threading
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..errors import WorkspaceError
from ..store.files import unwritable

_MARK_BYTES = 8


class Records:
    """Byte strings of one size. A second file holds a checksum for each.

    If the writer is killed half-way, the checksum does not match; such a record counts as absent. Threads may share an
    instance.

    Args: size: bytes per record. path: the file; by default a temporary one, which `close` removes.
    """

    def __init__(self, size: int, path: Path | None = None) -> None:
        self.size = size
        self._temporary = tempfile.TemporaryDirectory(prefix="finetuner-") if path is None else None
        self.path = Path(self._temporary.name) / "records" if self._temporary is not None else Path(str(path))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._records = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._marks = os.open(f"{self.path}.sums", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def get(self, number: int) -> bytes | None:
        """Return record `number`, or None if it is not kept."""
        mark = os.pread(self._marks, _MARK_BYTES, number * _MARK_BYTES)
        if len(mark) < _MARK_BYTES or not any(mark):
            return None
        record = os.pread(self._records, self.size, number * self.size)
        if len(record) < self.size or int.from_bytes(mark, "little") != 1 + zlib.crc32(record):
            return None
        return record

    def put(self, number: int, record: bytes) -> None:
        """Keep record `number`. Raises: WorkspaceError: the disk is full or cannot be written."""
        mark = (1 + zlib.crc32(record)).to_bytes(_MARK_BYTES, "little")
        try:
            os.pwrite(self._records, record, number * self.size)
            os.pwrite(self._marks, mark, number * _MARK_BYTES)
        except OSError as error:
            raise unwritable("the cache", self.path.parent, error) from error

    def close(self) -> None:
        """Close the files and remove temporary ones."""
        os.close(self._records)
        os.close(self._marks)
        if self._temporary is not None:
            self._temporary.cleanup()


class ImageCache:
    """Decoded images of a dataset, size × size × 3 uint8, by item index. Threads may share an instance.

    Images that would lie beyond `max_bytes` are not kept. Once the disk is full, no more images are kept.

    Args: size: side in pixels. path: the file; by default a temporary one, which `close` removes. max_bytes: limit for
        the file. warn: called once with a message, when the disk is full.
    """

    def __init__(
        self,
        size: int,
        path: Path | None = None,
        *,
        max_bytes: int = 8 * 2**30,
        warn: Callable[[str], None] = lambda note: None,
    ) -> None:
        self.size = size
        self._records = Records(size * size * 3, path)
        self._max_records = max_bytes // self._records.size
        self._warn = warn
        self._lock = threading.Lock()

    def get(self, index: int) -> np.ndarray | None:
        """Return the image of item `index`, read-only, or None if it is not kept."""
        record = self._records.get(index)
        return None if record is None else np.frombuffer(record, np.uint8).reshape(self.size, self.size, 3)

    def put(self, index: int, image: np.ndarray) -> None:
        """Keep the image of item `index` if there is room."""
        if index >= self._max_records:
            return
        try:
            self._records.put(index, image.tobytes())
        except WorkspaceError as error:
            with self._lock:
                told, self._max_records = self._max_records == 0, 0
            if not told:
                self._warn(f"{error} Images are decoded anew whenever they are needed.")

    def close(self) -> None:
        """Close the files and remove temporary ones."""
        self._records.close()


class FeatureCache:
    """Feature vectors, (size,) float32, by row, read through a memory map.

    A row counts as kept when `put` has written it here, or `missing` has found a matching checksum in the file.

    Args: rows: the largest number of rows. size: length of a vector. path: the file; by default a temporary one.
    """

    def __init__(self, rows: int, size: int, path: Path | None = None) -> None:
        self._records = Records(4 * size, path)
        whole = rows * self._records.size
        if self._records.path.stat().st_size < whole:
            os.truncate(self._records.path, whole)  # a memory map cannot grow; the empty part takes no disk space
        self._values = np.memmap(self._records.path, np.float32, "r", shape=(rows, size))
        self._known = np.zeros(rows, bool)

    def missing(self, rows: np.ndarray) -> np.ndarray:
        """Return the rows among `rows` that are not kept, each once, in ascending order."""
        unknown = np.unique(rows[~self._known[rows]])
        for row in unknown:
            self._known[row] = self._records.get(int(row)) is not None
        absent: np.ndarray = unknown[~self._known[unknown]]
        return absent

    def put(self, rows: np.ndarray, features: np.ndarray) -> None:
        """Keep `features` (n, size) as `rows` (n,). Raises: WorkspaceError: the disk is full or cannot be written."""
        for row, vector in zip(rows, np.asarray(features, np.float32), strict=True):
            self._records.put(int(row), vector.tobytes())
        self._known[rows] = True

    def get(self, rows: np.ndarray) -> np.ndarray:
        """Return a copy of `rows` (n,), (n, size) float32. Raises: KeyError: a row is not kept."""
        if not self._known[rows].all():
            raise KeyError(f"rows {rows[~self._known[rows]].tolist()} are not in the cache")
        return np.asarray(self._values[rows])

    def close(self) -> None:
        """Close the files and remove temporary ones."""
        del self._values
        self._records.close()
