"""Make, supervise and train runs in a workspace, without a Flow."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from executor.documents import DocumentArray
from executor.lifecycle.processes import TrainerProcesses
from executor.lifecycle.receiving import Receiver
from executor.lifecycle.supervisor import Supervisor
from executor.parameters import FitParameters, parse_executor_options
from executor.store.run import Run, RunState
from executor.store.runs import RunStore
from executor.store.workspace import Workspace
from serving import QUICK, ROOT


class Workshop:
    """Does in this process what a service does with the runs of a workspace.

    Args: folder: the workspace. options: options of the executor; they override `QUICK`.
    """

    def __init__(self, folder: Path, **options: Any) -> None:
        self.store = RunStore(Workspace(folder))
        self.options = parse_executor_options(QUICK | options).with_roots()
        self.supervisor: Supervisor | None = None

    def receive(self, run: str, docs: DocumentArray, *, split: str = "train", **parameters: Any) -> None:
        """Store documents of a run; the run stays in state `receiving`."""
        receiver = self._receiver()
        receiver.receive(docs, FitParameters(run=run, split=split, **parameters))
        receiver.close()

    def queue(self, run: str) -> None:
        """Queue a run, which ends its receiving."""
        receiver = self._receiver()
        receiver.queue(run)
        receiver.close()

    def _receiver(self) -> Receiver:
        return Receiver(self.store, self.options)

    @contextlib.contextmanager
    def supervised(self, *, standby_seconds: float = 0) -> Iterator[Supervisor]:
        """Train queued runs, as the service does."""
        receiver = self._receiver()  # it has received nothing, so it never starts a run
        trainers = TrainerProcesses(
            self.store.workspace,
            nice=0,
            yields=False,
            standby_seconds=standby_seconds,
            command=self.options.train_command,
            jobs=self.options.train_jobs,
        )
        self.supervisor = Supervisor(self.store, receiver, trainers, promote=self.store.promote, wake=threading.Event())
        self.supervisor.start()
        try:
            yield self.supervisor
        finally:
            self.supervisor.close()
            receiver.close()

    def wait(self, run: str, until: Callable[[Run], object] = lambda run: run.state.ended, seconds: float = 120) -> Run:
        """Look until a run has ended (or `until` is true) and return it."""
        deadline = time.monotonic() + seconds
        while not until(found := self.store.get(run)):
            if time.monotonic() > deadline:
                raise TimeoutError(f"run {run} is still {found.state}: {self.log(run)}")
            time.sleep(0.02)
        return found

    def events(self, run: str, kind: str) -> list[str]:
        """Return the messages of one kind in the history of a run."""
        return [message for _, _, found, message in self.store.events(run, limit=1000) if found == kind]

    def log(self, run: str) -> str:
        """Return the end of the trainer's log."""
        log = self.store.workspace.log_file(run)
        return log.read_text()[-4000:] if log.exists() else ""

    def train(self, run: str, *launcher: str) -> subprocess.CompletedProcess[str]:
        """Train a queued run by the command, as an operator would. Its state stays `training`.

        Args: launcher: the command to launch with; by default Python.
        """
        self.store.advance(run, RunState.TRAINING)
        # Without the two dashes torchrun would read `--run` as its own option.
        command = [*(launcher or (sys.executable, "-m")), *(("--",) if launcher else ()), "executor", "train"]
        return subprocess.run(
            [*command, "--run", run, "--workspace", str(self.store.workspace.root)],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=200,
        )

    def close(self) -> None:
        """Close the store."""
        self.store.close()


def kill(pid: int) -> None:
    """Send SIGKILL, as the kernel does when memory runs out."""
    os.kill(pid, signal.SIGKILL)


def all_gone(processes: list[psutil.Process]) -> bool:
    """Whether these processes end soon, or have ended."""
    _, alive = psutil.wait_procs(processes, timeout=10)
    return all(process.status() == psutil.STATUS_ZOMBIE for process in alive)
