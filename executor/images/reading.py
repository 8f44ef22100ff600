"""Images from a uri, encoded bytes or an array, as H×W×3 uint8 RGB; limits and allowed places.

Everything here is safe to call from many threads; Pillow's codecs release the interpreter lock.
"""

import base64
import functools
import io
import os
import re
import stat
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, unquote_to_bytes

import numpy as np
from PIL import Image, ImageFile, ImageOps
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import BITSPERSAMPLE, TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from ..errors import BadDocument
from .remote import fetch, shown

# The codecs are called by their class, not through Image.open: that would judge sizes by Pillow's global limit.
_CODECS: tuple[tuple[re.Pattern[bytes], type[ImageFile.ImageFile]], ...] = (
    (re.compile(rb"\xff\xd8\xff"), JpegImageFile),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), PngImageFile),
    (re.compile(rb"RIFF.{4}WEBP", re.DOTALL), WebPImageFile),
    (re.compile(rb"GIF8[79]a"), GifImageFile),
    (re.compile(rb"BM"), BmpImageFile),
    (re.compile(rb"II[*+]\0|MM\0[*+]"), TiffImageFile),
)
_SCHEME = re.compile(r"(?:([a-z][a-z0-9+.-]*)://|(file|data):)", re.IGNORECASE)
_CHANNELS = (1, 3, 4)


@dataclass(frozen=True, kw_only=True)
class ImagePolicy:
    """What may be read, and how much of it.

    Attributes:
        allowed_roots: Directories that a path may lie in; None allows every path.
        allow_remote_uris: Whether http and https uris are fetched (from public addresses only).
        max_image_bytes: Largest encoded image.
        max_image_pixels: Largest image once decoded, width × height.
        remote_timeout: Seconds for one whole fetch.
    """

    allowed_roots: tuple[str, ...] | None = None
    allow_remote_uris: bool = True
    max_image_bytes: int = 32 * 1024 * 1024
    max_image_pixels: int = 64_000_000
    remote_timeout: float = 10.0

    @functools.cached_property
    def resolved_roots(self) -> tuple[str, ...] | None:
        """The allowed roots without symbolic links, as they were when first asked for."""
        return None if self.allowed_roots is None else tuple(map(os.path.realpath, self.allowed_roots))


_DEFAULT_POLICY = ImagePolicy()


# --- documents -------------------------------------------------------------------------------------------------


def load_uri_to_image_blob(doc: Any, policy: ImagePolicy = _DEFAULT_POLICY) -> np.ndarray:
    """Read the image of `doc` from its `uri`, else its `buffer`, else its `blob`; `doc` stays unchanged.

    Returns: H×W×3 uint8 RGB, upright by its EXIF orientation.
    Raises: BadDocument: there is no image, it cannot be read, or lies where `policy` does not allow.
    """
    if doc.uri or doc.buffer:
        return _encoded_image(doc, policy, min_size=None)
    return image_of(doc, policy)


def image_of(doc: Any, policy: ImagePolicy = _DEFAULT_POLICY, *, min_size: int | None = None) -> np.ndarray:
    """Return the image of `doc` from its `blob`, else its `uri`, else its `buffer`.

    Args: min_size: as in `decode_image`; a `blob` keeps its size.
    Returns: H×W×3 uint8 RGB.
    Raises: BadDocument: there is no image, it cannot be read, or lies where `policy` does not allow.
    """
    if doc.blob is not None:
        image = image_from_array(doc.blob)
        _check_pixels(image.shape[1], image.shape[0], policy)
        return image
    return _encoded_image(doc, policy, min_size)


def _encoded_image(doc: Any, policy: ImagePolicy, min_size: int | None) -> np.ndarray:
    if doc.uri:
        return decode_image(read_uri(doc.uri, policy), policy, min_size=min_size)
    if doc.buffer:
        return decode_image(_without_base64(doc.buffer), policy, min_size=min_size)
    raise BadDocument("The document has no image content; set uri, buffer or blob")


def _without_base64(buffer: bytes) -> bytes:
    """Undo the base64 in which bytes travel in JSON; other bytes are returned as they are."""
    if _codec_of(buffer) is not None:
        return buffer
    try:
        return base64.b64decode(buffer, validate=True)
    except ValueError:
        return buffer  # not base64 either: the decoder names the trouble


# --- uris ------------------------------------------------------------------------------------------------------


def check_uri(uri: str, policy: ImagePolicy) -> None:
    """Check without opening anything that `policy` allows `uri`; reading it checks again, more strictly.

    Raises: BadDocument: unknown scheme, remote uris are off, or the path lies outside the allowed roots.
    """
    scheme = _scheme(uri)
    if scheme in ("http", "https"):
        if not policy.allow_remote_uris:
            raise BadDocument(
                f"{shown(uri)}: remote uris are off; set allow_remote_uris: true or send the image as a data: uri"
            )
    elif scheme in ("", "file"):
        _allowed_path(uri, policy, resolve=_lately_resolved)
    elif scheme != "data":
        raise BadDocument(f"{shown(uri)} has an unknown scheme; use a path, file://, http(s):// or data:")


def read_uri(uri: str, policy: ImagePolicy) -> bytes:
    """Return the bytes behind `uri`: a path, `file://`, `http(s)://` or `data:`.

    A relative path is relative to the current directory.

    Raises: BadDocument: `policy` does not allow it, it is too large, or it cannot be read.
    """
    check_uri(uri, policy)
    scheme = _scheme(uri)
    if scheme in ("http", "https"):
        return fetch(uri, max_bytes=policy.max_image_bytes, timeout=policy.remote_timeout)
    if scheme == "data":
        return _read_data_uri(uri, policy)
    return _read_file(_allowed_path(uri, policy), policy)


def _scheme(uri: str) -> str:
    """Return the scheme in lower case, or "" for a path (which may well contain a colon)."""
    match = _SCHEME.match(uri)
    return (match[1] or match[2]).lower() if match else ""


def _allowed_path(uri: str, policy: ImagePolicy, resolve: Callable[[str], str] = os.path.realpath) -> str:
    """Return the path of `uri`, absolute and without symbolic links, if it lies in an allowed root."""
    path = _file_uri_path(uri) if _scheme(uri) == "file" else uri
    try:
        resolved = resolve(path)
    except (OSError, ValueError) as error:  # ValueError: a null byte
        raise BadDocument(f"{shown(path)!r} is not a valid path: {error}") from error
    roots = policy.resolved_roots
    if roots is not None and not any(_is_within(resolved, root) for root in roots):
        raise BadDocument(
            f"{shown(path)} lies outside the allowed roots ({', '.join(policy.allowed_roots or ()) or 'none'}); "
            "add its directory to the option allowed_roots"
        )
    return resolved


def _is_within(path: str, root: str) -> bool:
    return path.startswith(root.rstrip("/") + "/") or path == root


def _lately_resolved(path: str) -> str:
    """Like `os.path.realpath`, but for folders that change in this very second: a thousand files lie in one folder."""
    folder, name = os.path.split(path)
    if name in ("", ".", "..") or "\0" in name:
        return os.path.realpath(path)
    folder = os.path.join(os.getcwd(), folder)  # the cache must know it apart after a change of directory
    place = os.path.join(_folder_resolved(folder, int(time.monotonic())), name)
    return os.path.realpath(place) if os.path.islink(place) else place


@functools.lru_cache(maxsize=1024)
def _folder_resolved(folder: str, second: int) -> str:
    return os.path.realpath(folder)


def _file_uri_path(uri: str) -> str:
    """Return the decoded path of a `file:` uri; `#` and `?` are taken as part of the name."""
    path = uri[len("file:") :]
    if path.startswith("//"):
        host, slash, path = path[2:].partition("/")
        if host.lower() not in ("", "localhost"):
            raise BadDocument(f"{shown(uri)} names the host {shown(host)!r}; write file:///absolute/path")
        path = slash + path
    return unquote(path)


def _read_file(path: str, policy: ImagePolicy) -> bytes:
    """Read a regular file. `path` has no symbolic links left, so that one found now was put there since."""
    try:
        # O_NONBLOCK: opening a FIFO must not wait for its writer
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise BadDocument(f"{shown(path)} is not a regular file; give the path of an image file")
            _check_bytes(status.st_size, policy)
            return file.read(status.st_size)
    except OSError as error:
        raise BadDocument(
            f"{shown(path)} cannot be read: {error.strerror or error}; give the path of an image file there"
        ) from error


def _read_data_uri(uri: str, policy: ImagePolicy) -> bytes:
    """Decode a `data:` uri (RFC 2397), base64 or percent-encoded; its size is checked before it is decoded."""
    header, comma, payload = uri.partition(",")
    if not comma:
        raise BadDocument(f"{shown(uri)} is not a valid data: uri; write data:image/jpeg;base64,…")
    if not header.lower().endswith(";base64"):
        _check_bytes(len(payload) - 2 * payload.count("%"), policy)
        return unquote_to_bytes(payload)
    _check_bytes(len(payload) * 3 // 4 - 2, policy)  # padding is no content
    text = "".join(unquote(payload).split()).rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError as error:
        raise BadDocument(f"{shown(uri)} is not valid base64: {error}") from error


# --- encoded images --------------------------------------------------------------------------------------------


def decode_image(data: bytes, policy: ImagePolicy, *, min_size: int | None = None) -> np.ndarray:
    """Decode a JPEG, PNG, WebP, GIF (its first frame), BMP or TIFF image.

    Transparency is composited over white, 16 bits are scaled to 8, the EXIF orientation is applied; colour
    profiles are not.

    Args:
        data: The encoded file.
        min_size: If given, a JPEG is decoded at a half, quarter or eighth of its size, which is much faster,
            as long as both sides stay at least this many pixels. Other formats keep their size.

    Returns: H×W×3 uint8 RGB, writable.
    Raises: BadDocument: unknown format, damaged or truncated, or over the limits, which are checked against the
        header before anything is decoded.
    """
    _check_bytes(len(data), policy)
    codec = _codec_of(data)
    if codec is None:
        raise BadDocument("The image has an unknown format; send JPEG, PNG, WebP, GIF, BMP or TIFF")
    try:
        image = codec(io.BytesIO(data))
        _check_pixels(*image.size, policy)
        if min_size is not None:
            image.draft(None, (min_size, min_size))
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        return _rgb_array(image)
    except BadDocument:
        raise
    except Image.DecompressionBombError as error:
        raise BadDocument(f"The image has more pixels than can be decoded: {error}") from error
    except Exception as error:  # on damaged files the codecs raise a dozen classes that have no common base
        raise BadDocument(
            f"The {codec.format} image is damaged or truncated and cannot be decoded: {error or type(error).__name__}"
        ) from error


def _codec_of(data: bytes) -> type[ImageFile.ImageFile] | None:
    return next((codec for signature, codec in _CODECS if signature.match(data)), None)


def _rgb_array(image: Image.Image) -> np.ndarray:
    """Convert an image of any mode to H×W×3 uint8."""
    if image.mode.startswith("I;16"):
        bits = image.tag_v2[BITSPERSAMPLE][0] if isinstance(image, TiffImageFile) else 16  # a TIFF may have 12
        return _three_channels(np.rint(np.asarray(image) * np.float32(255 / (2**bits - 1))).astype(np.uint8))
    if image.mode in ("I", "F"):  # 32-bit TIFF, whose range is up to its author
        return image_from_array(np.asarray(image))
    if image.has_transparency_data:
        return _over_white(image.convert("RGBA"))
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _over_white(image: Image.Image) -> np.ndarray:
    """Composite an RGBA image over white."""
    white = Image.new("RGBA", image.size, "white")
    return np.array(Image.alpha_composite(white, image).convert("RGB"))


def _check_bytes(size: int, policy: ImagePolicy) -> None:
    if size > policy.max_image_bytes:
        raise BadDocument(
            f"The image has {size} bytes, max_image_bytes allows {policy.max_image_bytes}; "
            "send a smaller file or raise the option max_image_bytes"
        )


def _check_pixels(width: int, height: int, policy: ImagePolicy) -> None:
    if width * height > policy.max_image_pixels:
        raise BadDocument(
            f"The image has {width}×{height} pixels, max_image_pixels allows {policy.max_image_pixels}; "
            "send a smaller image or raise the option max_image_pixels"
        )


# --- arrays ----------------------------------------------------------------------------------------------------


def image_from_array(blob: Any) -> np.ndarray:
    """Convert an array to an image.

    Args:
        blob: H×W×3, H×W×1 or H×W (grayscale) or H×W×4 (RGBA, composited over white); integers in 0..255 of any
            type, floats in [0, 1], or floats that are whole numbers in 0..255, as HTTP clients send them.
            C×H×W is transposed, with one warning per process.

    Returns: H×W×3 uint8; `blob` itself, not a copy, if it is that already.
    Raises: BadDocument: any other shape, type or range.
    """
    array = np.asarray(blob)
    if looks_channels_first(array):
        warn_channels_first(array.shape)
        array = np.ascontiguousarray(array.transpose(1, 2, 0))
    if array.size == 0 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in _CHANNELS)):
        raise _not_an_image(array, "an image is H×W×3, H×W×1, H×W or H×W×4")
    pixels = _uint8(array)
    if pixels.ndim == 3 and pixels.shape[2] == 4:
        return _over_white(Image.fromarray(pixels))
    return pixels if pixels.ndim == 3 and pixels.shape[2] == 3 else _three_channels(pixels)


def looks_channels_first(array: np.ndarray) -> bool:
    """Whether the shape of `array` is that of C×H×W, and not of H×W×C."""
    return array.ndim == 3 and array.shape[0] in _CHANNELS and array.shape[2] not in _CHANNELS


_channels_first_warning = threading.Lock()  # held by the one who warned, for good


def warn_channels_first(shape: tuple[int, ...]) -> None:
    """Warn, once per process, that an array of `shape` looks like C×H×W."""
    if _channels_first_warning.acquire(blocking=False):
        warnings.warn(
            f"A blob of shape {tuple(shape)} looks like C×H×W, but images are H×W×C, for albumentations too: the "
            "default loading transposes it, a preprocess_fn gets it as it is. Send H×W×C.",
            stacklevel=3,
        )


def _uint8(array: np.ndarray) -> np.ndarray:
    """Bring the values of `array` to 0..255 by the rules of `image_from_array`."""
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind not in "iuf":
        raise _not_an_image(array, "an image has uint8 values, or floats in [0, 1]")
    low, high = array.min(), array.max()  # NaN if there is any, which no comparison below lets pass
    if array.dtype.kind == "f" and low >= 0 and high <= 1:
        scaled: np.ndarray = np.rint(array * 255).astype(np.uint8)
        return scaled
    if low >= 0 and high <= 255 and (array.dtype.kind != "f" or bool((array == np.rint(array)).all())):
        return array.astype(np.uint8)
    raise _not_an_image(array, f"its values, {low} to {high}, are neither in [0, 1] nor whole numbers in 0..255")


def _three_channels(gray: np.ndarray) -> np.ndarray:
    return np.repeat(gray.reshape(*gray.shape[:2], 1), 3, axis=2)


def _not_an_image(array: np.ndarray, reason: str) -> BadDocument:
    return BadDocument(f"A blob of shape {array.shape} and type {array.dtype} is not an image: {reason}")
