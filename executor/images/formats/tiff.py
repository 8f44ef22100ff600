"""TIFF: what its first directory says of the pixels (TIFF 6.0, BigTIFF)."""

import struct
from math import ceil
from typing import NamedTuple

from ..orientation import orientation
from .stored import Stored, TooCostly

_WIDTH, _HEIGHT, _BITS, _STRIPS, _SAMPLES, _ROWS, _PLANES = 256, 257, 258, 273, 277, 278, 284
_TILE_WIDTH, _TILE_HEIGHT, _TILES, _FORMAT = 322, 323, 324, 339
_ORIENTATION, _XMP = 274, 700
# The tags that codecs need. All others are metadata: private ones, colour profiles, EXIF, further pictures.
_NEEDED = {
    *(_WIDTH, _HEIGHT, _BITS, 259, 262, 266, _STRIPS, _SAMPLES, _ROWS, 279, _PLANES, 292, 293, 317, 320),
    *(_TILE_WIDTH, _TILE_HEIGHT, _TILES, 325, 332, 334, 338, _FORMAT, 347, 50674),
    *range(512, 522),  # JPEG within TIFF, as it was done first
    *range(529, 533),  # YCbCr
}
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_NUMBERS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q"}
_REAL = (32, 64)  # bits of a sample that are converted through floats
MOST_ENTRIES = 4096  # of a directory that are looked at
SPARE_STRIPS = 16  # strips that there may be beyond those that the picture needs, and twice those
LEAST_STRIP_PIXELS = 1 << 24  # a strip or tile of so many pixels may be larger than the picture


class _Layout(NamedTuple):
    """How numbers are written in one of the two forms."""

    order: str
    offset_type: str
    header_bytes: int
    number_type: str  # of the number of entries
    entry_bytes: int


class _Entry(NamedTuple):
    tag: int
    kind: int
    values: int
    raw: bytes
    value_at: int


def read(data: bytes) -> Stored:
    """Raises: TooCostly: the file has too many or too large strips. ValueError, struct.error: it has no directory."""
    layout = _layout(data)
    entries = _entries(data, layout)
    numbers = {tag: _number(data, layout, entry) for tag, entry in entries.items()}
    width, height = numbers.get(_WIDTH) or 0, numbers.get(_HEIGHT) or 0
    samples, bits = numbers.get(_SAMPLES) or 1, numbers.get(_BITS) or 1
    strip_pixels = _check_strips(entries, numbers, width, height, samples)
    xmp = entries.get(_XMP)
    stored = Stored(
        _with_directory(data, layout, [entry for tag, entry in sorted(entries.items()) if tag in _NEEDED]),
        width,
        height,
        pixel_bytes=_pixel_bytes(bits, samples),
        orientation=orientation(_as_exif(layout, numbers.get(_ORIENTATION)), xmp and _bytes_of(data, xmp)),
        codec_bytes=strip_pixels * max(1, samples) * max(1, ceil(bits / 8)),
    )
    return stored


def _layout(data: bytes) -> _Layout:
    order = "<" if data[:2] == b"II" else ">"
    (magic,) = struct.unpack_from(f"{order}H", data, 2)
    return _Layout(order, "Q", 16, "Q", 20) if magic == 43 else _Layout(order, "I", 8, "H", 12)


def _entries(data: bytes, layout: _Layout) -> dict[int, _Entry]:
    order, offset, header, count, size = layout
    (directory,) = struct.unpack_from(order + offset, data, header - struct.calcsize(offset))
    (number,) = struct.unpack_from(order + count, data, directory)
    entries: dict[int, _Entry] = {}
    first = directory + struct.calcsize("=" + count)
    for at in range(first, first + min(number, MOST_ENTRIES) * size, size):
        if at + size > len(data):
            break
        tag, kind, values = struct.unpack_from(f"{order}HH{offset}", data, at)
        value_at = at + 4 + struct.calcsize("=" + offset)
        if values * _TYPE_BYTES.get(kind, 1) > struct.calcsize("=" + offset):
            (value_at,) = struct.unpack_from(order + offset, data, value_at)
        if kind in _TYPE_BYTES and tag not in entries:
            entries[tag] = _Entry(tag, kind, values, data[at : at + size], value_at)
    return entries


def _number(data: bytes, layout: _Layout, entry: _Entry) -> int | None:
    """Return the first number of an entry."""
    form = layout.order + _NUMBERS.get(entry.kind, "x")
    if entry.kind not in _NUMBERS or entry.values < 1 or entry.value_at + struct.calcsize(form) > len(data):
        return None
    return int(struct.unpack_from(form, data, entry.value_at)[0])


def _bytes_of(data: bytes, entry: _Entry) -> bytes:
    return data[entry.value_at : entry.value_at + entry.values * _TYPE_BYTES[entry.kind]]


def _check_strips(
    entries: dict[int, _Entry], numbers: dict[int, int | None], width: int, height: int, samples: int
) -> int:
    """Return the pixels of a strip or tile. Raises: TooCostly: there are too many of them, or they are too large."""
    wide = numbers.get(_TILE_WIDTH) or width
    high = numbers.get(_TILE_HEIGHT) or min(numbers.get(_ROWS) or height, height)
    if not wide or not high:
        return 0
    planes = samples if numbers.get(_PLANES) == 2 else 1
    needed = ceil(width / wide) * ceil(height / high) * planes
    for tag in (_STRIPS, _TILES):
        if tag in entries and entries[tag].values > 2 * needed + SPARE_STRIPS:
            raise TooCostly(f"it has {entries[tag].values} strips or tiles and needs {needed}")
    if wide * high > max(width * height, LEAST_STRIP_PIXELS):
        raise TooCostly(f"its tiles have {wide}×{high} pixels")
    return wide * high


def _pixel_bytes(bits: int, samples: int) -> int:
    if bits in _REAL and samples == 1:
        return 20  # the picture, and what becomes of it when its values are scaled
    if samples == 1:
        return 2 if bits > 8 else 1
    return 4


def _as_exif(layout: _Layout, number: int | None) -> bytes | None:
    """Return EXIF with nothing but an orientation."""
    if number is None:
        return None
    mark = b"II" if layout.order == "<" else b"MM"
    return mark + struct.pack(f"{layout.order}HIHHHIHH", 42, 8, 1, _ORIENTATION, 3, 1, number & 0xFFFF, 0)


def _with_directory(data: bytes, layout: _Layout, entries: list[_Entry]) -> bytes:
    """Return the file with another directory, at its end, and none after it."""
    order, offset, header, count, _ = layout
    padding = b"\0" * (-len(data) % 8)
    directory = struct.pack(order + count, len(entries)) + b"".join(entry.raw for entry in entries)
    end = struct.pack(order + offset, 0)
    start = struct.pack(order + offset, len(data) + len(padding))
    return b"".join([data[: header - len(start)], start, memoryview(data)[header:], padding, directory, end])
