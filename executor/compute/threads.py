"""Where work is done: in a thread that ends right after it, or in lanes.

Every thread that computes starts OpenMP threads, and they last as long as it does. Once there are more of them than
cores, they sleep while they wait for work, and a single image takes twice as long. So only the embedder's own thread
stays.
"""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def in_brief_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function in a new thread. Return what it returns, or raise what it raises."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(function, *args, **kwargs).result()


class Lanes:
    """Calls functions in threads; those of one lane one after the other. So a slow lane takes one thread and no more.

    Args: threads: how many lanes may be busy at once.
    """

    def __init__(self, threads: int) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="lane")
        self._lock = threading.Lock()
        self._waiting: dict[str, deque[tuple[Future[Any], Callable[[], Any]]]] = {}  # of the lanes that are busy

    def submit(self, lane: str, function: Callable[[], T]) -> "Future[T]":
        """Call a function when the earlier ones of its lane have ended."""
        future: Future[T] = Future()
        with self._lock:
            if lane in self._waiting:
                self._waiting[lane].append((future, function))
                return future
            self._waiting[lane] = deque()
        self._threads.submit(self._call, lane, future, function)
        return future

    @property
    def waiting(self) -> int:
        """How many functions wait for their turn."""
        with self._lock:
            return sum(map(len, self._waiting.values()))

    def _call(self, lane: str, future: "Future[Any]", function: Callable[[], Any]) -> None:
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)
        with self._lock:
            if self._waiting[lane]:
                self._threads.submit(self._call, lane, *self._waiting[lane].popleft())
            else:
                del self._waiting[lane]

    def close(self) -> None:
        """Wait for what is under way. What waits is not called any more."""
        with self._lock:
            for future, _ in [each for waiting in self._waiting.values() for each in waiting]:
                future.cancel()
        self._threads.shutdown()
