"""The folder of a job: a run that another command trains, perhaps on other machines. It holds plain files alone.

    job.json             the run, and what was known of it when this attempt began
    documents.sqlite     a snapshot of its documents; nobody opens it here: each rank copies it first
    versions/<version>/  models, with their lineages: `base`, the one that the run starts from, the one that is served
    served.json          which version is served now
    attempt.json         which attempt may work here, and whether it shall stop; without it none may
    made/                what the job makes: the files of a run's folder, and
        progress.json    the latest progress
        events.jsonl     the history, a line each
        problems.jsonl   the quarantined documents, a line each
        ended.json       the exit code
        result.json      the digests of the model, the report and the proof

On an object store the folder is exchanged file by file: see `exchange.py`.

Of further ranks there are `progress-1.json`, `events-1.jsonl` and so on. The service writes everything but `made/`, and
the job writes that alone.
"""

import contextlib
import functools
import hashlib
import json
import os
import shutil
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from ..errors import WorkspaceError
from ..parameters import TrainingOptions
from .exchange import Exchange, NoExchange, is_url
from .files import publish_file
from .run import Configuration, Progress, Run, RunState
from .workspace import LINEAGE, Workspace

FORMAT = 1
REQUIRED = frozenset(
    ("model/model.json", "model/weights.safetensors", "report.html", "report.json", "proof.json", LINEAGE)
)  # of what a job that has succeeded has made; in `model/` there may be more
TRIES = 5  # to bring a job from its store,
RETRY_SECONDS = 1.0  # so long after one another


class Attempt(BaseModel):
    """One attempt to train a job. Attributes: stop: whether it shall write a checkpoint and end."""

    model_config = ConfigDict(frozen=True)

    id: str
    stop: bool = False


class JobRun(BaseModel):
    """What a job is told of its run.

    Attributes:
        format: of the job's folder. The others up to `started_at` are those of `Run`.
        problems: its quarantined documents so far, each (split, place, id, reason, whether it is in the
            snapshot).
        history: its events that a trainer goes by, each (kind, message).
        progress: what an earlier attempt has reported.
    """

    model_config = ConfigDict(frozen=True)

    format: int
    number: int
    name: str
    options: TrainingOptions
    configuration: Configuration
    total: int | None
    train_rows: int | None
    eval_rows: int | None
    attempts: int
    created_at: str
    started_at: str | None
    problems: list[tuple[str, str, str, str, bool]]
    history: list[tuple[str, str]]
    progress: Progress = Progress()
    arrived: int | None = None

    def as_run(self) -> Run:
        """Return the run as a store has it."""
        told = {name: getattr(self, name) for name in JobRun.model_fields if name in Run.__dataclass_fields__}
        return Run(state=RunState.TRAINING, pid=None, error=None, verdict=None, ended_at=None, **told)


class Job:
    """The folder of one job. Methods that read raise OSError if the disk fails.

    Attributes: address: what `{job}` stands for: the folder, or a url, of which the folder is this side's copy.
    """

    def __init__(self, folder: Path, address: str | None = None) -> None:
        self.folder = folder
        self.address = address or str(folder)
        self.documents = folder / "documents.sqlite"
        self.made = folder / "made"
        self._run = folder / "job.json"
        self._served = folder / "served.json"
        self._attempt = folder / "attempt.json"

    @functools.cached_property
    def exchange(self) -> Exchange | NoExchange:
        """Return what keeps the folder and the address alike. Raises: ConfigurationError: there can be none."""
        return Exchange(self.folder, self.address) if is_url(self.address) else NoExchange()

    def version(self, name: str) -> Path:
        """The folder of a model that travels with the job."""
        return self.folder / "versions" / name

    def report(self, kind: str, rank: int) -> Path:
        """The file of one rank in `made/`. Args: kind: `progress.json`, `events.jsonl` and so on."""
        stem, _, ending = kind.partition(".")
        return self.made / (f"{stem}-{rank}.{ending}" if rank else kind)

    def reports(self, kind: str) -> dict[int, Path]:
        """The files of this kind that are there, by rank."""
        stem, _, ending = kind.partition(".")
        found = {0: self.made / kind} if (self.made / kind).exists() else {}
        for file in self.made.glob(f"{stem}-*.{ending}"):
            rank = file.name.removeprefix(f"{stem}-").removesuffix(f".{ending}")
            if rank.isascii() and rank.isdigit():
                found[int(rank)] = file
        return found

    # written by the service ---------------------------------------------------------------------------------------

    def write_run(self, run: JobRun) -> None:
        """Tell the job of its run."""
        publish_file(self._run, run.model_dump_json(indent=1).encode())

    def run(self) -> JobRun:
        """Return the run. Raises: WorkspaceError: this is no job, or one of another release."""
        try:
            run = JobRun.model_validate_json(self._run.read_bytes())
        except FileNotFoundError:
            raise WorkspaceError(
                f"There is no job in {self.folder}: the run has ended or was cancelled, or this machine does not see "
                "the folder that the service sees under this path."
            ) from None
        except ValidationError as error:
            reason = error.errors(include_url=False)[0]["msg"]
            raise WorkspaceError(
                f"{self._run} cannot be read ({reason}); let the job run the same release as the service."
            ) from None
        if run.format != FORMAT:
            raise WorkspaceError(f"{self._run} has format {run.format}; this release reads {FORMAT}.")
        return run

    def serve(self, version: str) -> None:
        """Note which version is served now. Its model must be in `versions/` already."""
        publish_file(self._served, json.dumps({"version": version}).encode())

    def served(self) -> str:
        """Return the version that is served now."""
        return str(json.loads(self._served.read_bytes())["version"])

    def begin_attempt(self) -> Attempt:
        """Begin an attempt. Processes of an earlier one end by themselves when they see it."""
        attempt = Attempt(id=uuid.uuid4().hex)
        publish_file(self._attempt, attempt.model_dump_json().encode())
        return attempt

    def ask_to_stop(self, attempt: Attempt) -> None:
        """Let the attempt write a checkpoint and end."""
        publish_file(self._attempt, attempt.model_copy(update={"stop": True}).model_dump_json().encode())

    def end_attempts(self) -> None:
        """Let every process of the job end at once."""
        self._attempt.unlink(missing_ok=True)

    def attempt(self) -> Attempt | None:
        """Return the attempt that may work here; None: none may."""
        try:
            return Attempt.model_validate_json(self._attempt.read_bytes())
        except FileNotFoundError:
            return None

    def remove(self) -> None:
        """Remove the folder, if it is there. Every process of the job ends by that."""
        self.end_attempts()
        self.exchange.remove()
        shutil.rmtree(self.folder, ignore_errors=True)
        for scratch in Path(tempfile.gettempdir()).glob(f"{self._scratch_name}-*"):
            shutil.rmtree(scratch, ignore_errors=True)

    # on the machine of a rank -------------------------------------------------------------------------------------

    def new_scratch(self, rank: int, what: str = "") -> Path:
        """Return a new empty folder on the local disk of a rank. What a killed rank has left there is removed.

        Args: what: it is for, if a rank has several.
        """
        name = f"{self._scratch_name}-{what}{rank}-"
        for old in Path(tempfile.gettempdir()).glob(f"{name}*"):
            shutil.rmtree(old, ignore_errors=True)
        return Path(tempfile.mkdtemp(prefix=name))

    @property
    def _scratch_name(self) -> str:
        place = self.address if is_url(self.address) else self.folder.resolve()
        path = f"{os.getuid()} {place}"
        return f"finetuner-{hashlib.sha256(path.encode()).hexdigest()[:12]}"


class JobWorkspace(Workspace):
    """The workspace of one rank: the job's files, and on a local disk what only this rank uses."""

    def __init__(self, job: Job, run: str, scratch: Path) -> None:
        super().__init__(scratch)
        self.base = job.version("base")
        self._job = job
        self._run = run

    def run_folder(self, name: str) -> Path:
        return self._job.made if name == self._run else self._job.version(name)

    def model_folder(self, version: str) -> Path:
        return self._job.made / "model" if version == self._run else self._job.version(version)

    def spool_file(self, name: str) -> Path:
        return self.root / "documents.sqlite"

    def image_folder(self, name: str) -> Path:
        return self.root / "images"


def job_of(workspace: Workspace, run: Run, jobs: str | None) -> Job:
    """Return the job of a run. Args: jobs: the directory or url of all jobs; None: each lies in its run's folder."""
    here = workspace.run_folder(run.name) / "job"
    if jobs is None:
        return Job(here)
    whose = f"{workspace.root.resolve()} {run.number} {run.created_at}"  # a name may be used again, or by another
    name = f"{run.name}-{hashlib.sha256(whose.encode()).hexdigest()[:8]}"
    return Job(here, f"{jobs.rstrip('/')}/{name}") if is_url(jobs) else Job(Path(jobs).resolve() / name)


def open_job(address: str, rank: int) -> Job:
    """Return the job at a path or a url. Of a url each rank gets a copy of its own, on its local disk.

    Raises: ConfigurationError: there is no such store. OSError: it does not answer.
    """
    if not is_url(address):
        return Job(Path(address).resolve())
    job = Job(Job(Path(), address).new_scratch(rank, "copy"), address)
    for left in reversed(range(TRIES)):
        try:
            job.exchange.bring("inputs")
            job.exchange.bring("made")
            break
        except OSError:
            if not left:
                raise
            time.sleep(RETRY_SECONDS)
    return job


def check_jobs(jobs: str | None) -> None:
    """Check the place of all jobs. Raises: ConfigurationError: it is a url that nothing can write to."""
    if jobs is not None and is_url(jobs):
        Exchange(Path(), jobs)


def read_lines(content: bytes) -> list[Any]:
    """Return the JSON values of whole lines. One that a killed process has left half-written is left out."""
    found = []
    for line in content.split(b"\n"):
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found
