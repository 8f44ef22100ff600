"""Small pictures of pictures."""

import base64
import io
from typing import Any

from PIL import Image

from .policy import ImagePolicy
from .reading import image_of

SMALL = 192  # pixels a side: what the page shows many of, wherever, so that each is made once
_EXACT = 48  # pictures up to this side are kept without loss; JPEG would blur them
_QUALITY = 80  # of JPEG. WebP is a third smaller and takes four times the processor time (seen at 192 px)


def thumbnail_of(doc: Any, side: int, policy: ImagePolicy) -> bytes:
    """Return a picture of at most `side` pixels a side, as the bytes of a JPEG or PNG file. It is never enlarged.

    Raises: BadDocument: the document has no readable image, or `policy` does not allow it.
    """
    picture = Image.fromarray(image_of(doc, policy, min_size=side))
    picture.thumbnail((side, side), Image.Resampling.HAMMING)  # half the time of LANCZOS, and as sharp at this size
    file = io.BytesIO()
    if max(picture.size) <= _EXACT:
        picture.save(file, "PNG")
    else:
        picture.save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()


def as_uri(thumbnail: bytes) -> str:
    """Return such bytes as a `data:` uri."""
    kind = "png" if thumbnail.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(thumbnail).decode('ascii')}"
