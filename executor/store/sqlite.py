"""The one way to open one of our SQLite files, and the check of its kind and schema version."""

import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ..errors import WorkspaceError

C = TypeVar("C", bound=sqlite3.Connection)
_WAL_PAUSE_SECONDS = 0.02  # between two tries to change the journal mode


@dataclass(frozen=True, kw_only=True)
class Schema:
    """What the header of one kind of file must say.

    Attributes:
        versions: the schema versions that this software reads. application_id: 0 if files of this kind have none.
        elsewhere: what the user should name instead, if the file belongs to another program.
        refusal: the error message for another version. It may contain `{folder}`, `{path}` and `{version}`.
    """

    versions: range
    application_id: int
    elsewhere: str
    refusal: str

    def check(self, connection: sqlite3.Connection, path: Path) -> None:
        """Raise WorkspaceError unless the file is empty, or of this kind and a version that this software reads."""
        # One transaction, so that the three belong together: another process may be creating the file meanwhile.
        connection.execute("BEGIN")
        try:
            ((tables,),) = connection.execute("SELECT count(*) FROM sqlite_master")
            ((application,),) = connection.execute("PRAGMA application_id")
            ((version,),) = connection.execute("PRAGMA user_version")
        finally:
            connection.execute("ROLLBACK")
        if tables and (application != self.application_id or not (application or version)):
            raise WorkspaceError(
                f"{path} is another program's database. Move it away, or name another {self.elsewhere}."
            )
        if (tables or version) and version not in self.versions:
            raise WorkspaceError(self.refusal.format(folder=path.parent, path=path, version=version))


def is_damage(error: Exception) -> bool:
    """Whether an error says that the content of a file is damaged, or not SQLite's at all."""
    return any(saying in str(error) for saying in ("malformed", "not a database"))


def identity(path: Path) -> tuple[int, int] | None:
    """Return what tells a file from another that later has its name; None if there is no file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def connect(path: Path, *, mode: str, busy_seconds: float, factory: type[C]) -> C:
    """Open a file. Callers execute BEGIN and COMMIT themselves, and a commit is on the disk when it returns.

    Args:
        mode: `ro`, `rw`, or `rwc` to create it. busy_seconds: how long to wait for another process's transaction.
        factory: the class of the connection. Threads may share the connection.
    """
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        timeout=busy_seconds,
        isolation_level=None,
        check_same_thread=False,
        factory=factory,
    )
    try:
        connection.execute("PRAGMA synchronous = FULL")
    except BaseException:
        connection.close()
        raise
    return connection


def use_wal(connection: sqlite3.Connection, *, busy_seconds: float) -> None:
    """Let readers read while one connection writes, by a write-ahead log. No transaction may be open.

    SQLite waits for other connections with everything but this: changing the mode needs the file alone, and fails at
    once where another process has it open for a moment, such as to do the same.

    Args: busy_seconds: how long to try.
    Raises: sqlite3.OperationalError: the others have not let go of it.
    """
    deadline = time.monotonic() + busy_seconds
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(_WAL_PAUSE_SECONDS)
