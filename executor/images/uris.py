"""Read the bytes behind a uri (a path, `file://`, `http(s)://` or `data:`) if the policy allows it."""

import functools
import os
import re
import time
from collections.abc import Callable
from urllib.parse import unquote

from ..errors import BadDocument
from .data_uris import read_data_uri
from .files import is_within, read_file
from .object_store import is_below
from .policy import ImagePolicy
from .remote import SCHEMES, read_remote, shown

_SCHEME = re.compile(r"(?:([a-z][a-z0-9+.-]*)://|(file|data):)", re.IGNORECASE)


def is_unicode(text: str) -> bool:
    """Whether a text has no half of a surrogate pair: such names of files, from old archives, fit into no answer."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_uri(uri: str, policy: ImagePolicy) -> None:
    """Check that `policy` allows `uri`, without opening anything. `read_uri` checks again, more strictly.

    Raises: BadDocument: the scheme is unknown, remote uris are off, or the path lies outside the allowed roots.
    """
    scheme = _scheme(uri)
    if scheme in SCHEMES:
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
    if scheme in SCHEMES:
        return read_remote(uri, policy)
    if scheme == "data":
        return read_data_uri(uri, policy)
    if scheme not in ("", "file"):
        return read_remote(uri, policy)
    return read_file(_allowed_path(uri, policy), policy)


def file_behind(uri: str, policy: ImagePolicy) -> str | None:
    """Return the path of the file that `uri` names, absolute and without links; None if it names no file.

    Raises: BadDocument: the path is not valid, or lies outside the allowed roots.
    """
    return _allowed_path(uri, policy, resolve=_lately_resolved) if _scheme(uri) in ("", "file") else None


def is_remote(uri: str, policy: ImagePolicy) -> bool:
    """Whether reading `uri` means to fetch it from elsewhere, and `policy` allows it."""
    return is_below(uri, policy.remote_prefixes) or (policy.allow_remote_uris and _scheme(uri) in SCHEMES)


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
        raise BadDocument(f"{shown(path)} is not a valid path: {shown(error)}") from error
    roots = policy.resolved_roots
    if roots is not None and not any(is_within(resolved, root) for root in roots):
        raise BadDocument(
            f"{shown(path)} lies outside the allowed roots; add its directory to the option allowed_roots"
        )
    return resolved


def _lately_resolved(path: str) -> str:
    """Like `os.path.realpath`, but remembers each folder for at most a second: many files share a folder."""
    folder, name = os.path.split(path)
    if name in ("", ".", "..") or "\0" in name:
        return os.path.realpath(path)
    if not folder.startswith("/"):
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
            raise BadDocument(f"{shown(uri)} names the host {shown(host)}; write file:///absolute/path")
        path = slash + path
    return unquote(path)
