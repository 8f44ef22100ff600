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

    Args: count: the threads. function: what to do with an item; what it raises is logged.
    """

    def __init__(self, count: int, name: str, function: Callable[[T], None]) -> None:
        self._function = function
        self._items: queue.SimpleQueue[T | None] = queue.SimpleQueue()
        self._busy = 0
        self._changed = threading.Condition()
        self._threads = [threading.Thread(target=self._work, name=f"{name}-{n}", daemon=True) for n in range(count)]
        for thread in self._threads:
            thread.start()

    @property
    def busy(self) -> int:
        """How many of the threads work or are about to."""
        return self._busy

    def wait_until_free(self, most: int) -> None:
        """Wait until fewer than `most` threads are busy. `most` is at most their count."""
        with self._changed:
            self._changed.wait_for(lambda: self._busy < most)

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
        while (item := self._items.get()) is not None:
            try:
                self._function(item)
            except Exception:  # whoever waits for a free thread would wait for ever
                _log.exception("A thread of %s failed", self._threads[0].name)
            finally:
                with self._changed:
                    self._busy -= 1
                    self._changed.notify()
