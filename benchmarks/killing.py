"""Kill or stop a trainer, kill a gateway or a service, at chosen moments; start it again as its operator would."""

import contextlib
import os
import random
import signal
import threading
import time
from enum import Enum
from pathlib import Path
from typing import NamedTuple

import psutil

from benchmarks.serving import Served, words_of
from executor.store.run import Progress, Run, RunState
from executor.store.runs import RunStore
from executor.store.workspace import find_workspace

POLL_SECONDS = 0.004
WAIT_SECONDS = 15.0  # to wait for a chosen moment; after that any moment will do
LONGEST = 8.0  # seconds before a kill at a random time, at most
NOTICED_SECONDS = 60.0  # within this time the service must replace a trainer that was stopped
GONE_SECONDS = 10.0  # when its service is killed, a trainer must end by itself within this time
KILLS_PER_CHECKPOINT = 2  # when a trainer dies a third time without a new checkpoint, its run fails


class Victim(Enum):
    """What gets SIGKILL; the stopped trainer gets SIGSTOP, and the service has to notice that by itself."""

    TRAINER = "trainer"
    STOPPED = "stopped trainer"
    GATEWAY = "gateway"
    SERVICE = "service"

    @property
    def serves(self) -> bool:
        """Whether requests fail until the Flow is started again."""
        return self in (Victim.GATEWAY, Victim.SERVICE)


BY_THE_CLOCK = "by the clock"
_OF_TRAINER = ("starting", "loading", "training", "checkpoint", "evaluating", "saving")
_OF_SERVICE = ("receiving", "queueing", "starting", "training", "checkpoint", "saving", "promotion")
MOMENTS = {
    Victim.TRAINER: ("receiving", *_OF_TRAINER),
    Victim.STOPPED: _OF_TRAINER,  # while a run receives, its trainer is not watched
    Victim.GATEWAY: _OF_SERVICE,
    Victim.SERVICE: _OF_SERVICE,
}


class Sight(NamedTuple):
    """What happens now: the `moment` of the run that has the trainer or gets it next, and the moments of other runs.

    Attributes: checkpoint: the steps in the run's newest checkpoint.
    """

    moment: str
    others: frozenset[str]
    run: Run | None
    checkpoint: int
    progress: Progress


class Kill(NamedTuple):
    """One kill. `resumes`: a run was in training and will go on from `checkpoint`."""

    victim: Victim
    moment: str
    checkpoint: int
    resumes: bool


class Killer:
    """Kills, restarts, and notes when the service was down.

    Args: seconds: the killing stops after this time. service_share: share of the kills that hit the service, every
        third of them its gateway only; the others hit the trainer, every fourth of which is stopped.
    """

    def __init__(self, served: Served, *, seed: int, kills: int, service_share: float, seconds: float) -> None:
        self.kills: list[Kill] = []
        self.down: list[tuple[float, float]] = []  # by `time.monotonic`: from the kill until the service is ready again
        self.strays = 0  # trainers that outlived their service
        self.unnoticed = 0  # trainers that were stopped, and not replaced in time
        self._served = served
        self._workspace = find_workspace(served.workspace)
        self._chance = random.Random(seed)
        self._stop = threading.Event()
        self._began = time.monotonic()
        self._deadline = self._began + seconds
        self._queued: set[str] = set()
        self._old: set[Path] = set()  # left by killed trainers, so they do not show what happens now
        self._before: dict[str, Progress] = {}  # by run: the last progress of a killed trainer
        self._barren: dict[tuple[str, int], int] = {}  # (run, checkpoint): how often its trainer was killed
        of_service = round(kills * service_share)
        self._plan = [Victim.SERVICE if number % 3 else Victim.GATEWAY for number in range(of_service)]
        self._plan += [Victim.TRAINER if number % 4 else Victim.STOPPED for number in range(kills - of_service)]
        self._chance.shuffle(self._plan)

    @property
    def finished(self) -> bool:
        """Whether the killing is over."""
        return self._stop.is_set()

    def stop(self) -> None:
        """Stop killing; `work` returns soon."""
        self._stop.set()

    def work(self) -> None:
        """Do all planned kills."""
        try:
            for number, victim in enumerate(self._plan, 1):
                by_the_clock = self._chance.random() < 0.5
                wanted = BY_THE_CLOCK if by_the_clock else self._chance.choice(MOMENTS[victim])
                delay = self._chance.uniform(0, LONGEST) if by_the_clock else 0.0
                delay += self._chance.uniform(0, 2.0 if wanted == "training" else 0.02)
                found = self._wait_for(victim, wanted, delay)
                if found is None:
                    return
                self._kill(victim, *found)
                seconds = time.monotonic() - self._began
                print(f"{seconds:7.1f} s, kill {number}: {victim.value}, {self.kills[-1].moment}", flush=True)
        finally:
            self.stop()

    # the moment ---------------------------------------------------------------------------------------------------

    def _wait_for(self, victim: Victim, wanted: str, delay: float) -> tuple[Sight, psutil.Process | None] | None:
        """Wait for the moment and return what happens then; None if the killing is over.

        We close the database again, so that the next service finds it as the crash has left it.
        """
        if wanted == BY_THE_CLOCK:
            self._stop.wait(delay)
        late = time.monotonic() + WAIT_SECONDS
        with contextlib.closing(RunStore(self._workspace)) as store:
            while not self._stop.wait(POLL_SECONDS) and time.monotonic() < self._deadline:
                sight = self._look(store)
                if victim.serves and wanted in sight.others:
                    sight = sight._replace(moment=wanted)
                elif wanted not in (BY_THE_CLOCK, sight.moment) and time.monotonic() < late:
                    continue
                elif wanted != BY_THE_CLOCK:
                    time.sleep(delay)
                    sight = self._look(store)
                trainer = self._trainer(sight)
                if victim.serves or (trainer is not None and self._may_die(sight) and self._is_watched(victim, sight)):
                    return sight, trainer
        return None

    def _look(self, store: RunStore) -> Sight:
        queued = store.in_state(RunState.QUEUED)
        receiving = store.in_state(RunState.RECEIVING)
        new = {run.name for run in queued} - self._queued
        self._queued = {run.name for run in queued}
        others = frozenset(["queueing"] * bool(new) + ["receiving"] * bool(receiving))
        runs = [*store.in_state(RunState.TRAINING), *queued, *receiving]
        if not runs:
            return Sight("idle", others, None, 0, Progress())
        run = runs[0]
        progress = store.progress(run.name)
        moment = self._phase(run, progress) if run.state is RunState.TRAINING else run.state.value
        return Sight(moment, others, run, self._workspace.latest_step(run.name), progress)

    def _phase(self, run: Run, progress: Progress) -> str:
        signs = set(self._signs(run.name)) - self._old
        if self._workspace.model_folder(run.name) in signs:
            return "promotion"
        if any(sign.parent == self._workspace.checkpoint_folder(run.name) for sign in signs):
            return "checkpoint"
        return "starting" if progress == self._before.get(run.name) else progress.phase or "starting"

    def _signs(self, run: str) -> list[Path]:
        """Return files that are being written or have just been written: unfinished checkpoints, and the model."""
        unfinished = self._workspace.checkpoint_folder(run).glob(".*")
        return [*unfinished, *self._workspace.run_folder(run).glob("model")]

    def _trainer(self, sight: Sight) -> psutil.Process | None:
        """Return the trainer, if it is alive."""
        if sight.run is None or sight.run.pid is None:
            return None
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(sight.run.pid)
            if f"--run={sight.run.name}" in words_of(process) and process.status() != psutil.STATUS_ZOMBIE:
                return process
        return None

    @staticmethod
    def _is_watched(victim: Victim, sight: Sight) -> bool:
        """Whether a trainer may be stopped: only one in training is watched."""
        return victim is Victim.TRAINER or (sight.run is not None and sight.run.state is RunState.TRAINING)

    def _may_die(self, sight: Sight) -> bool:
        """Whether the trainer may be killed: at one checkpoint it must not die a third time."""
        assert sight.run is not None
        return self._barren.get((sight.run.name, sight.checkpoint), 0) < KILLS_PER_CHECKPOINT

    # the kill -----------------------------------------------------------------------------------------------------

    def _kill(self, victim: Victim, sight: Sight, trainer: psutil.Process | None) -> None:
        began = time.monotonic()
        resumes = sight.run is not None and sight.run.state is RunState.TRAINING
        self.kills.append(Kill(victim, sight.moment, sight.checkpoint, resumes))
        if victim is Victim.TRAINER:
            assert trainer is not None
            with contextlib.suppress(psutil.NoSuchProcess):
                trainer.kill()
            psutil.wait_procs([trainer], timeout=GONE_SECONDS)
        elif victim is Victim.STOPPED:
            assert trainer is not None
            self._stop_trainer(trainer)
        else:
            self._kill_service(trainer, gateway=victim is Victim.GATEWAY)
        self._note(sight)
        if victim.serves:
            self._served.start()
            self._served.wait()
            self.down.append((began, time.monotonic()))

    def _stop_trainer(self, trainer: psutil.Process) -> None:
        """Stop a trainer. The service must notice it, and kill it."""
        with contextlib.suppress(psutil.NoSuchProcess):
            trainer.suspend()
        if psutil.wait_procs([trainer], timeout=NOTICED_SECONDS)[1]:
            self.unnoticed += 1
            trainer.kill()

    def _kill_service(self, trainer: psutil.Process | None, *, gateway: bool) -> None:
        """Kill the whole Flow: the gateway first, or half of the time the executor; then its trainer must end."""
        if gateway:
            os.kill(self._served.gateway_pid(), signal.SIGKILL)
            time.sleep(self._chance.uniform(0, 1.0))  # the executor goes on by itself
        elif self._chance.random() < 0.5:
            os.kill(self._served.executor_pid(), signal.SIGKILL)
            if trainer is not None and psutil.wait_procs([trainer], timeout=GONE_SECONDS)[1]:
                self.strays += 1
        self._served.kill()

    def _note(self, sight: Sight) -> None:
        """Count the death at the newest checkpoint, in any state of the run: it may have changed since `sight`."""
        if sight.run is None:
            return
        name = sight.run.name
        self._before[name] = sight.progress
        self._old |= set(self._signs(name))
        key = (name, self._workspace.latest_step(name))
        self._barren[key] = self._barren.get(key, 0) + 1
