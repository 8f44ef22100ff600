"""The one way to publish a file or a folder: readers see it complete, or as it was before."""

import contextlib
import ctypes
import errno
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import WorkspaceError

PLAN = b"finetuner_plan"  # among the metadata of a parquet file: what it was made by, as in plan.json of its parts
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux
_libc = ctypes.CDLL(None)


def publish_folder(folder: Path, write: Callable[[Path], None], *, replace: bool = True) -> None:
    """Replace `folder` with what `write` puts into an empty folder. Readers see the old files or all the new ones.

    Everything is synced to disk before it appears under its name. An old `folder` is exchanged for the new one. Where
    the disk cannot exchange, as NFS cannot, it is moved away first: for a moment there is none, and if the process is
    killed then, `remove_leftovers` brings the old one back.

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
        old = None
        if not replace or not folder.exists():
            os.rename(temporary, folder)
        elif exchange(temporary, folder):
            old = temporary
        else:
            old = _moved_aside(folder)
            _take_place_of(temporary, folder, old)
        sync(folder.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if old is not None:
        _remove(old)


def exchange(one: Path, other: Path) -> bool:
    """Give two folders each other's name, both at once. Return whether it was done: not every disk can."""
    if not hasattr(_libc, "renameat2"):
        return False
    names = os.fsencode(one), os.fsencode(other)
    return bool(_libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0)


def _moved_aside(folder: Path) -> Path:
    """Move a folder into a new one beside it, whose name says what is in it. Return that one."""
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
    os.rename(folder, aside / folder.name)
    return aside


def _take_place_of(new: Path, folder: Path, aside: Path) -> None:
    try:
        os.rename(new, folder)
    except OSError:
        _bring_back(aside)
        raise


def _bring_back(left: Path) -> None:
    """Give the folder that was moved into `left` its name again, unless another has it by now."""
    for moved in left.glob("*"):
        place = left.parent / moved.name
        if left.name.startswith(f".{moved.name}-old-") and not place.exists():
            os.rename(moved, place)
            sync(place.parent)


def publish_file(path: Path, content: bytes) -> None:
    """Replace `path`: readers see the old bytes or the new, never half. On return the new bytes are on the disk.

    Raises: OSError: the disk failed; if it is full, `full_folder` says where.
    """
    _publish(path, lambda file: file.write(content))


def publish_copy(source: Path, path: Path) -> None:
    """The same with the content of another file."""
    with open(source, "rb") as content:
        _publish(path, lambda file: shutil.copyfileobj(content, file, 2**20))


def _publish(path: Path, write: Callable[[BinaryIO], object]) -> None:
    with naming_the_full(path.parent):
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        try:
            with open(descriptor, "wb") as file:
                write(file)
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

    A folder that one of them had moved away, and not yet replaced, is brought back first. Nobody may publish there
    meanwhile, but for the file named `spare`.
    """
    for left in folder.glob(".*-*"):
        if spare is not None and left.name.startswith(f".{spare}-"):
            continue
        with contextlib.suppress(OSError):  # what cannot be brought back stays
            _bring_back(left)
            _remove(left)


def _remove(left: Path) -> None:
    """Remove a file or folder, as far as it can be.

    A folder gets another name first, so that half of it is never taken for one that was moved away.
    """
    with contextlib.suppress(OSError):
        if left.is_dir() and not left.is_symlink():
            doomed = left.with_name(f".doomed-{uuid.uuid4().hex}")
            os.rename(left, doomed)
            shutil.rmtree(doomed, ignore_errors=True)
        else:
            left.unlink()


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
