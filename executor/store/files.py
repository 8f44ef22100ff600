"""The one way to publish a file or a folder: readers see it complete, or as it was before."""

import contextlib
import errno
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..errors import WorkspaceError


def publish_folder(folder: Path, write: Callable[[Path], None], *, replace: bool = True) -> None:
    """Replace `folder` with what `write` puts into an empty folder. Readers see the old files or all the new ones.

    Everything is synced to disk before it appears under its name. An old `folder` is moved away first, so a process
    killed between the two moves leaves no folder at all. If that matters, give each version a name of its own.

    Args: replace: if false, only an empty folder is replaced.
    Raises: OSError: the folder is not empty, or the disk failed; if that is full, `full_folder` says where.
    """
    with naming_the_full(folder.parent):
        _publish_folder(folder, write, replace=replace)


def _publish_folder(folder: Path, write: Callable[[Path], None], *, replace: bool) -> None:
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
    """Replace `path`: readers see the old bytes or the new, never half. On return the new bytes are on the disk.

    Raises: OSError: the disk failed; if it is full, `full_folder` says where.
    """
    with naming_the_full(path.parent):
        _publish_file(path, content)


def _publish_file(path: Path, content: bytes) -> None:
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            os.fchmod(descriptor, 0o644)
        sync(Path(temporary))
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    sync(path.parent)


def remove_leftovers(folder: Path, *, spare: str | None = None) -> None:
    """Remove the temporary files and folders that killed processes left in `folder`.

    Nobody may publish there meanwhile, but for the file named `spare`.
    """
    for place in folder.glob(".*-*"):
        if spare is not None and place.name.startswith(f".{spare}-"):
            continue
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                place.unlink()


def is_full(error: Exception) -> bool:
    """Whether an error says that a disk is full. Libraries not written in Python say it only in the message."""
    if isinstance(error, OSError) and error.errno is not None:  # `shutil` has collected those of several files
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    said = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT), "disk is full")  # the last by SQLite
    return any(each in str(error) for each in said)


@contextlib.contextmanager
def naming_the_full(folder: Path) -> Iterator[None]:
    """Let an error in the block that says that a disk is full name a folder on it. The kernel often names none."""
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        code = error.errno or errno.ENOSPC
        raise OSError(code, os.strerror(code), str(folder)) from error


def full_folder(error: OSError, otherwise: Path) -> Path:
    """Return the folder whose disk is full. Args: otherwise: where that may be if the error names no place."""
    named = error.filename2 or error.filename  # where a file is copied, the second one is written
    if not isinstance(named, str):
        return otherwise
    return Path(named) if os.path.isdir(named) else Path(named).parent


def full_or_unwritable(place: object) -> str:
    """Say that nothing could be written at a place, where it is not known why."""
    return f"The disk of {place} is full or cannot be written. See to that, then train another run."


def unwritable(what: str, folder: Path, error: Exception) -> WorkspaceError:
    """Return an error saying that `what` cannot be written in `folder`, and why."""
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


def read_kept(file: Path) -> Any:
    """Return the JSON in a file; None: there is no file, or it was edited or cut short, and is no JSON."""
    try:
        return json.loads(file.read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def remove_parts(folder: Path) -> None:
    """Remove a folder of parts, its plan.json last, which says whose they are: else a kill leaves parts of nobody."""
    plan = folder / "plan.json"
    for part in folder.iterdir():
        if part != plan:
            part.unlink()
    plan.unlink(missing_ok=True)
    folder.rmdir()
