"""What was found out about a file before it is decoded."""

from dataclasses import dataclass

MOST_PARTS = 1_000_000  # segments, chunks or blocks of a file that are looked at; real files have a few, or thousands
BAND_PIXELS = 1 << 20  # a large picture becomes RGB in bands of so many pixels
BAND_BYTES = 16  # of a pixel, while it does
RGB_BYTES = 3  # of a pixel of the result
TURNED_BYTES = 4  # of a pixel of the copy that is the turned picture


@dataclass(frozen=True)
class Stored:
    """A file as it is given to the codec.

    Attributes:
        data: The file without what the pixels do not need.
        width, height: In pixels, before the picture is turned upright.
        pixel_bytes: Memory that a pixel takes in the codec and in its result.
        orientation: 1 to 8, as in EXIF.
        codec_bytes: Memory that the codec takes besides, at any scale.
        by_bytes: Whether the codec reads byte by byte, so that looking at the time would take longer than decoding.
    """

    data: bytes
    width: int
    height: int
    pixel_bytes: int = 4
    orientation: int = 1
    codec_bytes: int = 0
    by_bytes: bool = False

    def memory(self, scale: int = 1) -> int:
        """Return the bytes that decoding will take at most, at a `scale`-th of each side."""
        pixels = (self.width // scale + 1) * (self.height // scale + 1)
        result = RGB_BYTES if self.orientation == 1 else max(RGB_BYTES, TURNED_BYTES)
        band = min(pixels, BAND_PIXELS) * BAND_BYTES
        return pixels * (self.pixel_bytes + result) + band + self.codec_bytes + len(self.data)


class TooCostly(ValueError):
    """The file would take a codec too long. `str(error)` says what it has too much of."""


def joined(data: bytes, kept: list[tuple[int, int]], before: bytes = b"") -> bytes:
    """Return `before` and the parts of `data` from the first to before the second number of each pair."""
    view = memoryview(data)
    return b"".join([before, *(view[start:end] for start, end in kept)])
