"""What a document is called in a report, so that whoever sent it finds it again."""

import re
from typing import Any
from urllib.parse import unquote, urlsplit

from ..documents import LABEL_TAG
from ..errors import brief

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


def name_of(doc: Any) -> str:
    """Return the name of the file that the document's `uri` names, else its id."""
    uri = doc.uri or ""
    if not uri or uri[:5].lower() == "data:":
        return brief(doc.id)
    try:
        path = unquote(urlsplit(uri).path) if _SCHEME.match(uri) else uri
    except ValueError:  # half an address
        path = uri
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1] or brief(doc.id)


def label_of(doc: Any) -> str:
    """Return the document's label as text, else its id."""
    return str(doc.tags.get(LABEL_TAG, doc.id))
