"""Fetch remote images in threads of their own, so that a slow server does not hold up those who decode."""

import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from ..errors import BadDocument
from ..images.policy import ImagePolicy
from ..images.remote import fetched_now, host_of, shown

MOST = 32  # bodies that are fetched, or wait to be decoded, at a time
MOST_OF_A_HOST = 16


@dataclass(eq=False)
class Fetch:
    """An image to fetch.

    Attributes:
        caller: Whose image it is. One with many takes at most as many of the places as it leaves free.
        then: Called in a thread of `Fetches` when `body` is there. What it starts has to end in `Fetches.finish`.
        abandoned: Whether nobody wants it any more; then it is not fetched.
        body: What was fetched, or why not.
    """

    caller: Hashable
    uri: str
    policy: ImagePolicy
    then: Callable[["Fetch"], object]
    abandoned: Callable[[], bool] = lambda: False
    body: bytes | BadDocument | None = None

    @property
    def fetched(self) -> dict[str, bytes | BadDocument]:
        """The body by its uri, as `images.remote.given` takes it."""
        return {} if self.body is None else {self.uri: self.body}


class Fetches:
    """Fetches so many images at a time, from a host and in all, and those of several callers in turn."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[tuple[Hashable, str], deque[Fetch]] = OrderedDict()
        self._under_way: Counter[Hashable] = Counter()  # by caller, by host, by both, and in all (None)
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(MOST, thread_name_prefix="fetch")
        self._closed = False

    def start(self, fetch: Fetch) -> None:
        """Fetch when there is a place, then call `fetch.then`."""
        with self._lock:
            self._waiting.setdefault((fetch.caller, host_of(fetch.uri)), deque()).append(fetch)
        self._begin()

    def finish(self, fetch: Fetch) -> None:
        """Give the place to another: the body is not needed any more."""
        with self._lock:
            self._under_way.subtract(self._places(fetch))
            self._under_way += Counter()  # forgets what has come down to 0
        self._begin()

    def close(self) -> None:
        """Refuse what waits, and end when what is under way has ended."""
        with self._lock:
            self._closed = True
        self._begin()
        self._threads.shutdown(wait=True)

    def _begin(self) -> None:
        with self._lock:
            while (fetch := self._next()) is not None:
                self._under_way.update(self._places(fetch))
                self._threads.submit(self._run, fetch)

    def _next(self) -> Fetch | None:
        for key, fetches in self._waiting.items():
            if self._closed or self._has_place(*key):
                fetch = fetches.popleft()
                self._waiting.move_to_end(key)
                if not fetches:
                    del self._waiting[key]
                return fetch
        return None

    def _has_place(self, caller: Hashable, host: str) -> bool:
        free = MOST - self._under_way[None]
        free_of_host = MOST_OF_A_HOST - self._under_way["host", host]
        return self._under_way["caller", caller] < free and self._under_way["both", caller, host] < free_of_host

    def _places(self, fetch: Fetch) -> tuple[Hashable, ...]:
        host = host_of(fetch.uri)
        return None, ("caller", fetch.caller), ("host", host), ("both", fetch.caller, host)

    def _run(self, fetch: Fetch) -> None:
        try:
            if self._closed:
                raise BadDocument("The service is ending; send the image to it again when it is back")
            if not fetch.abandoned():
                fetch.body = fetched_now(fetch.uri, fetch.policy)
        except BadDocument as error:
            fetch.body = error
        except Exception as error:  # what waits for the image must be told, whatever happened
            fetch.body = BadDocument(f"The image cannot be fetched: {shown(error) or type(error).__name__}")
        fetch.then(fetch)
