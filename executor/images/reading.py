"""Read the image of a document from its uri, its encoded bytes or its array, as H×W×3 uint8 RGB."""

from typing import Any

import numpy as np

from ..errors import BadDocument
from .arrays import image_from_array
from .data_uris import without_base64
from .decoding import decode_image
from .policy import DEFAULT_POLICY, ImagePolicy, check_pixels
from .uris import read_uri

OTHER_CLASSES = (
    "documents of Jina's and DocArray's own classes lack these fields: make them with `from executor import Document`"
)


def load_uri_to_image_blob(doc: Any, policy: ImagePolicy = DEFAULT_POLICY) -> np.ndarray:
    """Read the image of `doc` from its `uri`, else its `buffer`, else its `blob`; `doc` is not changed.

    Returns: H×W×3 uint8 RGB, turned upright by its EXIF orientation.
    Raises: BadDocument: there is no image, it cannot be read, or `policy` does not allow it.
    """
    if doc.uri or doc.buffer is not None:
        return _encoded_image(doc, policy, min_size=None)
    return image_of(doc, policy)


def image_of(doc: Any, policy: ImagePolicy = DEFAULT_POLICY, *, min_size: int | None = None) -> np.ndarray:
    """Return the image of `doc` from its `blob`, else its `uri`, else its `buffer`.

    Args: min_size: as in `decode_image`; a `blob` keeps its size.
    Returns: H×W×3 uint8 RGB.
    Raises: BadDocument: there is no image, it cannot be read, or `policy` does not allow it.
    """
    if doc.blob is not None:
        image = image_from_array(doc.blob)
        check_pixels(image.shape[1], image.shape[0], policy)
        return image
    return _encoded_image(doc, policy, min_size)


def _encoded_image(doc: Any, policy: ImagePolicy, min_size: int | None) -> np.ndarray:
    if doc.uri:
        return decode_image(read_uri(doc.uri, policy), policy, min_size=min_size)
    if doc.buffer is not None:
        return decode_image(without_base64(doc.buffer, policy), policy, min_size=min_size)
    raise BadDocument(f"The document has no image content; set uri, buffer or blob ({OTHER_CLASSES})")
