"""Commands: `python -m executor train …`, `report …` and `export …`."""

import argparse
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path


def main() -> int:
    """Run a command and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m executor", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="train one run of a workspace; the service starts this by itself")
    train.add_argument("--workspace", type=Path, required=True, help="the workspace folder of the service")
    train.add_argument("--run", required=True, help="the name of the run")
    _add_priority(train)
    train.add_argument("--tied", action="store_true", help="end when standard input ends")
    standby = commands.add_parser("standby", help="a trainer that reads the name of its run; the service starts it")
    standby.add_argument("--workspace", type=Path, required=True, help="the workspace folder of the service")
    _add_priority(standby)
    export = commands.add_parser("export", help="write a model version as files that other programs read")
    export.add_argument("run", help="the name of the run whose model it is, or `base`")
    export.add_argument("--workspace", type=Path, required=True, help="the workspace folder of the service")
    export.add_argument(
        "--format", choices=("onnx", "safetensors", "transformers"), required=True, help="what to write"
    )
    export.add_argument("--output", type=Path, required=True, help="a new folder to write it into")
    report = commands.add_parser("report", help="write the report of a run again and print its path")
    report.add_argument("run", help="the name of the run")
    report.add_argument("--workspace", type=Path, required=True, help="the workspace folder of the service")
    arguments = parser.parse_args()
    if arguments.command == "report":
        return _report(arguments)
    if arguments.command == "export":
        return _export(arguments)
    if arguments.command == "standby":
        return _standby(arguments)
    return _train(arguments)


def _add_priority(command: argparse.ArgumentParser) -> None:
    command.add_argument("--nice", type=int, default=0, help="lower the priority of this process by so much")
    command.add_argument("--yields", action="store_true", help="compute only where no other process wants to")


def _lower_priority(arguments: argparse.Namespace) -> str:
    """Give the service priority over this process. Call this before threads start, because they inherit it.

    Returns: what the log of the run should say of it, with a line's end; mostly nothing.
    """
    os.nice(arguments.nice)
    if arguments.yields and hasattr(os, "SCHED_IDLE"):  # Linux
        try:
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        except PermissionError as error:  # a sandbox may forbid it; then only the niceness counts
            return f"This process cannot yield to others ({error}).\n"
    return ""


def _train(arguments: argparse.Namespace) -> int:
    sys.stderr.write(_lower_priority(arguments))
    if arguments.tied:  # before the imports, which take seconds
        threading.Thread(target=_die_with_the_service, name="tie", daemon=True).start()

    from .compute.memory import be_killed_first, keep_freed_memory
    from .worker.other_ranks import start_other_ranks

    if arguments.tied:
        be_killed_first()
        keep_freed_memory()
    others = start_other_ranks(arguments.workspace, arguments.run)  # they import while we do

    from .worker.trainer import main as run_trainer

    return run_trainer(arguments.workspace, arguments.run, others=others)


def _standby(arguments: argparse.Namespace) -> int:
    """Import what a trainer needs, then wait for the name of a run and become its trainer."""
    note = _lower_priority(arguments)
    told: queue.Queue[bytes] = queue.Queue()
    threading.Thread(target=_die_with_the_service, args=(told.put,), name="tie", daemon=True).start()

    from setproctitle import setproctitle

    from .compute.memory import be_killed_first, keep_freed_memory
    from .store.workspace import Workspace
    from .training.loop import rehearse
    from .worker.other_ranks import OtherRanks
    from .worker.trainer import main as run_trainer

    be_killed_first()
    keep_freed_memory()
    rehearse()
    run = told.get().decode().strip()
    setproctitle(f"{sys.executable} -m {__package__} train --workspace {arguments.workspace} --run={run} --tied")
    with open(Workspace(arguments.workspace).log_file(run), "ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    sys.stderr.write(note)  # only now is there a log
    return run_trainer(arguments.workspace, run, others=OtherRanks([]))


def _die_with_the_service(told: Callable[[bytes], None] = lambda line: None) -> None:
    """Pass on what comes from standard input, and kill this process when it ends.

    It is a pipe from the service, so it ends when the service does, even by a crash.
    """
    while line := os.read(0, 1024):
        told(line)
    os.kill(os.getpid(), signal.SIGKILL)


def _export(arguments: argparse.Namespace) -> int:
    from .models.export import main as run_export

    return run_export(arguments.run, arguments.workspace, arguments.format, arguments.output)


def _report(arguments: argparse.Namespace) -> int:
    from .report.contents import main as write_report

    return write_report(arguments.run, arguments.workspace)


if __name__ == "__main__":
    sys.exit(main())
