"""The one way to publish a file or a folder: complete, or as it was."""

import errno
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path

from ..errors import WorkspaceError


def publish_folder(folder: Path, write: Callable[[Path], None], *, replace: bool = True) -> None:
    """Replace `folder` by what `write` puts into an empty one: readers see the old files or all of the new.

    Everything is synced to disk before it appears under its name. A former `folder` is moved away first, so a
    process killed in between leaves none; write each version under a name of its own where that matters.

    Args: replace: false: only an empty folder is replaced. Raises: OSError: it is not empty, or a disk's.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.parent / f".{folder.name}-{uuid.uuid4().hex}"
    temporary.mkdir()
    try:
        write(temporary)
        for path in temporary.rglob("*"):
            if path.is_file():
                sync(path)
        sync(temporary)
        if replace and folder.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
            os.rename(folder, old / "replaced")
            os.rename(temporary, folder)
            shutil.rmtree(old)
        else:
            os.rename(temporary, folder)
        sync(folder.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def publish_file(path: Path, content: bytes) -> None:
    """Replace `path`: readers see the old bytes or the new, never half; what is written is on the disk."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            os.fchmod(descriptor, 0o644)
        sync(Path(temporary))
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    sync(path.parent)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left of `publish_folder` in `folder`. Nobody may publish there meanwhile."""
    for place in folder.glob(".*-*"):
        shutil.rmtree(place, ignore_errors=True)


def is_full(error: Exception) -> bool:
    """Whether an error says that a disk is full; libraries that are not Python's say so in words only."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return os.strerror(errno.ENOSPC) in str(error) or os.strerror(errno.EDQUOT) in str(error)


def unwritable(what: str, folder: Path, error: Exception) -> WorkspaceError:
    """Return the error that says that `what` cannot be written below `folder`, and why."""
    if is_full(error):
        return WorkspaceError(f"The disk of {folder} is full, so {what} cannot be written. Free space on it.")
    return WorkspaceError(f"{what[0].upper()}{what[1:]} cannot be written to {folder}: {error}.")


def sync(path: Path) -> None:
    """Flush a file or a folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
