"""The store of one rank of a job. What the service must know goes into the job's folder, as plain files."""

import contextlib
import json
import logging
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import WorkspaceError
from .files import publish_file, sync, unwritable
from .job import REQUIRED, Attempt, Job, JobWorkspace
from .published import digest_of
from .run import Progress, TrainerExit
from .runs import Quarantined, RunStore, now

PUBLISH_SECONDS = 0.3  # between two versions of `progress.json`: the folder may be on a slow network
VERSION_SECONDS = 60.0  # that a version may take to come to the copy of a rank, after it came to that of the first

_log = logging.getLogger(__name__)


class JobStore(RunStore):
    """A store with one run, in training.

    Args: rank: whose store it is.
    Raises: WorkspaceError: there is no job, or the run was cancelled.
    """

    def __init__(self, job: Job, rank: int) -> None:
        self._job = job
        self._rank = rank
        told = job.run()
        attempt = job.attempt()
        if attempt is None:
            raise WorkspaceError(f"No attempt may work in {job.folder}: the run has ended or was cancelled.")
        self.attempt = attempt
        self.run_name = told.name
        self._scratch = job.new_scratch(rank)
        job.made.mkdir(exist_ok=True)
        shutil.copyfile(job.documents, self._scratch / "documents.sqlite")
        super().__init__(JobWorkspace(job, told.name, self._scratch))
        self._add(told.as_run().__dict__, told.problems, told.history)
        self._lines = _Lines(job, rank)
        self._progress = _LatestProgress(job.report("progress.json", rank), attempt, told.progress)

    def _add(self, run: dict[str, Any], problems: list[Any], history: list[tuple[str, str]]) -> None:
        there = Path(run["configuration"].directory)
        if not there.is_dir():  # on another machine; there, paths are relative to where the command was started
            run["configuration"] = run["configuration"].model_copy(update={"directory": os.getcwd()})
        values = run | {
            "state": run["state"].value,
            **{part: run[part].model_dump_json() for part in ("options", "configuration")},
        }
        with self._database.transaction() as db:
            columns, marks = ", ".join(values), ", ".join("?" * len(values))
            db.execute(f"INSERT INTO runs ({columns}) VALUES ({marks})", tuple(values.values()))
            db.executemany(
                "INSERT OR IGNORE INTO problems (run, split, place, document, reason, spooled) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                [(self.run_name, *problem) for problem in problems],
            )
            for kind, message in history:
                super()._append_event(db, self.run_name, kind, message)

    def served_now(self) -> str:
        return self._job.served()

    def wait_for(self, version: str) -> None:
        deadline = time.monotonic() + VERSION_SECONDS
        while not self.workspace.model_folder(version).is_dir():
            if time.monotonic() > deadline:
                raise WorkspaceError(
                    f"The model of version {version!r}, which is served now, has not come to {self._job.folder} within "
                    f"{VERSION_SECONDS:g} s. See that this machine can read {self._job.address}; the run goes on then."
                )
            time.sleep(PUBLISH_SECONDS)

    def report(self, name: str, progress: Progress) -> None:
        self._progress.set(progress)

    def progress(self, name: str) -> Progress:
        return self._progress.latest

    def quarantine(self, name: str, split: str, problems: Iterable[Quarantined], *, spooled: bool) -> int:
        problems = list(problems)
        new = super().quarantine(name, split, problems, spooled=spooled)
        self._lines.append("problems.jsonl", [[split, *problem, spooled] for problem in problems])
        return new

    def _append_event(
        self, db: sqlite3.Connection, name: str, kind: str, message: str, *, at: str | None = None
    ) -> None:
        at = at or self._lines.new_time()
        super()._append_event(db, name, kind, message, at=at)
        if kind != "skipped":  # the service adds these when it reads the problems
            self._lines.append("events.jsonl", [[at, kind, message]])

    def finish(self, code: int) -> int:
        """Write down how this rank has ended, with everything that is not written yet, and return its exit code."""
        try:
            self._progress.close()
            self._lines.close()
            if code == TrainerExit.SUCCEEDED and self._rank == 0:
                self._write_digests()
            ended = json.dumps({"attempt": self.attempt.id, "code": code}).encode()
            publish_file(self._job.report("ended.json", self._rank), ended)
        except OSError as error:
            _log.error("%s", unwritable("what the job has made", self._job.made, error))
            return TrainerExit.UNWRITABLE
        finally:
            self.close()
            shutil.rmtree(self._scratch, ignore_errors=True)
        return code

    def _write_digests(self) -> None:
        places = [self._job.made / name for name in sorted({name.split("/")[0] for name in REQUIRED})]
        files = [file for place in places for file in (place.iterdir() if place.is_dir() else [place])]
        digests = {str(file.relative_to(self._job.made)): digest_of(file) for file in files if file.is_file()}
        result = {"attempt": self.attempt.id, "sha256": digests}
        publish_file(self._job.made / "result.json", json.dumps(result).encode())


class _Lines:
    """Files with a JSON value a line, to which one process appends."""

    def __init__(self, job: Job, rank: int) -> None:
        self._job = job
        self._rank = rank
        self._lock = threading.Lock()
        self._last = ""

    def append(self, kind: str, values: list[Any]) -> None:
        """Append values. Raises: WorkspaceError: the disk is full or cannot be written."""
        file = self._job.report(kind, self._rank)
        content = b"".join(json.dumps(value).encode() + b"\n" for value in values)
        try:
            with self._lock, open(file, "ab") as lines:
                lines.write(content if _ends_a_line(file) else b"\n" + content)
        except OSError as error:
            raise unwritable(f"{kind} of the job", self._job.made, error) from error

    def new_time(self) -> str:
        """Return the time, later than the one before: the service tells equal events apart by it."""
        while (time_now := now()) == self._last:
            time.sleep(0.0005)
        self._last = time_now
        return time_now

    def close(self) -> None:
        for kind in ("events.jsonl", "problems.jsonl"):
            with contextlib.suppress(FileNotFoundError):
                sync(self._job.report(kind, self._rank))


def _ends_a_line(file: Path) -> bool:
    """Whether a file is empty or ends with a whole line: a process that was killed may have left half a one."""
    with open(file, "rb") as content:
        size = content.seek(0, os.SEEK_END)
        content.seek(max(0, size - 1))
        return content.read() in (b"", b"\n")


class _LatestProgress:
    """Publishes the latest progress from a thread of its own, so that training never waits for a network."""

    def __init__(self, file: Path, attempt: Attempt, latest: Progress) -> None:
        self.latest = latest
        self._file = file
        self._attempt = attempt
        self._changed = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._publish_changes, name="progress", daemon=True)
        self._thread.start()

    def set(self, progress: Progress) -> None:
        self.latest = progress
        self._changed.set()

    def _publish_changes(self) -> None:
        while not self._closing.is_set():
            self._changed.wait()
            self._changed.clear()
            try:
                self._publish()
            except OSError as error:
                _log.warning("Progress is not written: %s", error)
            self._closing.wait(PUBLISH_SECONDS)

    def _publish(self) -> None:
        content = {"attempt": self._attempt.id, "progress": asdict(self.latest)}
        publish_file(self._file, json.dumps(content).encode())

    def close(self) -> None:
        """Publish the last progress. Raises: OSError."""
        self._closing.set()
        self._changed.set()
        self._thread.join()
        self._publish()
