"""Images from uri, buffer and blob: formats, limits, allowed places, arrays."""

import base64
import binascii
import contextlib
import io
import os
import re
import struct
import subprocess
import sys
import tracemalloc
import urllib.parse
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from executor.commands.sending import loaded
from executor.documents import Document, Match
from executor.errors import BadDocument
from executor.images.arrays import image_from_array, looks_channels_first
from executor.images.decoding import decode_image
from executor.images.files import open_beneath, read_file
from executor.images.policy import ImagePolicy
from executor.images.reading import image_of, load_uri_to_image_blob
from executor.images.uris import check_uri, read_uri

ANY = ImagePolicy()
REPOSITORY = Path(__file__).parents[1]
HEIGHT, WIDTH = 24, 40
BLUE, RED = (0, 0, 255), (255, 0, 0)


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """H×W×3 uint8: smooth, so that lossy formats stay near it, and different in each corner and channel."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    return np.stack([x * 255 / (WIDTH - 1), y * 255 / (HEIGHT - 1), (x + y) * 2], axis=2).astype(np.uint8)


def encoded(image: np.ndarray | Image.Image, file_format: str, **options: object) -> bytes:
    file = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(file, file_format, **options)
    return file.getvalue()


def assert_near(image: np.ndarray, expected: np.ndarray, tolerance: float = 6) -> None:
    assert image.dtype == np.uint8
    assert image.shape == expected.shape
    assert np.abs(image.astype(float) - expected).mean() <= tolerance


# --- formats and modes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file_format", "options"),
    [
        ("PNG", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_adobe_deflate"}),
        ("WEBP", {"lossless": True}),
    ],
)
def test_a_lossless_format_is_decoded_exactly(picture, file_format, options):
    np.testing.assert_array_equal(decode_image(encoded(picture, file_format, **options), ANY), picture)


@pytest.mark.parametrize(
    ("file_format", "options"), [("JPEG", {}), ("JPEG", {"progressive": True}), ("WEBP", {}), ("GIF", {})]
)
def test_a_lossy_format_is_decoded_nearly(picture, file_format, options):
    assert_near(decode_image(encoded(picture, file_format, **options), ANY), picture)


def test_the_result_is_writable(picture):
    assert decode_image(encoded(picture, "PNG"), ANY).flags.writeable


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "BMP", "TIFF"])
def test_grayscale_becomes_three_equal_channels(picture, file_format):
    gray = picture[..., 0]
    assert_near(decode_image(encoded(gray, file_format), ANY), np.repeat(gray[..., None], 3, axis=2), 2)


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "WEBP"])
def test_transparency_is_composited_over_white(file_format):
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[:, :4] = (*RED, 0)  # unseen red
    rgba[:, 4:] = (0, 0, 0, 128)
    options = {"lossless": True, "exact": True} if file_format == "WEBP" else {}
    image = decode_image(encoded(rgba, file_format, **options), ANY)
    assert (image[:, :4] == 255).all()
    assert (image[:, 4:] == 127).all()


def test_grayscale_with_alpha_is_composited_over_white():
    image = Image.new("LA", (4, 4), (0, 0))
    assert (decode_image(encoded(image, "PNG"), ANY) == 255).all()


def test_a_palette_is_resolved():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, *BLUE])
    assert (decode_image(encoded(image, "PNG"), ANY) == BLUE).all()


@pytest.mark.parametrize("file_format", ["PNG", "GIF"])
def test_a_transparent_palette_entry_becomes_white(file_format):
    image = Image.new("P", (4, 4), 0)
    image.putpalette([*RED, *BLUE])
    image.paste(1, (0, 0, 2, 4))
    decoded = decode_image(encoded(image, file_format, transparency=0), ANY)
    assert (decoded[:, :2] == BLUE).all()
    assert (decoded[:, 2:] == 255).all()


def test_a_transparent_colour_of_a_png_becomes_white():
    assert (decode_image(encoded(Image.new("RGB", (4, 4), RED), "PNG", transparency=RED), ANY) == 255).all()


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "BMP"])
def test_one_bit_images_become_black_and_white(file_format):
    bits = np.zeros((8, 8), bool)
    bits[:, 3:] = True
    expected = np.where(bits[..., None], 255, 0).repeat(3, axis=2)
    np.testing.assert_array_equal(decode_image(encoded(Image.fromarray(bits), file_format), ANY), expected)


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_and_not_clipped(file_format):
    gray = np.array([[0, 257, 1000, 32768, 65278, 65535]], np.uint16)
    image = decode_image(encoded(gray, file_format), ANY)
    np.testing.assert_array_equal(image[0, :, 0], [0, 1, 4, 128, 254, 255])


def gray_tiff(order: str, bits: int, width: int, pixels: bytes) -> bytes:
    """A TIFF of one row, by its specification: `order` is < or >, as in struct."""
    tags = {256: width, 257: 1, 258: bits, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: len(pixels)}
    directory = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags.items())
    count, end = struct.pack(f"{order}H", len(tags)), bytes(4)
    magic = {"<": b"II*\0", ">": b"MM\0*"}[order]
    return magic + struct.pack(f"{order}I", 8 + len(pixels)) + pixels + count + directory + end


def test_a_big_endian_sixteen_bit_tiff_is_scaled():
    tiff = gray_tiff(">", 16, 3, np.array([0, 257, 65535], ">u2").tobytes())
    assert decode_image(tiff, ANY)[0, :, 0].tolist() == [0, 1, 255]


def test_a_twelve_bit_tiff_is_scaled_by_its_own_range():
    tiff = gray_tiff("<", 12, 2, b"\xff\xf0\x00")  # 4095 and 0
    assert decode_image(tiff, ANY)[0, :, 0].tolist() == [255, 0]


def test_a_float_tiff_in_0_to_1_is_scaled():
    image = decode_image(encoded(np.array([[0, 0.5, 1]], np.float32), "TIFF"), ANY)
    np.testing.assert_array_equal(image[0, :, 0], [0, 128, 255])


def test_a_float_tiff_of_another_range_is_refused():
    with pytest.raises(BadDocument, match="neither in \\[0, 1\\] nor whole numbers"):
        decode_image(encoded(np.array([[0, 812.5]], np.float32), "TIFF"), ANY)


@pytest.mark.parametrize("file_format", ["JPEG", "TIFF"])
def test_cmyk_becomes_rgb(picture, file_format):
    image = decode_image(encoded(Image.fromarray(picture).convert("CMYK"), file_format), ANY)
    assert_near(image, picture)


def test_the_first_frame_of_a_gif_is_taken():
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, BLUE, (0, 255, 0))]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (decode_image(data, ANY) == RED).all()


@pytest.mark.skipif(not features.check("webp"), reason="this Pillow has no WebP")
def test_the_first_frame_of_an_animated_webp_is_taken():
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, BLUE)]
    data = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert (decode_image(data, ANY) == RED).all()


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize(("orientation", "turns"), [(3, 2), (6, 1), (8, 3)])
def test_the_exif_orientation_is_applied(picture, file_format, orientation, turns):
    """Orientation 6 says that the camera was turned so that the stored picture must go 90° clockwise."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(np.rot90(picture, turns))  # counter-clockwise
    assert_near(decode_image(encoded(stored, file_format, exif=exif), ANY), picture)


# --- reduced decoding ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("min_size", "shape"), [(256, (480, 640)), (240, (240, 320)), (128, (240, 320)), (120, (120, 160)), (1, (60, 80))]
)
def test_a_jpeg_is_reduced_as_far_as_both_sides_stay_at_least_min_size(picture, min_size, shape):
    large = Image.fromarray(picture).resize((640, 480), Image.Resampling.BICUBIC)
    image = decode_image(encoded(large, "JPEG"), ANY, min_size=min_size)
    assert_near(image, np.asarray(large.resize(shape[::-1])))


def test_min_size_never_enlarges(picture):
    assert decode_image(encoded(picture, "JPEG"), ANY, min_size=1000).shape == picture.shape


def test_a_reduced_jpeg_is_turned_by_its_orientation_too(picture):
    exif = Image.Exif()
    exif[0x0112] = 6
    large = Image.fromarray(picture).resize((640, 480))
    assert decode_image(encoded(large, "JPEG", exif=exif), ANY, min_size=240).shape == (320, 240, 3)


def test_other_formats_keep_their_size(picture):
    assert decode_image(encoded(picture, "PNG"), ANY, min_size=4).shape == picture.shape


def test_decoding_in_many_threads_gives_the_same_as_in_one(picture):
    data = encoded(picture, "JPEG")
    expected = decode_image(data, ANY, min_size=8)
    with ThreadPoolExecutor(8) as threads:
        for image in threads.map(lambda _: decode_image(data, ANY, min_size=8), range(64)):
            np.testing.assert_array_equal(image, expected)


# --- damaged, unknown and enormous files ---------------------------------------------------------------------


@pytest.mark.parametrize("fraction", [0.5, 0.95])
@pytest.mark.parametrize("min_size", [None, 8])
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_truncated_file_is_refused_by_its_format(file_format, min_size, fraction):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(noise, file_format)
    with pytest.raises(BadDocument, match=f"{file_format} image is damaged or truncated"):
        decode_image(data[: int(len(data) * fraction)], ANY, min_size=min_size)


def heif(*brands: bytes) -> bytes:
    """The first bytes of a file of that family, and some more."""
    listed = brands[0] + bytes(4) + b"".join(brands[1:])
    return (len(listed) + 8).to_bytes(4, "big") + b"ftyp" + listed + bytes(100)


@pytest.mark.parametrize(
    ("brands", "form"),
    [((b"heic", b"mif1", b"heic"), "HEIC"), ((b"mif1", b"avif", b"miaf"), "AVIF"), ((b"avif",), "AVIF")],
)
def test_a_picture_of_a_form_that_is_not_read_is_named_whatever_its_file_is_called(brands, form):
    said = f"The image is {form}, of a form that is not read here; convert it, to JPEG for instance"
    with pytest.raises(BadDocument, match=re.escape(said)):
        decode_image(heif(*brands), ANY)


def test_a_film_is_of_an_unknown_format():
    with pytest.raises(BadDocument, match="unknown format"):
        decode_image(heif(b"isom", b"mp42"), ANY)


@pytest.mark.parametrize("source", ["uri", "buffer", "loaded"])
def test_an_empty_file_is_said_to_be_empty_however_it_comes(tmp_path, source):
    path = tmp_path / "empty.jpg"
    path.touch()
    doc = Document(buffer=b"") if source == "buffer" else Document(uri=str(path))
    with pytest.raises(BadDocument, match=r"^The file is empty: it has 0 bytes$"):
        loaded(doc) if source == "loaded" else image_of(doc)


@pytest.mark.parametrize("data", [b"hello", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%!PS-Adobe-3.0\n"])
def test_an_unknown_format_is_refused_listing_the_known_ones(data):
    with pytest.raises(BadDocument, match="unknown format; send JPEG, PNG, WebP, GIF, BMP or TIFF"):
        decode_image(data, ANY)


def test_a_format_that_pillow_knows_and_we_do_not_is_refused(picture):
    with pytest.raises(BadDocument, match="unknown format"):
        decode_image(encoded(picture, "PPM"), ANY)


def png_of_size(width: int, height: int) -> bytes:
    """A PNG header that claims a size, and a little data."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", binascii.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize(("width", "height"), [(60_000, 60_000), (10_000, 10_000), (8_001, 8_000)])
def test_a_header_with_too_many_pixels_is_refused_by_option_name(width, height):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(BadDocument, match=rf"{width}×{height} pixels, .* raise the option max_image_pixels"):
            decode_image(png_of_size(width, height), ANY)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_the_pixel_limit_holds_for_every_format(picture, file_format):
    data = encoded(picture, file_format)
    assert decode_image(data, ImagePolicy(max_image_pixels=WIDTH * HEIGHT)).shape == picture.shape
    with pytest.raises(BadDocument, match="max_image_pixels allows 959"):
        decode_image(data, ImagePolicy(max_image_pixels=WIDTH * HEIGHT - 1))


def test_pillows_own_pixel_limit_neither_warns_nor_refuses(monkeypatch, picture):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode_image(encoded(picture, "PNG"), ANY).shape == picture.shape


def test_too_many_bytes_are_refused_by_option_name(picture):
    data = encoded(picture, "PNG")
    assert decode_image(data, ImagePolicy(max_image_bytes=len(data))).shape == picture.shape
    with pytest.raises(BadDocument, match="raise the option max_image_bytes"):
        decode_image(data, ImagePolicy(max_image_bytes=len(data) - 1))


# --- documents -----------------------------------------------------------------------------------------------


@pytest.fixture
def three_sources(tmp_path: Path) -> Document:
    """A document whose uri is red, buffer blue and blob black."""
    (tmp_path / "red.png").write_bytes(encoded(Image.new("RGB", (2, 2), RED), "PNG"))
    buffer = encoded(Image.new("RGB", (2, 2), BLUE), "PNG")
    return Document(uri=str(tmp_path / "red.png"), buffer=buffer, blob=np.zeros((2, 2, 3), np.uint8))


def colour(image: np.ndarray) -> tuple[int, ...]:
    return tuple(image[0, 0].tolist())


def test_an_image_comes_from_blob_then_uri_then_buffer(three_sources):
    seen = [colour(image_of(three_sources, ANY))]
    three_sources.blob = None
    seen.append(colour(image_of(three_sources, ANY)))
    three_sources.uri = None
    seen.append(colour(image_of(three_sources, ANY)))
    assert seen == [(0, 0, 0), RED, BLUE]


def test_loading_takes_uri_then_buffer_then_blob(three_sources):
    seen = [colour(load_uri_to_image_blob(three_sources))]
    three_sources.uri = None
    seen.append(colour(load_uri_to_image_blob(three_sources)))
    three_sources.buffer = None
    seen.append(colour(load_uri_to_image_blob(three_sources)))
    assert seen == [RED, BLUE, (0, 0, 0)]


def test_loading_leaves_the_document_unchanged(three_sources):
    load_uri_to_image_blob(three_sources)
    assert colour(three_sources.blob) == (0, 0, 0)


def test_the_method_of_a_document_fills_its_blob(three_sources):
    three_sources.blob = None
    assert three_sources.load_uri_to_image_blob() is three_sources
    assert colour(three_sources.blob) == RED


def test_a_match_is_read_like_a_document(three_sources):
    assert colour(image_of(Match(uri=three_sources.uri), ANY)) == RED


@pytest.mark.parametrize("read", [image_of, load_uri_to_image_blob])
def test_a_document_without_an_image_is_told_what_to_set(read):
    with pytest.raises(BadDocument, match="no image content; set uri, buffer or blob"):
        read(Document(text="a cat"), ANY)


def test_a_buffer_that_arrived_as_base64_text_is_decoded(picture):
    doc = Document(buffer=base64.b64encode(encoded(picture, "PNG")))
    np.testing.assert_array_equal(image_of(doc, ANY), picture)


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_a_buffer_of_base64_may_have_line_breaks(picture, ending):
    text = base64.encodebytes(encoded(picture, "PNG")).decode().replace("\n", ending)
    np.testing.assert_array_equal(image_of(Document(buffer=text.encode()), ANY), picture)


def test_a_buffer_over_the_limit_is_refused(picture):
    with pytest.raises(BadDocument, match="max_image_bytes"):
        image_of(Document(buffer=encoded(picture, "PNG")), ImagePolicy(max_image_bytes=10))


def test_a_blob_over_the_pixel_limit_is_refused(picture):
    with pytest.raises(BadDocument, match="max_image_pixels"):
        image_of(Document(blob=picture), ImagePolicy(max_image_pixels=10))


def test_min_size_reaches_the_decoder(picture):
    doc = Document(buffer=encoded(Image.fromarray(picture).resize((640, 480)), "JPEG"))
    assert image_of(doc, ANY, min_size=120).shape == (120, 160, 3)


# --- paths ---------------------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A directory with `image.png`, beside one called `secret` with `image.png`."""
    for name in ("root", "secret"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "image.png").write_bytes(name.encode())
    return tmp_path / "root"


def within(*roots: Path) -> ImagePolicy:
    return ImagePolicy(allowed_roots=tuple(map(str, roots)))


def test_a_path_in_an_allowed_root_is_read(root):
    assert read_uri(f"{root}/image.png", within(root)) == b"root"


def test_a_path_in_the_second_of_two_roots_is_read(root):
    assert read_uri(f"{root}/image.png", within(root.parent / "secret", root)) == b"root"


def test_a_relative_path_is_relative_to_the_current_directory(root, monkeypatch):
    monkeypatch.chdir(root)
    assert read_uri("image.png", within(root)) == b"root"


@pytest.mark.parametrize("check", [check_uri, read_uri])
@pytest.mark.parametrize("uri", ["{parent}/secret/image.png", "{root}/../secret/image.png", "/etc/passwd", "{parent}"])
def test_a_path_outside_the_allowed_roots_is_refused(root, check, uri):
    uri = uri.format(root=root, parent=root.parent)
    with pytest.raises(BadDocument) as refused:
        check(uri, within(root))
    assert str(refused.value) == (
        f"{uri} lies outside the allowed roots; add its directory to the option allowed_roots"
    )


def test_a_file_uri_outside_the_allowed_roots_is_refused(root):
    with pytest.raises(BadDocument, match="outside the allowed roots"):
        check_uri(f"file://{root}/%2e%2e/secret/image.png", within(root))


def test_a_directory_that_only_begins_like_a_root_is_outside(root):
    with pytest.raises(BadDocument, match="outside the allowed roots"):
        check_uri(f"{root}-other/image.png", within(root))


@pytest.mark.parametrize("swapped", ["folder", "folder/deep", "folder/deep/image.png"])
def test_what_is_swapped_for_a_link_after_it_was_resolved_is_not_followed(root, swapped):
    """A program that swaps all the time was followed out of the root once in some hundred reads."""
    (root / "folder" / "deep").mkdir(parents=True)
    (root / "folder" / "deep" / "image.png").write_bytes(b"inside")
    path = f"{root}/folder/deep/image.png"
    assert read_file(path, within(root)) == b"inside"
    outside = root.parent / "secret"
    (outside / "deep").mkdir()
    (outside / "deep" / "image.png").write_bytes(b"outside")
    (root / swapped).rename(root.parent / "moved")
    (root / swapped).symlink_to(
        {"folder": outside, "deep": outside / "deep"}.get(Path(swapped).name, outside / "image.png")
    )
    with pytest.raises(BadDocument, match="a folder or link in it was replaced meanwhile; try again"):
        read_file(path, within(root))


def test_a_path_does_not_climb_out_of_its_root(root):
    with pytest.raises(OSError, match="leads out of its root"):
        open_beneath(str(root), "../secret/image.png")


def test_reading_files_leaves_none_open(root):
    before = len(os.listdir("/proc/self/fd"))
    for name in ("image.png", "nothing.png", "no/thing.png", "."):
        with contextlib.suppress(BadDocument):
            read_uri(f"{root}/{name}", within(root))
    assert len(os.listdir("/proc/self/fd")) == before


def test_no_roots_allow_no_path(root):
    with pytest.raises(BadDocument, match="outside the allowed roots"):
        check_uri(f"{root}/image.png", ImagePolicy(allowed_roots=()))


@pytest.mark.parametrize("check", [check_uri, read_uri])
@pytest.mark.parametrize("link_to", ["secret/image.png", "secret"])
def test_a_symbolic_link_that_leads_out_of_the_root_is_refused(root, check, link_to):
    (root / "link").symlink_to(root.parent / link_to)
    uri = f"{root}/link" if link_to.endswith(".png") else f"{root}/link/image.png"
    with pytest.raises(BadDocument, match="outside the allowed roots"):
        check(uri, within(root))


def test_a_symbolic_link_within_the_root_is_followed(root):
    (root / "link").symlink_to(root / "image.png")
    assert read_uri(f"{root}/link", within(root)) == b"root"


def test_a_root_may_itself_be_a_symbolic_link(root):
    (root.parent / "alias").symlink_to(root)
    assert read_uri(f"{root}/image.png", within(root.parent / "alias")) == b"root"


def test_without_roots_every_path_is_allowed(root):
    assert read_uri(f"{root}/../secret/image.png", ANY) == b"secret"


def test_a_check_does_not_need_the_file_to_exist(root):
    check_uri(f"{root}/later.png", within(root))


def test_a_missing_file_is_refused_by_its_path(root):
    with pytest.raises(BadDocument, match=r"nothing\.png cannot be read: No such file"):
        read_uri(f"{root}/nothing.png", within(root))


@pytest.mark.timeout(20)
def test_a_fifo_is_refused_without_waiting_for_its_writer(root):
    os.mkfifo(root / "fifo")
    with pytest.raises(BadDocument, match="fifo is not a regular file"):
        read_uri(f"{root}/fifo", within(root))


@pytest.mark.parametrize("path", ["/dev/null", "/dev/zero"])
def test_a_device_is_refused(path):
    with pytest.raises(BadDocument, match="is not a regular file"):
        read_uri(path, ANY)


def test_a_directory_is_refused(root):
    with pytest.raises(BadDocument, match=r"root (is not a regular file|cannot be read: Is a directory)"):
        read_uri(str(root), within(root))


def test_a_null_byte_in_a_path_is_refused(root):
    with pytest.raises(BadDocument, match="is not a valid path"):
        read_uri(f"{root}/a\0.png", within(root))


@pytest.mark.parametrize(
    "uri",
    [
        "\0" * 500,
        "file://host\n" + "\x02" * 500 + "/a",
        "a\r\nb\0",
        "ftp://" + "\x1b" * 500,
        "data:" + "\0" * 500,
        "http://host:" + "9x" * 5000,
        "http://[" + "\0" * 5000,
    ],
)
def test_a_refusal_is_short_and_printable_whatever_the_uri_holds(uri, root):
    with pytest.raises(BadDocument) as refused:
        read_uri(uri, replace(within(root), allow_remote_uris=True))
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) <= 1000


def test_a_file_over_the_limit_is_refused_before_it_is_read(root):
    with (root / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(BadDocument, match="1099511627776 bytes, max_image_bytes allows"):
        read_uri(f"{root}/sparse", within(root))


@pytest.mark.parametrize("form", ["file://{}", "file://localhost{}", "FILE://{}", "file:{}"])
def test_a_file_uri_is_read(root, form):
    assert read_uri(form.format(root / "image.png"), within(root)) == b"root"


@pytest.mark.parametrize("name", ["a b.png", "50%.png", "ü.png", "a#1?.png"])
def test_a_file_uri_is_percent_decoded(root, name):
    (root / name).write_bytes(b"found")
    assert read_uri(f"file://{urllib.parse.quote(str(root / name))}", within(root)) == b"found"


def test_a_path_is_not_percent_decoded(root):
    (root / "a%20b.png").write_bytes(b"found")
    assert read_uri(f"{root}/a%20b.png", within(root)) == b"found"


def test_a_path_may_contain_a_colon(root, monkeypatch):
    monkeypatch.chdir(root)
    (root / "take:2.png").write_bytes(b"found")
    assert read_uri("take:2.png", within(root)) == b"found"


def test_a_file_uri_of_another_host_is_refused():
    with pytest.raises(BadDocument, match="names the host server; write file:///absolute/path"):
        check_uri("file://server/share/image.png", ANY)


@pytest.mark.parametrize("check", [check_uri, read_uri])
@pytest.mark.parametrize("uri", ["ftp://host/image.png", "s3://bucket/key", "gopher://x/"])
def test_an_unknown_scheme_is_refused_listing_the_known_ones(check, uri):
    with pytest.raises(BadDocument, match=r"unknown scheme; use a path, file://, http\(s\):// or data:"):
        check(uri, ANY)


# --- data and remote uris ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "uri",
    [
        "data:image/png;base64,aGVsbG8/fg==",
        "data:image/png;base64,aGVsbG8/fg",
        "data:image/png;BASE64,aGVs\nbG8/fg==",
        "data:image/png;base64,aGVsbG8%2Ffg%3D%3D",
        "data:;base64,aGVsbG8/fg==",
        "DATA:image/png;charset=x;base64,aGVsbG8/fg==",
        "data:,hello%3F~",
        "data:text/plain,hello?~",
    ],
)
def test_a_data_uri_is_decoded(uri):
    assert read_uri(uri, ANY) == b"hello?~"


def test_a_data_uri_needs_no_allowed_root(picture):
    uri = "data:image/png;base64," + base64.b64encode(encoded(picture, "PNG")).decode()
    policy = ImagePolicy(allowed_roots=(), allow_remote_uris=False)
    np.testing.assert_array_equal(image_of(Document(uri=uri), policy), picture)


def test_a_data_uri_without_a_comma_is_refused():
    with pytest.raises(BadDocument, match="not a valid data: uri"):
        read_uri("data:image/png;base64", ANY)


@pytest.mark.parametrize("text", ["###", "AAAAA", "AA=A", "-_-_", "AA\0A", "é"])
def test_a_data_uri_that_is_not_base64_is_refused(text):
    with pytest.raises(BadDocument, match="not valid base64"):
        read_uri(f"data:image/png;base64,{text}", ANY)


@pytest.mark.parametrize("space", " \t\n\r\f\v")
def test_spaces_in_base64_do_not_count(space):
    assert read_uri(f"data:;base64,aG{space}Vs{space * 3}bG8", ImagePolicy(max_image_bytes=5)) == b"hello"


@pytest.mark.parametrize("uri", ["data:image/png;base64," + "A" * 140, "data:," + "a" * 101, "data:," + "%61" * 101])
def test_a_data_uri_over_the_limit_is_refused(uri):
    with pytest.raises(BadDocument, match="max_image_bytes allows 100"):
        read_uri(uri, ImagePolicy(max_image_bytes=100))


@pytest.mark.parametrize("size", [98, 99, 100])
def test_a_data_uri_of_just_the_limit_is_decoded(size):
    content = b"a" * size
    policy = ImagePolicy(max_image_bytes=size)
    assert read_uri("data:;base64," + base64.b64encode(content).decode(), policy) == content
    assert read_uri("data:," + "%61" * size, policy) == content


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("%", b"%"),
        ("%4", b"%4"),
        ("%%41", b"%A"),
        ("%4%41", b"%4A"),
        ("%zz%4z%z4", b"%zz%4z%z4"),
        ("%aA%Aa%00", b"\xaa\xaa\0"),
        ("ü%C3%BC", "üü".encode()),
        ("a" * (1 << 20) + "%41", b"a" * (1 << 20) + b"A"),
        ("a" * ((1 << 20) - 1) + "%41b", b"a" * ((1 << 20) - 1) + b"Ab"),
        ("a" * ((1 << 20) - 2) + "%41b", b"a" * ((1 << 20) - 2) + b"Ab"),
        ("%41" * 400_000, b"A" * 400_000),
    ],
)
def test_a_data_uri_is_percent_decoded(text, expected):
    assert read_uri(f"data:,{text}", ANY) == expected == urllib.parse.unquote_to_bytes(text)


@pytest.mark.parametrize("header", ["data:,", "data:;base64,"])
@pytest.mark.parametrize("text", ["%", "%41", "A"])
def test_decoding_a_data_uri_takes_a_few_times_its_size(header, text):
    uri = header + text * (3_000_000 // len(text))
    tracemalloc.start()
    try:
        with contextlib.suppress(BadDocument):  # percent signs are no base64
            read_uri(uri, ANY)
        assert tracemalloc.get_traced_memory()[1] < 5 * len(uri) + (20 << 20)
    finally:
        tracemalloc.stop()


def test_percent_signs_count_as_bytes_where_they_stand_for_themselves():
    with pytest.raises(BadDocument, match="max_image_bytes allows 100"):
        read_uri("data:," + "%" * 101, ImagePolicy(max_image_bytes=100))


def test_line_breaks_do_not_count_as_bytes():
    content = os.urandom(3000)
    uri = "data:;base64," + base64.encodebytes(content).decode()
    assert read_uri(uri, ImagePolicy(max_image_bytes=3000)) == content


def test_half_a_surrogate_in_a_data_uri_is_refused_like_other_nonsense():
    with pytest.raises(BadDocument, match="not valid base64"):
        read_uri("data:;base64,\ud800", ANY)


def test_a_message_does_not_repeat_a_whole_data_uri():
    with pytest.raises(BadDocument) as refused:
        read_uri("data:image/png;base64," + "#" * 100_000, ANY)
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize("uri", ["\udcff" * 300, "\udcff\0", "data:\udcff", "data:;base64,\udcff", "x://\udcff"])
def test_a_message_can_be_sent_whatever_the_uri_has(uri):
    with pytest.raises(BadDocument) as refused:
        read_uri(uri, within())
    assert len(str(refused.value).encode("utf-8")) < 600


@pytest.mark.parametrize("check", [check_uri, read_uri])
@pytest.mark.parametrize("scheme", ["http", "https", "HTTP"])
def test_a_remote_uri_is_refused_where_they_are_off(check, scheme):
    with pytest.raises(BadDocument, match="remote uris are off; set allow_remote_uris: true or send the image as a"):
        check(f"{scheme}://example.com/image.png", ImagePolicy(allow_remote_uris=False))


def test_a_remote_uri_is_allowed_where_they_are_on():
    check_uri("https://example.com/image.png", ImagePolicy(allowed_roots=(), allow_remote_uris=True))


def test_a_remote_uri_to_this_machine_is_refused_where_they_are_on():
    with pytest.raises(BadDocument, match="does not lead to a public address"):
        image_of(Document(uri="http://127.0.0.1:1/image.png"), ANY)


# --- arrays --------------------------------------------------------------------------------------------------


def test_an_rgb_array_is_kept_without_a_copy(picture):
    assert np.shares_memory(image_from_array(picture), picture)


@pytest.mark.parametrize("shape", [(HEIGHT, WIDTH), (HEIGHT, WIDTH, 1)])
def test_a_grayscale_array_becomes_three_equal_channels(picture, shape):
    gray = picture[..., 0]
    np.testing.assert_array_equal(image_from_array(gray.reshape(shape)), np.repeat(gray[..., None], 3, axis=2))


def test_an_rgba_array_is_composited_over_white():
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0] = (*RED, 255)
    assert image_from_array(rgba).tolist() == [[[255, 0, 0]] * 2, [[255, 255, 255]] * 2]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_in_0_to_1_are_scaled_and_rounded(dtype):
    array = np.array([[[0, 0.002, 1], [0.25, 0.998, 0.1]]], dtype)
    assert image_from_array(array).tolist() == [[[0, 1, 255], [64, 254, 26]]]


@pytest.mark.parametrize("dtype", [np.int64, np.int16, np.uint16, np.float64, np.float32])
def test_whole_numbers_in_0_to_255_are_cast(picture, dtype):
    image = image_from_array(picture.astype(dtype))
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, picture)


@pytest.mark.parametrize(
    "array",
    [
        np.full((2, 2, 3), -1, np.int64),
        np.full((2, 2, 3), 256, np.int64),
        np.full((2, 2, 3), 127.5),
        np.full((2, 2, 3), -0.1),
        np.full((2, 2, 3), 300.0),
        np.full((2, 2, 3), np.nan),
        np.full((2, 2, 3), np.inf),
        np.array([[0.5, np.nan]]),
    ],
)
def test_values_out_of_range_are_refused_by_shape_and_type(array):
    with pytest.raises(BadDocument) as refused:
        image_from_array(array)
    assert f"shape {array.shape} and type {array.dtype}" in str(refused.value)
    assert "neither in [0, 1] nor whole numbers in 0..255" in str(refused.value)


@pytest.mark.parametrize("shape", [(), (3,), (5, 4, 2), (5, 6, 7), (1, 4, 4, 3), (0, 4, 3), (4, 0), (0,)])
def test_a_shape_that_is_no_image_is_refused(shape):
    with pytest.raises(BadDocument) as refused:
        image_from_array(np.zeros(shape, np.uint8))
    assert f"A blob of shape {shape} and type uint8 is not an image" in str(refused.value)


@pytest.mark.parametrize("array", [np.zeros((2, 2, 3), complex), np.full((2, 2), "a"), np.full((2, 2), None)])
def test_a_type_that_is_no_image_is_refused(array):
    with pytest.raises(BadDocument, match="is not an image: an image has uint8 values"):
        image_from_array(array)


@pytest.mark.parametrize(
    ("shape", "channels_first"),
    [
        ((3, 24, 40), True),
        ((1, 24, 40), True),
        ((4, 24, 40), True),
        ((24, 40, 3), False),
        ((3, 40, 3), False),
        ((24, 40), False),
        ((2, 24, 40), False),
        ((1, 3, 24, 40), False),
    ],
)
def test_channels_first_is_told_by_the_shape(shape, channels_first):
    assert looks_channels_first(np.empty(shape)) is channels_first


@pytest.mark.filterwarnings("ignore:A blob of shape")
def test_a_channels_first_array_is_transposed(picture):
    np.testing.assert_array_equal(image_from_array(picture.transpose(2, 0, 1)), picture)


@pytest.mark.process
def test_channels_first_is_warned_of_once_per_process():
    script = (
        "import numpy as np\n"
        "from executor.images.arrays import image_from_array, warn_channels_first\n"
        "import warnings; warnings.simplefilter('always')\n"
        "image_from_array(np.zeros((3, 24, 40), np.uint8))\n"
        "image_from_array(np.zeros((3, 9, 9), np.uint8))\n"
        "warn_channels_first((3, 8, 8))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert done.stderr.count("UserWarning") == 1
    assert "A blob of shape (3, 24, 40) looks like C×H×W, but images are H×W×C" in done.stderr
    assert "albumentations" in done.stderr


@pytest.mark.process
def test_neither_torch_nor_jina_is_imported():
    script = "import sys, executor.images.reading; print({'torch', 'jina', 'cv2'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert done.stdout.strip() == "set()"
