"""WebP: the chunks of its first frame (RFC 9649)."""

import struct

from ..orientation import orientation
from .stored import MOST_PARTS, Stored

_HEADER_BYTES = 12
_ALPHA, _ANIMATION = 0x10, 0x02  # flags of VP8X
# A canvas, the one before it, the frame as bytes and as an image: its decoder makes all of these.
PIXEL_BYTES = 16


def read(data: bytes) -> Stored:
    """Raises: ValueError, struct.error: the file has no picture."""
    chunks: list[bytes] = []
    size: tuple[int, int] | None = None
    exif = xmp = None
    complete = False
    position = _HEADER_BYTES
    for _ in range(MOST_PARTS):
        if position + 8 > len(data):
            break
        name, length = struct.unpack_from("<4sI", data, position)
        begin, start = position + 8, position
        position = begin + length + (length & 1)
        if name == b"EXIF":
            exif = exif or data[begin : begin + length]
        elif name == b"XMP ":
            xmp = xmp or data[begin : begin + length]
        elif not complete and name in (b"VP8X", b"ANIM", b"ALPH", b"VP8 ", b"VP8L", b"ANMF"):
            complete = name in (b"VP8 ", b"VP8L", b"ANMF")
            size = size or _size(name, data, begin)
            chunk = data[start:position]
            chunks.append(_without_metadata_flags(chunk) if name == b"VP8X" else chunk)
    if size is None:
        raise ValueError("it has no picture")
    body = b"".join(chunks)
    header = struct.pack("<4sI4s", b"RIFF", len(body) + 4, b"WEBP")
    return Stored(header + body, *size, PIXEL_BYTES, orientation(exif, xmp))


def _size(name: bytes, data: bytes, begin: int) -> tuple[int, int] | None:
    if name == b"VP8X":
        return _three_bytes(data, begin + 4) + 1, _three_bytes(data, begin + 7) + 1
    if name == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, begin + 6)
        return width & 0x3FFF, height & 0x3FFF
    if name == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, begin + 1)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return None


def _three_bytes(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 3], "little")


def _without_metadata_flags(chunk: bytes) -> bytes:
    return chunk[:8] + bytes([chunk[8] & (_ALPHA | _ANIMATION)]) + chunk[9:]
