"""Threads that compute side by side, each with one core of its own."""

import logging
import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

_log = logging.getLogger(__name__)


class OneCoreEach(Generic[T]):
    """Calls a function in threads that compute with one core each, so that none waits for another.

    OpenMP shares one computation among the cores instead. That ends sooner, but while the cores have other work too,
    each of its barriers waits for a thread that had to make way. These threads never share one, so they start no
    threads of OpenMP.

    Args:
        count: the threads. function: what to do with an item; what it raises is logged.
        begin: called in each thread before the first item, and before this is made.
    """

    def __init__(
        self, count: int, name: str, function: Callable[[T], None], *, begin: Callable[[], None] = lambda: None
    ) -> None:
        self._function = function
        self._items: queue.SimpleQueue[T | None] = queue.SimpleQueue()
        self._begin = begin
        self._busy = count  # until each has begun
        self._changed = threading.Condition()
        self._threads = [threading.Thread(target=self._work, name=f"{name}-{n}", daemon=True) for n in range(count)]
        for thread in self._threads:
            thread.start()
        self.wait_for(busy=0)

    @property
    def busy(self) -> int:
        """How many of the threads work or are about to."""
        return self._busy

    def wait_for(self, *, busy: int) -> None:
        """Wait until at most so many threads are busy, and one is free."""
        most = min(busy, len(self._threads) - 1)
        with self._changed:
            self._changed.wait_for(lambda: self._busy <= most)

    def put(self, item: T) -> None:
        """Let a thread call the function with an item."""
        with self._changed:
            self._busy += 1
        self._items.put(item)

    def close(self) -> None:
        """Wait for what was put, then end the threads."""
        for _ in self._threads:
            self._items.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        self._begin()
        self._is_free()
        while (item := self._items.get()) is not None:
            try:
                self._function(item)
            except Exception:  # whoever waits for a free thread would wait for ever
                _log.exception("%s failed", threading.current_thread().name)
            del item  # while there is nothing to do, nothing is held in memory by it
            self._is_free()

    def _is_free(self) -> None:
        with self._changed:
            self._busy -= 1
            self._changed.notify()
