"""JPEG: the segments before the first scan, and how many scans there are (ITU-T T.81, annex B)."""

import re
import struct
from collections.abc import Iterator
from math import ceil
from typing import NamedTuple

from ..orientation import orientation
from .stored import MOST_PARTS, Stored, TooCostly, joined

_SOS, _EOI = 0xDA, 0xD9
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # markers that start a frame
_PROGRESSIVE = (0xC2, 0xC6, 0xCA, 0xCE)
_METADATA = frozenset(range(0xE0, 0xF0)) | {0xFE}  # APP0 to APP15, and comments
_COLOURS = (b"JFIF\0", b"Adobe")  # those that say how colours are stored
_BARE = frozenset(range(0xD0, 0xDA)) | {0x00, 0x01}  # nothing follows these markers
_EXIF, _XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
_NEXT_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")  # within the data of a scan
MOST_TABLE_BYTES = 1 << 18  # before the first scan; all tables that there can be have 3 kB
# Blocks of 8×8 that are visited, over all scans. A visit takes 3 to 60 ns, even where a scan has next to no data. A
# picture of 64 megapixels without subsampling, stored in the usual ten scans, has 12 million.
MOST_BLOCK_VISITS = 40_000_000
SCAN_VISITS = 1000  # what it costs to begin a scan
COEFFICIENT_BYTES = 128  # of a block, which is kept where there are several scans


class _Segment(NamedTuple):
    marker: int
    start: int
    begin: int  # of what it holds
    end: int


class _Frame(NamedTuple):
    width: int
    height: int
    components: int
    blocks: int
    progressive: bool


def read(data: bytes) -> Stored:
    """Raises: TooCostly: the file has too many scans or tables. ValueError, struct.error: it has no picture."""
    kept = [(0, 2)]
    frame: _Frame | None = None
    exif = xmp = None
    colours: set[bytes] = set()
    for segment in _segments(data):
        if segment.marker == _SOS:
            if frame is None:
                raise ValueError("it has a scan without a frame")
            several = frame.progressive or data[segment.begin] < frame.components
            if several:
                _check_scans(data, segment.start, frame)
            kept.append((segment.start, len(data)))
            return Stored(
                joined(data, kept),
                frame.width,
                frame.height,
                pixel_bytes=1 if frame.components == 1 else 4,
                orientation=orientation(exif, xmp),
                codec_bytes=COEFFICIENT_BYTES * frame.blocks if several else 0,
            )
        if segment.marker in _METADATA:
            if exif is None and data.startswith(_EXIF, segment.begin):
                exif = data[segment.begin : segment.end]
            elif xmp is None and data.startswith(_XMP, segment.begin):
                xmp = data[segment.begin : segment.end]
            name = data[segment.begin : segment.begin + 5]
            if name not in _COLOURS or name in colours:
                continue
            colours.add(name)
        elif segment.marker in _FRAMES and frame is None:
            frame = _frame(data, segment)
        kept.append((segment.start, segment.end))
    raise ValueError("it ends before the picture begins")


def _segments(data: bytes) -> Iterator[_Segment]:
    """Yield the segments up to the first scan; what lies between them is skipped, as codecs do."""
    position, tables = 2, 0
    for _ in range(MOST_PARTS):
        position = data.find(b"\xff", position)
        if not 0 <= position < len(data) - 4:
            return
        marker = data[position + 1]
        if marker == 0xFF or marker in _BARE:
            position += 1 if marker == 0xFF else 2
            continue
        end = position + 2 + max(2, int.from_bytes(data[position + 2 : position + 4], "big"))
        yield _Segment(marker, position, position + 4, end)
        tables += 0 if marker in _METADATA else end - position
        if tables > MOST_TABLE_BYTES:
            raise TooCostly(f"it has more than {MOST_TABLE_BYTES} bytes of tables")
        position = end
    raise TooCostly(f"it has more than {MOST_PARTS} segments")


def _frame(data: bytes, segment: _Segment) -> _Frame:
    height, width, components = struct.unpack_from(">HHB", data, segment.begin + 1)
    sampling = [data[at] for at in range(segment.begin + 7, segment.end, 3)][:components]
    areas = [(each >> 4) * (each & 15) for each in sampling]
    share = sum(areas) / max(areas, default=1) if all(areas) and areas else components
    blocks = ceil(ceil(width / 8) * ceil(height / 8) * share)
    return _Frame(width, height, components, blocks, segment.marker in _PROGRESSIVE)


def _check_scans(data: bytes, first: int, frame: _Frame) -> None:
    """Raises: TooCostly: the scans together visit too many blocks."""
    if data.count(bytes((0xFF, _SOS)), first) * (frame.blocks + SCAN_VISITS) <= MOST_BLOCK_VISITS:
        return  # at a glance: the bytes of a marker may also stand for something else, but not the other way round
    visits = position = 0
    for number in range(MOST_PARTS):
        found = _NEXT_MARKER.search(data, first if not number else position)
        if found is None or found[1][0] == _EOI:
            return
        position = found.end()
        if found[1][0] == _SOS:
            components = data[position + 2] if position + 2 < len(data) else 0
            visits += frame.blocks * components // max(1, frame.components) + SCAN_VISITS
        if visits > MOST_BLOCK_VISITS:
            raise TooCostly(f"it has too many scans for {frame.width}×{frame.height} pixels")
        if found[1][0] not in _BARE:
            position += int.from_bytes(data[position : position + 2], "big")
    raise TooCostly(f"it has more than {MOST_PARTS} segments")
