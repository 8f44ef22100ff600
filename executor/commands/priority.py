"""How a trainer lets other processes go first, and ends with its service."""

import argparse
import os
import signal
from collections.abc import Callable


def add_priority(command: argparse.ArgumentParser) -> None:
    """Add the arguments that `lower_priority` reads."""
    command.add_argument("--nice", type=int, default=0, help="lower the priority of this process by so much")
    command.add_argument("--yields", action="store_true", help="compute only where no other process wants to")


def lower_priority(arguments: argparse.Namespace) -> str:
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


def die_with_the_service(told: Callable[[bytes], None] = lambda line: None) -> None:
    """Pass on what comes from standard input, and kill this process when it ends.

    It is a pipe from the service, so it ends when the service does, even by a crash.
    """
    while line := os.read(0, 1024):
        told(line)
    os.kill(os.getpid(), signal.SIGKILL)
