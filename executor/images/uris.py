"""Read the bytes behind a uri (a path, `file://`, `http(s)://` or `data:`) if the policy allows it."""

import base64
import functools
import os
import re
import stat
import time
from collections.abc import Callable
from urllib.parse import unquote, unquote_to_bytes

from ..errors import BadDocument
from .object_store import is_below, read_object
from .policy import ImagePolicy, check_bytes
from .remote import fetch, shown

_SCHEME = re.compile(r"(?:([a-z][a-z0-9+.-]*)://|(file|data):)", re.IGNORECASE)


def check_uri(uri: str, policy: ImagePolicy) -> None:
    """Check that `policy` allows `uri`, without opening anything. `read_uri` checks again, more strictly.

    Raises: BadDocument: the scheme is unknown, remote uris are off, or the path lies outside the allowed roots.
    """
    scheme = _scheme(uri)
    if scheme in ("http", "https"):
        if not policy.allow_remote_uris:
            raise BadDocument(
                f"{shown(uri)}: remote uris are off; set allow_remote_uris: true or send the image as a data: uri"
            )
    elif scheme in ("", "file"):
        _allowed_path(uri, policy, resolve=_lately_resolved)
    elif scheme != "data" and not is_below(uri, policy.remote_prefixes):
        raise BadDocument(_refusal(uri, policy))


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
    if scheme not in ("", "file"):
        return read_object(uri, policy)
    return _read_file(_allowed_path(uri, policy), policy)


def _refusal(uri: str, policy: ImagePolicy) -> str:
    if policy.remote_prefixes:
        return (
            f"{shown(uri)} lies below none of the remote_prefixes ({', '.join(policy.remote_prefixes)}); add its "
            "folder to that option, or use a path, file://, http(s):// or data:"
        )
    return f"{shown(uri)} has an unknown scheme; use a path, file://, http(s):// or data:, or allow remote_prefixes"


def _scheme(uri: str) -> str:
    """Return the scheme in lower case, or "" for a path (which may contain a colon)."""
    match = _SCHEME.match(uri)
    return (match[1] or match[2]).lower() if match else ""


def _allowed_path(uri: str, policy: ImagePolicy, resolve: Callable[[str], str] = os.path.realpath) -> str:
    """Return the path of `uri`, absolute and without symbolic links.

    Raises: BadDocument: the path is not valid, or lies outside the allowed roots.
    """
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
    """Like `os.path.realpath`, but remembers each folder for at most a second: many files share a folder."""
    folder, name = os.path.split(path)
    if name in ("", ".", "..") or "\0" in name:
        return os.path.realpath(path)
    folder = os.path.join(os.getcwd(), folder)  # an absolute cache key: the current directory may change
    place = os.path.join(_folder_resolved(folder, int(time.monotonic())), name)
    return os.path.realpath(place) if os.path.islink(place) else place


@functools.lru_cache(maxsize=1024)
def _folder_resolved(folder: str, second: int) -> str:
    return os.path.realpath(folder)


def _file_uri_path(uri: str) -> str:
    """Return the decoded path of a `file:` uri; `#` and `?` count as part of the name."""
    path = uri[len("file:") :]
    if path.startswith("//"):
        host, slash, path = path[2:].partition("/")
        if host.lower() not in ("", "localhost"):
            raise BadDocument(f"{shown(uri)} names the host {shown(host)!r}; write file:///absolute/path")
        path = slash + path
    return unquote(path)


def _read_file(path: str, policy: ImagePolicy) -> bytes:
    """Read a regular file. Links in `path` are resolved already; if it is a link now, someone has just put it there."""
    try:
        # O_NONBLOCK: opening a FIFO must not wait for a writer
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise BadDocument(f"{shown(path)} is not a regular file; give the path of an image file")
            check_bytes(status.st_size, policy)
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
        check_bytes(len(payload) - 2 * payload.count("%"), policy)
        return unquote_to_bytes(payload)
    check_bytes(len(payload) * 3 // 4 - 2, policy)  # without the padding
    text = "".join(unquote(payload).split()).rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError as error:
        raise BadDocument(f"{shown(uri)} is not valid base64: {error}") from error
