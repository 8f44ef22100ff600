"""Small pictures for people, made once and kept: a page shows sixty at a time, and shows them again.

They are made beside `/embed` and must not be felt there. So few threads make them, and before each picture they let the
calls of `/embed` that are under way go first, for a moment. What has to be fetched from elsewhere has a thread of its
own, so that a slow server holds up no file.
"""

import itertools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from ..compute.threads import Lanes
from ..errors import Overloaded
from ..images.policy import ImagePolicy
from ..images.thumbnails import thumbnail_of
from ..images.uris import is_remote
from ..store.cache import NOBODY, Cache
from .content_keys import content_key

KEPT_BYTES = 512 << 20  # of all thumbnails: those of 50,000 photographs
FILES = ("files", "more files")  # lanes: of sixty pictures, two cores make the last in half the time of one
MOST_WAITING = 2_000  # thumbnails that may wait to be made; more pages than anybody looks at
_MOMENT = 0.05  # seconds for which `/embed` goes first
_GLANCE = 0.005


class Thumbnails:
    """Makes and keeps thumbnails.

    Args: kept: where they are kept. policy: what may be read. busy: whether `/embed` has calls under way.
    """

    def __init__(self, kept: Cache, policy: ImagePolicy, busy: Callable[[], bool]) -> None:
        self._kept = kept
        self._policy = policy
        self._busy = busy
        self._lanes = Lanes(len(FILES) + 1)
        self._lane_of_next = itertools.cycle(FILES)

    def kept(self, docs: Sequence[Any], side: int, owner: int = NOBODY) -> list[bytes | None]:
        """Return the thumbnails that were made before; None for the others, and where nothing may be read.

        Args: owner: the number of the run whose documents they are.
        """
        keys = [content_key(doc, self._policy, owner) for doc in docs]
        found = self._kept.get(str(side), [key for key in keys if key is not None])
        return [None if key is None else found.get(key) for key in keys]

    def begin(self, doc: Any, side: int, owner: int = NOBODY) -> "Future[bytes]":
        """Return the thumbnail to come: the bytes of a JPEG or PNG file.

        It raises BadDocument where the document has no readable image, or one that may not be read.

        Raises: Overloaded: too many wait already.
        """
        if self._lanes.waiting >= MOST_WAITING:
            raise Overloaded(f"{MOST_WAITING} thumbnails wait to be made already; try again in a moment.")
        remote = doc.uri and doc.blob is None and is_remote(doc.uri, self._policy)
        lane = "remote" if remote else next(self._lane_of_next)
        return self._lanes.submit(lane, lambda: self._made(doc, side, owner))

    def _made(self, doc: Any, side: int, owner: int) -> bytes:
        key = content_key(doc, self._policy, owner)
        self._let_others_go_first()
        made = thumbnail_of(doc, side, self._policy)
        if key is not None:
            self._kept.put(str(side), {key: made}, owner)
        return made

    def _let_others_go_first(self) -> None:
        until = time.monotonic() + _MOMENT
        while self._busy() and time.monotonic() < until:
            time.sleep(_GLANCE)

    def forget(self, run: int) -> None:
        """Remove the thumbnails of a run's documents. Args: run: its number."""
        self._kept.forget(run)

    def close(self) -> None:
        """End the threads."""
        self._lanes.close()
        self._kept.close()
