"""Connections to SQLite files of documents that survive threads and forks, and are few however many files there are."""

import os
import sqlite3
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import WorkspaceError
from .sqlite import identity

MOST_IDLE = 32  # connections that stay open unused, over all files of this process: each takes three file descriptors


class SharedConnections:
    """The connections to one file: each is used by one thread at a time, then kept for the next one.

    A forked child must not use, or even close, a connection that its parent opened. If the child opened another one
    beside it, SQLite's locks would be wrong. So all connections are closed before a fork, and opened again when they
    are needed.

    Args: connect: opens another connection to `path`.
    """

    def __init__(self, path: Path, connect: Callable[[], sqlite3.Connection]) -> None:
        self._path = path
        self._connect = connect
        self._file: tuple[int, int] | None = None
        self._closed = False
        self._owner = object()  # whose the idle ones are
        weakref.finalize(self, _idle.close, self._owner)
        self._in_child()
        with _forking:
            _all_connections.add(self)

    @contextmanager
    def use(self) -> Iterator[sqlite3.Connection]:
        """Lend a connection. Do not nest: a fork would wait for the outer use and block the inner one."""
        with self._changed:
            self._changed.wait_for(lambda: not self._paused)
            if self._closed:
                raise WorkspaceError(f"This DocumentArrayMemmap of {self._path} was closed. Make another to go on.")
            self._users += 1
        try:
            connection = _idle.take(self._owner) or self._connect()
            try:
                self._check_in_place()
                yield connection
            except BaseException:
                connection.close()
                raise
            _idle.keep(self._owner, connection)
        finally:
            with self._changed:
                self._users -= 1
                self._changed.notify_all()

    def _check_in_place(self) -> None:
        """Raise WorkspaceError if the file was moved away: what is written to it now would be lost without a word."""
        now = identity(self._path)
        self._file = self._file or now
        if now != self._file:
            raise WorkspaceError(
                f"{self._path} was removed or replaced while it was in use. Put it back, and open it again."
            )

    def close(self) -> None:
        self.pause()
        self._closed = True
        self.resume()

    def pause(self) -> None:
        """Lend no connections until `resume`. Wait until none is in use, then close them all."""
        with self._changed:
            self._changed.wait_for(lambda: not self._paused)
            self._paused = True
            self._changed.wait_for(lambda: not self._users)
        _idle.close(self._owner)

    def resume(self) -> None:
        with self._changed:
            self._paused = False
            self._changed.notify_all()

    def _in_child(self) -> None:
        self._changed = threading.Condition()  # a new one: a thread that exists only in the parent may hold the old
        self._paused = False
        self._users = 0


class _Idle:
    """The open connections that nobody uses now, the one that was used last at the end."""

    def __init__(self) -> None:
        self._owners: OrderedDict[sqlite3.Connection, object] = OrderedDict()
        self.renew_lock()

    def renew_lock(self) -> None:
        self._lock = threading.RLock()  # garbage collection may come in between and call `close`

    def take(self, owner: object) -> sqlite3.Connection | None:
        """Return an idle connection of `owner`, which is no longer idle then; None if there is none."""
        with self._lock:
            found = next((each for each, whose in reversed(list(self._owners.items())) if whose is owner), None)
            if found is not None:
                del self._owners[found]
            return found

    def keep(self, owner: object, connection: sqlite3.Connection) -> None:
        """Keep a connection for `take`; close the one that was not used for longest if there are too many."""
        with self._lock:
            self._owners[connection] = owner
            surplus = [self._owners.popitem(last=False)[0] for _ in range(len(self._owners) - MOST_IDLE)]
        for each in surplus:
            each.close()

    def close(self, owner: object) -> None:
        """Close all of `owner`."""
        with self._lock:
            found = [each for each, whose in list(self._owners.items()) if whose is owner]
            for each in found:
                del self._owners[each]
        for each in found:
            each.close()


_idle = _Idle()
_forking = threading.Lock()
_all_connections: weakref.WeakSet[SharedConnections] = weakref.WeakSet()


def _before_fork() -> None:
    _forking.acquire()
    for connections in list(_all_connections):
        connections.pause()


def _after_fork_in_parent() -> None:
    for connections in list(_all_connections):
        connections.resume()
    _forking.release()


def _after_fork_in_child() -> None:
    _idle.renew_lock()
    for connections in list(_all_connections):
        connections._in_child()
    _forking.release()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
