"""Have one run of a workspace trained by another command. The service starts this where `train_command` is set."""

import argparse
import sys
import threading
from pathlib import Path
from typing import Any

from .priority import add_priority, die_with_the_service, lower_priority


def add(commands: Any) -> None:
    """Add the command and its arguments."""
    elsewhere = commands.add_parser("elsewhere", help="have a run trained by a command; the service starts this")
    elsewhere.add_argument("--workspace", type=Path, required=True, help="the workspace folder of the service")
    elsewhere.add_argument("--run", required=True, help="the name of the run")
    elsewhere.add_argument("--train-command", required=True, help="the option of the executor")
    elsewhere.add_argument("--train-jobs", help="the option of the executor")
    add_priority(elsewhere)
    elsewhere.add_argument("--tied", action="store_true", help="end when standard input ends")


def run(arguments: argparse.Namespace) -> int:
    """Have the run trained, and return the exit code by which the service judges it."""
    sys.stderr.write(lower_priority(arguments))
    if arguments.tied:
        threading.Thread(target=die_with_the_service, name="tie", daemon=True).start()

    from ..compute.memory import be_killed_first
    from ..store.runs import RunStore
    from ..store.workspace import Workspace
    from ..worker.elsewhere import main as train_elsewhere

    if arguments.tied:
        be_killed_first()  # and so are the processes of the command, where they run on this machine
    store = RunStore(Workspace(arguments.workspace))
    return train_elsewhere(store, arguments.run, arguments.train_command, arguments.train_jobs)
