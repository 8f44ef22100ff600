"""Starts, watches, resumes and cancels the trainer process. One run trains at a time; the others wait in order."""

import logging
import signal
import subprocess
import threading
import time
from collections.abc import Callable

from ..compute.memory import KernelKills, MicroBatch
from ..errors import OutOfMemory
from ..report.contents import UNPROVEN, settle
from ..store.run import Run, RunState, TrainerExit
from ..store.runs import RunStore
from .processes import TrainerProcesses

TICK_SECONDS = 0.05
START_GRACE_SECONDS = 1.0  # a client's call is split into requests: `start` waits for the rest of them
STOP_SECONDS = 10.0  # a trainer that is asked to stop gets so long to write its checkpoint
MAX_BARREN_ATTEMPTS = 3  # attempts without a further checkpoint before the run fails
LOG_LINES = 20

_log = logging.getLogger(__name__)


class Supervisor:
    """A thread that tends the runs of a workspace; it lives as long as the service.

    Args:
        trainers: where trainer processes come from.
        receive_timeout: seconds without a new train document after which a run is queued.
        queue: called to queue a run that is receiving.
        delete: called to delete a run that may be deleted.
        promote: called with the name of a run whose model shall be served, before the run is called succeeded.
    """

    def __init__(
        self,
        store: RunStore,
        trainers: TrainerProcesses,
        *,
        receive_timeout: float,
        queue: Callable[[str], None],
        delete: Callable[[str], None],
        promote: Callable[[str], None],
    ) -> None:
        self._store = store
        self._trainers = trainers
        self._receive_timeout = receive_timeout
        self._queue = queue
        self._delete = delete
        self._promote = promote
        self._lock = threading.RLock()
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._kernel_kills: KernelKills | None = None  # since the process was started
        self._of = ""  # the run that the process is for
        self._warmed: set[str] = set()  # runs a trainer was started for before they were queued
        self._stale: set[str] = set()  # runs whose options have changed since their trainer was started
        self._arrivals: dict[str, float] = {}  # of the last train document, by a clock that never jumps
        self._starts: dict[str, float] = {}  # when to start, once `start` was asked for with documents
        self._barren: dict[str, tuple[int, int]] = {}  # run: (its latest checkpoint, attempts since)
        self._thread = threading.Thread(target=self._tend, name="supervisor", daemon=True)

    def start(self) -> None:
        """Go on with what an earlier service left, then tend the runs until `close`."""
        for run in self._store.in_state(RunState.TRAINING):
            self._store.advance(run.name, RunState.QUEUED, pid=None)
            step = self._store.workspace.latest_step(run.name)
            self._store.event(run.name, "resumed", f"the service was started again; it goes on from step {step}")
        self._thread.start()

    def close(self) -> None:
        """End the trainer, after its checkpoint if it is quick about it, and the thread."""
        self._stopping.set()
        self._wake.set()
        self._thread.join()
        with self._lock:
            self._end_trainer(signal.SIGTERM)
            self._trainers.close()

    def arrived(self, run: str, train: bool) -> None:
        """Note that documents arrived for a run that is receiving."""
        if train or run in self._arrivals:
            self._arrivals[run] = time.monotonic()
        if run in self._starts:
            self._starts[run] = time.monotonic() + START_GRACE_SECONDS
        self._wake.set()

    def start_soon(self, run: str) -> None:
        """Queue a run as soon as no further request of the same call follows."""
        self._starts[run] = time.monotonic() + START_GRACE_SECONDS
        self._wake.set()

    def warm_again(self, run: str) -> None:
        """Note that the trainer of a run, if it has one already, knows old options."""
        self._stale.add(run)
        self._wake.set()

    def cancel(self, run: str) -> None:
        """Cancel a run that has not ended; its trainer is gone when this returns."""
        with self._lock:
            if not self._store.get(run).state.ended:
                self._store.advance(run, RunState.CANCELLED)
            if self._of == run:
                self._end_trainer(signal.SIGKILL)
            if self._store.get(run).state is RunState.CANCELLED:
                self._store.workspace.prune(run, keep_checkpoints=False)

    def delete(self, run: str) -> None:
        """Delete a run that has ended; a later run of its name has nothing of it. Raises: as `RunStore.delete`."""
        with self._lock:
            if self._store.get(run).state.ended:
                for of_runs in (self._arrivals, self._starts, self._barren):
                    of_runs.pop(run, None)
                for runs in (self._warmed, self._stale):
                    runs.discard(run)
            self._delete(run)

    # the thread ---------------------------------------------------------------------------------------------------

    def _tend(self) -> None:
        while not self._stopping.is_set():
            try:
                with self._lock:
                    self._queue_due_runs()
                    self._judge_trainer()
                    self._assign_trainer()
                    self._trainers.expire()
            except Exception:
                _log.exception("The supervisor goes on after an error")
                self._stopping.wait(1.0)
            self._wake.wait(TICK_SECONDS)
            self._wake.clear()

    def _queue_due_runs(self) -> None:
        now = time.monotonic()
        for run in self._store.in_state(RunState.RECEIVING):
            silent = run.name in self._arrivals and now - self._arrivals[run.name] >= self._receive_timeout
            if silent or now >= self._starts.get(run.name, float("inf")):
                self._queue(run.name)
                self._starts.pop(run.name, None)

    def _assign_trainer(self) -> None:
        """Give the trainer to the first run in line; while none is queued, warm one up for a run that is receiving."""
        if self._store.in_state(RunState.TRAINING):
            return
        queued = self._store.in_state(RunState.QUEUED)
        receiving = [run for run in self._store.in_state(RunState.RECEIVING) if run.name not in self._warmed]
        if queued:
            first = queued[0]
            if self._of != first.name or first.name in self._stale:
                self._end_trainer(signal.SIGKILL)  # it was only warming up: for another run, or with old options
                self._spawn(first)
            self._store.advance(first.name, RunState.TRAINING)
        elif self._of in self._stale:
            self._warmed.discard(self._of)
            self._end_trainer(signal.SIGKILL)
        elif receiving and self._process is None:
            self._warmed.add(receiving[0].name)
            self._spawn(receiving[0])

    def _spawn(self, run: Run) -> None:
        self._stale.discard(run.name)
        self._store.workspace.run_folder(run.name).mkdir(parents=True, exist_ok=True)
        self._process = self._trainers.start(run)
        self._kernel_kills = KernelKills(self._process.pid)
        self._of = run.name
        self._store.set_pid(run.name, self._process.pid)

    def _judge_trainer(self) -> None:
        if self._process is None or self._process.poll() is None:
            return
        run = self._store.get(self._of)
        if run.state is RunState.TRAINING:  # else it was cancelled, or failed to warm up: tried again once it is queued
            self._judge(run, self._process.returncode)
        self._forget_trainer()  # last: what cannot be written down now, on a full disk, is judged again

    def _judge(self, run: Run, code: int) -> None:
        if code == TrainerExit.SUCCEEDED and self._store.workspace.model_folder(run.name).is_dir():
            self._succeed(run)
        elif code == TrainerExit.REFUSED:
            self._fail(run, self._store.progress(run.name).error or "the trainer refused the run")
        elif code == TrainerExit.UNWRITABLE:  # then its reason may not be written either
            place = self._store.workspace.run_folder(run.name)
            unwritable = f"The disk of {place} is full or cannot be written. See to that, then train another run."
            self._fail(run, self._store.progress(run.name).error or unwritable)
        elif code == TrainerExit.OUT_OF_MEMORY:
            self._resume(run, "ran out of memory", attempts=0)
        elif code == -signal.SIGKILL and self._kernel_kills is not None and self._kernel_kills.grew():
            self._resume_in_smaller_parts(run)
        else:
            self._resume_or_fail(run, code)

    def _succeed(self, run: Run) -> None:
        progress = self._store.progress(run.name)
        policy = run.options["promote"]
        promoted = policy == "always" or (policy == "if_better" and progress.better is not False)
        reason = progress.verdict or UNPROVEN
        if promoted:
            self._promote(run.name)
        outcome = "It was promoted." if promoted else f"It was not promoted (promote={policy})."
        ended = self._store.advance(run.name, RunState.SUCCEEDED, verdict=f"{reason} {outcome}")
        self._store.workspace.prune(run.name, keep_checkpoints=False)
        settle(self._store, ended, promoted=promoted)
        self._trainers.prepare()

    def _resume_or_fail(self, run: Run, code: int) -> None:
        step = self._store.workspace.latest_step(run.name)
        before, attempts = self._barren.get(run.name, (step, 0))
        attempts = 1 if step > before else attempts + 1
        death = how_it_ended(code)
        if attempts >= MAX_BARREN_ATTEMPTS:
            log = self._end_of_log(run.name)
            self._store.event(run.name, "error", "the end of the trainer's log: " + " | ".join(log))
            reason = self._store.progress(run.name).error or (log[-1] if log else "its log is empty")
            self._fail(
                run,
                f"The trainer {death} {attempts} times without a further checkpoint: {reason} "
                f"Its log is {self._store.workspace.log_file(run.name).name} in the folder of the run.",
            )
            return
        self._resume(run, death, attempts=attempts)

    def _resume_in_smaller_parts(self, run: Run) -> None:
        """The trainer could not note it itself. Each halving is a step forward, so attempts are not counted."""
        options, workspace = run.options, self._store.workspace
        micro_batch = MicroBatch(
            options["micro_batch"],
            -(-options["batch_size"] // len(run.configuration["options"]["devices"] or [""])),
            file=workspace.micro_batch_file(run.name),
            say=lambda note: self._store.event(run.name, "warning", note),
        )
        death = "was killed by the kernel, which had no memory left"
        try:
            micro_batch.halve(workspace.latest_step(run.name))
        except OutOfMemory as error:
            self._fail(run, f"The trainer {death}. {error}")
        else:
            self._resume(run, death, attempts=0)

    def _resume(self, run: Run, death: str, *, attempts: int) -> None:
        """Queue the run again. Args: attempts: those that have ended without a further checkpoint."""
        step = self._store.workspace.latest_step(run.name)
        self._store.advance(run.name, RunState.QUEUED, pid=None)
        self._barren[run.name] = (step, attempts)
        self._store.event(run.name, "resumed", f"the trainer {death}; it goes on from step {step}")

    def _fail(self, run: Run, error: str) -> None:
        self._store.advance(run.name, RunState.FAILED, error=error)
        self._store.workspace.prune(run.name, keep_checkpoints=True)

    def _end_of_log(self, name: str) -> list[str]:
        lines = self._store.workspace.log_file(name).read_text(errors="replace").splitlines()
        return [line.strip() for line in lines if line.strip()][-LOG_LINES:]

    def _end_trainer(self, how: signal.Signals) -> None:
        """Stop the process, if there is one, and wait until it is gone."""
        if self._process is None:
            return
        self._process.send_signal(how)
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._forget_trainer()

    def _forget_trainer(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
        self._process, self._of = None, ""


def how_it_ended(code: int) -> str:
    """Say how a process ended: negative exit codes are signal numbers."""
    if code < 0:
        return f"was killed by signal {-code} ({signal.Signals(-code).name})"
    if code == TrainerExit.INTERRUPTED:
        return "was told to stop"
    return f"ended with exit code {code}"
