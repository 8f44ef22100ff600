"""Decoded images of a dataset, by item index, in a file that grows as they come."""

import os
import tempfile
import zlib
from pathlib import Path

import numpy as np

_MARK_BYTES = 8


class ImageCache:
    """size × size × 3 uint8 records, each with a checksum of its own in a second file.

    A record whose checksum does not fit, because its writer was killed half-way, counts as absent. Threads may share
    an instance. Records that would lie beyond `max_bytes` are not kept.

    Args: size: pixels. path: of the file; by default a temporary one, removed by `close`. max_bytes: of the file.
    """

    def __init__(self, size: int, path: Path | None = None, *, max_bytes: int = 8 * 2**30) -> None:
        self.size = size
        self._record = size * size * 3
        self._max_records = max_bytes // self._record
        self._temporary = tempfile.TemporaryDirectory(prefix="finetuner-") if path is None else None
        images = Path(self._temporary.name) / "images" if self._temporary is not None else Path(str(path))
        images.parent.mkdir(parents=True, exist_ok=True)
        self._images = os.open(images, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._marks = os.open(f"{images}.sums", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def get(self, index: int) -> np.ndarray | None:
        """The image of item `index`, read-only, or None."""
        mark = os.pread(self._marks, _MARK_BYTES, index * _MARK_BYTES)
        if len(mark) < _MARK_BYTES or not any(mark):
            return None
        record = os.pread(self._images, self._record, index * self._record)
        if len(record) < self._record or int.from_bytes(mark, "little") != 1 + zlib.crc32(record):
            return None
        return np.frombuffer(record, np.uint8).reshape(self.size, self.size, 3)

    def put(self, index: int, image: np.ndarray) -> None:
        """Keep the image of item `index`."""
        if index >= self._max_records:
            return
        record = image.tobytes()
        os.pwrite(self._images, record, index * self._record)
        os.pwrite(self._marks, (1 + zlib.crc32(record)).to_bytes(_MARK_BYTES, "little"), index * _MARK_BYTES)

    def close(self) -> None:
        """Close the files; a temporary cache is removed."""
        os.close(self._images)
        os.close(self._marks)
        if self._temporary is not None:
            self._temporary.cleanup()
