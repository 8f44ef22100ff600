"""The runs of a workspace in SQLite: their states, progress, quarantined documents and events.

Only the service creates runs, changes their states and promotes. Only the trainer reports progress.
Both may quarantine documents and append events.
"""

import functools
import json
import logging
import sqlite3
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from .. import tracing
from ..errors import Conflict, IllegalTransition, UnknownRun, brief
from ..parameters import TrainingOptions
from .database import Database
from .moves import entered, record_move
from .run import LEGAL, Configuration, Progress, Run, RunState
from .workspace import Workspace

SHOWN_PROBLEMS = 20
MAX_MESSAGE = 2000  # characters of an event or an error, so that a history and a status stay small
MAX_REASON = 500  # of the reason why a document is quarantined

_log = logging.getLogger(__name__)


_RUN_COLUMNS = (
    "number, name, state, options, configuration, total, train_rows, eval_rows, attempts, pid, error, verdict, "
    "created_at, started_at, ended_at, acknowledged, repeated, arrived"
)


class Quarantined(NamedTuple):
    """A document that cannot be used.

    Attributes:
        place: tells it from others of its split: its position in the spool, with the number of the match if it is one;
            for documents outside it a digest.
    """

    place: str
    document: str
    reason: str


# All runs are read many times a second, and their options hardly ever change.
@functools.lru_cache(maxsize=1024)
def _options(text: str) -> TrainingOptions:
    return TrainingOptions.model_validate_json(text)


@functools.lru_cache(maxsize=1024)
def _configuration(text: str) -> Configuration:
    return Configuration.model_validate_json(text)


def _run_of(row: tuple[Any, ...]) -> Run:
    """Make a run of its row. One that cannot be read is shown as failed, so that it harms no other; its row stays."""
    number, name, state, options, configuration, *rest = row
    keys = [column.strip() for column in _RUN_COLUMNS.split(",")][5:]
    columns: dict[str, Any] = {"number": number, "name": name, **dict(zip(keys, rest, strict=True))}
    columns["acknowledged"] = bool(columns["acknowledged"])
    try:
        return Run(
            state=RunState(state), options=_options(options), configuration=_configuration(configuration), **columns
        )
    except ValueError as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        columns["error"] = (
            f"The entry of run {name!r} in runs.sqlite cannot be read ({reason}). Use the release that wrote it, or "
            "delete the run."
        )
        return Run(state=RunState.FAILED, options=TrainingOptions(), configuration=Configuration(), **columns)


_progress = TypeAdapter(Progress)  # ignores what a newer release has added


def _progress_of(fields: str) -> Progress:
    try:
        return _progress.validate_python(json.loads(fields))
    except ValueError:
        return Progress(
            warnings=["What the trainer reported of this run is damaged in runs.sqlite, and left out here."]
        )


def now() -> str:
    """The current time in UTC, as ISO 8601 with milliseconds."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


class RunStore:
    """All runs of one workspace. Safe to use from several threads and from several processes.

    Raises: WorkspaceError: the database cannot be opened, or was written by a newer version of this software.
    """

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        workspace.check_database()
        self._database = Database(workspace.database)
        self._promoted = self.served_now()

    def check_in_place(self) -> None:
        """Raise WorkspaceError if the database was removed or replaced: nothing can be stored then."""
        self._database.check_in_place()

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    # runs ---------------------------------------------------------------------------------------------------------

    def create(
        self,
        name: str | None = None,
        options: TrainingOptions | None = None,
        configuration: Configuration | None = None,
    ) -> Run:
        """Add a run in state `receiving`; without a name it is called `run-N`. Raises: Conflict: the name is taken."""
        settings = [part.model_dump_json() for part in (options or TrainingOptions(), configuration or Configuration())]
        with self._database.transaction() as db:
            if name is not None and self.exists(name):
                raise Conflict(f"There is a run {name!r} already; choose another name, or delete that run first.")
            cursor = db.execute(
                "INSERT INTO runs (name, state, options, configuration, created_at, acknowledged) "
                "VALUES (?, ?, ?, ?, ?, 0)",
                (name or "", RunState.RECEIVING.value, *settings, now()),
            )
            if name is None:
                number = cursor.lastrowid
                name = f"run-{number}"
                while db.execute("SELECT 1 FROM runs WHERE name = ?", (name,)).fetchone():
                    name = f"{name}-new"
                db.execute("UPDATE runs SET name = ? WHERE number = ?", (name, number))
            self._append_event(db, name, "received", "the run was created")
        return self.get(name)

    def get(self, name: str) -> Run:
        """Return a run. Raises: UnknownRun: the message names up to ten runs that exist."""
        runs = self._select("WHERE name = ?", name)
        if not runs:
            known = [run.name for run in self.all()]
            some = ", ".join(known[:10]) + (", …" if len(known) > 10 else "")
            there_are = f"there are: {some}" if known else "there are none yet: post documents to /fit"
            raise UnknownRun(f"There is no run {name!r}; {there_are}.")
        return runs[0]

    def exists(self, name: str) -> bool:
        """Whether there is a run with that name."""
        return bool(self._database.rows("SELECT 1 FROM runs WHERE name = ?", name))

    def all(self) -> list[Run]:
        """All runs, newest first."""
        return self._select("ORDER BY number DESC")

    def in_state(self, *states: RunState) -> list[Run]:
        """The runs in one of `states`; queued ones in the order of the queue, the others oldest first."""
        marks = ", ".join("?" * len(states))
        found = self._select(
            f"WHERE state IN ({marks}) ORDER BY queue_order IS NULL, queue_order, number", *(s.value for s in states)
        )
        return [run for run in found if run.state in states]  # one that cannot be read is in none of its own

    def _select(self, where: str, *arguments: Any) -> list[Run]:
        return [_run_of(row) for row in self._database.rows(f"SELECT {_RUN_COLUMNS} FROM runs {where}", *arguments)]

    def advance(self, name: str, to: RunState, **changes: Any) -> Run:
        """Move a run to state `to`. States change only here. What an attempt that died was at is not shown any more.

        Args: changes: further columns to set.
        Raises: IllegalTransition: `LEGAL` does not have this move.
        """
        with self._database.transaction() as db:
            run = self.get(name)
            since = entered(run, self.events(name, limit=-1)) if tracing.is_on() else run.created_at
            if to not in LEGAL.get(run.state, set()):
                raise IllegalTransition(f"Run {name!r} is {run.state.value}; it cannot become {to.value}.")
            changes["state"] = to.value
            if changes.get("error"):
                changes["error"] = brief(changes["error"], MAX_MESSAGE)
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
            if run.attempts and not to.ended:
                known = self.progress(name)
                self._report(db, name, replace(known, phase=None, eta_seconds=None, images_per_second=None))
            self._append_event(
                db, name, to.value, changes.get("error") or changes.get("verdict") or f"was {run.state.value}"
            )
        moved = self.get(name)
        record_move(run, moved, since=since)
        return moved

    def delete(self, name: str) -> None:
        """Remove an ended run with all its files. If the process is killed meanwhile, all or none is left.

        The folder is moved away before the deletion of the rows is committed. So `finish_deletes` sees from the rows
        whether to undo the deletion or to finish it.

        Raises: UnknownRun. Conflict: the run has not ended, is served now, or another run that has not ended starts
            from it.
        """
        self._remove(name, self._check_deletable)

    def undo(self, name: str) -> None:
        """Remove a run that a request has begun that is not answered, as `delete` does.

        Raises: UnknownRun. Conflict: a request for it was answered, or it is not receiving any more.
        """
        self._remove(name, self._check_unacknowledged)

    def _remove(self, name: str, check: Callable[[str], None]) -> None:
        run = self.get(name)
        with self.workspace.spending_reserve():
            try:
                with self._database.transaction() as db:
                    check(name)
                    self.workspace.discard(name, run.number)
                    db.execute("DELETE FROM runs WHERE name = ?", (name,))
                    for table in ("progress", "problems", "events"):
                        db.execute(f"DELETE FROM {table} WHERE run = ?", (name,))
            except BaseException:
                self.workspace.restore(name, run.number)
                raise
            self._remove_discarded(name, run.number)

    def finish_deletes(self) -> None:
        """Undo or finish the deletions that a killed service had begun. Only the service calls this, when it starts."""
        self.workspace.keep_reserve()
        for number, name in self.workspace.discarded():
            if self._select("WHERE number = ?", number):
                self.workspace.restore(name, number)
            else:
                self._remove_discarded(name, number)

    def _check_deletable(self, name: str) -> None:
        run = self.get(name)
        if not run.state.ended:
            raise Conflict(f"Run {name!r} is {run.state.value}; cancel it before you delete it.")
        if self.promoted() == name:
            raise Conflict(f"Run {name!r} is the version now served; promote another, or base, before you delete it.")
        for other in self.in_state(*LEGAL):
            if other.options.base == name:
                raise Conflict(
                    f"Run {other.name!r} starts from run {name!r} and is {other.state.value}; "
                    "let it end, or cancel it, before you delete this one."
                )

    def _check_unacknowledged(self, name: str) -> None:
        run = self.get(name)
        if run.acknowledged or run.state is not RunState.RECEIVING:
            raise Conflict(f"Run {name!r} is {run.state.value}, and a request for it was answered: it stays.")

    def _remove_discarded(self, name: str, number: int) -> None:
        try:
            self.workspace.remove_discarded(name, number)
        except OSError as error:
            _log.warning("Files of the deleted run %s are left until the next start: %s", name, error)

    def acknowledge(self, name: str) -> None:
        """Note that a request for a run is about to be answered: from now on the run is there whatever happens."""
        with self._database.transaction() as db:
            db.execute("UPDATE runs SET acknowledged = 1 WHERE name = ?", (name,))

    def unsettled(self) -> list[Run]:
        """The runs that have ended and are not noted as settled, oldest first."""
        return self._select("WHERE settled = 0 AND ended_at IS NOT NULL ORDER BY number")

    def set_settled(self, name: str) -> None:
        """Note that all is done that follows the end of a run."""
        with self._database.transaction() as db:
            db.execute("UPDATE runs SET settled = 1 WHERE name = ?", (name,))

    def set_total(self, name: str, total: int) -> None:
        """Set how many train documents a run expects."""
        with self._database.transaction() as db:
            db.execute("UPDATE runs SET total = ? WHERE name = ?", (total, name))

    def add_repeated(self, name: str, count: int) -> None:
        """Note that so many train documents of a run have come again."""
        with self._database.transaction() as db:
            db.execute("UPDATE runs SET repeated = repeated + ? WHERE name = ?", (count, name))

    def set_options(self, name: str, options: TrainingOptions, configuration: Configuration) -> None:
        """Replace the options of a run that is receiving."""
        with self._database.transaction() as db:
            db.execute(
                "UPDATE runs SET options = ?, configuration = ? WHERE name = ?",
                (options.model_dump_json(), configuration.model_dump_json(), name),
            )

    def set_pid(self, name: str, pid: int | None) -> None:
        """Record the trainer process of a run."""
        with self._database.transaction() as db:
            db.execute("UPDATE runs SET pid = ? WHERE name = ?", (pid, name))

    # progress, written by the trainer -----------------------------------------------------------------------------

    def report(self, name: str, progress: Progress) -> None:
        """Replace the progress of a run."""
        with self._database.transaction() as db:
            self._report(db, name, progress)

    def _report(self, db: sqlite3.Connection, name: str, progress: Progress) -> None:
        fields = json.dumps(progress.__dict__)
        db.execute("INSERT OR REPLACE INTO progress (run, fields) VALUES (?, ?)", (name, fields))

    def progress(self, name: str) -> Progress:
        """The last progress reported for a run."""
        rows = self._database.rows("SELECT fields FROM progress WHERE run = ?", name)
        return _progress_of(rows[0][0]) if rows else Progress()

    # quarantine ---------------------------------------------------------------------------------------------------

    def quarantine(self, name: str, split: str, problems: Iterable[Quarantined], *, spooled: bool) -> int:
        """Note documents that cannot be used. One whose place is noted already is ignored. Return how many are new.

        Args: spooled: whether they are in the spool.
        """
        new = 0
        with self._database.transaction() as db:
            for place, document, reason in problems:
                shown = brief(document), brief(reason, MAX_REASON)
                cursor = db.execute(
                    "INSERT OR IGNORE INTO problems (run, split, place, document, reason, spooled) "
                    "VALUES (?, ?, ?, ?, ?, ?)",
                    (name, split, place, *shown, int(spooled)),
                )
                if cursor.rowcount:
                    new += 1
                    self._append_event(db, name, "skipped", f"document {shown[0]!r}: {reason}")
        return new

    def problems(self, name: str, limit: int = SHOWN_PROBLEMS) -> list[tuple[str, str]]:
        """The first quarantined documents of a run, each `(id, reason)`."""
        rows = self._database.rows(
            "SELECT document, reason FROM problems WHERE run = ? ORDER BY number LIMIT ?", name, limit
        )
        return [(document, reason) for document, reason in rows]

    def problems_after(self, name: str, number: int, limit: int) -> list[tuple[int, str, Quarantined, bool]]:
        """Some of the quarantined documents of a run, in order, each (number, split, document, whether it is spooled).

        Args: number: leave out those up to this one.
        """
        rows = self._database.rows(
            "SELECT number, split, place, document, reason, spooled FROM problems WHERE run = ? AND number > ? "
            "ORDER BY number LIMIT ?",
            name,
            number,
            limit,
        )
        return [
            (number, split, Quarantined(*quarantined), bool(spooled)) for number, split, *quarantined, spooled in rows
        ]

    def count_problems(self, name: str, split: str | None = None, *, spooled: bool | None = None) -> int:
        """Count the quarantined documents, their matches included.

        Args:
            split: count only this one; matches have their own, `train match` and `eval match`.
            spooled: count only those in the spool (true), or only those outside it (false).
        """
        sql, arguments = "SELECT COUNT(*) FROM problems WHERE run = ?", [name]
        if split is not None:
            sql, arguments = f"{sql} AND split = ?", [*arguments, split]
        if spooled is not None:
            sql = f"{sql} AND spooled = {int(spooled)}"
        return int(self._database.rows(sql, *arguments)[0][0])

    def problem_rows(self, name: str) -> list[tuple[str, str, str, str, bool]]:
        """All quarantined documents of a run, each (split, place, id, reason, whether it is in the spool)."""
        rows = self._database.rows(
            "SELECT split, place, document, reason, spooled FROM problems WHERE run = ? ORDER BY number", name
        )
        return [(split, place, document, reason, bool(spooled)) for split, place, document, reason, spooled in rows]

    def is_quarantined(self, name: str, split: str, place: str) -> bool:
        """Whether a document is noted as one that cannot be used."""
        query = "SELECT 1 FROM problems WHERE run = ? AND split = ? AND place = ?"
        return bool(self._database.rows(query, name, split, place))

    # events -------------------------------------------------------------------------------------------------------

    def event(self, name: str, kind: str, message: str) -> None:
        """Append an event to the history of a run."""
        with self._database.transaction() as db:
            self._append_event(db, name, kind, message)

    def take_events(self, name: str, events: Iterable[tuple[str, str, str]]) -> None:
        """Append events of another store, each (time, kind, message), unless they were taken before."""
        with self._database.transaction() as db:
            known = {tuple(row) for row in db.execute("SELECT at, kind, message FROM events WHERE run = ?", (name,))}
            for at, kind, message in events:
                if (at, kind, brief(message, MAX_MESSAGE)) not in known:
                    self._append_event(db, name, kind, message, at=at)

    def events(self, name: str, after: int = 0, limit: int = 100) -> list[tuple[int, str, str, str]]:
        """The history of a run, oldest first, each `(number, time, kind, message)`, numbered from 1.

        Args: after: leave out the events up to this number. limit: return at most this many; -1: all.
        """
        sql = "SELECT number, at, kind, message FROM events WHERE run = ? AND number > ? ORDER BY number LIMIT ?"
        return [
            (number, at, kind, message) for number, at, kind, message in self._database.rows(sql, name, after, limit)
        ]

    def count_events(self, name: str) -> int:
        """How many events a run has: the number of the latest."""
        return int(self._database.rows("SELECT COALESCE(MAX(number), 0) FROM events WHERE run = ?", name)[0][0])

    def _append_event(
        self, db: sqlite3.Connection, name: str, kind: str, message: str, *, at: str | None = None
    ) -> None:
        db.execute(
            "INSERT INTO events (run, number, at, kind, message) "
            "SELECT ?, COALESCE(MAX(number), 0) + 1, ?, ?, ? FROM events WHERE run = ?",
            (name, at or now(), kind, brief(message, MAX_MESSAGE), name),
        )

    # the promoted version -----------------------------------------------------------------------------------------

    def promoted(self) -> str:
        """The version now served: `base` or a run's name. Only the service changes it, so it is kept in memory."""
        return self._promoted

    def served_now(self) -> str:
        """The same, read anew: for other processes than the service."""
        rows = self._database.rows("SELECT value FROM settings WHERE name = 'promoted'")
        return str(rows[0][0]) if rows else "base"

    def wait_for(self, version: str) -> None:
        """Wait until the model of a version is there: a rank may have a copy of its own, brought now and then."""

    def served_since(self) -> str | None:
        """Since when that version is served, ISO 8601; None: since ever."""
        rows = self._database.rows("SELECT value FROM settings WHERE name = 'promoted_at'")
        return str(rows[0][0]) if rows else None

    def promote(self, version: str) -> None:
        """Serve `version` from now on: `base` or a run. Raises: UnknownRun: the run was deleted meanwhile."""
        with self._database.transaction() as db:
            if version != "base":
                self.get(version)
            for setting, value in (("promoted", version), ("promoted_at", now())):
                db.execute("INSERT OR REPLACE INTO settings (name, value) VALUES (?, ?)", (setting, value))
            if version != "base":
                self._append_event(db, version, "promoted", "this version is served now")
        self._promoted = version
