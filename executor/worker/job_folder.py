"""What the service puts into a job's folder: the run, a snapshot of its documents, the models that it needs."""

import contextlib
import json
import shutil
import sqlite3
from pathlib import Path

from ..parameters import ExecutorOptions
from ..store.files import publish_folder, remove_leftovers, sync, unwritable
from ..store.job import FORMAT, Job, JobRun
from ..store.lineage import lineage_of
from ..store.run import KILLED_FOR_MEMORY, Run
from ..store.runs import RunStore
from ..store.workspace import LINEAGE, Workspace, newest_first

KEPT_FILES = (
    "micro_batch",
    "trials.json",
    "precision",
    "parts.json",
    "negatives.json",
    LINEAGE,
)  # that an attempt leaves for the next one, with checkpoints
_OF_THE_SERVICE = ("token_file", "publish_to", "train_command", "train_jobs")  # nobody else's business


def fill(job: Job, store: RunStore, run: Run) -> None:
    """Make a job's folder ready for an attempt. What an earlier attempt has made there stays.

    Raises: OSError, WorkspaceError: the disk is full or cannot be written.
    """
    job.made.mkdir(parents=True, exist_ok=True)
    remove_leftovers(job.folder)
    if not job.documents.exists():
        _copy_documents(store.workspace.spool_file(run.name), job.documents)
    for version in {"base", run.options.base}:
        add_version(job, store.workspace, run.configuration.options, version)
    serve(job, store, run)
    _hand_back(store.workspace.run_folder(run.name), job.made)
    job.write_run(_told(store, run))


def serve(job: Job, store: RunStore, run: Run) -> None:
    """Tell a job which version is served now; the proof is against that one."""
    version = store.served_now()
    add_version(job, store.workspace, run.configuration.options, version)
    job.serve(version)


def add_version(job: Job, workspace: Workspace, options: ExecutorOptions, version: str) -> None:
    """Copy a model into the job's folder, unless it is there."""
    if version == "base":
        _ensure_base(workspace, options)
    source, target = workspace.model_folder(version), job.version(version)
    if not target.is_dir() or _settings(source) != _settings(target):
        seen = lineage_of(workspace, version)

        def write(place: Path) -> None:
            _copy_into(source, place)
            seen.save(place / LINEAGE)

        publish_folder(target, write)


def _ensure_base(workspace: Workspace, options: ExecutorOptions) -> None:
    """Build the base model if it is missing or another is configured now. Only then is torch imported."""
    wanted = {name: getattr(options, name) for name in ("model", "input_size", "embedding_dim")}
    with contextlib.suppress(OSError, ValueError, KeyError):
        config = json.loads(_settings(workspace.base))["config"]
        if wanted.items() <= config.items():
            return
    from ..models.versions import ensure_base

    ensure_base(workspace, options)


def _settings(model: Path) -> bytes:
    return (model / "model.json").read_bytes()


def _copy_into(source: Path, place: Path) -> None:
    shutil.copytree(source, place, dirs_exist_ok=True)


def _copy_documents(spool: Path, target: Path) -> None:
    """Copy the documents into one file: the spool itself is a database in several, with what was appended last."""
    unfinished = target.with_name(f".{target.name}")
    unfinished.unlink(missing_ok=True)
    try:
        with contextlib.closing(sqlite3.connect(spool)) as connection:
            connection.execute("VACUUM INTO ?", (str(unfinished),))
    except sqlite3.Error as error:
        raise unwritable("a copy of the documents", target.parent, error) from error
    sync(unfinished)
    unfinished.rename(target)


def _hand_back(run_folder: Path, made: Path) -> None:
    """Give a job what the run's folder keeps of earlier attempts, if the job has less: its folder may be a new one."""
    mine, there = newest_first(run_folder / "checkpoints"), newest_first(made / "checkpoints")
    if mine and (not there or int(there[0].name) < int(mine[0].name)):
        publish_folder(made / "checkpoints" / mine[0].name, lambda place: _copy_into(mine[0], place))
    for name in KEPT_FILES:
        if (run_folder / name).exists() and not (made / name).exists():
            shutil.copyfile(run_folder / name, made / name)


def _told(store: RunStore, run: Run) -> JobRun:
    defaults = ExecutorOptions()
    options = run.configuration.options.model_copy(update={name: getattr(defaults, name) for name in _OF_THE_SERVICE})
    events = store.events(run.name, limit=-1)
    return JobRun(
        format=FORMAT,
        number=run.number,
        name=run.name,
        options=run.options,
        configuration=run.configuration.model_copy(update={"options": options}),
        total=run.total,
        train_rows=run.train_rows,
        eval_rows=run.eval_rows,
        arrived=run.arrived,
        attempts=run.attempts,
        created_at=run.created_at,
        started_at=run.started_at,
        problems=store.problem_rows(run.name),
        progress=store.progress(run.name),
        history=[(kind, message) for _, _, kind, message in events if kind in (KILLED_FOR_MEMORY, "warning")],
    )
