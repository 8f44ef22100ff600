"""A trainer that hangs is noticed, killed and replaced; one that is slow, starved or at a long task is left alone."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest

from conftest import images
from executor.lifecycle.processes import TrainerProcesses
from executor.lifecycle.watchdog import (
    COMPUTING,
    LONGEST_LOOK,
    SLOWEST,
    STARTING,
    WINDOW,
    Vitals,
    Watch,
    is_stopped,
    vitals,
)
from executor.store.run import Progress, RunState
from executor.store.workspace import Workspace
from executor.worker.command import end_process, on_workspace, start_process
from workshop import Workshop

PATIENCE = 60.0


class Trainer:
    """What a watch sees of a trainer, second by second; `after` seconds it finds a fault, or does not."""

    def __init__(self) -> None:
        self.now = 0.0
        self.seen = Vitals(beat=0, processor=0.0, wants=False, stopped=False)
        self.watch = Watch(PATIENCE, lambda: self.seen, clock=lambda: self.now)

    def lives(
        self, seconds: float, *, beats: bool = False, share: float = 0.0, step: float = 1.0, **state: bool
    ) -> int:
        """Let it live on like this. Returns: after how many seconds a fault was found; 0: none was.

        Args: beats: whether it makes progress. share: of a processor that it gets. step: seconds between two looks.
        """
        for second in range(1, int(seconds / step) + 1):
            self.now += step
            self.seen = replace(
                self.seen, beat=self.seen.beat + beats, processor=self.seen.processor + share * step, **state
            )
            if self.watch.fault():
                return second
        return 0


@pytest.fixture
def trainer() -> Trainer:
    trainer = Trainer()
    assert trainer.lives(5, beats=True, share=0.9, wants=True) == 0
    return trainer


def test_a_trainer_that_waits_for_ever_hangs(trainer: Trainer) -> None:
    assert trainer.lives(1000, wants=False) == PATIENCE


def test_a_trainer_that_only_looks_now_and_then_whether_something_has_happened_hangs(trainer: Trainer) -> None:
    assert trainer.lives(1000, wants=False, share=0.01) == PATIENCE


def test_a_stopped_trainer_hangs_sooner(trainer: Trainer) -> None:
    assert trainer.lives(1000, wants=False, stopped=True) == PATIENCE / 3


def test_a_trainer_that_gets_no_processor_is_left_alone(trainer: Trainer) -> None:
    assert trainer.lives(100_000, wants=True) == 0
    assert trainer.lives(100_000, wants=True, share=0.01) == 0


def test_a_trainer_that_gets_hardly_any_processor_is_spoken_of_once(trainer: Trainer) -> None:
    assert trainer.watch.starvation() is None
    trainer.lives(2 * WINDOW, wants=True, share=0.02)
    assert trainer.watch.starvation() == pytest.approx(0.02)
    assert trainer.watch.starvation() is None


@pytest.mark.parametrize(("share", "wants"), [(0.3, True), (0.0, False)])
def test_a_trainer_that_computes_or_waits_for_something_else_does_not_starve(
    trainer: Trainer, share: float, wants: bool
) -> None:
    trainer.lives(10 * WINDOW, beats=True, wants=wants, share=share)
    assert trainer.watch.starvation() is None


def test_a_trainer_that_computes_without_a_word_is_left_alone_for_hours(trainer: Trainer) -> None:
    assert trainer.lives(100_000, wants=True, share=2.0) == COMPUTING * PATIENCE


def test_a_long_task_with_pauses_is_left_alone(trainer: Trainer) -> None:
    for _ in range(100):
        assert trainer.lives(50, wants=False) == 0
        assert trainer.lives(5, wants=True, share=0.5) == 0


def test_whoever_makes_slow_steps_may_make_slower_ones(trainer: Trainer) -> None:
    assert trainer.lives(30, wants=False) == 0
    trainer.lives(1, beats=True)
    assert trainer.lives(10_000, wants=False) == pytest.approx(SLOWEST * 31, abs=1)


def test_a_trainer_that_starts_may_wait_for_others_longer() -> None:
    assert Trainer().lives(1000, wants=False) == STARTING * PATIENCE


def test_a_machine_that_was_suspended_has_no_hanging_trainer(trainer: Trainer) -> None:
    assert trainer.lives(9 * 10_000, wants=False, step=10_000) == 0
    assert LONGEST_LOOK < PATIENCE / 3


# --- real processes ---------------------------------------------------------------------------------------------------


@pytest.fixture
def start() -> Iterator[Callable[[str], subprocess.Popen[bytes]]]:
    started = []

    def run(code: str) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE))
        assert started[-1].stdout.readline() == b"ready\n"
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


@dataclass
class Looked:
    """What two looks at a process have shown."""

    before: Vitals
    after: Vitals

    @property
    def computed(self) -> bool:
        return self.after.processor > self.before.processor


def look_twice(process: subprocess.Popen[bytes], between: Callable[[], object], file: Path = Path("/none")) -> Looked:
    before = vitals(process.pid, file)
    between()
    return Looked(before, vitals(process.pid, file))


def a_moment() -> None:
    subprocess.run([sys.executable, "-c", "import time; time.sleep(0.3)"], check=True)


@pytest.mark.process
def test_a_process_is_seen_to_wait_to_compute_and_to_be_stopped(
    start: Callable[[str], subprocess.Popen[bytes]],
) -> None:
    waits = start("print('ready', flush=True); import time; time.sleep(600)")
    computes = start(
        "import threading; print('ready', flush=True);"
        "threading.Thread(target=lambda: [0 for _ in iter(int, 1)]).start()"
    )
    a_moment()
    looked = look_twice(waits, a_moment)
    assert (looked.computed, looked.after.wants, looked.after.stopped) == (False, False, False)
    looked = look_twice(computes, a_moment)  # not in its first thread
    assert (looked.computed, looked.after.wants) == (True, True)
    psutil.Process(computes.pid).suspend()
    a_moment()
    looked = look_twice(computes, a_moment)
    assert (looked.computed, looked.after.wants, looked.after.stopped) == (False, False, True)
    assert (is_stopped(computes.pid), is_stopped(waits.pid)) == (True, False)


@pytest.mark.process
def test_a_child_that_computes_is_a_sign_of_life_and_so_is_progress(
    start: Callable[[str], subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    parent = start(
        "import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', 'while True: pass']);"
        "print('ready', flush=True); child.wait()"
    )
    try:
        assert look_twice(parent, a_moment).computed
    finally:
        for child in psutil.Process(parent.pid).children():
            child.kill()
    assert look_twice(parent, a_moment, tmp_path).before.beat == tmp_path.stat().st_mtime_ns


@pytest.mark.process
def test_a_run_whose_trainer_is_stopped_is_resumed_and_succeeds(tmp_path: Path) -> None:
    workshop = Workshop(tmp_path / "workspace", trainer_stall_seconds=3, fit_defaults={"epochs": 8})
    workshop.receive("a", images(18))
    workshop.queue("a")
    with workshop.supervised():
        run = workshop.wait("a", until=lambda run: workshop.store.progress("a").step or run.state.ended)
        assert run.pid is not None
        psutil.Process(run.pid).suspend()
        shown: list[Progress] = []
        workshop.wait("a", until=lambda run: shown.append(workshop.store.progress("a")) or run.state.ended)
        assert workshop.wait("a").state is RunState.SUCCEEDED, workshop.log("a")
    (stalled,) = workshop.events("a", "stalled")
    assert stalled.startswith("the trainer hangs: it has been stopped, by SIGSTOP or a debugger, for ")
    (resumed,) = workshop.events("a", "resumed")
    assert resumed.startswith("the trainer hung and was killed; it goes on from step ")
    steps = [progress.step for progress in shown]
    assert steps == sorted(steps)
    assert all(progress.eta_seconds is None or progress.eta_seconds > 0 for progress in shown)
    workshop.close()


@pytest.mark.process
def test_a_trainer_that_waits_for_a_run_and_is_stopped_gets_none(tmp_path: Path) -> None:
    """It is ended, and the run gets a new one. That any trainer trains, the runs of other tests show."""
    workshop = Workshop(tmp_path / "workspace")
    workshop.receive("b", images(18))
    trainers = TrainerProcesses(workshop.store.workspace, nice=0, yields=False, standby_seconds=600)
    trainers.prepare()
    (stopped,) = waiting()
    stopped.suspend()
    while not is_stopped(stopped.pid):  # the signal takes a moment
        time.sleep(0.01)
    started = trainers.start(workshop.store.get("b"))
    try:
        assert not psutil.pid_exists(stopped.pid)
        assert started.pid != stopped.pid
        assert {"train", "--run=b"} <= set(psutil.Process(started.pid).cmdline())
    finally:
        end_process(started)
        trainers.close()
        workshop.close()


def waiting() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "standby" in " ".join(child.cmdline())]


@pytest.mark.process
def test_a_stopped_trainer_of_an_earlier_service_is_ended_and_no_other(tmp_path: Path) -> None:
    def trainer(folder: Path, *words: str) -> psutil.Process:
        process = start_process("train", *on_workspace(folder), "--run=-odd name", *words, output=subprocess.DEVNULL)
        started.append(process)
        found = psutil.Process(process.pid)
        found.suspend()  # else it would end by itself
        return found

    started: list[subprocess.Popen[bytes]] = []
    mine, others = tmp_path / "mine", tmp_path / "mine too"
    left, elsewhere, by_hand = trainer(mine, "--tied"), trainer(others, "--tied"), trainer(mine)
    try:
        processes = TrainerProcesses(Workspace(mine), nice=0, yields=False, standby_seconds=0)
        processes.end_leftovers()
        alive = [psutil.pid_exists(process.pid) for process in (left, elsewhere, by_hand)]
        assert alive == [False, True, True]
    finally:
        for process in started:
            end_process(process)
