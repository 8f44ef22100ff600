"""Starts trainer processes, one of them in advance, because the imports take longer than many runs.

The process started in advance waits for the name of its run on its standard input. Where another command trains, the
trainer process is one that looks after that command: `worker/elsewhere.py`.
"""

import contextlib
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from ..store.exchange import is_url
from ..store.job import check_jobs, job_of
from ..store.run import Run
from ..store.workspace import Workspace
from ..worker.command import end_process, is_trainer_of, is_trainer_of_job, on_workspace, start_process
from .watchdog import is_stopped

END_SECONDS = 10.0


class TrainerProcesses:
    """Where the supervisor gets its trainers.

    Args:
        nice: the niceness of the trainers. yields: whether they compute only when no other process wants to.
        standby_seconds: how long a process started in advance waits for a run; 0: start none in advance.
        command: what trains in place of a process of this machine, and `jobs` the directory or url for its folders.

    Raises: ConfigurationError: no job can lie where `jobs` says.

    Attributes: cancel_by: the signal that ends the trainer of a run that was cancelled.
    """

    def __init__(
        self,
        workspace: Workspace,
        *,
        nice: int,
        yields: bool,
        standby_seconds: float,
        command: str | None = None,
        jobs: str | None = None,
    ) -> None:
        check_jobs(jobs)
        self._workspace = workspace
        self._command = command
        # A trainer is started in another directory than this service was.
        self._jobs = jobs if jobs is None or is_url(jobs) else str(Path(jobs).resolve())
        self.cancel_by = signal.SIGKILL if command is None else signal.SIGTERM  # it must end the command, too
        self._priority = ("--nice", str(nice), *(["--yields"] if yields else []))
        self._standby_seconds = standby_seconds
        self._standby: subprocess.Popen[bytes] | None = None
        self._since = 0.0

    def start(self, run: Run) -> "subprocess.Popen[bytes]":
        """Return a trainer for a run: the waiting process if there is one and the run has one rank, else a new one."""
        waiting, self._standby = self._standby, None
        if waiting is not None and waiting.stdin is not None:
            if waiting.poll() is None and run.ranks == 1 and not is_stopped(waiting.pid):
                try:
                    waiting.stdin.write(f"{run.name}\n".encode())
                    waiting.stdin.flush()
                    return waiting
                except BrokenPipeError:  # it has just died
                    pass
            end_process(waiting)
        with open(self._workspace.log_file(run.name), "ab") as log:
            return start_process(*self._kind(), *self._priority, f"--run={run.name}", "--tied", output=log)

    def _kind(self) -> tuple[str, ...]:
        """The command of ours that trains, and its arguments for any run."""
        here = on_workspace(self._workspace.root)
        if self._command is None:
            return "train", *here
        jobs = [f"--train-jobs={self._jobs}"] if self._jobs is not None else []
        return "elsewhere", *here, f"--train-command={self._command}", *jobs

    def forget(self, run: Run) -> None:
        """Remove the folder of a run's job, if it had one. The run has ended."""
        job_of(self._workspace, run, self._jobs).remove()

    def end_leftovers(self) -> None:
        """End the trainers of an earlier service. They die with it by themselves, unless they were stopped.

        Only the service that holds the workspace may call this.
        """
        _end_all(lambda process: is_trainer_of(process, self._workspace.root))

    def end_family(self, run: Run) -> None:
        """End what the trainer of a run has left on this machine. It has ended, here or with an earlier service.

        Its ranks, and what trains its job, end by themselves, unless they were stopped or hang.
        """
        root = self._workspace.root
        job = job_of(Workspace(root.resolve()), run, self._jobs)  # a trainer is told a path that holds everywhere
        _end_all(lambda process: is_trainer_of(process, root, run.name) or is_trainer_of_job(process, job.address))

    def prepare(self) -> None:
        """Start a process in advance, unless one is waiting."""
        if self._standby_seconds and self._standby is None and self._command is None:
            here = on_workspace(self._workspace.root)
            self._standby = start_process("standby", *here, *self._priority, output=subprocess.DEVNULL)
            self._since = time.monotonic()

    def expire(self) -> None:
        """End the waiting process if it has waited long enough."""
        if self._standby is not None and time.monotonic() - self._since > self._standby_seconds:
            self.close()

    def close(self) -> None:
        """End the waiting process."""
        if self._standby is not None:
            end_process(self._standby)
            self._standby = None


def _end_all(ours: Callable[[psutil.Process], bool]) -> None:
    """Kill processes. One that the kernel holds, as in a read from a disk that hangs, ends when it comes back."""
    found = [process for process in psutil.process_iter() if ours(process)]
    for process in found:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(found, timeout=END_SECONDS)
