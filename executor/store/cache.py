"""Bytes that can be made again, such as thumbnails, in one SQLite file: bounded, and the oldest go first.

Nobody depends on it. A damaged file is removed and begun anew. Each piece has a checksum, so that damage which SQLite
does not see is none that a reader sees. Where the disk is full or read-only, nothing is kept, and that is said once.
"""

import contextlib
import logging
import sqlite3
import threading
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from ..errors import WorkspaceError
from .sqlite import connect, is_damage, use_wal

NOBODY = 0  # the owner of what belongs to no run
_STEPS = (
    "CREATE TABLE IF NOT EXISTS pieces (number INTEGER PRIMARY KEY AUTOINCREMENT, sort TEXT NOT NULL, "
    "key BLOB NOT NULL, owner INTEGER NOT NULL, content BLOB NOT NULL, UNIQUE (sort, key))",
    "CREATE INDEX IF NOT EXISTS pieces_by_owner ON pieces (owner) WHERE owner != 0",
)
_BUSY_SECONDS = 5.0
_AT_A_TIME = 200  # keys of one query, rows of one removal
_MARGIN = 0.05  # of the limit: so much more is removed than must be, so that not every piece removes another

T = TypeVar("T")
_log = logging.getLogger(__name__)


class Cache:
    """The pieces in one file, each found by its sort and its key. Threads may share an instance.

    Args:
        path: the file; it is made when it is first needed.
        limit: bytes that all pieces may take together.
        owners: returns the numbers of the runs that there are. What another run owned is removed when the file is
            opened: a service may be killed between the end of a run and `forget`.
    """

    def __init__(self, path: Path, limit: int, owners: Callable[[], Collection[int]]) -> None:
        self.path = path
        self._limit = limit
        self._owners = owners
        self._lock = threading.RLock()
        self._opened: sqlite3.Connection | None = None
        self._bytes = 0
        self._troubled = False
        self._closed = False

    def get(self, sort: str, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return the pieces that are there, by their keys."""
        return self._tried(lambda db: self._get(db, sort, keys), {})

    def put(self, sort: str, pieces: Mapping[bytes, bytes], owner: int = NOBODY) -> None:
        """Keep pieces, in place of those that have their keys, and remove the oldest if it becomes too much."""
        self._tried(lambda db: self._put(db, sort, pieces, owner), None)

    def forget(self, owner: int) -> None:
        """Remove what a run owned."""
        self._tried(lambda db: self._remove(db, "owner = ?", owner), None)

    def close(self) -> None:
        """Close the file. Afterwards nothing is found or kept."""
        with self._lock:
            self._closed = True
            self._drop()

    # ----------------------------------------------------------------------------------------------------------------

    def _tried(self, work: Callable[[sqlite3.Connection], T], otherwise: T) -> T:
        """Do something with the open file; if it is damaged, begin it anew and do it again."""
        for again in (True, False):
            with self._lock:
                if self._closed:
                    return otherwise
                try:
                    done = work(self._connection())
                    self._troubled = False
                    return done
                except (sqlite3.Error, OSError, WorkspaceError) as error:
                    self._drop()
                    if again and is_damage(error):
                        self._begin_anew()
                        continue
                    self._say(error)
        return otherwise

    def _say(self, error: Exception) -> None:
        if not self._troubled:
            _log.warning("%s cannot be used, so nothing is kept there until it can: %s", self.path, error)
        self._troubled = True

    def _connection(self) -> sqlite3.Connection:
        if self._opened is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            opened = connect(self.path, mode="rwc", busy_seconds=_BUSY_SECONDS, factory=sqlite3.Connection)
            try:
                use_wal(opened, busy_seconds=_BUSY_SECONDS)
                opened.execute("PRAGMA synchronous = NORMAL")  # what a power failure takes can be made again
                for step in _STEPS:
                    opened.execute(step)
                ((self._bytes,),) = opened.execute("SELECT coalesce(sum(length(content)), 0) FROM pieces")
                self._remove_orphans(opened)
            except BaseException:
                opened.close()
                raise
            self._opened = opened
        return self._opened

    def _remove_orphans(self, db: sqlite3.Connection) -> None:
        owned = {owner for (owner,) in db.execute("SELECT DISTINCT owner FROM pieces WHERE owner != 0")}
        for owner in owned - set(self._owners()) if owned else ():
            self._remove(db, "owner = ?", owner)

    def _drop(self) -> None:
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def _begin_anew(self) -> None:
        for ending in ("", "-wal", "-shm"):
            self.path.with_name(self.path.name + ending).unlink(missing_ok=True)

    def _get(self, db: sqlite3.Connection, sort: str, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        for start in range(0, len(keys), _AT_A_TIME):
            some = keys[start : start + _AT_A_TIME]
            marks = ", ".join("?" * len(some))
            query = f"SELECT key, content FROM pieces WHERE sort = ? AND key IN ({marks})"
            for key, content in db.execute(query, (sort, *some)):
                if (piece := _checked(content)) is not None:
                    found[key] = piece
        return found

    def _put(self, db: sqlite3.Connection, sort: str, pieces: Mapping[bytes, bytes], owner: int) -> None:
        rows = [(sort, key, owner, _with_checksum(piece)) for key, piece in pieces.items()]
        with _transaction(db):
            for start in range(0, len(rows), _AT_A_TIME):
                self._replace(db, sort, rows[start : start + _AT_A_TIME])
        self._thin(db)

    def _replace(self, db: sqlite3.Connection, sort: str, rows: list[tuple[str, bytes, int, bytes]]) -> None:
        keys = [key for _, key, _, _ in rows]
        which = f"sort = ? AND key IN ({', '.join('?' * len(keys))})"
        self._delete(db, which, sort, *keys)
        db.executemany("INSERT INTO pieces (sort, key, owner, content) VALUES (?, ?, ?, ?)", rows)
        self._bytes += sum(len(content) for _, _, _, content in rows)

    def _thin(self, db: sqlite3.Connection) -> None:
        """Remove the oldest pieces until there is a little room, if there are too many bytes."""
        much = self._bytes - (1 - _MARGIN) * self._limit if self._bytes > self._limit else 0
        while much > 0:
            last = None
            for number, size in db.execute(
                "SELECT number, length(content) FROM pieces ORDER BY number LIMIT ?", (_AT_A_TIME,)
            ).fetchall():
                last, much = number, much - size
                if much <= 0:
                    break
            if last is None:
                return
            self._remove(db, "number <= ?", last)

    def _remove(self, db: sqlite3.Connection, which: str, *arguments: object) -> None:
        with _transaction(db):
            self._delete(db, which, *arguments)

    def _delete(self, db: sqlite3.Connection, which: str, *arguments: object) -> None:
        ((size,),) = db.execute(f"SELECT coalesce(sum(length(content)), 0) FROM pieces WHERE {which}", arguments)
        db.execute(f"DELETE FROM pieces WHERE {which}", arguments)
        self._bytes -= size


@contextlib.contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    """All of a block, or nothing of it."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:  # if the disk is full, SQLite has rolled it back already
            db.execute("ROLLBACK")
        raise


def _with_checksum(piece: bytes) -> bytes:
    return zlib.crc32(piece).to_bytes(4, "big") + piece


def _checked(content: bytes) -> bytes | None:
    piece = content[4:]
    return piece if zlib.crc32(piece).to_bytes(4, "big") == content[:4] else None
