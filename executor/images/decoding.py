"""Decode images (JPEG, PNG, WebP, GIF, BMP, TIFF) to H×W×3 uint8 RGB.

Safe to call from many threads; Pillow's codecs release the interpreter lock.
"""

import base64
import io
import re

import numpy as np
from PIL import Image, ImageFile, ImageOps
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import BITSPERSAMPLE, TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from ..errors import BadDocument
from .arrays import image_from_array, over_white, three_channels
from .policy import ImagePolicy, check_bytes, check_pixels

# We call the codec classes directly, not Image.open, which would apply Pillow's global size limit.
_CODECS: tuple[tuple[re.Pattern[bytes], type[ImageFile.ImageFile]], ...] = (
    (re.compile(rb"\xff\xd8\xff"), JpegImageFile),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), PngImageFile),
    (re.compile(rb"RIFF.{4}WEBP", re.DOTALL), WebPImageFile),
    (re.compile(rb"GIF8[79]a"), GifImageFile),
    (re.compile(rb"BM"), BmpImageFile),
    (re.compile(rb"II[*+]\0|MM\0[*+]"), TiffImageFile),
)


def without_base64(buffer: bytes) -> bytes:
    """Decode the base64 that JSON clients send bytes in; return any other bytes unchanged."""
    if _codec_of(buffer) is not None:
        return buffer
    try:
        return base64.b64decode(buffer, validate=True)
    except ValueError:
        return buffer  # not base64 either: the image decoder will say what is wrong


def decode_image(data: bytes, policy: ImagePolicy, *, min_size: int | None = None) -> np.ndarray:
    """Decode a JPEG, PNG, WebP, GIF (its first frame), BMP or TIFF image.

    Transparent images are composited over white and 16 bits are scaled to 8. The EXIF orientation is applied;
    colour profiles are ignored.

    Args:
        data: The encoded file.
        min_size: If given, a JPEG may be decoded at a half, quarter or eighth of its size, which is much faster.
            Both sides keep at least this many pixels. Other formats keep their size.

    Returns: H×W×3 uint8 RGB, writable.
    Raises: BadDocument: the format is unknown, or the image is damaged, truncated or over the limits. The limits are
        checked against the header before anything is decoded.
    """
    check_bytes(len(data), policy)
    codec = _codec_of(data)
    if codec is None:
        raise BadDocument("The image has an unknown format; send JPEG, PNG, WebP, GIF, BMP or TIFF")
    try:
        image = codec(io.BytesIO(data))
        check_pixels(*image.size, policy)
        if min_size is not None:
            image.draft(None, (min_size, min_size))
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        return _rgb_array(image)
    except BadDocument:
        raise
    except Image.DecompressionBombError as error:
        raise BadDocument(f"The image has more pixels than can be decoded: {error}") from error
    except Exception as error:  # on damaged files the codecs raise a dozen exception classes without a common base
        raise BadDocument(
            f"The {codec.format} image is damaged or truncated and cannot be decoded: {error or type(error).__name__}"
        ) from error


def _codec_of(data: bytes) -> type[ImageFile.ImageFile] | None:
    return next((codec for signature, codec in _CODECS if signature.match(data)), None)


def _rgb_array(image: Image.Image) -> np.ndarray:
    """Convert an image of any mode to H×W×3 uint8."""
    if image.mode.startswith("I;16"):
        bits = image.tag_v2[BITSPERSAMPLE][0] if isinstance(image, TiffImageFile) else 16  # a TIFF may have 12 bits
        return three_channels(np.rint(np.asarray(image) * np.float32(255 / (2**bits - 1))).astype(np.uint8))
    if image.mode in ("I", "F"):  # 32-bit TIFF: its author chooses the range of values
        return image_from_array(np.asarray(image))
    if image.has_transparency_data:
        return over_white(image.convert("RGBA"))
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))
