"""Decode images (JPEG, PNG, WebP, GIF, BMP, TIFF) to H×W×3 uint8 RGB.

Safe to call from many threads; Pillow's codecs release the interpreter lock.
"""

import io
import re
from collections.abc import Callable
from typing import NamedTuple

import nanoarrow
import numpy as np
from PIL import Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import BITSPERSAMPLE, TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from ..errors import BadDocument
from .arrays import image_from_array, over_white, three_channels
from .budget import LargePicture, Reader, reserved
from .formats import bmp, gif, jpeg, png, tiff, webp
from .formats.stored import BAND_PIXELS, Stored, TooCostly
from .formats.unread import CURE, unread_form
from .orientation import TURNS
from .policy import EMPTY, ImagePolicy, check_bytes, check_pixels


class _Codec(NamedTuple):
    signature: re.Pattern[bytes]
    read: Callable[[bytes], Stored]
    image: type[ImageFile.ImageFile]


# We call the codec classes directly, not Image.open, which would apply Pillow's global size limit.
_CODECS = (
    _Codec(re.compile(rb"\xff\xd8\xff"), jpeg.read, JpegImageFile),
    _Codec(re.compile(rb"\x89PNG\r\n\x1a\n"), png.read, PngImageFile),
    _Codec(re.compile(rb"RIFF.{4}WEBP", re.DOTALL), webp.read, WebPImageFile),
    _Codec(re.compile(rb"GIF8[79]a"), gif.read, GifImageFile),
    _Codec(re.compile(rb"BM"), bmp.read, BmpImageFile),
    _Codec(re.compile(rb"II[*+]\0|MM\0[*+]"), tiff.read, TiffImageFile),
)


def is_encoded_image(data: bytes) -> bool:
    """Whether `data` begins like a file of a format that is known."""
    return _codec_of(data) is not None


def decode_image(data: bytes, policy: ImagePolicy, *, min_size: int | None = None) -> np.ndarray:
    """Decode a JPEG, PNG, WebP, GIF (its first frame), BMP or TIFF image.

    Transparent images are composited over white and 16 bits are scaled to 8. The orientation in EXIF or XMP is applied;
    colour profiles are ignored, and so is whatever is wrong with metadata.

    Args:
        data: The encoded file.
        min_size: If given, a JPEG may be decoded at a half, quarter or eighth of its size, which is much faster.
            Both sides keep at least this many pixels. Other formats keep their size.

    Returns: H×W×3 uint8 RGB, writable.
    Raises: BadDocument: the format is unknown, or the image is damaged, truncated, over the limits or would take too
        long. The limits are checked against the header before anything is decoded.
    """
    if not data:
        raise BadDocument(EMPTY)
    check_bytes(len(data), policy)
    codec = _codec_of(data)
    if codec is None:
        if form := unread_form(data):
            raise BadDocument(f"The image is {form}, {CURE}")
        raise BadDocument("The image has an unknown format; send JPEG, PNG, WebP, GIF, BMP or TIFF")
    try:
        stored = codec.read(data)
        check_pixels(stored.width, stored.height, policy)
        scale = _scale(stored, min_size) if codec.image is JpegImageFile else 1
        with reserved(stored.memory(scale), policy.max_decoding_bytes):
            return _decoded(codec.image, stored, policy, min_size)
    except (BadDocument, LargePicture):
        raise
    except TooCostly as error:
        raise BadDocument(
            f"The {codec.image.format} image would take too long to decode: {error}; save it anew, for example as PNG"
        ) from error
    except Image.DecompressionBombError as error:
        raise BadDocument(f"The image has more pixels than can be decoded: {error}") from error
    except Exception as error:  # on damaged files the codecs raise a dozen exception classes without a common base
        raise BadDocument(
            f"The {codec.image.format} image is damaged or truncated and cannot be decoded: "
            f"{error or type(error).__name__}"
        ) from error


def _codec_of(data: bytes) -> _Codec | None:
    return next((codec for codec in _CODECS if codec.signature.match(data)), None)


def _scale(stored: Stored, min_size: int | None) -> int:
    """Return the scale that Pillow's `draft` will choose."""
    most = min(stored.width, stored.height) // min_size if min_size else 1
    return next((scale for scale in (8, 4, 2) if most >= scale), 1)


def _decoded(codec: type[ImageFile.ImageFile], stored: Stored, policy: ImagePolicy, min_size: int | None) -> np.ndarray:
    file = io.BytesIO(stored.data) if stored.by_bytes else Reader(stored.data, stored.width * stored.height)
    image = codec(file)
    check_pixels(*image.size, policy)
    if image.width * image.height > stored.width * stored.height:
        raise ValueError("it has two sizes")
    if min_size is not None:
        image.draft(None, (min_size, min_size))
    image.load()
    bits = 16
    if isinstance(image, TiffImageFile) and image.mode.startswith("I;16"):
        bits = image.tag_v2[BITSPERSAMPLE][0]  # a TIFF may have 12 bits
    upright: Image.Image = image
    if stored.orientation in TURNS:
        upright = image.transpose(TURNS[stored.orientation])
    del image  # as it was stored; there need not be two of a large picture
    return _rgb_array(upright, bits)


def _rgb_array(image: Image.Image, bits: int) -> np.ndarray:
    """Convert an image of any mode to H×W×3 uint8. Args: bits: of its samples, where they have 16 or fewer."""
    if image.width * image.height <= BAND_PIXELS or image.mode in ("I", "F"):
        return _band(image, bits)
    rows = max(1, BAND_PIXELS // image.width)
    array = np.empty((image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        array[top:bottom] = _band(image.crop((0, top, image.width, bottom)), bits)
    return array


def _band(image: Image.Image, bits: int) -> np.ndarray:
    if image.mode.startswith("I;16"):
        return three_channels(np.rint(np.asarray(image) * np.float32(255 / (2**bits - 1))).astype(np.uint8))
    if image.mode in ("I", "F"):  # 32-bit TIFF: its author chooses the range of values
        return image_from_array(np.asarray(image), "A picture")
    if image.has_transparency_data:
        return over_white(image.convert("RGBA"))
    return _copied(image if image.mode == "RGB" else image.convert("RGB"))


def _copied(image: Image.Image) -> np.ndarray:
    """Return an RGB image as H×W×3 uint8, out of the four bytes a pixel in which Pillow keeps it.

    NumPy's own way makes two copies, in seven times the time and with Python's lock held.
    """
    try:
        pixels = nanoarrow.c_array(image).view().child(0).buffer(1)
    except ValueError:  # its rows are so long that Pillow keeps it in several places
        return np.array(image)
    import cv2  # only here: what reads no pictures starts without it

    return cv2.cvtColor(np.asarray(pixels).reshape(image.height, image.width, 4), cv2.COLOR_RGBA2RGB)
