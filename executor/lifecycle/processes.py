"""Starts trainer processes, one of them in advance: its imports take longer than many a run.

A trainer's standard input is a pipe from the service: it ends when the service does, and the trainer with it. One that
was started in advance reads the name of its run from there.
"""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

from ..store.run import Run
from ..store.workspace import Workspace
from ..wire.token import VARIABLE as TOKEN

PACKAGE = Path(__file__).resolve().parent.parent
# OpenMP's threads wait for one another by spinning. On a machine that has other work, such as this service's, they spin
# away the time that the one waited for needs: a step took 20 times as long. With this many rounds an idle machine is
# as fast as ever (with none, OMP_WAIT_POLICY=PASSIVE, a third slower).
SPIN_BRIEFLY = {"GOMP_SPINCOUNT": "10000"}


class TrainerProcesses:
    """Where the supervisor gets its trainers.

    Args: nice: their niceness. yields: whether they compute only where no other process wants to.
        standby_seconds: how long one waits for a next run; 0: none is started in advance.
    """

    def __init__(self, workspace: Workspace, *, nice: int, yields: bool, standby_seconds: float) -> None:
        self._workspace = workspace
        self._priority = ("--nice", str(nice), *(["--yields"] if yields else []))
        self._standby_seconds = standby_seconds
        self._standby: subprocess.Popen[bytes] | None = None
        self._since = 0.0

    def start(self, run: Run) -> "subprocess.Popen[bytes]":
        """Return the trainer of a run: the one that waits, if there is one, else a new one."""
        waiting, self._standby = self._standby, None
        if waiting is not None and waiting.stdin is not None:
            if waiting.poll() is None and not _several_devices(run):
                try:
                    waiting.stdin.write(f"{run.name}\n".encode())
                    waiting.stdin.flush()
                    return waiting
                except BrokenPipeError:  # it has just died
                    pass
            _end(waiting)
        with open(self._workspace.log_file(run.name), "ab") as log:
            return self._popen("train", "--run", run.name, "--tied", output=log)

    def prepare(self) -> None:
        """Start one in advance, unless there is one."""
        if self._standby_seconds and self._standby is None:
            self._standby = self._popen("standby", output=subprocess.DEVNULL)
            self._since = time.monotonic()

    def expire(self) -> None:
        """End the one that has waited long enough."""
        if self._standby is not None and time.monotonic() - self._since > self._standby_seconds:
            self.close()

    def close(self) -> None:
        """End the one that waits."""
        if self._standby is not None:
            _end(self._standby)
            self._standby = None

    def _popen(self, command: str, *arguments: str, output: int | IO[bytes]) -> "subprocess.Popen[bytes]":
        place = ("--workspace", str(self._workspace.root), *self._priority)
        return subprocess.Popen(
            [sys.executable, "-m", PACKAGE.name, command, *place, *arguments],
            cwd=PACKAGE.parent,
            env=SPIN_BRIEFLY | {name: value for name, value in os.environ.items() if name != TOKEN},
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
        )


def _several_devices(run: Run) -> bool:
    return len(run.configuration["options"]["devices"] or [""]) > 1


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()
    if process.stdin is not None:
        process.stdin.close()
