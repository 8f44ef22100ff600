"""The SQLite file under `DocumentArrayMemmap`: its schema, and readable errors."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import WorkspaceError
from .connections import SharedConnections
from .sqlite import Schema, connect, is_damage, use_wal

_APPLICATION_ID = 0x46544D44  # "FTMD", in the file's header
_SCHEMA_VERSION = 2
_SCHEMA = """
CREATE TABLE documents (
    row INTEGER PRIMARY KEY,
    id TEXT NOT NULL,
    split TEXT NOT NULL,
    position INTEGER NOT NULL,
    parts INTEGER NOT NULL,
    label,  -- no type, so that 1 and '1' stay two labels
    matches INTEGER NOT NULL,
    content BLOB NOT NULL,
    said BLOB NOT NULL,
    document BLOB NOT NULL,  -- last, so that the other columns are read without it
    UNIQUE (split, position),
    UNIQUE (split, id, content)
)"""
_RENUMBER = (
    """
    WITH kept AS (
        SELECT row, row_number() OVER (ORDER BY position) AS number, sum(1 + matches) OVER (ORDER BY position) AS parts
        FROM documents WHERE split = ?1 AND position >= ?2
    ), before AS (
        SELECT coalesce((SELECT parts FROM documents WHERE split = ?1 AND position < ?2 AND position >= 0
                         ORDER BY position DESC LIMIT 1), 0) AS parts
    )
    UPDATE documents SET position = -(?2 + kept.number), parts = before.parts + kept.parts
    FROM kept, before WHERE documents.row = kept.row""",
    "UPDATE documents SET position = -1 - position WHERE split = ?1 AND position < ?2 AND position < 0",
)
_HEADER = Schema(
    versions=range(1, _SCHEMA_VERSION + 1),  # 1 is brought to 2 when it is opened
    application_id=_APPLICATION_ID,
    elsewhere="file",
    refusal="{path} has schema version {version}; this program reads "
    f"{_SCHEMA_VERSION}. Open it with the version that wrote it, or name another file.",
)
_BUSY_SECONDS = 60  # how long to wait for another process's transaction
# Bytes, of a new file. Twice SQLite's default: pictures of 17 to 120 KB are stored in four fifths of the time. With
# more it would be less still, but small ones would leave up to half of each page empty.
_PAGE = 8192
_CHECKPOINT_BYTES = 16 << 20


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
        connection.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_BYTES // _PAGE}")  # pages
        connection.execute("PRAGMA journal_size_limit = 67108864")
        _HEADER.check(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def create_file(path: Path, digests: Callable[[bytes], tuple[bytes, bytes]]) -> None:
    """Create the file and its folders, unless it exists. A file of schema version 1 is brought to the present one.

    Args: digests: returns the columns `content` and `said` of a document's protobuf.
    """
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = _connect(path, "rwc")
        try:
            if connection.execute("PRAGMA journal_mode").fetchone() != ("wal",):  # not finished: WAL is set last
                connection.execute(f"PRAGMA page_size = {_PAGE}")
                connection.execute("BEGIN IMMEDIATE")  # another process may be creating it, too
                if not connection.execute("SELECT 1 FROM sqlite_master").fetchone():
                    connection.execute(_SCHEMA)
                    connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
                    connection.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
                connection.execute("COMMIT")
                use_wal(connection, busy_seconds=_BUSY_SECONDS)
            if connection.execute("PRAGMA user_version").fetchone() != (_SCHEMA_VERSION,):
                _bring_up(connection, digests)
        finally:
            connection.close()


def close_gaps(connection: sqlite3.Connection, split: str, start: int) -> None:
    """Number the rows of a split anew from position `start` on."""
    for statement in _RENUMBER:  # two, because no two rows may have one position meanwhile
        connection.execute(statement, (split, start))


def _bring_up(connection: sqlite3.Connection, digests: Callable[[bytes], tuple[bytes, bytes]]) -> None:
    connection.execute("BEGIN IMMEDIATE")
    if connection.execute("PRAGMA user_version").fetchone() == (1,):  # else another process has done it meanwhile
        connection.execute("ALTER TABLE documents RENAME TO documents_1")
        connection.execute(_SCHEMA)
        old = "SELECT row, id, split, position, label, matches, document FROM documents_1 ORDER BY split, position"
        parts: dict[str, int] = {}
        for row, id, split, position, label, matches, document in connection.execute(old):
            parts[split] = parts.get(split, 0) + 1 + matches
            values = (row, id, split, position, parts[split], label, matches, *digests(document), document)
            connection.execute("INSERT INTO documents VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
        connection.execute("DROP TABLE documents_1")
        connection.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
    connection.execute("COMMIT")
