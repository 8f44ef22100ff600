"""Starts trainer processes, one of them in advance: its imports take longer than many a run.

One that was started in advance reads the name of its run from its standard input.
"""

import subprocess
import time

from ..store.run import Run
from ..store.workspace import Workspace
from ..worker.command import end_process, start_process


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
            if waiting.poll() is None and run.ranks == 1:
                try:
                    waiting.stdin.write(f"{run.name}\n".encode())
                    waiting.stdin.flush()
                    return waiting
                except BrokenPipeError:  # it has just died
                    pass
            end_process(waiting)
        with open(self._workspace.log_file(run.name), "ab") as log:
            arguments = (*self._priority, "--run", run.name, "--tied")
            return start_process("train", self._workspace.root, *arguments, output=log)

    def prepare(self) -> None:
        """Start one in advance, unless there is one."""
        if self._standby_seconds and self._standby is None:
            self._standby = start_process("standby", self._workspace.root, *self._priority, output=subprocess.DEVNULL)
            self._since = time.monotonic()

    def expire(self) -> None:
        """End the one that has waited long enough."""
        if self._standby is not None and time.monotonic() - self._since > self._standby_seconds:
            self.close()

    def close(self) -> None:
        """End the one that waits."""
        if self._standby is not None:
            end_process(self._standby)
            self._standby = None
