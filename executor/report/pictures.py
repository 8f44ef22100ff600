"""Make the small pictures that a report holds in its own file."""

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

from ..images.arrays import image_from_array

THUMBNAIL = 144  # pixels of the longer side: twice the size on the page, for dense screens
_EXACT = 48  # images up to this side are stored without loss; JPEG would blur them


def _thumbnail(image: np.ndarray) -> Image.Image:
    picture = Image.fromarray(image_from_array(image))
    picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)  # never enlarges
    return picture


def data_uri(image: np.ndarray) -> str:
    picture = _thumbnail(image)
    if max(picture.size) <= _EXACT:
        return f"data:image/png;base64,{_base64(picture, 'PNG')}"
    return f"data:image/jpeg;base64,{_base64(picture, 'JPEG', quality=85)}"


def _base64(picture: Image.Image, form: str, **options: Any) -> str:
    file = io.BytesIO()
    picture.save(file, form, **options)
    return base64.b64encode(file.getvalue()).decode("ascii")


def encoded(image: np.ndarray) -> str:
    """Return a thumbnail of an image as PNG in base64."""
    return _base64(_thumbnail(image), "PNG")


def decoded(text: str) -> np.ndarray:
    """Return the thumbnail that `encoded` returned as text."""
    with Image.open(io.BytesIO(base64.b64decode(text)), formats=["PNG"]) as image:
        return np.array(image)
