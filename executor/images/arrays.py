"""Turn arrays of the usual shapes and types into images, H×W×3 uint8."""

import threading
import warnings
from typing import Any

import numpy as np
from PIL import Image

from ..errors import BadDocument

_CHANNELS = (1, 3, 4)


def over_white(image: Image.Image) -> np.ndarray:
    """Composite an RGBA image over white."""
    white = Image.new("RGBA", image.size, "white")
    return np.array(Image.alpha_composite(white, image).convert("RGB"))


def image_from_array(blob: Any, what: str = "A blob") -> np.ndarray:
    """Convert an array to an image.

    Args:
        blob: H×W×3, H×W×1 or H×W (grayscale) or H×W×4 (RGBA, composited over white); integers in 0..255 of any
            type, floats in [0, 1], or floats that are whole numbers in 0..255, as HTTP clients send them.
            C×H×W is transposed; a process warns of this once.
        what: how a message calls it.

    Returns: H×W×3 uint8; `blob` itself, not a copy, if it already has that form.
    Raises: BadDocument: any other shape, type or range.
    """
    array = np.asarray(blob)
    if looks_channels_first(array):
        warn_channels_first(array.shape)
        array = np.ascontiguousarray(array.transpose(1, 2, 0))
    if array.size == 0 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in _CHANNELS)):
        raise _not_an_image(array, what, "an image is H×W×3, H×W×1, H×W or H×W×4")
    pixels = _uint8(array, what)
    if pixels.ndim == 3 and pixels.shape[2] == 4:
        return over_white(Image.fromarray(pixels))
    return pixels if pixels.ndim == 3 and pixels.shape[2] == 3 else three_channels(pixels)


def looks_channels_first(array: np.ndarray) -> bool:
    """Whether `array` has the shape of a C×H×W image, and not of an H×W×C one."""
    return array.ndim == 3 and array.shape[0] in _CHANNELS and array.shape[2] not in _CHANNELS


_channels_first_warning = threading.Lock()  # whoever warns takes it and never releases it


def warn_channels_first(shape: tuple[int, ...]) -> None:
    """Warn, once per process, that an array of `shape` looks like C×H×W."""
    if _channels_first_warning.acquire(blocking=False):
        warnings.warn(
            f"A blob of shape {tuple(shape)} looks like C×H×W, but images are H×W×C, for albumentations too: the "
            "default loading transposes it, a preprocess_fn gets it as it is. Send H×W×C.",
            stacklevel=3,
        )


def _uint8(array: np.ndarray, what: str) -> np.ndarray:
    """Convert the values of `array` to 0..255 uint8, by the rules of `image_from_array`."""
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind not in "iuf":
        raise _not_an_image(array, what, "an image has uint8 values, or floats in [0, 1]")
    low, high = array.min(), array.max()  # NaN if the array has one; then every comparison below is false
    if array.dtype.kind == "f" and low >= 0 and high <= 1:
        scaled: np.ndarray = np.rint(array * 255).astype(np.uint8)
        return scaled
    if low >= 0 and high <= 255 and (array.dtype.kind != "f" or bool((array == np.rint(array)).all())):
        return array.astype(np.uint8)
    raise _not_an_image(array, what, f"its values, {low} to {high}, are neither in [0, 1] nor whole numbers in 0..255")


def three_channels(gray: np.ndarray) -> np.ndarray:
    return np.repeat(gray.reshape(*gray.shape[:2], 1), 3, axis=2)


def _not_an_image(array: np.ndarray, what: str, reason: str) -> BadDocument:
    return BadDocument(f"{what} of shape {array.shape} and type {array.dtype} is not an image: {reason}")
