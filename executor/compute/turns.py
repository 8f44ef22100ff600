"""A queue that serves its callers in turn, one item each, however many one of them has brought."""

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class Turns(Generic[T]):
    """Items that wait, by caller. Several threads may put and take.

    Args: most: items that may wait before `put` waits too; None: any number.
    """

    def __init__(self, most: int | None = None) -> None:
        self._most = most
        self._callers: OrderedDict[Hashable, deque[T]] = OrderedDict()  # whose turn it is comes first
        self._waiting = 0
        self._closed = False
        lock = threading.Lock()
        self._more = threading.Condition(lock)
        self._room = threading.Condition(lock)

    def __len__(self) -> int:
        return self._waiting

    def put(self, caller: Hashable, items: Collection[T]) -> None:
        """Let items of a caller wait, behind those that it has brought before. Wait while there are too many."""
        with self._room:
            if self._most is not None:
                while self._waiting >= self._most and not self._closed:
                    self._room.wait()
            if items:
                self._callers.setdefault(caller, deque()).extend(items)
                self._waiting += len(items)
                self._more.notify(len(items))

    def take(self, *, timeout: float | None = None, fits: Callable[[T], bool] | None = None) -> T | None:
        """Return the next item of the caller whose turn it is; then it is the next caller's turn.

        Args:
            timeout: seconds to wait for an item; None: until there is one.
            fits: callers whose next item does not fit are passed over. If there are only such, nothing is waited for.

        Returns: None if there is nothing (that fits), also when the queue is closed.
        """
        end = None if timeout is None else time.monotonic() + timeout
        with self._more:
            while True:
                for caller, items in self._callers.items():
                    if fits is None or fits(items[0]):
                        return self._taken(caller, items)
                left = None if end is None else end - time.monotonic()
                if self._callers or self._closed or (left is not None and left <= 0):
                    return None
                self._more.wait(left)

    def _taken(self, caller: Hashable, items: deque[T]) -> T:
        item = items.popleft()
        if items:
            self._callers.move_to_end(caller)
        else:
            del self._callers[caller]
        self._waiting -= 1
        self._room.notify()
        return item

    def close(self) -> None:
        """Wait for nothing any more: what waits can still be taken, then `take` returns None."""
        with self._more:
            self._closed = True
            self._more.notify_all()
            self._room.notify_all()
