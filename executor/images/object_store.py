"""Read objects such as `s3://shop/photos/1.jpg` through fsspec, below the prefixes that the operator allows.

fsspec reads credentials and endpoints where the tools of each store do, from the environment of this process.
"""

import functools
import os
import re
from typing import Any

from ..errors import BadDocument, ConfigurationError
from .policy import ImagePolicy
from .remote import shown

_PREFIX = re.compile(r"([a-z][a-z0-9+.-]*)://[^/]+", re.IGNORECASE)
ALL_STORES = ("s3://", "gs://", "gcs://", "az://", "abfs://", "oss://", "oci://")  # for who may read everything
_ELSEWHERE = ("file", "local", "http", "https", "data")  # read in other ways, allowed by other options


def check_prefixes(prefixes: tuple[str, ...]) -> None:
    """Raise ConfigurationError unless each prefix is a uri whose scheme fsspec can read here."""
    import fsspec

    for prefix in prefixes:
        found = _PREFIX.match(prefix)
        if found is None or "::" in prefix or found[1].lower() in _ELSEWHERE:
            raise ConfigurationError(
                f"remote_prefixes has {prefix!r}; it takes uris such as s3://bucket/folder/. Files are allowed by "
                "allowed_roots, http(s):// by allow_remote_uris."
            )
        try:
            fsspec.get_filesystem_class(found[1].lower())
        except (ImportError, ValueError) as error:
            raise ConfigurationError(
                f"remote_prefixes has {prefix!r}, which cannot be read here: {str(error).rstrip('.')}."
            ) from error


def is_below(uri: str, prefixes: tuple[str, ...]) -> bool:
    """Whether `uri` lies below one of the prefixes, and means nothing else than it says."""
    if not any(uri.startswith(prefix.rstrip("/") + "/") for prefix in prefixes):
        return False  # first, as a data: uri is long
    return "::" not in uri and not {".", ".."} & set(uri.split("/"))  # fsspec chains uris by ::


def read_object(uri: str, policy: ImagePolicy) -> bytes:
    """Return an object, in one request.

    Raises: BadDocument: it has more than `max_image_bytes`, does not arrive within `remote_timeout`, or cannot be read.
    """
    from fsspec.asyn import AsyncFileSystem, sync
    from fsspec.exceptions import FSTimeoutError

    part = {"start": 0, "end": policy.max_image_bytes + 1}
    try:
        store = _store(uri.split(":", 1)[0].lower(), os.getpid())
        path = store._strip_protocol(uri)
        if isinstance(store, AsyncFileSystem):
            body = sync(store.loop, store._cat_file, path, timeout=policy.remote_timeout, **part)
        else:
            body = store.cat_file(path, **part)
    except (FSTimeoutError, TimeoutError) as error:
        raise BadDocument(
            f"{shown(uri)} did not arrive within {policy.remote_timeout:g} seconds; send the image itself"
        ) from error
    except Exception as error:  # the packages of the stores raise what they like
        reason = shown(str(error).strip().partition("\n")[0]) or type(error).__name__
        raise BadDocument(f"{shown(uri)} cannot be fetched: {reason}") from error
    if len(body) > policy.max_image_bytes:
        raise BadDocument(
            f"{shown(uri)} has more than the {policy.max_image_bytes} bytes that max_image_bytes allows; send a "
            "smaller file or raise it"
        )
    return bytes(body)


@functools.cache
def _store(scheme: str, process: int) -> Any:
    """Return the one filesystem of this process for a scheme: threads may share it."""
    import fsspec

    return fsspec.filesystem(scheme, skip_instance_cache=True, use_listings_cache=False)
