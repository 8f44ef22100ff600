"""Kills a trainer or a service at chosen moments, and starts the service again, as its operator would."""

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
WAIT_SECONDS = 15.0  # for a chosen moment; then any other will do
LONGEST = 8.0  # seconds of a moment drawn from the clock
GONE_SECONDS = 10.0  # a trainer whose service was killed ends by itself within
KILLS_PER_CHECKPOINT = 2  # the third time that a trainer dies without a further checkpoint fails its run


class Victim(Enum):
    """Who gets SIGKILL."""

    TRAINER = "trainer"
    SERVICE = "service"


BY_THE_CLOCK = "by the clock"
MOMENTS = {
    Victim.TRAINER: ("receiving", "starting", "loading", "training", "checkpoint", "evaluating", "saving"),
    Victim.SERVICE: ("receiving", "queueing", "starting", "training", "checkpoint", "saving", "promotion"),
}


class Sight(NamedTuple):
    """What goes on: with the run that has or will have the trainer, and with others; its newest checkpoint's steps."""

    moment: str
    others: frozenset[str]
    run: Run | None
    checkpoint: int
    progress: Progress


class Kill(NamedTuple):
    """One kill. `resumes`: it hit a run that was in training, which goes on from `checkpoint`."""

    victim: Victim
    moment: str
    checkpoint: int
    resumes: bool


class Killer:
    """Kills, restarts, and notes when the service was down.

    Args: seconds: after which nothing is killed any more. service_share: of the kills, the rest being the trainer's.
    """

    def __init__(self, served: Served, *, seed: int, kills: int, service_share: float, seconds: float) -> None:
        self.kills: list[Kill] = []
        self.down: list[tuple[float, float]] = []  # by `time.monotonic`, from the kill until it serves again
        self.strays = 0  # trainers that outlived their service
        self._served = served
        self._workspace = find_workspace(served.workspace)
        self._chance = random.Random(seed)
        self._stop = threading.Event()
        self._began = time.monotonic()
        self._deadline = self._began + seconds
        self._queued: set[str] = set()
        self._old: set[Path] = set()  # what killed trainers left: no sign of what goes on now
        self._before: dict[str, Progress] = {}  # what a killed trainer said last
        self._barren: dict[tuple[str, int], int] = {}  # (run, checkpoint): kills of its trainer
        of_service = round(kills * service_share)
        self._plan = [Victim.SERVICE] * of_service + [Victim.TRAINER] * (kills - of_service)
        self._chance.shuffle(self._plan)

    @property
    def finished(self) -> bool:
        """Whether nothing is killed any more."""
        return self._stop.is_set()

    def stop(self) -> None:
        """Kill nothing more; `work` returns soon."""
        self._stop.set()

    def work(self) -> None:
        """Kill as planned."""
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
        """Return what goes on when the moment has come; None when nothing shall be killed any more.

        The database is closed again: a service that is started after a crash shall find it as the crash left it.
        """
        if wanted == BY_THE_CLOCK:
            self._stop.wait(delay)
        late = time.monotonic() + WAIT_SECONDS
        with contextlib.closing(RunStore(self._workspace)) as store:
            while not self._stop.wait(POLL_SECONDS) and time.monotonic() < self._deadline:
                sight = self._look(store)
                if victim is Victim.SERVICE and wanted in sight.others:
                    sight = sight._replace(moment=wanted)
                elif wanted not in (BY_THE_CLOCK, sight.moment) and time.monotonic() < late:
                    continue
                elif wanted != BY_THE_CLOCK:
                    time.sleep(delay)
                    sight = self._look(store)
                trainer = self._trainer(sight)
                if victim is Victim.SERVICE or (trainer is not None and self._may_die(sight)):
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
        """What is being written or has just been: unfinished checkpoints, and the model."""
        unfinished = self._workspace.checkpoint_folder(run).glob(".*")
        return [*unfinished, *self._workspace.run_folder(run).glob("model")]

    def _trainer(self, sight: Sight) -> psutil.Process | None:
        """The trainer, if it lives."""
        if sight.run is None or sight.run.pid is None:
            return None
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(sight.run.pid)
            if sight.run.name in words_of(process) and process.status() != psutil.STATUS_ZOMBIE:
                return process
        return None

    def _may_die(self, sight: Sight) -> bool:
        """Whether this would not be the third death of the trainer at one checkpoint."""
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
        else:
            self._kill_service(trainer)
        self._note(sight)
        if victim is Victim.SERVICE:
            self._served.start()
            self._served.wait()
            self.down.append((began, time.monotonic()))

    def _kill_service(self, trainer: psutil.Process | None) -> None:
        """Every process of the Flow, or the executor's alone, whose trainer then has to end by itself."""
        if self._chance.random() < 0.5:
            os.kill(self._served.executor_pid(), signal.SIGKILL)
            if trainer is not None and psutil.wait_procs([trainer], timeout=GONE_SECONDS)[1]:
                self.strays += 1
        self._served.kill()

    def _note(self, sight: Sight) -> None:
        """Count the death, whatever the run's state was: by now it may be another. So may be its checkpoint."""
        if sight.run is None:
            return
        name = sight.run.name
        self._before[name] = sight.progress
        self._old |= set(self._signs(name))
        key = (name, self._workspace.latest_step(name))
        self._barren[key] = self._barren.get(key, 0) + 1
