"""BMP: the header, as Windows and OS/2 write it."""

import struct

from .stored import Stored, TooCostly

_RUN_LENGTHS = (1, 2)  # the compressions RLE8 and RLE4
# Pillow decodes run lengths in Python: 0.06 µs for a pixel that a line's end fills in, 0.3 µs for a run of two bytes.
MOST_RUN_LENGTH_PIXELS = 16_000_000
MOST_RUN_LENGTH_BYTES = 16_000_000


def read(data: bytes) -> Stored:
    """Raises: TooCostly: it is compressed by run lengths, and large. struct.error: the header ends early."""
    (header_bytes,) = struct.unpack_from("<I", data, 14)
    if header_bytes == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
        compression = 0
    else:
        width, height, _, bits, compression = struct.unpack_from("<iiHHI", data, 18)
    width, height = abs(width), abs(height)
    pixel_bytes = 1 if bits <= 8 else 4
    if compression not in _RUN_LENGTHS:
        return Stored(data, width, height, pixel_bytes)
    if width * height > MOST_RUN_LENGTH_PIXELS or len(data) > MOST_RUN_LENGTH_BYTES:
        raise TooCostly(f"it has {width}×{height} pixels and {len(data)} bytes, compressed by run lengths")
    return Stored(data, width, height, pixel_bytes + 2, by_bytes=True)  # and the decoder's own copies
