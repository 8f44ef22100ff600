"""Import what a trainer needs, then wait for the name of a run and become its trainer. The service starts this."""

import argparse
import os
import queue
import sys
import threading
from pathlib import Path
from typing import Any

from .priority import add_priority, die_with_the_service, lower_priority


def add(commands: Any) -> None:
    """Add the command and its arguments."""
    standby = commands.add_parser("standby", help="a trainer that reads the name of its run; the service starts it")
    standby.add_argument("--workspace", type=Path, required=True, help="the workspace folder of the service")
    add_priority(standby)


def run(arguments: argparse.Namespace) -> int:
    """Wait for a name on standard input, train that run, and return the exit code."""
    note = lower_priority(arguments)
    told: queue.Queue[bytes] = queue.Queue()
    threading.Thread(target=die_with_the_service, args=(told.put,), name="tie", daemon=True).start()

    from setproctitle import setproctitle

    from ..compute.memory import be_killed_first, keep_freed_memory, not_collecting
    from ..store.runs import RunStore
    from ..store.workspace import Workspace
    from ..worker.other_ranks import OtherRanks

    with not_collecting():
        from ..worker.trainer import main as run_trainer

    be_killed_first()
    keep_freed_memory()
    name = told.get().decode().strip()
    setproctitle(f"{sys.executable} -m executor train --workspace {arguments.workspace} --run={name} --tied")
    with open(Workspace(arguments.workspace).log_file(name), "ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    sys.stderr.write(note)  # only now is there a log
    return run_trainer(RunStore(Workspace(arguments.workspace)), name, others=OtherRanks([]))
