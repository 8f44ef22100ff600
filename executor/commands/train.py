"""Train one run, in this process. The service starts this by itself, or another program does in a job's folder."""

import argparse
import os
import sys
import threading
from pathlib import Path
from typing import Any

from .priority import add_priority, die_with_the_service, lower_priority


def add(commands: Any) -> None:
    """Add the command and its arguments."""
    train = commands.add_parser("train", help="train one run of a workspace, or of a job's folder")
    place = train.add_mutually_exclusive_group(required=True)
    place.add_argument("--workspace", type=Path, help="the workspace folder of the service; needs --run")
    place.add_argument("--job", help="the folder of a job, or its url, as the option train_command names it")
    train.add_argument("--run", help="the name of the run; a job knows its own")
    add_priority(train)
    train.add_argument("--tied", action="store_true", help="end when standard input ends")


def run(arguments: argparse.Namespace) -> int:
    """Train, and return the exit code by which the service judges the run."""
    if arguments.workspace is not None and arguments.run is None:
        sys.stderr.write("python -m executor train: --workspace needs --run, the name of the run.\n")
        return 2
    sys.stderr.write(lower_priority(arguments))
    if arguments.tied:  # before the imports, which take seconds
        threading.Thread(target=die_with_the_service, name="tie", daemon=True).start()

    from ..compute.memory import be_killed_first, keep_freed_memory

    if arguments.tied:
        be_killed_first()
        keep_freed_memory()
    if arguments.job is not None:
        return _train_job(arguments.job, arguments.run)
    return _train_run(arguments.workspace, arguments.run)


def _train_run(workspace: Path, name: str) -> int:
    from ..compute.memory import not_collecting
    from ..store.runs import RunStore
    from ..store.workspace import Workspace
    from ..worker.command import on_workspace
    from ..worker.other_ranks import start_other_ranks

    store = RunStore(Workspace(workspace))
    # The other ranks import while this one does.
    others = start_other_ranks(store.get(name).ranks, *on_workspace(workspace), f"--run={name}")

    with not_collecting():
        from ..worker.trainer import main as run_trainer

    return run_trainer(store, name, others=others)


def _train_job(address: str, name: str | None) -> int:
    from ..compute.memory import not_collecting
    from ..errors import FinetunerError
    from ..store.job import open_job
    from ..worker.other_ranks import start_other_ranks

    try:
        job = open_job(address, int(os.environ.get("RANK", "0")))
        told = job.run()
    except (FinetunerError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    if name not in (None, told.name):
        sys.stderr.write(f"The job in {address} is of run {told.name!r}, not {name!r}; leave --run away.\n")
        return 2
    others = start_other_ranks(told.as_run().ranks, f"--job={job.address}")

    with not_collecting():
        from ..worker.job import main as run_job

    return run_job(job, others=others)
