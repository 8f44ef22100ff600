"""The service's trainer process of a run that another command trains: `python -m executor elsewhere`.

To the service it is a trainer like any other: it waits until its run is in training, it reports progress, it may be
stopped and killed, and its exit code says how the run has ended. It imports no torch. It fills the job's folder, starts
the command, brings into the workspace what the job makes, and takes over the model in the end.
"""

import contextlib
import logging
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace

import psutil

from ..errors import FinetunerError
from ..store.exchange import Exchange, NoExchange, is_url
from ..store.files import full_folder, full_or_unwritable, is_full, unwritable
from ..store.job import Attempt, Job, job_of
from ..store.run import Run, RunState, TrainerExit
from ..store.runs import RunStore
from .command import PACKAGE, public_environment, when_the_parent_ends
from .job_folder import fill
from .mirror import Mirror, worst

LOOK_SECONDS = 0.2
EXCHANGE_SECONDS = 1.0  # between two looks at an object store
END_SECONDS = 8.0  # that the command of a cancelled run gets to end what it has started, here and elsewhere
HOPELESS = (TrainerExit.REFUSED, TrainerExit.UNWRITABLE)
# By default torchrun's ranks meet at a store that outlives them. A machine that joins in a lost one's place waits in
# vain for its address, told in the first round alone (torch 2.13, `DynamicRendezvousHandler.next_rendezvous`).
MEET_ANEW = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}

_log = logging.getLogger(__name__)


def main(store: RunStore, name: str, command: str, jobs: str | None) -> int:
    """Have one run trained by a command and return the exit code. Args: jobs: as `job_of` takes it."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches us too, but the service says when to stop
    elsewhere = Elsewhere(store, name, command, jobs)
    signal.signal(signal.SIGTERM, lambda *_: elsewhere.stop())
    try:
        return elsewhere.run()
    except (OSError, FinetunerError) as error:
        _log.exception("The run cannot go on")
        if isinstance(error, OSError) and is_full(error):
            error = unwritable("a file of the run", full_folder(error, store.workspace.run_folder(name)), error)
        store.report(name, replace(store.progress(name), error=str(error)))
        return TrainerExit.UNWRITABLE if not isinstance(error, OSError) else TrainerExit.CRASHED


class Elsewhere:
    """One attempt to have a run trained by a command."""

    def __init__(self, store: RunStore, name: str, command: str, jobs: str | None) -> None:
        self._store = store
        self._name = name
        self._command = command
        self._jobs = jobs
        self._exchange: Exchange | NoExchange = NoExchange()
        self._stopping = False
        self._refused: TrainerExit | None = None  # no further try would help, though a launcher may make it
        self._reason: str | None = None  # why

    def stop(self) -> None:
        """Let the job write a checkpoint and end; of a run that was cancelled, end it at once."""
        self._stopping = True

    def run(self) -> TrainerExit:
        """Return how the run has ended. Raises: OSError, WorkspaceError: the job's folder cannot be written."""
        run = self._wait_for_training()
        if run is None:
            return TrainerExit.INTERRUPTED
        self._store.report(self._name, replace(self._store.progress(self._name), error=None, phase="starting"))
        job = job_of(self._store.workspace, run, self._jobs)
        self._exchange = job.exchange
        self._exchange.bring("made")  # what an earlier attempt has made
        fill(job, self._store, run)
        attempt = job.begin_attempt()
        self._exchange.send("made")
        self._exchange.send("inputs")
        mirror = Mirror(job, self._store, run, attempt)
        arguments = arguments_of(self._command, job, run)
        try:
            process = start(arguments, run.configuration.trace)
        except OSError as error:
            self._explain(f"train_command cannot be started: {error}. Correct it, and start the service again.")
            return TrainerExit.REFUSED
        _log.info("Started %s as process %d", shlex.join(arguments), process.pid)
        self._attend(process, job, attempt, mirror)
        self._exchange.bring("made")
        mirror.look()
        return self._outcome(process.returncode, job, mirror)

    def _wait_for_training(self) -> Run | None:
        """Return the run when it is in training; None: it has ended, or this process is told to stop."""
        while not self._stopping:
            run = self._store.get(self._name)
            if run.state is RunState.TRAINING:
                return run
            if run.state.ended:
                return None
            time.sleep(LOOK_SECONDS)
        return None

    def _attend(self, process: "subprocess.Popen[bytes]", job: Job, attempt: Attempt, mirror: Mirror) -> None:
        """Mirror what the job makes until its command has ended."""
        asked, exchanged = False, time.monotonic()
        while process.poll() is None:
            if self._refused is not None or (self._stopping and self._store.get(self._name).state.ended):
                job.end_attempts()
                self._tell()
                end_family(process)
            elif self._stopping and not asked:
                asked = True
                job.ask_to_stop(attempt)
                self._tell()
                process.terminate()
            try:
                if time.monotonic() - exchanged >= EXCHANGE_SECONDS:
                    self._exchange.bring("made")
                    self._exchange.send("inputs")
                    exchanged = time.monotonic()
                mirror.look()
                self._notice_refusal(mirror)
            except (OSError, FinetunerError) as error:  # such as a network that is gone for a while
                _log.warning("What the job tells cannot be taken now: %s", error)
            time.sleep(LOOK_SECONDS)

    def _tell(self) -> None:
        """Let the job know at once what was written for it."""
        try:
            self._exchange.send("inputs")
        except OSError as error:
            _log.warning("The job cannot be told to end: %s", error)

    def _notice_refusal(self, mirror: Mirror) -> None:
        """Remember that the run was refused, and why: the next try of the job forgets that."""
        if self._refused is None and (code := worst(mirror.ended())) in HOPELESS:
            self._refused = TrainerExit(code)
            self._reason = mirror.refusal() or self._store.progress(self._name).error

    def _outcome(self, code: int, job: Job, mirror: Mirror) -> TrainerExit:
        codes = mirror.ended()
        _log.info("The command has ended with %d, its ranks with %s", code, codes)
        if self._stopping:
            return TrainerExit.INTERRUPTED
        if code == 0 and codes.get(0) == TrainerExit.SUCCEEDED:
            return self._take_over(job, mirror)
        self._notice_refusal(mirror)
        if self._refused is not None:
            if self._reason is None and self._refused is TrainerExit.UNWRITABLE:  # it could not write why, either
                place = "a rank's temporary folder (TMPDIR)" if is_url(job.address) else job.made
                self._reason = full_or_unwritable(place)
            if self._reason is not None:
                self._explain(self._reason)
            return self._refused
        if (telling := worst(codes)) is not None:
            return TrainerExit(telling)
        if TrainerExit.CRASHED not in codes.values():  # else the trainer has said what happened
            self._explain(
                f"train_command has ended with {code}, but its job was not trained to the end: it must start "
                "`python -m executor train --job` with the folder, and end when that has ended."
            )
        return TrainerExit.CRASHED

    def _take_over(self, job: Job, mirror: Mirror) -> TrainerExit:
        try:
            mirror.take_over()
        except FinetunerError as error:
            self._explain(
                f"What train_command has made is not whole: {error}. See that nothing but the job removes or changes "
                f"what is in its folder, {job.address}, then train another run."
            )
            return TrainerExit.CRASHED
        return TrainerExit.SUCCEEDED

    def _explain(self, error: str) -> None:
        _log.error("%s", error)
        self._store.report(self._name, replace(self._store.progress(self._name), error=error))


def arguments_of(command: str, job: Job, run: Run) -> list[str]:
    """Return the words of a command, with what its placeholders stand for."""
    values = {"{python}": sys.executable, "{job}": job.address, "{run}": run.name}
    words = shlex.split(command)
    for placeholder, value in values.items():
        words = [word.replace(placeholder, value) for word in words]
    return words


def start(arguments: list[str], traceparent: str | None = None) -> "subprocess.Popen[bytes]":
    """Start a command in a process group of its own: Ctrl-C on the service's terminal is for the service.

    The kernel sends it SIGTERM when this process ends, even by a crash.

    Args: traceparent: of the run's span; the command finds it in `TRACEPARENT`, where OpenTelemetry wants it.
    """
    tied = when_the_parent_ends(signal.SIGTERM)

    def apart() -> None:
        os.setpgid(0, 0)
        tied()

    traced = {} if traceparent is None else {"TRACEPARENT": traceparent}
    environment = MEET_ANEW | public_environment() | traced
    return subprocess.Popen(arguments, cwd=PACKAGE.parent, env=environment, stdin=subprocess.DEVNULL, preexec_fn=apart)


def end_family(process: "subprocess.Popen[bytes]") -> None:
    """End a command and what it has started on this machine; after `END_SECONDS` by force."""
    family = []
    with contextlib.suppress(psutil.Error):
        family = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(END_SECONDS)
    for each in family:
        with contextlib.suppress(psutil.Error):
            each.kill()
    process.kill()
    process.wait()
