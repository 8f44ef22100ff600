"""What tells the content of one document from that of another, without reading its picture."""

import os
from hashlib import sha256
from typing import Any

from ..errors import BadDocument
from ..images.policy import ImagePolicy
from ..images.uris import check_uri, file_behind
from ..store.spool_rows import content_digest


def content_key(doc: Any, policy: ImagePolicy, owner: int = 0) -> bytes | None:
    """Return a key that is another when the picture is: of a file its path, size and time, else of what is given.

    What lies elsewhere counts as unchanged. None: it is not there or may not be read; reading it would say why.

    Args: owner: the number of the run whose document it is; then the key is that run's own.
    """
    uri = doc.uri if doc.blob is None else None
    try:
        if uri:
            check_uri(uri, policy)
        path = file_behind(uri, policy) if uri else None
        if path is None:
            return sha256(b"%d\n" % owner + content_digest(doc)).digest()[:16]
        stat = os.stat(path)
    except (BadDocument, OSError):
        return None
    told = f"{owner}\n{path}\n{stat.st_size}\n{stat.st_mtime_ns}"
    return sha256(told.encode("utf-8", "surrogateescape")).digest()[:16]
