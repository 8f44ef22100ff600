"""BMP: the header, as Windows and OS/2 write it."""

import struct

from .stored import Stored, TooCostly

_RUN_LENGTHS = (1, 2)  # the compressions RLE8 and RLE4
# Pillow decodes run lengths in Python: 0.06 µs a pixel that a line's end fills in, and no other thread runs meanwhile.
MOST_RUN_LENGTH_PIXELS = 16_000_000


def read(data: bytes) -> Stored:
    """Raises: TooCostly: it is compressed by run lengths, and large. struct.error: the header ends early."""
    (header_bytes,) = struct.unpack_from("<I", data, 14)
    if header_bytes == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
        compression = 0
    else:
        width, height, _, bits, compression = struct.unpack_from("<iiHHI", data, 18)
    width, height = abs(width), abs(height)
    if compression in _RUN_LENGTHS and width * height > MOST_RUN_LENGTH_PIXELS:
        raise TooCostly(f"it has {width}×{height} pixels compressed by run lengths")
    unpacked = 2 if compression in _RUN_LENGTHS else 0  # the decoder's own copies
    return Stored(data, width, height, pixel_bytes=(1 if bits <= 8 else 4) + unpacked)
