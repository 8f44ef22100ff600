"""Train one run of a workspace, in this process. The service starts this by itself."""

import argparse
import sys
import threading
from pathlib import Path
from typing import Any

from .priority import add_priority, die_with_the_service, lower_priority


def add(commands: Any) -> None:
    """Add the command and its arguments."""
    train = commands.add_parser("train", help="train one run of a workspace; the service starts this by itself")
    train.add_argument("--workspace", type=Path, required=True, help="the workspace folder of the service")
    train.add_argument("--run", required=True, help="the name of the run")
    add_priority(train)
    train.add_argument("--tied", action="store_true", help="end when standard input ends")


def run(arguments: argparse.Namespace) -> int:
    """Train, and return the exit code by which the service judges the run."""
    sys.stderr.write(lower_priority(arguments))
    if arguments.tied:  # before the imports, which take seconds
        threading.Thread(target=die_with_the_service, name="tie", daemon=True).start()

    from ..compute.memory import be_killed_first, keep_freed_memory
    from ..worker.other_ranks import start_other_ranks

    if arguments.tied:
        be_killed_first()
        keep_freed_memory()
    others = start_other_ranks(arguments.workspace, arguments.run)  # they import while we do

    from ..worker.trainer import main as run_trainer

    return run_trainer(arguments.workspace, arguments.run, others=others)
