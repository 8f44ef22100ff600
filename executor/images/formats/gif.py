"""GIF: the blocks before its first frame (GIF89a)."""

import struct

from .stored import MOST_PARTS, Stored, TooCostly

_SCREEN_BYTES = 13
_EXTENSION, _FRAME, _END = b"!", b",", b";"
_CONTROL = 0xF9  # says which colour is transparent


def read(data: bytes) -> Stored:
    """Raises: TooCostly: the file has too many blocks. ValueError, struct.error: it has no frame."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    position = palette_end = _SCREEN_BYTES + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    control = b""
    for _ in range(MOST_PARTS):
        kind = data[position : position + 1]
        if kind == _FRAME:
            left, top, wide, high = struct.unpack_from("<HHHH", data, position + 1)
            stored = data[:palette_end] + control + data[position:]
            return Stored(stored, max(width, left + wide), max(height, top + high), pixel_bytes=1)
        if kind in (b"", _END):
            raise ValueError("it has no frame")
        if kind != _EXTENSION:
            position += 1  # between blocks there should be nothing
            continue
        end = _end_of_blocks(data, position + 2)
        if data[position + 1] == _CONTROL:
            control = data[position:end]
        position = end
    raise TooCostly(f"it has more than {MOST_PARTS} blocks before its first frame")


def _end_of_blocks(data: bytes, position: int) -> int:
    """Return where a chain of blocks ends: with one of no bytes."""
    for _ in range(MOST_PARTS):
        length = data[position]
        position += 1 + length
        if not length:
            return position
    raise TooCostly(f"it has a comment of more than {MOST_PARTS} blocks")
