"""The folder of a job on an object store: each side has a copy on its own disk, and exchanges what has changed.

Every file is an object of the same name. A folder that appears as a whole, such as a checkpoint, is one object too, a
tar, because a store replaces an object at once and a folder it does not know. A file that says that others are there
is sent after them.
"""

import contextlib
import logging
import os
import shutil
import tarfile
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import fsspec.core
from fsspec.implementations.local import LocalFileSystem

from ..errors import ConfigurationError
from .files import naming_the_full, publish_folder

Part = Literal["inputs", "made"]  # what the service writes, and what the job does
_WHOLE = {"inputs": ("versions/*",), "made": ("made/model", "made/checkpoints/*")}
_FILES = {"inputs": "*", "made": "made/*"}
# Each says that what came before is there: the version that is served, all that a job needs, all that it has made.
_LAST = ("served.json", "job.json", "attempt.json", "made/result.json", "made/ended")
_TAR = ".tar"

_log = logging.getLogger(__name__)


def is_url(place: str) -> bool:
    """Whether a place is on an object store, and no path."""
    return "://" in place


def _turn(name: str) -> tuple[int, str]:
    """Return the place of a name in the order in which things are copied."""
    return next((place for place, last in enumerate(_LAST, 1) if name.startswith(last)), 0), name


class Exchange:
    """Keeps a folder here and one on a store alike.

    Args: folder: here. url: of the other, for fsspec, such as `s3://jobs/run-1-6f1c09a2`.
    Raises: ConfigurationError: there is no such scheme, its package is not installed, or it is a path.
    """

    def __init__(self, folder: Path, url: str) -> None:
        self._folder = folder
        self._url = url
        try:
            self._files, root = fsspec.core.url_to_fs(url, use_listings_cache=False, skip_instance_cache=True)
        except (ImportError, ValueError) as error:
            raise ConfigurationError(f"No job can lie at {url!r}: {error}.") from None
        if isinstance(self._files, LocalFileSystem):
            raise ConfigurationError(f"{url!r} is a path: write it without the scheme.")
        self._root = str(root).rstrip("/")
        self._sent: dict[str, Any] = {}  # names, and by what the file here is known
        self._brought: dict[str, Any] = {}  # the same of the objects there

    def send(self, part: Part) -> None:
        """Send what is new or has changed here, and remove there what is gone here. Raises: OSError."""
        here = self._here(part)
        with _as_os_error(self._url):
            for name in sorted(here, key=_turn):
                known = _known_by(here[name])
                if known is not None and self._sent.get(name) != known and self._put(here[name], name):
                    self._sent[name] = known
            for name in [name for name in self._sent if _is_of(part, name) and name not in here]:
                with contextlib.suppress(FileNotFoundError):
                    self._files.rm_file(f"{self._root}/{name}")
                del self._sent[name]

    def bring(self, part: Part) -> None:
        """Bring what is new or has changed there, and remove here what is gone there. Raises: OSError."""
        with _as_os_error(self._url):
            there = self._there(part)
            for name in sorted(there, key=_turn):
                if self._brought.get(name) != there[name]:
                    with contextlib.suppress(FileNotFoundError):  # it was replaced or removed just now
                        self._get(name)
                        self._brought[name] = there[name]
                        self._sent[name] = _known_by(self._place(name))
        for name in [name for name in self._brought if _is_of(part, name) and name not in there]:
            _remove(self._place(name))
            del self._brought[name]
            self._sent.pop(name, None)

    def remove(self) -> None:
        """Remove the folder there, in a thread: nobody waits for a store that does not answer."""

        def work() -> None:
            try:
                with contextlib.suppress(FileNotFoundError):
                    self._files.rm(self._root, recursive=True)
            except Exception as error:  # a store may raise anything
                _log.warning("The job at %s is over; remove what is there by hand: %s", self._url, error)

        threading.Thread(target=work, name="remove-job", daemon=True).start()

    def _place(self, name: str) -> Path:
        return self._folder / (name.removesuffix(_TAR) if _is_whole(name) else name)

    def _here(self, part: Part) -> dict[str, Path]:
        files = [file for file in self._folder.glob(_FILES[part]) if file.is_file()]
        whole = [place for pattern in _WHOLE[part] for place in self._folder.glob(pattern) if place.is_dir()]
        names = {str(file.relative_to(self._folder)): file for file in files}
        names |= {f"{place.relative_to(self._folder)}{_TAR}": place for place in whole}
        return {name: place for name, place in names.items() if not place.name.startswith(".")}

    def _there(self, part: Part) -> dict[str, Any]:
        below = f"{self._root}/made" if part == "made" else self._root
        with contextlib.suppress(FileNotFoundError):
            found = self._files.find(below, detail=True)
            named = {path.removeprefix(f"{self._root}/"): _version_of(about) for path, about in found.items()}
            return {name: version for name, version in named.items() if _is_of(part, name) and _is_safe(name)}
        return {}

    def _put(self, place: Path, name: str) -> bool:
        """Send a file or folder. Return whether it was still there: an old checkpoint may be removed meanwhile."""
        packed = self._unfinished()
        try:
            if place.is_dir():
                with naming_the_full(self._folder), tarfile.open(packed, "w") as tar:
                    for file in sorted(place.iterdir()):
                        tar.add(file, file.name)
            self._files.put_file(str(packed if packed.exists() else place), f"{self._root}/{name}")
        except FileNotFoundError:
            if place.exists():
                raise
            return False
        finally:
            packed.unlink(missing_ok=True)
        return True

    def _unfinished(self) -> Path:
        """Return a name for a file that nobody else sees or clears away."""
        return self._folder / f".{uuid.uuid4().hex}"

    def _get(self, name: str) -> None:
        place = self._place(name)
        place.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self._unfinished()
        try:
            with naming_the_full(self._folder):
                self._files.get_file(f"{self._root}/{name}", str(unfinished))
            if _is_whole(name):
                publish_folder(place, lambda folder: _unpack(unfinished, folder))
            else:
                os.replace(unfinished, place)
        finally:
            unfinished.unlink(missing_ok=True)


class NoExchange:
    """In place of an exchange, where all sides see one folder."""

    def send(self, part: Part) -> None:
        """Do nothing."""

    def bring(self, part: Part) -> None:
        """Do nothing."""

    def remove(self) -> None:
        """Do nothing."""


@contextlib.contextmanager
def _as_os_error(url: str) -> Iterator[None]:
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # the libraries of stores have errors of their own
        raise OSError(f"{url} does not answer: {error}") from error


def _is_whole(name: str) -> bool:
    return name.endswith(_TAR)


def _is_of(part: Part, name: str) -> bool:
    return name.startswith("made/") == (part == "made")


def _is_safe(name: str) -> bool:
    """Whoever can write to the store must not be able to write outside the folder."""
    parts = PurePosixPath(name).parts
    return 0 < len(parts) <= 3 and not any(part.startswith(".") for part in parts)


def _known_by(place: Path) -> Any:
    """By what a file or folder is known to be the same; None: it is gone."""
    try:
        about = place.stat()
        inside = sorted((file.name, file.stat().st_size) for file in place.iterdir()) if place.is_dir() else []
        return about.st_mtime_ns, about.st_size, inside
    except FileNotFoundError:
        return None


def _version_of(about: dict[str, Any]) -> Any:
    marks = ("ETag", "etag", "md5Hash", "content_md5", "LastModified", "last_modified", "mtime", "created")
    return about.get("size"), *(str(about[mark]) for mark in marks if mark in about)


def _remove(place: Path) -> None:
    if place.is_dir():
        shutil.rmtree(place, ignore_errors=True)
    else:
        place.unlink(missing_ok=True)


def _unpack(packed: Path, folder: Path) -> None:
    with tarfile.open(packed) as tar:
        for member in tar:
            content = tar.extractfile(member) if member.isfile() and "/" not in member.name else None
            if content is not None and not member.name.startswith("."):
                with content, open(folder / member.name, "wb") as file:
                    shutil.copyfileobj(content, file)
