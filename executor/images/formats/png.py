"""PNG: the chunks that its pixels need (W3C, third edition). Of an animation these are its still picture."""

import struct
import zlib

from ..orientation import orientation
from .stored import MOST_PARTS, Stored, TooCostly, joined

_SIGNATURE_BYTES = 8
_FRAMING_BYTES = 12  # of a chunk: its length, its name and its check sum
_GRAY, _RGB, _PALETTE = 0, 2, 3
_TRANSPARENCY_BYTES = {_GRAY: 2, _RGB: 6, _PALETTE: 1}  # at least, by the type of colour
_XMP_KEYWORD, _EXIF_KEYWORD = b"XML:com.adobe.xmp\0", b"Raw profile type exif\0"
MOST_TEXT_BYTES = 1 << 20  # unpacked; longer texts are not looked at


def read(data: bytes) -> Stored:
    """Raises: TooCostly: the file has too many chunks. ValueError, struct.error: it has no header."""
    width, height, depth, colour = struct.unpack_from(">IIBB", data, _SIGNATURE_BYTES + 8)
    kept = [(0, _SIGNATURE_BYTES)]
    exif = xmp = None
    position = _SIGNATURE_BYTES
    for _ in range(MOST_PARTS):
        if position + 8 > len(data):
            break
        length, name = struct.unpack_from(">I4s", data, position)
        start, position = position, position + _FRAMING_BYTES + length
        if name == b"eXIf" and exif is None:
            exif = data[start + 8 : position - 4]
        elif name in (b"iTXt", b"tEXt", b"zTXt"):
            text = data[start + 8 : position - 4]
            if xmp is None and name == b"iTXt" and text.startswith(_XMP_KEYWORD):
                xmp = _international(text)
            elif exif is None and text.startswith(_EXIF_KEYWORD):
                exif = _raw_profile(text, packed=name == b"zTXt")
        elif name in (b"IHDR", b"PLTE", b"IDAT", b"IEND") or (name == b"tRNS" and _is_sound(data, start, colour)):
            if kept[-1][1] == start:
                kept[-1] = (kept[-1][0], position)
            else:
                kept.append((start, position))
        if name == b"IEND":
            break
    else:
        raise TooCostly(f"it has more than {MOST_PARTS} chunks")
    pixel_bytes = {_GRAY: 1 + (depth == 16), _PALETTE: 1}.get(colour, 4)
    return Stored(joined(data, kept), width, height, pixel_bytes, orientation(exif, xmp))


def _is_sound(data: bytes, start: int, colour: int) -> bool:
    """Whether a chunk that says what is transparent is whole. Without it the picture can still be shown."""
    (length,) = struct.unpack_from(">I", data, start)
    content = data[start + 4 : start + 8 + length]
    return length >= _TRANSPARENCY_BYTES.get(colour, 1) and data[
        start + 8 + length : start + _FRAMING_BYTES + length
    ] == zlib.crc32(content).to_bytes(4, "big")


def _unpacked(packed: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(packed, MOST_TEXT_BYTES)
    except zlib.error:
        return b""


def _international(text: bytes) -> bytes:
    rest = text[len(_XMP_KEYWORD) :]
    content = rest[2:].split(b"\0", 2)[-1]
    return _unpacked(content) if rest[:1] == b"\1" else content


def _raw_profile(text: bytes, *, packed: bool) -> bytes | None:
    """Return the EXIF that ImageMagick writes: in hexadecimal digits, after three lines."""
    content = text[len(_EXIF_KEYWORD) :]
    lines = (_unpacked(content[1:]) if packed else content).split(b"\n")
    try:
        return bytes.fromhex(b"".join(lines[3:]).decode("ascii"))
    except ValueError:
        return None
