"""The one way to open a SQLite file of ours: what it is, its schema version, and how long to wait for others."""

import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ..errors import WorkspaceError

C = TypeVar("C", bound=sqlite3.Connection)


@dataclass(frozen=True, kw_only=True)
class Schema:
    """What a kind of file says of itself in its header.

    Attributes:
        versions: those that this software reads. application_id: 0 where files of this kind have none.
        elsewhere: what to name instead of a file that is another program's.
        refusal: of another version; it may have `{folder}`, `{path}` and `{version}`.
    """

    versions: range
    application_id: int
    elsewhere: str
    refusal: str

    def check(self, connection: sqlite3.Connection, path: Path) -> None:
        """Raise WorkspaceError unless the file is empty, or of this kind and of a version that can be read."""
        ((application,),) = connection.execute("PRAGMA application_id")
        ((version,),) = connection.execute("PRAGMA user_version")
        ((tables,),) = connection.execute("SELECT count(*) FROM sqlite_master")
        if tables and (application != self.application_id or not (application or version)):
            raise WorkspaceError(
                f"{path} is another program's database. Move it away, or name another {self.elsewhere}."
            )
        if (tables or version) and version not in self.versions:
            raise WorkspaceError(self.refusal.format(folder=path.parent, path=path, version=version))


def connect(path: Path, *, mode: str, busy_seconds: float, factory: type[C]) -> C:
    """Open a file. Transactions are written out by hand, and a commit is on the disk when it returns.

    Args:
        mode: `ro`, `rw`, or `rwc` to make it. busy_seconds: how long to wait for another process's transaction.
        factory: the class of the connection, which threads may share.
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
