"""What the pixels of a file need is found without its metadata, and files that would take minutes are refused."""

import io
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable

import nanoarrow
import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from executor.errors import BadDocument
from executor.images.decoding import decode_image
from executor.images.policy import ImagePolicy
from serving import ROOT

ANY = ImagePolicy()
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
PICTURE = np.kron(np.random.default_rng(0).integers(0, 256, (5, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)  # 40×64


def file(form: str, picture: Image.Image | None = None, **options: object) -> bytes:
    stored = io.BytesIO()
    (picture or Image.fromarray(PICTURE)).save(stored, form, **options)
    return stored.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def pillows(data: bytes) -> np.ndarray:
    """What Pillow alone makes of a file, without turning it."""
    return np.array(Image.open(io.BytesIO(data)).convert("RGB"))


# --- metadata spoils nothing -----------------------------------------------------------------------------------------

TURNED = (0x112, 3, 1, struct.pack("<H", 6))


def exif(*entries: tuple[int, int, int, bytes], end: bytes = bytes(4)) -> bytes:
    """A directory of EXIF: (tag, type, count, value) each."""
    directory = struct.pack("<H", len(entries))
    values = b""
    for tag, kind, count, value in entries:
        at = struct.pack("<I", 14 + 12 * len(entries) + len(values))
        directory += struct.pack("<HHI", tag, kind, count) + (value.ljust(4, b"\0") if len(value) <= 4 else at)
        values += value if len(value) > 4 else b""
    return b"II*\0" + struct.pack("<I", 8) + directory + end + values


def with_segment(content: bytes, jpeg: bytes | None = None) -> bytes:
    jpeg = jpeg or file("JPEG")
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content + jpeg[2:]


@pytest.mark.parametrize(
    ("metadata", "turned"),
    [
        (exif(TURNED), True),
        (exif(TURNED, (0x11A, 10, 1, struct.pack("<ii", -1, 0))), True),
        (exif(TURNED, (0x11A, 5, 1, bytes(8))), True),
        (exif(TURNED, (0x9999, 12, 1, struct.pack("<d", float("inf")))), True),
        (exif(TURNED, (0x8769, 4, 1, struct.pack("<I", 3))), True),
        (exif((0x112, 10, 1, struct.pack("<ii", 6, 1))), True),
        (exif((0x112, 3, 2, struct.pack("<HH", 6, 6))), True),
        (exif(TURNED, end=struct.pack("<I", 99_999)), True),
        (exif(TURNED).replace(b"II*\0", b"II\0\0"), True),
        (exif((0x112, 3, 1, struct.pack("<H", 0))), False),
        (exif((0x112, 3, 1, struct.pack("<H", 99))), False),
        (exif((0x112, 5, 1, struct.pack("<II", 6, 0))), False),
        (exif((0x112, 2, 2, b"6\0"))[:20], False),
        (b"", False),
        (b"\1\2\3", False),
        (b"II*\0\xff\xff\xff\xff", False),
    ],
)
@pytest.mark.parametrize("headers", [1, 2])
def test_a_picture_is_turned_by_its_exif_whatever_else_is_wrong_there(metadata, turned, headers):
    image = decode_image(with_segment(b"Exif\0\0" * headers + metadata), ANY)
    assert image.shape == ((64, 40, 3) if turned else (40, 64, 3))


XMP = b'<x:xmpmeta tiff:Orientation="6"/>'


def png_with_xmp(*, packed: bool) -> bytes:
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", XMP.decode(), zip=packed)
    return file("PNG", pnginfo=text)


@pytest.mark.parametrize(
    "data",
    [
        file("JPEG", xmp=XMP),
        file("WEBP", xmp=XMP),
        file("TIFF", tiffinfo={700: XMP}),
        png_with_xmp(packed=False),
        png_with_xmp(packed=True),
    ],
    ids=["JPEG", "WebP", "TIFF", "PNG", "PNG packed"],
)
def test_a_picture_is_turned_by_its_xmp_where_exif_says_nothing(data):
    assert decode_image(data, ANY).shape == (64, 40, 3)


def test_a_png_is_turned_by_the_exif_that_imagemagick_packs_into_a_text():
    content = exif(TURNED)
    text = PngImagePlugin.PngInfo()
    text.add_text("Raw profile type exif", f"\nexif\n{len(content):8}\n{content.hex()}\n", zip=True)
    assert decode_image(file("PNG", pnginfo=text), ANY).shape == (64, 40, 3)


def large_text() -> bytes:
    text = PngImagePlugin.PngInfo()
    text.add_text("workflow", "x" * 2_000_000, zip=True)
    return file("PNG", pnginfo=text)


def after_the_header(*chunks: bytes) -> bytes:
    png = file("PNG")
    return png[:33] + b"".join(chunks) + png[33:]


BROKEN_PNG = {
    "text of 2 MB": large_text,
    "profile of 2 MB": lambda: file("PNG", icc_profile=bytes(2_000_000)),
    "profile that is none": lambda: after_the_header(chunk(b"iCCP", b"x\0\7nothing")),
    "text with a wrong check sum": lambda: after_the_header(chunk(b"tEXt", b"a\0b")[:-4] + b"0000"),
    "text of an unknown compression": lambda: after_the_header(chunk(b"zTXt", b"a\0\x09b")),
    "transparency cut short": lambda: after_the_header(chunk(b"tRNS", b"\0")),
    "transparency with a wrong check sum": lambda: after_the_header(chunk(b"tRNS", bytes(6))[:-4] + b"0000"),
    "an animation without frames": lambda: after_the_header(chunk(b"acTL", b"")),
    "a frame larger than the picture": lambda: after_the_header(
        chunk(b"acTL", struct.pack(">II", 1, 0)),
        chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 999, 999, 0, 0, 1, 1, 0, 0)),
    ),
    "gamma cut short": lambda: after_the_header(chunk(b"gAMA", b"\0")),
    "text cut off after the picture": lambda: file("PNG")[:-12] + b"\0\0\xff\xfftEXtabc",
    "100,000 empty texts": lambda: after_the_header(*[chunk(b"tEXt", b"")] * 100_000),
}


@pytest.mark.parametrize("name", BROKEN_PNG)
def test_a_png_is_shown_whatever_its_other_chunks_hold(name):
    np.testing.assert_array_equal(decode_image(BROKEN_PNG[name](), ANY), PICTURE)


def test_a_jpeg_is_shown_whatever_its_other_segments_hold():
    plain = file("JPEG")
    for content in (b"Exif\0\0" + bytes(60_000), b"ICC_PROFILE\0\1\2", b"Photoshop 3.0\x008BIM", b"MPF\0"):
        np.testing.assert_array_equal(decode_image(with_segment(content, plain), ANY), pillows(plain))
    many = plain[:2] + with_segment(b"Exif\0\0" + b"x" * 10, b"\xff\xd8")[2:] * 50_000 + plain[2:]
    np.testing.assert_array_equal(decode_image(many, ANY), pillows(plain))


def test_a_tiff_is_shown_whatever_its_other_tags_hold():
    tiff = file("TIFF", description="x" * 100, resolution=72, icc_profile=b"profile")
    start = struct.unpack_from("<I", tiff, 4)[0]
    broken = bytearray(tiff)
    for entry in range(start + 2, start + 2 + 12 * struct.unpack_from("<H", tiff, start)[0], 12):
        if struct.unpack_from("<H", tiff, entry)[0] in (270, 282, 283, 34675):
            struct.pack_into("<HII", broken, entry + 2, 5, 2**31, 2**31)
    np.testing.assert_array_equal(decode_image(bytes(broken), ANY), PICTURE)


def test_a_tiff_of_measurements_is_refused_as_a_picture_that_has_no_pixels():
    heights = Image.fromarray(np.linspace(-3, 900.5, 64, dtype=np.float32).reshape(8, 8))
    with pytest.raises(BadDocument, match=r"^A picture of shape \(8, 8\) .* its values, -3.0 to 900.5, are neither"):
        decode_image(file("TIFF", heights), ANY)


def test_a_gif_is_shown_whatever_its_comments_hold():
    gif = file("GIF")
    after_the_palette = 13 + (3 << (gif[10] & 7) + 1)
    comment = b"!\xfe" + b"\1A" * 200_000 + b"\0"
    np.testing.assert_array_equal(
        decode_image(gif[:after_the_palette] + comment * 3 + gif[after_the_palette:], ANY), pillows(gif)
    )


def test_of_an_animation_the_first_frame_is_taken_and_metadata_behind_it_is_read():
    frames = [Image.fromarray(np.roll(PICTURE, 8 * turn, axis=1)) for turn in range(3)]
    orientation = Image.Exif()
    orientation[0x112] = 6
    options = {"save_all": True, "append_images": frames[1:], "exif": orientation.tobytes(), "lossless": True}
    image = decode_image(file("WEBP", frames[0], **options), ANY)
    np.testing.assert_array_equal(image, np.rot90(PICTURE, -1))


# --- what they cost --------------------------------------------------------------------------------------------------


def scans(side: int, count: int) -> bytes:
    """A progressive JPEG whose scans hold next to nothing, and visit all its blocks each."""

    def packed(bits: str) -> bytes:
        bits += "1" * (-len(bits) % 8)
        return int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")

    blocks = (side // 8) ** 2
    tables = b"\xff\xdb" + struct.pack(">HB", 67, 0) + bytes([1] * 64)
    frame = b"\xff\xc2" + struct.pack(">HBHHB", 11, 8, side, side, 1) + b"\1\x11\0"
    dc = b"\xff\xc4" + struct.pack(">HB", 20, 0) + bytes([1] + [0] * 15) + b"\0"
    ac = b"\xff\xc4" + struct.pack(">HB", 21, 0x10) + bytes([1, 1] + [0] * 14) + b"\xe0\0"
    head = b"\xff\xda" + struct.pack(">HB", 8, 1)
    runs = "".join("0" + format(16383, "014b") for _ in range(blocks // 32767)) + "10" * (blocks % 32767)
    scan = head + b"\1\0\1\x3f\0" + packed(runs)
    return (
        b"\xff\xd8"
        + tables
        + frame
        + dc
        + ac
        + head
        + b"\1\0\0\0\0"
        + packed("0" * blocks)
        + scan * count
        + b"\xff\xd9"
    )


def strips(count: int) -> bytes:
    """A TIFF of 64×64 pixels in rows, with `count` offsets of rows."""
    pixels = 8 + 4 * count
    tags = {256: (4, 1, 64), 257: (4, 1, 64), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1), 273: (4, count, 8)}
    tags |= {277: (3, 1, 1), 278: (4, 1, 1), 279: (4, 1, 64)}
    entries = b"".join(struct.pack("<HHII", tag, *value) for tag, value in tags.items())
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    return b"II*\0" + struct.pack("<I", pixels + 4096) + struct.pack("<I", pixels) * count + bytes(4096) + directory


def tile(side: int) -> bytes:
    """A TIFF of 4×4 pixels in one packed tile of `side`×`side`."""
    packed = zlib.compress(bytes(16))
    tags = {256: (4, 1, 4), 257: (4, 1, 4), 258: (3, 1, 8), 259: (3, 1, 8), 262: (3, 1, 1), 277: (3, 1, 1)}
    tags |= {322: (4, 1, side), 323: (4, 1, side), 324: (4, 1, 8), 325: (4, 1, len(packed))}
    entries = b"".join(struct.pack("<HHII", tag, *value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<I", 8 + len(packed)) + packed + struct.pack("<H", len(tags)) + entries + bytes(4)


def run_lengths(side: int) -> bytes:
    """A BMP of one run of a pixel a line."""
    body = b"\1\7\0\0" * side + b"\0\1"
    offset = 14 + 40 + 1024
    head = b"BM" + struct.pack("<IHHI", offset + len(body), 0, 0, offset)
    return head + struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, len(body), 0, 0, 256, 0) + bytes(1024) + body


COSTLY: dict[str, tuple[Callable[[], bytes], str]] = {
    "scans": (lambda: scans(8000, 5000), "JPEG .*: it has too many scans for 8000×8000 pixels; save it anew"),
    "tables": (
        lambda: b"\xff\xd8" + file("JPEG")[20:89] * 6000 + file("JPEG")[2:],
        "it has more than 262144 bytes of tables",
    ),
    "strips": (lambda: strips(1_000_000), "TIFF .*: it has 1000000 strips or tiles and needs 64; save it anew"),
    "tile": (lambda: tile(60_000), "TIFF .*: its tiles have 60000×60000 pixels"),
    "run lengths": (lambda: run_lengths(6000), "BMP .*: it has 6000×6000 pixels and .* compressed by run lengths"),
    "chunks": (lambda: file("PNG")[:33] + chunk(b"tEXt", b"") * 1_000_001, "PNG .*: it has more than 1000000 chunks"),
}


@pytest.mark.parametrize("name", COSTLY)
def test_a_file_that_would_take_minutes_is_refused_before_it_is_decoded(name):
    make, message = COSTLY[name]
    data = make()
    began = time.thread_time()
    with pytest.raises(BadDocument, match=message):
        decode_image(data, ANY)
    assert time.thread_time() - began < 5  # of processor time, however busy the machine; unlimited they take 10 to 100


def test_a_small_jpeg_may_have_as_many_scans_as_its_author_likes():
    assert decode_image(scans(64, 3000), ANY).shape == (64, 64, 3)


def test_a_large_progressive_jpeg_is_taken():
    large = Image.fromarray(PICTURE).resize((6400, 4000))
    assert decode_image(file("JPEG", large, progressive=True, subsampling=0), ANY, min_size=500).shape == (500, 800, 3)


def test_what_follows_a_jpeg_is_not_counted_as_scans():
    """Telephones append a film to their pictures."""
    large = file("JPEG", Image.fromarray(PICTURE).resize((1600, 1000)), progressive=True)
    film = b"\xff\xda\0\1" * 100_000
    np.testing.assert_array_equal(decode_image(large + film, ANY), pillows(large))


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_is_decoded_as_pillow_alone_does(form):
    data = file(form)
    np.testing.assert_array_equal(decode_image(data, ANY), pillows(data))


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "RGBA", "LA", "1"])
def test_a_large_picture_that_is_converted_in_bands_is_the_same_as_at_once(mode):
    large = Image.fromarray(PICTURE).resize((1500, 1100)).convert(mode)
    if mode in ("RGBA", "LA"):
        large.putalpha(large.convert("L"))
        white = Image.new("RGBA", large.size, "white")
        expected = np.array(Image.alpha_composite(white, large.convert("RGBA")).convert("RGB"))
    else:
        expected = np.array(large.convert("RGB"))
    np.testing.assert_array_equal(decode_image(file("PNG", large), ANY), expected)


def test_a_picture_that_pillow_keeps_in_several_places_is_decoded():
    """Pillow does so with large pictures, or by `PILLOW_BLOCK_SIZE`, also with small ones."""
    before = Image.core.get_block_size()
    Image.core.set_block_size(4096)
    try:
        np.testing.assert_array_equal(decode_image(file("PNG"), ANY), PICTURE)
        with pytest.raises(ValueError, match="not contiguous"):
            nanoarrow.c_array(Image.fromarray(PICTURE))
    finally:
        Image.core.set_block_size(before)


TAKEN = """
import re, sys
from executor.images.decoding import decode_image
from executor.images.formats import png
from executor.images.policy import ImagePolicy

def most_so_far():  # kB; what `resource` tells includes the memory of the process that started this one
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])

data = open(sys.argv[1], "rb").read()
decode_image(open(sys.argv[2], "rb").read(), ImagePolicy())  # what is allocated once is there
before = most_so_far()
decode_image(data, ImagePolicy())
print(1024 * (most_so_far() - before) / png.read(data).memory())
"""


@pytest.mark.process
@pytest.mark.parametrize("orientation", [1, 6])
def test_decoding_takes_about_the_memory_that_is_reserved_for_it(tmp_path, orientation):
    exif_of_it = Image.Exif()
    exif_of_it[0x112] = orientation
    (tmp_path / "large").write_bytes(file("PNG", Image.new("RGBA", (4000, 3000), (9, 9, 9, 9)), exif=exif_of_it))
    (tmp_path / "small").write_bytes(file("PNG", Image.new("RGBA", (1, 1))))
    command = [sys.executable, "-c", TAKEN, str(tmp_path / "large"), str(tmp_path / "small")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert 0.5 < float(done.stdout) < 1.15
