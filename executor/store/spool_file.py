"""The SQLite file under `DocumentArrayMemmap`: its schema, and readable errors."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import WorkspaceError
from .connections import SharedConnections
from .sqlite import Schema, connect, is_damage

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


class Connections(SharedConnections):
    """The connections to one existing file of documents. Raises: WorkspaceError: what is wrong with the file."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, lambda: _connect(path, "rw"))

    @contextmanager
    def use(self) -> Iterator[sqlite3.Connection]:
        """Lend a connection. Do not nest: a fork would wait for the outer use and block the inner one."""
        with _explained(self._path), super().use() as connection:
            yield connection


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        if "not a database" in str(error):
            message = f"{path} is not a file of documents. Move it away, or name another."
        elif is_damage(error):
            message = f"{path} is damaged ({error}). Restore it from a backup, or send its documents again to another."
        else:
            message = (
                f"{path} cannot be used ({error}). See that it and its folder can be written and the disk has room."
            )
        raise WorkspaceError(message) from error


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    """Open an existing file (`mode` rw) or create it (rwc), and check that it is ours or empty."""
    connection = connect(path, mode=mode, busy_seconds=_BUSY_SECONDS, factory=sqlite3.Connection)
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
