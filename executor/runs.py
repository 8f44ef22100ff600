"""The runs of a workspace, their states, and the one table of legal moves: SQLite.

Single writers: the service creates runs, moves their states and promotes; the trainer reports progress.
Both may quarantine documents and append events. `Workspace` knows where everything of a workspace lies.
"""

import contextlib
import json
import shutil
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from enum import Enum, IntEnum
from pathlib import Path
from typing import Any

from .errors import IllegalTransition, UnknownRun, WorkspaceError

SCHEMA_VERSION = 1
SHOWN_PROBLEMS = 20


class RunState(str, Enum):
    """Where a run stands."""

    RECEIVING = "receiving"
    QUEUED = "queued"
    TRAINING = "training"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """Whether no move leads out of it."""
        return self not in LEGAL


LEGAL: dict[RunState, set[RunState]] = {
    RunState.RECEIVING: {RunState.QUEUED, RunState.CANCELLED},
    RunState.QUEUED: {RunState.TRAINING, RunState.CANCELLED},
    RunState.TRAINING: {RunState.QUEUED, RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED},
}


class TrainerExit(IntEnum):
    """How the trainer process ends by itself; the service reads it."""

    SUCCEEDED = 0
    CRASHED = 1
    REFUSED = 3  # the run cannot be trained, and another attempt would not help
    INTERRUPTED = 4  # it was told to stop


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What the trainer says of itself; written by the trainer alone. See `RunStatus` for the units."""

    phase: str | None = None
    kind: str | None = None
    epoch: int = 0
    epochs: int = 0
    step: int = 0
    steps: int = 0
    loss: float | None = None
    images_per_second: float | None = None
    eta_seconds: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    history: dict[str, list[float]] = field(default_factory=dict)
    better: bool | None = None  # by the proof on the eval documents; None: there were none
    verdict: str | None = None
    error: str | None = None
    device: str | None = None


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training attempt, as the service knows it.

    Attributes:
        options: the training options, complete. configuration: the executor's, as they were at its creation.
        total: train documents to expect. train_rows, eval_rows: how many it has in its spool, once queued.
    """

    number: int
    name: str
    state: RunState
    options: dict[str, Any]
    configuration: dict[str, Any]
    total: int | None
    train_rows: int | None
    eval_rows: int | None
    attempts: int
    pid: int | None
    error: str | None
    verdict: str | None
    created_at: str
    started_at: str | None
    ended_at: str | None


class Workspace:
    """Where things lie in a workspace folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.database = root / "runs.sqlite"
        self.base = root / "base"
        self.lock = root / "service.lock"

    def run(self, name: str) -> Path:
        """The folder of one run."""
        return self.root / "runs" / name

    def spool(self, name: str) -> Path:
        """The documents of one run, both splits: a `DocumentArrayMemmap`."""
        return self.run(name) / "documents.sqlite"

    def model(self, version: str) -> Path:
        """The weights of a version: `base` or a run's name."""
        return self.base if version == "base" else self.run(version) / "model"

    def checkpoints(self, name: str) -> Path:
        """The checkpoints of one run: a folder each, named by the steps done."""
        return self.run(name) / "checkpoints"

    def checkpoints_of(self, name: str) -> list[Path]:
        """The checkpoints there are, newest first."""
        places = self.checkpoints(name)
        found = (place for place in places.iterdir() if place.name.isdigit()) if places.is_dir() else ()
        return sorted(found, reverse=True)

    def latest_step(self, name: str) -> int:
        """The steps done at the newest checkpoint; 0 if there is none."""
        return next((int(place.name) for place in self.checkpoints_of(name)), 0)

    def prune(self, name: str, *, keep_checkpoints: bool) -> None:
        """Remove what an ended run needs no more: its decoded images, and its checkpoints unless they may help."""
        shutil.rmtree(self.run(name) / "images", ignore_errors=True)
        if not keep_checkpoints:
            shutil.rmtree(self.checkpoints(name), ignore_errors=True)

    def log(self, name: str) -> Path:
        """What the trainer of one run printed."""
        return self.run(name) / "trainer.log"


def find_workspace(folder: Path) -> Workspace:
    """Return the workspace in or below `folder`: Jina puts it into FOLDER/FinetunerExecutor/0.

    Raises: WorkspaceError: there is none, or there are several.
    """
    places = [folder] if Workspace(folder).database.is_file() else []
    places = places or sorted(found.parent for depth in ("*", "*/*") for found in folder.glob(f"{depth}/runs.sqlite"))
    if len(places) == 1:
        return Workspace(places[0])
    if places:
        raise WorkspaceError(f"{folder} holds several workspaces; name one: {', '.join(map(str, places))}.")
    raise WorkspaceError(f"{folder} is no workspace: there is no runs.sqlite in it, nor up to two folders below.")


_SCHEMA = """
CREATE TABLE runs (
    number INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, state TEXT NOT NULL,
    options TEXT NOT NULL, configuration TEXT NOT NULL, total INTEGER, train_rows INTEGER, eval_rows INTEGER,
    attempts INTEGER NOT NULL DEFAULT 0, pid INTEGER, error TEXT, verdict TEXT,
    created_at TEXT NOT NULL, started_at TEXT, ended_at TEXT, queue_order INTEGER
);
CREATE TABLE progress (run TEXT PRIMARY KEY, fields TEXT NOT NULL);
CREATE TABLE problems (
    number INTEGER PRIMARY KEY AUTOINCREMENT, run TEXT NOT NULL, split TEXT NOT NULL, document TEXT NOT NULL,
    reason TEXT NOT NULL, spooled INTEGER NOT NULL, UNIQUE (run, document)
);
CREATE TABLE events (
    run TEXT NOT NULL, number INTEGER NOT NULL, at TEXT NOT NULL, kind TEXT NOT NULL, message TEXT NOT NULL,
    PRIMARY KEY (run, number)
);
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""
_RUN_COLUMNS = (
    "number, name, state, options, configuration, total, train_rows, eval_rows, attempts, pid, error, verdict, "
    "created_at, started_at, ended_at"
)


def now() -> str:
    """The time in UTC, as ISO 8601 with milliseconds."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


class RunStore:
    """All runs of one workspace. Safe to use from several threads and from several processes.

    Raises: WorkspaceError: the database cannot be opened, or is of a newer version of this software.
    """

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self._lock = threading.RLock()
        try:
            workspace.root.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(workspace.database, timeout=30, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._migrate()
            rows = self._rows("SELECT value FROM settings WHERE name = 'promoted'")
            self._promoted = str(rows[0][0]) if rows else "base"
        except (OSError, sqlite3.Error) as error:
            raise WorkspaceError(
                f"The workspace {workspace.root} cannot be used: {error}. Check its permissions and its disk."
            ) from error

    def _migrate(self) -> None:
        with self._transaction():
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version > SCHEMA_VERSION:
                raise WorkspaceError(
                    f"The workspace {self.workspace.root} is of schema version {version}, this software knows "
                    f"{SCHEMA_VERSION}; use the newer release that wrote it, or another workspace."
                )
            if version == 0:
                for statement in _SCHEMA.split(";"):
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    yield self._db
                except BaseException:
                    self._db.execute("ROLLBACK")
                    raise
                self._db.execute("COMMIT")
            except sqlite3.OperationalError as error:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise WorkspaceError(
                    f"The workspace {self.workspace.root} cannot be written: {error}. "
                    "Nothing of this request was stored; free space or fix its permissions, then send it again."
                ) from error

    def _rows(self, sql: str, *arguments: Any) -> list[tuple[Any, ...]]:
        with self._lock:
            return self._db.execute(sql, arguments).fetchall()

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            self._db.close()

    # runs ---------------------------------------------------------------------------------------------------------

    def create(self, name: str | None, options: dict[str, Any], configuration: dict[str, Any]) -> Run:
        """Add a run in `receiving`; without a name it is called `run-N`."""
        with self._transaction() as db:
            cursor = db.execute(
                "INSERT INTO runs (name, state, options, configuration, created_at) VALUES (?, ?, ?, ?, ?)",
                (name or "", RunState.RECEIVING.value, json.dumps(options), json.dumps(configuration), now()),
            )
            if name is None:
                number = cursor.lastrowid
                name = f"run-{number}"
                while db.execute("SELECT 1 FROM runs WHERE name = ?", (name,)).fetchone():
                    name = f"{name}-new"
                db.execute("UPDATE runs SET name = ? WHERE number = ?", (name, number))
            self._append_event(name, "received", "the run was created")
        return self.get(name)

    def get(self, name: str) -> Run:
        """Raises: UnknownRun: the message names the runs that there are."""
        runs = self._select("WHERE name = ?", name)
        if not runs:
            known = [run.name for run in self.all()]
            some = ", ".join(known[:10]) + (", …" if len(known) > 10 else "")
            there_are = f"there are: {some}" if known else "there are none yet: post documents to /fit"
            raise UnknownRun(f"There is no run {name!r}; {there_are}.")
        return runs[0]

    def exists(self, name: str) -> bool:
        """Whether there is a run of that name."""
        return bool(self._select("WHERE name = ?", name))

    def all(self) -> list[Run]:
        """All runs, newest first."""
        return self._select("ORDER BY number DESC")

    def in_state(self, *states: RunState) -> list[Run]:
        """The runs in one of `states`; queued ones in the order of the queue, the others oldest first."""
        marks = ", ".join("?" * len(states))
        return self._select(
            f"WHERE state IN ({marks}) ORDER BY queue_order IS NULL, queue_order, number", *(s.value for s in states)
        )

    def _select(self, where: str, *arguments: Any) -> list[Run]:
        runs = []
        for row in self._rows(f"SELECT {_RUN_COLUMNS} FROM runs {where}", *arguments):
            number, name, state, options, configuration, *rest = row
            keys = [column.strip() for column in _RUN_COLUMNS.split(",")][5:]
            runs.append(
                Run(
                    number=number,
                    name=name,
                    state=RunState(state),
                    options=json.loads(options),
                    configuration=json.loads(configuration),
                    **dict(zip(keys, rest, strict=True)),
                )
            )
        return runs

    def advance(self, name: str, to: RunState, **changes: Any) -> Run:
        """Move a run to state `to`, with further columns to set; the only place where a state changes.

        Raises: IllegalTransition: no such move.
        """
        with self._transaction() as db:
            run = self.get(name)
            if to not in LEGAL.get(run.state, set()):
                raise IllegalTransition(f"Run {name!r} is {run.state.value}; it cannot become {to.value}.")
            changes["state"] = to.value
            if to is RunState.TRAINING:
                changes |= {"attempts": run.attempts + 1, "started_at": run.started_at or now()}
            if to.ended:
                changes |= {"ended_at": now(), "pid": None}
            assignments = ", ".join(f"{column} = ?" for column in changes)
            db.execute(f"UPDATE runs SET {assignments} WHERE name = ?", (*changes.values(), name))
            if run.state is RunState.RECEIVING and to is RunState.QUEUED:
                db.execute(
                    "UPDATE runs SET queue_order = 1 + (SELECT COALESCE(MAX(queue_order), 0) FROM runs) WHERE name = ?",
                    (name,),
                )
            self._append_event(
                name, to.value, changes.get("error") or changes.get("verdict") or f"was {run.state.value}"
            )
        return self.get(name)

    def set_total(self, name: str, total: int) -> None:
        """Set how many train documents a run expects."""
        with self._transaction() as db:
            db.execute("UPDATE runs SET total = ? WHERE name = ?", (total, name))

    def set_options(self, name: str, options: dict[str, Any], configuration: dict[str, Any]) -> None:
        """Replace the options of a run that is receiving."""
        with self._transaction() as db:
            db.execute(
                "UPDATE runs SET options = ?, configuration = ? WHERE name = ?",
                (json.dumps(options), json.dumps(configuration), name),
            )

    def set_pid(self, name: str, pid: int | None) -> None:
        """Record the trainer process of a run."""
        with self._transaction() as db:
            db.execute("UPDATE runs SET pid = ? WHERE name = ?", (pid, name))

    # progress, written by the trainer -----------------------------------------------------------------------------

    def report(self, name: str, progress: Progress) -> None:
        """Replace the progress of a run."""
        with self._transaction() as db:
            fields = json.dumps(progress.__dict__)
            db.execute("INSERT OR REPLACE INTO progress (run, fields) VALUES (?, ?)", (name, fields))

    def progress(self, name: str) -> Progress:
        """The last progress reported for a run."""
        rows = self._rows("SELECT fields FROM progress WHERE run = ?", name)
        return Progress(**json.loads(rows[0][0])) if rows else Progress()

    # quarantine ---------------------------------------------------------------------------------------------------

    def quarantine(self, name: str, split: str, problems: Iterable[tuple[str, str]], *, spooled: bool) -> None:
        """Note documents that cannot be used, each `(id, reason)`, once. `spooled`: they lie in the spool."""
        with self._transaction() as db:
            for document, reason in problems:
                cursor = db.execute(
                    "INSERT OR IGNORE INTO problems (run, split, document, reason, spooled) VALUES (?, ?, ?, ?, ?)",
                    (name, split, document, reason, int(spooled)),
                )
                if cursor.rowcount:
                    self._append_event(name, "skipped", f"document {document!r}: {reason}")

    def problems(self, name: str, limit: int = SHOWN_PROBLEMS) -> list[tuple[str, str]]:
        """The first quarantined documents of a run, each `(id, reason)`."""
        rows = self._rows("SELECT document, reason FROM problems WHERE run = ? ORDER BY number LIMIT ?", name, limit)
        return [(document, reason) for document, reason in rows]

    def count_problems(self, name: str, split: str | None = None, *, spooled: bool | None = None) -> int:
        """How many documents are quarantined: of all splits or one, in the spool or not or both. Matches count too."""
        sql, arguments = "SELECT COUNT(*) FROM problems WHERE run = ?", [name]
        if split is not None:
            sql, arguments = f"{sql} AND split = ?", [*arguments, split]
        if spooled is not None:
            sql = f"{sql} AND spooled = {int(spooled)}"
        return int(self._rows(sql, *arguments)[0][0])

    def quarantined(self, name: str) -> set[str]:
        """The ids of all quarantined documents of a run."""
        return {document for (document,) in self._rows("SELECT document FROM problems WHERE run = ?", name)}

    # events -------------------------------------------------------------------------------------------------------

    def event(self, name: str, kind: str, message: str) -> None:
        """Append to the history of a run."""
        with self._transaction():
            self._append_event(name, kind, message)

    def events(self, name: str, after: int = 0, limit: int = 100) -> list[tuple[int, str, str, str]]:
        """The history of a run, oldest first, each `(number, time, kind, message)`, numbered from 1."""
        sql = "SELECT number, at, kind, message FROM events WHERE run = ? AND number > ? ORDER BY number LIMIT ?"
        return [(number, at, kind, message) for number, at, kind, message in self._rows(sql, name, after, limit)]

    def _append_event(self, name: str, kind: str, message: str) -> None:
        self._db.execute(
            "INSERT INTO events (run, number, at, kind, message) "
            "SELECT ?, COALESCE(MAX(number), 0) + 1, ?, ?, ? FROM events WHERE run = ?",
            (name, now(), kind, message, name),
        )

    # the promoted version -----------------------------------------------------------------------------------------

    def promoted(self) -> str:
        """The version now served: `base` or a run's name. The service alone changes it, so it is kept in memory."""
        return self._promoted

    def promote(self, version: str) -> None:
        """Serve `version` from now on."""
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO settings (name, value) VALUES ('promoted', ?)", (version,))
            if version != "base":
                self._append_event(version, "promoted", "this version is served now")
        self._promoted = version
