"""Which way up a picture is, by its EXIF or XMP metadata. Whatever else is wrong with these does not matter."""

import re
import struct

from PIL.Image import Transpose

_TAG = 0x0112
_FORMATS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i"}  # the types of TIFF that hold whole numbers
_RATIONALS = {5: "II", 10: "ii"}
_XMP = re.compile(rb"tiff:Orientation(?:=[\"']|>)([1-8])\b")

# How the stored picture must be turned, by the number in its metadata
TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}


def orientation(exif: bytes | None, xmp: bytes | None = None) -> int:
    """Return the orientation, 1 to 8; 1 (upright) where it is missing or cannot be read.

    Args: exif: a TIFF header and its directories, with or without `Exif\\0\\0` before it, once or more often.
        xmp: an XMP packet. It counts where EXIF has no orientation.
    """
    found = None
    if exif:
        try:
            found = _in_exif(exif)
        except (struct.error, ZeroDivisionError):  # cut short, or garbage
            found = None
    if found is None and xmp and (match := _XMP.search(xmp)):
        found = int(match[1])
    return found if found in TURNS else 1


def _in_exif(exif: bytes) -> int | None:
    while exif.startswith(b"Exif\0\0"):
        exif = exif[6:]
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return None
    (directory,) = struct.unpack_from(f"{order}I", exif, 4)
    (count,) = struct.unpack_from(f"{order}H", exif, directory)
    for entry in range(directory + 2, directory + 2 + 12 * count, 12):
        tag, kind = struct.unpack_from(f"{order}HH", exif, entry)
        if tag == _TAG:
            return _number(exif, order, kind, entry + 8)
    return None


def _number(exif: bytes, order: str, kind: int, at: int) -> int | None:
    if kind in _FORMATS:
        return int(struct.unpack_from(order + _FORMATS[kind], exif, at)[0])
    if kind in _RATIONALS:
        (at,) = struct.unpack_from(f"{order}I", exif, at)
        above, below = struct.unpack_from(order + _RATIONALS[kind], exif, at)
        return int(above // below)
    return None
