"""Follow what a writer publishes: bring each newly served version here, load it, and only then serve it.

Until a new version is whole, undamaged and loaded, the last good one is served.
"""

import contextlib
import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock

from ..errors import FinetunerError, NotReady, UnknownModel
from ..models.model import EmbeddingModel
from ..models.saving import load_model
from ..store.files import remove_leftovers
from ..store.published import KEPT_WAY, Place, Pointer, is_whole

LOOK_SECONDS = 1.0  # between two looks at the store
FIRST_RETRY_SECONDS = 1.0  # after something went wrong; then twice as long each time,
LAST_RETRY_SECONDS = 15.0  # up to this
SILENT_SECONDS = 10.0  # without an answer of the store, until we say so
PATIENCE_SECONDS = 60.0  # with another reader that brings and loads a version
KEPT_VERSIONS = 3  # folders of versions that stay on the disk: a rollback then fetches nothing

_log = logging.getLogger(__name__)


class FollowedVersions:
    """The versions that a reader has: the one that is served, and the one that is about to be.

    Args: place: where the versions are published. folder: where fetched ones are kept; readers may share it.
    Attributes: trouble: why a version that was published cannot be had; None: nothing is known to be wrong.
    """

    def __init__(self, place: Place, folder: Path) -> None:
        self._place = place
        self._folder = folder
        self._known: dict[str, Pointer] = {}
        self._served: Pointer | None = None
        self.trouble: str | None = None

    @property
    def pointer(self) -> Pointer | None:
        """What is served; None: nothing yet."""
        return self._served

    def served(self) -> str:
        """Return the version that is served. Raises: NotReady: none was published yet, or none could be loaded."""
        if self._served is None:
            raise NotReady(
                self.trouble
                or "Nothing has been published yet where `serve_from` looks; this reader answers when it is."
            )
        return self._served.version

    def folder(self, version: str) -> Path:
        """Return the folder of a version that was fetched. Raises: UnknownModel: it was not."""
        if version not in self._known:
            raise UnknownModel(f"This reader serves {self.served()!r} only, and has no model {version!r}.")
        return self._folder / self._known[version].space

    def load(self, version: str) -> EmbeddingModel:
        """Return the model of a version that was fetched. Raises: UnknownModel: it was not."""
        return load_model(self.folder(version))

    @contextlib.contextmanager
    def alone_if_new(self, pointer: Pointer) -> Iterator[None]:
        """Bring and load a version in this context: the first of the readers that share the folder goes alone.

        The others wait. Then they find its files here, and by which way it is served fastest: what each of them would
        measure depends on the moment, and a client must not see which of them has embedded a picture.
        """
        lock = FileLock(self._folder.with_suffix(".lock"))
        try:
            if not self._was_loaded(pointer) and self._is_acquired(lock):
                if self._was_loaded(pointer):
                    lock.release()
                else:
                    remove_leftovers(self._folder)
            yield
        finally:
            lock.release()

    def _is_acquired(self, lock: FileLock) -> bool:
        """Wait for the lock. Where it cannot be had, the version is brought all the same: twice, rather than never."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=PATIENCE_SECONDS)
        except (OSError, NotImplementedError) as error:  # too late (an OSError of filelock), or a disk without locks
            _log.warning("A version is brought beside other readers that may share %s: %s", self._folder, error)
            return False
        return True

    def _was_loaded(self, pointer: Pointer) -> bool:
        folder = self._folder / pointer.space
        return (folder / KEPT_WAY).is_file() and is_whole(folder, pointer)

    def bring(self, pointer: Pointer) -> None:
        """Have the files of a version here, whole. Raises: OSError, WorkspaceError: as `Place.fetch`."""
        folder = self._folder / pointer.space
        if not is_whole(folder, pointer):
            self._place.fetch(pointer, folder)
        self._known[pointer.version] = pointer

    def forget_unserved(self) -> None:
        """Forget what was brought and could not be loaded."""
        self._known = {} if self._served is None else {self._served.version: self._served}

    def serve(self, pointer: Pointer) -> None:
        """Serve a version from now on: it was brought and loaded."""
        self._served = pointer
        self._known = {pointer.version: pointer}
        folders = sorted((place for place in self._folder.glob("[!.]*") if place.is_dir()), key=_age)
        for place in [place for place in folders if place.name != pointer.space][KEPT_VERSIONS - 1 :]:
            shutil.rmtree(place, ignore_errors=True)


def _age(folder: Path) -> float:
    try:
        return -folder.stat().st_mtime
    except FileNotFoundError:  # another reader of this folder has removed it
        return 0.0


class Follower:
    """Looks for a new version about once a second, in a thread of its own.

    Args: load: loads a version that was brought, in place of another of its name; it may take long.
    """

    def __init__(self, place: Place, versions: FollowedVersions, load: Callable[[str], object]) -> None:
        self._place = place
        self._versions = versions
        self._load = load
        self._seen: Pointer | None = None
        self._looked_at: Pointer | None = None  # None: there was none, or it could not be read
        self._answered = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="follower", daemon=True)
        self._thread.start()

    def trouble(self) -> str | None:
        """Why what is served may not be what the writer serves; None: it is."""
        silent = time.monotonic() - self._answered
        if self._versions.trouble is None and silent > SILENT_SECONDS:
            return f"The store that `serve_from` names has not answered for {silent:.0f} s. {self._meanwhile()}"
        return self._versions.trouble

    def close(self) -> None:
        """Stop following."""
        self._ended.set()
        self._thread.join(timeout=5)

    def _work(self) -> None:
        retry = FIRST_RETRY_SECONDS
        while not self._ended.is_set():
            try:
                self._look()
            except Exception as error:  # a store may raise anything; the last good version stays
                self._complain(error)
                self._answered = time.monotonic()
                self._wait_for_news(retry)
                retry = min(2 * retry, LAST_RETRY_SECONDS)
            else:
                self._versions.trouble, retry = None, FIRST_RETRY_SECONDS
                self._answered = time.monotonic()
                self._ended.wait(LOOK_SECONDS)

    def _wait_for_news(self, seconds: float) -> None:
        """Wait, but only until something else is published than what was looked at: that may mend what is wrong."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self._ended.wait(LOOK_SECONDS):
            with contextlib.suppress(Exception):  # what is wrong with the store is known
                if self._place.pointer() != self._looked_at:
                    return

    def _look(self) -> None:
        self._looked_at = None
        self._looked_at = pointer = self._place.pointer()
        if pointer is None:
            if self._seen is not None:
                raise FileNotFoundError("served.json is gone")
            return
        if pointer == self._seen:
            return
        try:
            with self._versions.alone_if_new(pointer):
                self._versions.bring(pointer)
                self._load(pointer.version)
        except BaseException:
            self._versions.forget_unserved()
            raise
        self._versions.serve(pointer)
        self._seen = pointer
        _log.info("Version %s (space %s) is served now", pointer.version, pointer.space)

    def _complain(self, error: Exception) -> None:
        if self._versions.trouble is None:
            _log.warning("%s cannot be followed: %s", self._place.url, error)
        why, remedy = "out of reach", ""
        if isinstance(error, FinetunerError):
            why = "damaged or not whole"
            remedy = "Restart the service that publishes there, or promote a version at it. "
        known = f"{type(error).__name__}; the log of this reader says more"
        self._versions.trouble = f"What `serve_from` names is {why} ({known}). {remedy}{self._meanwhile()}"

    def _meanwhile(self) -> str:
        return "No version has come yet." if self._versions.pointer is None else "The last version that came is served."
