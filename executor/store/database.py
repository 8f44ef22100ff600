"""A SQLite file of a workspace: its schema, the steps from older schemas, transactions, and readable errors."""

import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import WorkspaceError
from .sqlite import Schema, connect, identity, is_damage, use_wal

BUSY_SECONDS = 30.0  # how long to wait for another process's transaction

# The statements that bring a file to version 1, 2, … from the version before; version 0 is an empty file. Never change
# a released step. To change the schema, add a step here and update the list of columns in `runs`.
STEPS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE runs (
            number INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, state TEXT NOT NULL,
            options TEXT NOT NULL, configuration TEXT NOT NULL, total INTEGER, train_rows INTEGER, eval_rows INTEGER,
            attempts INTEGER NOT NULL DEFAULT 0, pid INTEGER, error TEXT, verdict TEXT,
            created_at TEXT NOT NULL, started_at TEXT, ended_at TEXT, queue_order INTEGER
        )""",
        "CREATE TABLE progress (run TEXT PRIMARY KEY, fields TEXT NOT NULL)",
        """CREATE TABLE problems (
            number INTEGER PRIMARY KEY AUTOINCREMENT, run TEXT NOT NULL, split TEXT NOT NULL, document TEXT NOT NULL,
            reason TEXT NOT NULL, spooled INTEGER NOT NULL, UNIQUE (run, document)
        )""",
        """CREATE TABLE events (
            run TEXT NOT NULL, number INTEGER NOT NULL, at TEXT NOT NULL, kind TEXT NOT NULL, message TEXT NOT NULL,
            PRIMARY KEY (run, number)
        )""",
        "CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    ),
    (  # a quarantined document is known by its place instead of its id, which several may have; see `Quarantined`
        "ALTER TABLE problems RENAME TO problems_1",
        """CREATE TABLE problems (
            number INTEGER PRIMARY KEY AUTOINCREMENT, run TEXT NOT NULL, split TEXT NOT NULL, place TEXT NOT NULL,
            document TEXT NOT NULL, reason TEXT NOT NULL, spooled INTEGER NOT NULL, UNIQUE (run, split, place)
        )""",
        """INSERT INTO problems SELECT number, run, split, document, document, reason, spooled FROM problems_1
        WHERE NOT spooled OR run IN (SELECT name FROM runs WHERE ended_at IS NOT NULL)""",  # a trainer finds the rest
        "DROP TABLE problems_1",
    ),
    ("ALTER TABLE runs ADD COLUMN acknowledged INTEGER NOT NULL DEFAULT 1",),  # of older runs it is not known
    (  # whether all was done that follows the end of a run; older ones are left as they are
        "ALTER TABLE runs ADD COLUMN settled INTEGER NOT NULL DEFAULT 0",
        "UPDATE runs SET settled = 1 WHERE ended_at IS NOT NULL",
        "CREATE INDEX runs_to_settle ON runs (number) WHERE settled = 0",
    ),
    (  # of older runs it is not known
        "ALTER TABLE runs ADD COLUMN repeated INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE runs ADD COLUMN arrived INTEGER",
    ),
)
SCHEMA_VERSION = len(STEPS)


class Database:
    """One SQLite file that several threads and several processes use. A committed transaction is on the disk.

    Args: steps: the statements that bring an empty file to version 1, then to 2, …; by default those of the runs.
    Raises: WorkspaceError, here and from every method: the file cannot be opened, read or written, belongs to another
        program, or was written by a newer version of this software. A file of the last two sorts is left unchanged.
    """

    def __init__(self, path: Path, steps: tuple[tuple[str, ...], ...] | None = None) -> None:
        self.path = path
        self._steps = STEPS if steps is None else steps
        self._lock = threading.RLock()
        self._file: tuple[int, int] | None = None
        with self._explained():
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                self._look_before_writing()
            self._connection = self._connect("rwc")
            try:
                use_wal(self._connection, busy_seconds=BUSY_SECONDS)
                self._migrate()
                self._file = identity(path)
            except BaseException:
                self._connection.close()
                raise

    def _connect(self, mode: str) -> sqlite3.Connection:
        return connect(self.path, mode=mode, busy_seconds=BUSY_SECONDS, factory=sqlite3.Connection)

    def _look_before_writing(self) -> None:
        """Check the file before it is opened for writing, because even that may change it."""
        with contextlib.closing(self._connect("ro")) as reader:
            Schema(
                versions=range(1, len(self._steps) + 1),
                application_id=0,
                elsewhere="workspace",
                refusal="The workspace {folder} is of schema version {version}, this software knows "
                f"{len(self._steps)}; use the newer release that wrote it, or another workspace.",
            ).check(reader, self.path)

    def _migrate(self) -> None:
        with self.transaction() as connection:
            ((version,),) = connection.execute("PRAGMA user_version")
            for step in self._steps[version:]:
                for statement in step:
                    connection.execute(statement)
            if version < len(self._steps):
                connection.execute(f"PRAGMA user_version={len(self._steps)}")

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Store everything that the block executes, or nothing if it raises. Do not nest."""
        with self._lock, self._explained():
            self.check_in_place()
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # if the disk is full, SQLite has rolled it back already
                    self._connection.execute("ROLLBACK")
                raise

    def check_in_place(self) -> None:
        """Raise WorkspaceError if the file was moved away: what is written to it now would be lost without a word."""
        if self._file is not None and identity(self.path) != self._file:
            raise WorkspaceError(
                f"{self.path} was removed or replaced while it was in use, so nothing can be stored. Stop the service "
                "and put the file back, from a backup if need be; the documents and models of the runs lie beside it."
            )

    def rows(self, sql: str, *arguments: Any) -> list[tuple[Any, ...]]:
        """Return the rows that a query finds, with the changes of this thread's open transaction, if there is one."""
        with self._lock, self._explained():
            return self._connection.execute(sql, arguments).fetchall()

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            raise WorkspaceError(
                f"The workspace {self.path.parent} cannot be used: {error}. {self._advice(error)}"
            ) from error

    def _advice(self, error: Exception) -> str:
        if is_damage(error):
            return (
                f"{self.path} is damaged, and with it the states and histories of the runs; the documents and models "
                f"in {self.path.parent / 'runs'} are other files, and not harmed by this. Restore it from a backup."
            )
        return f"{_remedy(str(error), self.path.name)}, then try again; what was answered before is safe."


def _remedy(error: str, name: str) -> str:
    if "locked" in error:
        return f"Another process has held its {name} for {BUSY_SECONDS:g} s: end that one"
    if "full" in error:
        return "Free space on its disk"
    return "See that it can be written and that its disk has room"
