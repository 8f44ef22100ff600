"""The SQLite file under `DocumentArrayMemmap`: its schema, and connections that survive threads and forks."""

import os
import sqlite3
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import WorkspaceError
from .sqlite import Schema, connect, identity

_APPLICATION_ID = 0x46544D44  # "FTMD", in the file's header
_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE documents (
    row INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    split TEXT NOT NULL,
    position INTEGER NOT NULL,
    label,  -- no type, so that 1 and '1' stay two labels
    matches INTEGER NOT NULL,
    document BLOB NOT NULL,  -- last, so that the other columns are read without it
    UNIQUE (split, position)
)"""
_HEADER = Schema(
    versions=range(_SCHEMA_VERSION, _SCHEMA_VERSION + 1),
    application_id=_APPLICATION_ID,
    elsewhere="file",
    refusal="{path} has schema version {version}; this program reads "
    f"{_SCHEMA_VERSION}. Open it with the version that wrote it, or name another file.",
)
_BUSY_SECONDS = 60  # how long to wait for another process's transaction


class _Connection(sqlite3.Connection):
    """A connection that allows weak references, so that it closes when its thread ends."""


class Connections:
    """One connection per thread to one file, opened when first used. All are closed before a fork.

    A forked child must not use, or even close, a connection that its parent opened. If the child opened another one
    beside it, SQLite's locks would be wrong. So all connections are closed before a fork, and each thread that needs
    one opens it again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: tuple[int, int] | None = None
        self._closed = False
        self._local = threading.local()
        self._open: weakref.WeakSet[_Connection] = weakref.WeakSet()
        self._in_child()
        with _forking:
            _all_connections.add(self)

    @contextmanager
    def use(self) -> Iterator[sqlite3.Connection]:
        """Lend this thread's connection. Do not nest: a fork would wait for the outer use and block the inner one."""
        with self._changed:
            self._changed.wait_for(lambda: not self._paused)
            if self._closed:
                raise WorkspaceError(f"This DocumentArrayMemmap of {self._path} was closed. Make another to go on.")
            self._users += 1
        try:
            with _explained(self._path):
                yield self._mine()
        finally:
            with self._changed:
                self._users -= 1
                self._changed.notify_all()

    def _mine(self) -> sqlite3.Connection:
        connection: _Connection | None = getattr(self._local, "connection", None)
        if connection is None or connection not in self._open:
            connection = self._local.connection = _connect(self._path, "rw")
            self._open.add(connection)
        self._check_in_place()
        return connection

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
        for connection in list(self._open):
            connection.close()
        self._open.clear()

    def resume(self) -> None:
        with self._changed:
            self._paused = False
            self._changed.notify_all()

    def _in_child(self) -> None:
        self._changed = threading.Condition()  # a new one: a thread that exists only in the parent may hold the old
        self._paused = False
        self._users = 0


_forking = threading.Lock()
_all_connections: weakref.WeakSet[Connections] = weakref.WeakSet()


def _before_fork() -> None:
    _forking.acquire()
    for connections in list(_all_connections):
        connections.pause()


def _after_fork_in_parent() -> None:
    for connections in list(_all_connections):
        connections.resume()
    _forking.release()


def _after_fork_in_child() -> None:
    for connections in list(_all_connections):
        connections._in_child()
    _forking.release()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        if "not a database" in str(error):
            message = f"{path} is not a file of documents. Move it away, or name another."
        else:
            message = (
                f"{path} cannot be used ({error}). See that it and its folder can be written and the disk has room."
            )
        raise WorkspaceError(message) from error


def _connect(path: Path, mode: str) -> _Connection:
    """Open an existing file (`mode` rw) or create it (rwc), and check that it is ours or empty."""
    connection = connect(path, mode=mode, busy_seconds=_BUSY_SECONDS, factory=_Connection)
    try:
        connection.execute("PRAGMA wal_autocheckpoint = 4000")  # pages, 16 MB
        connection.execute("PRAGMA journal_size_limit = 67108864")
        _HEADER.check(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def create_file(path: Path) -> None:
    """Create the file and its folders, unless it exists."""
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = _connect(path, "rwc")
        try:
            if connection.execute("PRAGMA journal_mode").fetchone() != ("wal",):  # not finished: WAL is set last
                connection.execute("BEGIN IMMEDIATE")  # another process may be creating it, too
                if not connection.execute("SELECT 1 FROM sqlite_master").fetchone():
                    connection.execute(_SCHEMA)
                    connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
                    connection.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
                connection.execute("COMMIT")
                connection.execute("PRAGMA journal_mode = WAL")
        finally:
            connection.close()
