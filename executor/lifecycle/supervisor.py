"""Starts, watches, resumes and cancels the trainer process. One run trains at a time; the others wait in order."""

import contextlib
import logging
import signal
import subprocess
import threading
from collections.abc import Callable
from functools import partial

import psutil

from .. import tracing
from ..compute.memory import KernelKills
from ..errors import WorkspaceError
from ..report.contents import settle
from ..store.files import full_or_unwritable
from ..store.run import KILLED_FOR_MEMORY, Run, RunState, TrainerExit
from ..store.runs import RunStore
from .processes import TrainerProcesses
from .promotion import Tries, final_verdict, is_wanted, was_promoted
from .receiving import Receiver
from .watchdog import Watch, family, vitals

TICK_SECONDS = 0.05
STOP_SECONDS = 10.0  # that a trainer gets to write its checkpoint when it is told to stop
MAX_FRUITLESS_ATTEMPTS = 3  # the run fails after so many attempts without a new checkpoint or trial
RETRY_SECONDS = 1.0  # after an error
LOG_LINES = 20

_log = logging.getLogger(__name__)


class Supervisor:
    """A thread that looks after the runs of a workspace. It lives as long as the service.

    Args:
        receiver: queues the runs that are complete. It is asked at every tick.
        trainers: starts trainer processes.
        promote: serves the model of a run; gets its name. The run is called succeeded only after that.
        wake: others set it when there is something to do before the next tick.
        judged: is told what became of the model of each run that succeeds: `promoted`, `kept` (the served one was) or
            `failed`.
    """

    def __init__(
        self,
        store: RunStore,
        receiver: Receiver,
        trainers: TrainerProcesses,
        *,
        promote: Callable[[str], None],
        wake: threading.Event,
        judged: Callable[[str], None] = lambda outcome: None,
    ) -> None:
        self._store = store
        self._receiver = receiver
        self._trainers = trainers
        self._promote = promote
        self._wake = wake
        self._judged = judged
        self._lock = threading.RLock()
        self._stopping = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._kernel_kills: KernelKills | None = None  # counted since the process was started
        self._watch: Watch | None = None  # of the process, while its run is in training
        self._hung = False  # the process was killed because it hung
        self._started_for: Run | None = None  # the run of the process, as it was when the process was started
        self._tries = Tries()  # to serve the model of the process that has ended
        self._reporting: dict[int, Tries] = {}  # the number of a run: to finish its report
        self._warmed: set[str] = set()  # runs that got a trainer before they were queued
        self._left: list[str] = []  # runs that an earlier service left in training, and that are not taken up yet
        self._to_cancel: set[str] = set()  # runs that are cancelled, which could not be written down yet
        self._fruitless: dict[str, tuple[tuple[int, int], int]] = {}  # run: (its progress, attempts since)
        self._thread = threading.Thread(target=self._tend, name="supervisor", daemon=True)

    def start(self) -> None:
        """Take up the runs that an earlier service left in training. Then look after all runs until `close`.

        Those that had ended and were not settled are settled by the thread: nobody waits for that at the start. What
        cannot be written down, as on a full disk, is tried again until it can be.
        """
        training = self._store.in_state(RunState.TRAINING)
        for run in training:
            self._trainers.end_family(run)
        self._left = [run.name for run in training]
        try:
            self._take_up()
        except Exception as error:
            _log.warning("Runs that were in training wait until it can be written down that they go on: %s", error)
        self._thread.start()

    def _take_up(self) -> None:
        while self._left:
            self._take_up_run(self._left[0])
            del self._left[0]

    def _take_up_run(self, name: str) -> None:
        """Queue a run that was in training. A part of that may have been done before."""
        if not self._store.exists(name):
            return
        run = self._store.get(name)
        if run.state is RunState.TRAINING and name == self._store.promoted():
            self._succeed(run)  # that service ended before it could say so
        elif not run.state.ended:
            if run.state is RunState.TRAINING:
                self._store.advance(name, RunState.QUEUED, pid=None)
            step = self._store.workspace.latest_step(name)
            self._store.event(name, "resumed", f"the service was started again; it goes on from step {step}")

    @property
    def is_running(self) -> bool:
        """Whether the thread looks after the runs."""
        return self._thread.is_alive()

    def close(self) -> None:
        """End the thread, then the trainer. The trainer gets `STOP_SECONDS` to write a checkpoint."""
        self._stopping.set()
        self._wake.set()
        self._thread.join()
        with self._lock:
            self._end_trainer(signal.SIGTERM)
            self._trainers.close()

    def cancel(self, run: str) -> None:
        """Cancel a run, unless it has ended. When this returns, its trainer is gone.

        Raises: WorkspaceError: that cannot be written down, as on a full disk. It is when it can be; the trainer is
            gone all the same.
        """
        with self._lock:
            found = self._store.get(run)
            unwritten = None if found.state.ended else self._write_cancelled(found)
            if self._process_is_for(run):
                self._end_trainer(self._trainers.cancel_by)
            self._receiver.release(run)
            if unwritten is None:
                if (ended := self._store.get(run)).state is RunState.CANCELLED:
                    with contextlib.suppress(WorkspaceError):  # what finds no room is done at a later tick
                        self._settle(ended)
                return
            self._trainers.forget(found)
            self._store.workspace.prune(run, keep_checkpoints=False)
            if self._write_cancelled(found) is not None:  # by now there may have been room
                self._to_cancel.add(run)
                raise WorkspaceError(
                    f"Run {run!r} is cancelled and nothing trains it, but that cannot be written down, so it goes on "
                    "if the service is started again before it can: see to the disk of the workspace."
                ) from unwritten

    def _write_cancelled(self, run: Run) -> WorkspaceError | None:
        """Write down that a run is cancelled. Return why it cannot be."""
        try:
            with self._store.workspace.spending_reserve():
                self._store.advance(run.name, RunState.CANCELLED, **self._received(run))
        except WorkspaceError as error:
            return error
        return None

    def _write_cancels(self) -> None:
        """Write down which runs are cancelled, where that could not be done at once. Until then none is trained."""
        for run in sorted(self._to_cancel):
            self.cancel(run)
            self._to_cancel.discard(run)

    def _received(self, run: Run) -> dict[str, int]:
        """What a run has got so far, if nobody has written it down yet: its status goes on to say so."""
        if run.state is not RunState.RECEIVING:
            return {}
        with contextlib.suppress(WorkspaceError):  # documents that cannot be counted keep no run from being cancelled
            train, evaluation = self._receiver.counts(run.name)
            return {"train_rows": train, "eval_rows": evaluation}
        return {}

    def delete(self, run: str) -> None:
        """Delete a run that has ended. A new run with its name inherits nothing. Raises: as `RunStore.delete`."""
        with self._lock:
            if (found := self._store.get(run)).state.ended:
                self._trainers.forget(found)  # mostly it is gone already
            self._receiver.delete(run)
            self._fruitless.pop(run, None)
            self._warmed.discard(run)

    # the thread ---------------------------------------------------------------------------------------------------

    def _tend(self) -> None:
        while not self._stopping.is_set():
            for part in (
                self._take_up,
                self._write_cancels,
                self._receiver.queue_due,
                self._see_to_trainer,
                self._settle_ended,
                self._trainers.expire,
            ):
                try:  # each by itself: one that fails again and again does not keep the others from being done
                    with self._lock:
                        part()
                except Exception:
                    _log.exception("The supervisor goes on after an error")
                    self._stopping.wait(RETRY_SECONDS)
            self._wake.wait(TICK_SECONDS)
            self._wake.clear()

    def _see_to_trainer(self) -> None:
        self._judge_trainer()
        self._assign_trainer()
        self._end_if_it_hangs()

    def _end_if_it_hangs(self) -> None:
        if self._process is None or self._started_for is None or self._watch is None or self._hung:
            return
        fault = self._watch.fault()
        if (share := self._watch.starvation()) is not None:
            self._store.event(self._started_for.name, "warning", _starving(share, self._started_for))
        if fault is None or self._process.poll() is not None:
            return
        self._hung = True
        for each in family(self._process.pid):
            with contextlib.suppress(psutil.Error):
                each.kill()
        self._store.event(self._started_for.name, "stalled", f"the trainer hangs: {fault}. It was killed")

    def _assign_trainer(self) -> None:
        """Let the first run in the queue train. If none is queued, start a trainer for a run that is receiving."""
        if self._left or self._to_cancel or self._store.in_state(RunState.TRAINING):
            return
        queued = self._store.in_state(RunState.QUEUED)
        receiving = self._store.in_state(RunState.RECEIVING)
        if queued:
            first = queued[0]
            if not self._knows_options_of(first):
                self._end_trainer(signal.SIGKILL)  # it has only warmed up, for another run or with old options
                self._spawn(first)
            self._watch = self._new_watch(first)
            self._store.advance(first.name, RunState.TRAINING)
            return
        for run in receiving:
            if self._process_is_for(run.name) and not self._knows_options_of(run):
                self._warmed.discard(run.name)
                self._end_trainer(signal.SIGKILL)
        cold = [run for run in receiving if run.name not in self._warmed]
        if cold and self._process is None:
            self._warmed.add(cold[0].name)
            self._spawn(cold[0])

    def _process_is_for(self, run: str) -> bool:
        return self._started_for is not None and self._started_for.name == run

    def _knows_options_of(self, run: Run) -> bool:
        """Whether the process is for `run` and was started with the options that the run has now."""
        return self._started_for is not None and (
            (self._started_for.number, self._started_for.options) == (run.number, run.options)
        )

    def _spawn(self, run: Run) -> None:
        self._store.workspace.run_folder(run.name).mkdir(parents=True, exist_ok=True)
        self._process = self._trainers.start(run)
        self._kernel_kills = KernelKills(self._process.pid)
        self._started_for = run
        self._store.set_pid(run.name, self._process.pid)

    def _new_watch(self, run: Run) -> Watch | None:
        patience = run.configuration.options.trainer_stall_seconds
        if not patience or self._process is None:
            return None
        return Watch(patience, partial(vitals, self._process.pid, self._store.workspace.beat_file(run.name)))

    def _judge_trainer(self) -> None:
        if self._process is None or self._started_for is None:
            return
        if not self._is_there(self._started_for):  # the request that began it came to nothing
            self._warmed.discard(self._started_for.name)
            self._end_trainer(signal.SIGKILL)
            return
        if self._process.poll() is None:
            return
        run = self._store.get(self._started_for.name)
        if run.state is RunState.TRAINING:
            self._judge(run, self._process.returncode)
        # In another state it was cancelled, or its trainer died while it warmed up. It gets another when it is queued.
        self._forget_trainer()  # at the end: if the disk is full and the above fails, it is done again at the next tick

    def _is_there(self, run: Run) -> bool:
        return self._store.exists(run.name) and self._store.get(run.name).number == run.number

    def _judge(self, run: Run, code: int) -> None:
        if code == TrainerExit.SUCCEEDED and self._store.workspace.model_folder(run.name).is_dir():
            self._succeed(run)
        elif code == TrainerExit.REFUSED:
            self._fail(run, self._store.progress(run.name).error or "the trainer refused the run")
        elif code == TrainerExit.UNWRITABLE:  # the trainer may have been unable to write down why
            place = self._store.workspace.run_folder(run.name)
            self._fail(run, self._store.progress(run.name).error or full_or_unwritable(place))
        elif code == TrainerExit.OUT_OF_MEMORY:
            self._resume(run, "ran out of memory", attempts=0)
        elif self._hung:
            self._resume_or_fail(run, "hung and was killed")
        elif code == -signal.SIGKILL and self._kernel_kills is not None and self._kernel_kills.grew():
            self._store.event(run.name, KILLED_FOR_MEMORY, "the kernel killed the trainer: no memory was left")
            # The next trainer reads this event and computes in parts half as large. That is progress, so the attempts
            # are counted anew.
            self._resume(run, "was killed by the kernel, which had no memory left", attempts=0)
        else:
            self._resume_or_fail(run, how_it_ended(code))

    def _succeed(self, run: Run) -> None:
        progress, served = self._store.progress(run.name), self._store.promoted()
        wanted, failure = is_wanted(run, progress, served), None
        if wanted and served != run.name:
            with tracing.within(run.configuration.trace):
                failure = self._tries.make(lambda: self._promote(run.name))
        words = final_verdict(run, progress, served, wanted=wanted, failure=failure)
        self._store.advance(run.name, RunState.SUCCEEDED, verdict=words)
        self._judged("failed" if failure else "promoted" if wanted else "kept")
        self._tries.reset()

    def _settle_ended(self) -> None:
        """Settle each run that has ended: just now, or in an earlier service that was killed before it was settled.

        Raises: what went wrong with one of them.
        """
        failure: Exception | None = None
        for run in self._store.unsettled():
            try:
                self._settle(run)
            except Exception as error:  # it is tried again, and keeps no other run from being settled
                failure = error
        if failure is not None:
            raise failure

    def _settle(self, run: Run) -> None:
        """Do what follows the end of a run. Doing it again changes nothing."""
        self._trainers.forget(run)
        self._store.workspace.prune(run.name, keep_checkpoints=run.state is RunState.FAILED)
        if run.state is RunState.SUCCEEDED:
            self._finish_report(run)
        self._store.set_settled(run.name)
        if run.state is RunState.SUCCEEDED:
            self._trainers.prepare()

    def _finish_report(self, run: Run) -> None:
        promoted = was_promoted(self._store.events(run.name, limit=-1))
        tries = self._reporting.setdefault(run.number, Tries())
        if failure := tries.make(lambda: settle(self._store, run, promoted=promoted)):
            self._store.event(run.name, "error", f"its report does not say what became of the model: {failure}")
        del self._reporting[run.number]

    def _resume_or_fail(self, run: Run, death: str) -> None:
        progress = self._store.workspace.progress(run.name)
        before, attempts = self._fruitless.get(run.name, (progress, 0))
        attempts = 1 if progress > before else attempts + 1
        if attempts >= MAX_FRUITLESS_ATTEMPTS:
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

    def _resume(self, run: Run, death: str, *, attempts: int) -> None:
        """Queue the run again. Args: attempts: how many have ended since the newest checkpoint."""
        step = self._store.workspace.latest_step(run.name)
        self._store.advance(run.name, RunState.QUEUED, pid=None)
        self._fruitless[run.name] = (self._store.workspace.progress(run.name), attempts)
        self._store.event(run.name, "resumed", f"the trainer {death}; it goes on from step {step}")

    def _fail(self, run: Run, error: str) -> None:
        self._store.advance(run.name, RunState.FAILED, error=error)

    def _end_of_log(self, name: str) -> list[str]:
        lines = self._store.workspace.log_file(name).read_text(errors="replace").splitlines()
        return [line.strip() for line in lines if line.strip()][-LOG_LINES:]

    def _end_trainer(self, how: signal.Signals) -> None:
        """Stop the process if there is one, and wait until it is gone."""
        if self._process is None:
            return
        children = family(self._process.pid)[:-1]
        self._process.send_signal(how)
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):  # the kernel holds it; it does nothing more after that
                self._process.wait(STOP_SECONDS)
        for child in children:  # they end with it, unless they were stopped
            with contextlib.suppress(psutil.Error):
                child.kill()
        self._forget_trainer()

    def _forget_trainer(self) -> None:
        if self._started_for is not None:
            self._trainers.end_family(self._started_for)
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
        self._process, self._started_for, self._watch, self._hung = None, None, None, False
        self._tries.reset()


def how_it_ended(code: int) -> str:
    """Say how a process ended. A negative exit code is the number of a signal."""
    if code < 0:
        return f"was killed by signal {-code} ({signal.Signals(-code).name})"
    if code == TrainerExit.INTERRUPTED:
        return "was told to stop"
    return f"ended with exit code {code}"


def _starving(share: float, run: Run) -> str:
    told = f"in the last minute the trainer got {share:.1%} of a processor, because other processes want all of them"
    if run.configuration.options.trainer_yields:
        told += "; with the option trainer_yields: false it competes with them"
    return told
