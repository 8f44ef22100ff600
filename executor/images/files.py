"""Read a file below an allowed root, wherever links and renamed folders may lead meanwhile.

The path is resolved, checked, and then opened one folder after the other, each below the one before it, without
following any link. A folder that is swapped for a link between the check and the opening is thus refused and not
followed. (Linux's `openat2` would do that in one call; this needs nothing but Python and is as strict.)
"""

import errno
import os
import stat

from ..errors import BadDocument
from .policy import EMPTY, ImagePolicy, check_bytes
from .remote import shown

_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # opening a FIFO must not wait for a writer
_SWAPPED = (errno.ELOOP, errno.ENOTDIR)


def is_within(path: str, root: str) -> bool:
    """Whether an absolute path without links is `root` or lies below it."""
    return path.startswith(root.rstrip("/") + "/") or path == root


def read_file(path: str, policy: ImagePolicy) -> bytes:
    """Read a regular file.

    Args: path: absolute and without links, as `os.path.realpath` returns it, and below an allowed root if there is one.
    Raises: BadDocument: it cannot be read, is too large or no regular file, or has a link in it by now.
    """
    try:
        descriptor = _opened(path, policy)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise BadDocument(f"{shown(path)} is not a regular file; give the path of an image file")
            if not status.st_size:
                raise BadDocument(EMPTY)
            check_bytes(status.st_size, policy)
            with open(descriptor, "rb", closefd=False) as file:
                return file.read(status.st_size)
        finally:
            os.close(descriptor)  # `open` would leave that of a folder open
    except OSError as error:
        raise BadDocument(f"{shown(path)} cannot be read: {_reason(error)}") from error


def _reason(error: OSError) -> str:
    if error.errno in _SWAPPED:
        return "a folder or link in it was replaced meanwhile; try again"
    return f"{error.strerror or error}; give the path of an image file there"


def _opened(path: str, policy: ImagePolicy) -> int:
    root = next((root for root in policy.resolved_roots or () if is_within(path, root)), None)
    if root is None:  # every path is allowed
        return os.open(path, _FILE)
    return open_beneath(root, os.path.relpath(path, root))


def open_beneath(root: str, path: str) -> int:
    """Open `path` below the folder `root` for reading, and return the descriptor. No part of `path` may be a link.

    Raises: OSError: it cannot be opened.
    """
    *folders, name = path.split("/")
    folder = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for each in folders:
            if each == "..":
                raise OSError(errno.ELOOP, "it leads out of its root")
            below = os.open(each, _FOLDER, dir_fd=folder)
            os.close(folder)
            folder = below
        return os.open(name, _FILE, dir_fd=folder)
    finally:
        os.close(folder)
