"""What the service reads of a job: its progress, history and checkpoints while it trains, and its model in the end."""

import contextlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..errors import WorkspaceError
from ..store.files import publish_file, publish_folder
from ..store.job import REQUIRED, Attempt, Job, read_lines
from ..store.published import digest_of
from ..store.run import Progress, Run, TrainerExit
from ..store.runs import Quarantined, RunStore
from ..store.workspace import KEPT_CHECKPOINTS, newest_first
from .job_folder import KEPT_FILES, serve

_PROGRESS_FIELDS = {field.name for field in fields(Progress)}


class Mirror:
    """Brings into the workspace what a job makes. Every method may be called again after it has failed.

    Args: attempt: what others have left in the folder does not count.
    """

    def __init__(self, job: Job, store: RunStore, run: Run, attempt: Attempt) -> None:
        self._job = job
        self._store = store
        self._run = run
        self._attempt = attempt
        self._folder = store.workspace.run_folder(run.name)
        self._seen: dict[Path, tuple[int, int]] = {}  # of files that are replaced and taken: when changed, and the size
        self._read: dict[Path, int] = {}  # bytes of the files that grow that are taken
        self._begun = False
        self._checkpoint = max((int(place.name) for place in store.workspace.checkpoints(run.name)), default=-1)

    def look(self) -> None:
        """Take over what is new. Raises: OSError, WorkspaceError: it can be tried again."""
        if self._store.served_now() != self._job.served():
            serve(self._job, self._store, self._run)
        self._take_progress()
        self._take_history()
        self._keep_checkpoint()
        for name in KEPT_FILES:
            with self._changed(self._job.made / name) as changed:
                if changed:
                    publish_file(self._folder / name, (self._job.made / name).read_bytes())

    def ended(self) -> dict[int, int]:
        """Return the exit codes of the ranks that have written theirs, by rank."""
        found = {rank: self._of_attempt(file) for rank, file in self._job.reports("ended.json").items()}
        return {rank: int(content["code"]) for rank, content in found.items() if content is not None}

    def refusal(self) -> str | None:
        """Return why another rank than the first has refused the run, if one did."""
        for rank, file in sorted(self._job.reports("progress.json").items()):
            content = self._of_attempt(file)
            if rank and content is not None and content["progress"]["error"]:
                return str(content["progress"]["error"])
        return None

    def take_over(self) -> None:
        """Take the model, the report, the proof and the lineage into the run's folder.

        Raises: WorkspaceError: they are not whole. OSError: the disk failed.
        """
        result = self._of_attempt(self._job.made / "result.json")
        if result is None:
            raise WorkspaceError("the job has not written which files belong to its result")
        lacking = sorted(REQUIRED - result["sha256"].keys())
        if lacking:
            raise WorkspaceError(f"{' and '.join(lacking)} {'was' if len(lacking) == 1 else 'were'} gone when it ended")
        model = {name: digest for name, digest in result["sha256"].items() if name.startswith("model/")}

        def copy(place: Path) -> None:
            for name, digest in model.items():
                self._copy(name, digest, place / Path(name).name)

        publish_folder(self._folder / "model", copy)
        for name in result["sha256"].keys() - model.keys():
            self._copy(name, result["sha256"][name], self._folder / Path(name).name)

    def _copy(self, name: str, digest: str, target: Path) -> None:
        unfinished = target.with_name(f".{target.name}-taken")
        try:
            shutil.copyfile(self._job.made / name, unfinished)
            if digest_of(unfinished) != digest:
                raise WorkspaceError(f"{name} has not the digest that the job has written down")
            unfinished.rename(target)
        except FileNotFoundError:
            raise WorkspaceError(f"{name} is missing") from None
        finally:
            unfinished.unlink(missing_ok=True)

    def _take_progress(self) -> None:
        beat = self._store.workspace.beat_file(self._run.name)
        with self._changed(self._job.made / "alive") as alive:
            if alive:
                beat.touch()
        file = self._job.made / "progress.json"
        with self._changed(file) as changed:
            content = self._of_attempt(file) if changed else None
            if content is not None:  # a newer release may have added fields
                self._begun = True
                known = {name: value for name, value in content["progress"].items() if name in _PROGRESS_FIELDS}
                self._store.report(self._run.name, Progress(**known))
            if changed or not self._begun:  # it may wait for machines as long as it likes
                beat.touch()

    def _take_history(self) -> None:
        for file in self._job.reports("problems.jsonl").values():
            with self._new_lines(file) as lines:
                for split, place, document, reason, spooled in lines:
                    problem = Quarantined(place, document, reason)
                    self._store.quarantine(self._run.name, split, [problem], spooled=spooled)
        for file in self._job.reports("events.jsonl").values():
            with self._new_lines(file) as lines:
                if lines:
                    self._store.take_events(self._run.name, [(at, kind, message) for at, kind, message in lines])

    @contextlib.contextmanager
    def _new_lines(self, file: Path) -> Iterator[list[Any]]:
        """Give the whole lines that were added. If the block fails, they are given again."""
        with open(file, "rb") as lines:
            lines.seek(self._read.get(file, 0))
            content, end, _ = lines.read().rpartition(b"\n")
        yield read_lines(content)
        self._read[file] = self._read.get(file, 0) + len(content) + len(end)

    def _keep_checkpoint(self) -> None:
        """Copy the newest checkpoint, so that the run can go on even if the job's folder is lost."""
        newest = next(iter(newest_first(self._job.made / "checkpoints")), None)
        if newest is None or int(newest.name) <= self._checkpoint:
            return
        kept = self._store.workspace.checkpoint_folder(self._run.name)
        with contextlib.suppress(FileNotFoundError, shutil.Error):  # the job has just removed it: there is a newer one
            publish_folder(kept / newest.name, lambda place: _copy_files(newest, place))
            self._checkpoint = int(newest.name)
        for old in newest_first(kept)[KEPT_CHECKPOINTS:]:
            shutil.rmtree(old)

    @contextlib.contextmanager
    def _changed(self, file: Path) -> Iterator[bool]:
        """Whether a file is there and has changed. If the block fails, it is so the next time, too."""
        now = None
        with contextlib.suppress(FileNotFoundError):
            found = file.stat()
            now = (found.st_mtime_ns, found.st_size)
        yield now is not None and now != self._seen.get(file)
        if now is not None:
            self._seen[file] = now

    def _of_attempt(self, file: Path) -> dict[str, Any] | None:
        """Return what a file says, if it is of this attempt."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            content: dict[str, Any] = json.loads(file.read_bytes())
            return content if content["attempt"] == self._attempt.id else None
        return None


def _copy_files(source: Path, place: Path) -> None:
    for file in source.iterdir():
        shutil.copyfile(file, place / file.name)


def worst(codes: dict[int, int]) -> int | None:
    """Return the exit code that says most of why a job has ended; None: none does."""
    telling = [code for code in codes.values() if code not in (TrainerExit.SUCCEEDED, TrainerExit.CRASHED)]
    return min(telling, default=None)
