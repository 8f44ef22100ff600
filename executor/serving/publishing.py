"""Publish the served version for readers, in a thread of its own: a store that is out of reach delays nothing else."""

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from ..compute.threads import in_brief_thread
from ..store.published import Place

FIRST_RETRY_SECONDS = 1.0
LAST_RETRY_SECONDS = 60.0

_log = logging.getLogger(__name__)


class Publisher:
    """Keeps what is published equal to what is served: at the start, after each promotion, and again until it works.

    Args: served: returns the version now served. folder_of: returns the folder of a version's files, and makes `base`
        if it is not there yet.
    """

    def __init__(self, place: Place, served: Callable[[], str], folder_of: Callable[[str], Path]) -> None:
        self._place = place
        self._served = served
        self._folder_of = folder_of
        self._wake = threading.Event()
        self._wake.set()
        self._closed = self._published_before = False
        self._trouble: str | None = None
        self._thread = threading.Thread(target=self._work, name="publisher", daemon=True)
        self._thread.start()

    def publish(self) -> None:
        """Have the version that is served now published. Returns at once."""
        self._wake.set()

    def trouble(self) -> str | None:
        """Why readers do not get the served version; None: they do."""
        return self._trouble

    def close(self) -> None:
        """Stop publishing. What was not published is when the service starts again."""
        self._closed = True
        self._wake.set()
        self._thread.join(timeout=5)

    def _work(self) -> None:
        retry = FIRST_RETRY_SECONDS
        while True:
            self._wake.wait(None if self._trouble is None else retry)
            if self._closed:
                return
            self._wake.clear()
            retry = FIRST_RETRY_SECONDS if self._published() else min(2 * retry, LAST_RETRY_SECONDS)

    def _published(self) -> bool:
        version = self._served()
        try:
            in_brief_thread(self._publish, version)
        except Exception as error:  # a store may raise anything; it is tried again
            if self._trouble is None:
                _log.warning("Version %s cannot be published to %s: %s", version, self._place.url, error)
            self._trouble = (
                f"Version {version!r} is served here, but could not be published where `publish_to` says "
                f"({type(error).__name__}; the log says more); it is tried again."
            )
            return False
        if self._trouble is not None:
            _log.warning("Version %s is published to %s now", version, self._place.url)
        self._trouble = None
        return True

    def _publish(self, version: str) -> None:
        from ..models.saving import space_of

        folder = self._folder_of(version)
        if not self._published_before:
            self._place.remove_leftovers()
        self._place.publish(version, space_of(folder), folder, anew=self._published_before)
        self._published_before = True
