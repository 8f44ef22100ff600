"""Notices a trainer that hangs. It is not enough that its process lives, nor that it is slow to report.

Signs of life are its own progress (it touches a file at every step, document and report) and its computing. Time in
which a thread of it waits for the processor or the disk is not held against it: other processes take them, such as this
service's, to which a trainer with `trainer_yields` gives way entirely.
"""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

LOOK_SECONDS = 1.0
LONGEST_LOOK = 3.0  # what counts of the time between two looks: the machine may have been suspended
COMPUTES = 0.1  # from this share of a processor on it computes; threads that wait and look now and then take less
STOPPED = 1 / 3  # of `patience`: a stopped process does not go on by itself
STARTING = 3  # times `patience` before its first report: it may wait for another process that builds the base model
SLOWEST = 10  # times the longest time between two reports so far
WINDOW = 60.0  # seconds over which it is seen whether a trainer starves:
WANTED = 0.9  # it wants to compute for this share of them,
GOT = 0.05  # and gets less than this share of a processor
COMPUTING = 240  # times `patience` for one that computes and reports nothing: a large evaluation takes hours


@dataclass(frozen=True)
class Vitals:
    """What is seen of a process and its children.

    Attributes:
        beat: changes with its progress. processor: seconds of processor time so far.
        wants: whether a thread computes, or waits for the processor or the disk. stopped: whether one is stopped.
    """

    beat: int
    processor: float
    wants: bool
    stopped: bool


class Watch:
    """Watches one trainer process.

    Args:
        patience: seconds without a sign of life after which it hangs. look: returns what is seen of it.
        clock: returns the time in seconds.
    """

    def __init__(
        self, patience: float, look: Callable[[], Vitals], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._patience = patience
        self._look = look
        self._clock = clock
        self._looked = clock()
        self._seen = look()
        self._quiet = 0.0  # seconds without a sign of life
        self._silent = 0.0  # seconds without progress
        self._computing = 0.0  # seconds of these in which it computed
        self._since = self._looked  # of a window
        self._wanted = self._got = 0.0  # seconds of it
        self._share: float | None = None  # of a processor, in the last window, if it starved there
        self._told = False  # whether that was said
        self._longest: float | None = None  # time without progress after which it made some; None: it never did

    def fault(self) -> str | None:
        """Say how it hangs, if it does. Looks at most every `LOOK_SECONDS`."""
        passed = self._clock() - self._looked
        if passed < LOOK_SECONDS:
            return None
        self._looked += passed
        self._count(min(passed, LONGEST_LOOK))
        if self._seen.stopped and self._quiet >= STOPPED * self._patience:
            return f"it has been stopped, by SIGSTOP or a debugger, for {self._quiet:.0f} s"
        if self._quiet >= self._limit():
            return f"it has neither reported, nor computed, nor waited for processor or disk for {self._quiet:.0f} s"
        if self._computing >= COMPUTING * self._patience:
            return f"it has computed for {self._computing / 60:.0f} minutes without reporting any progress"
        return None

    def starvation(self) -> float | None:
        """Return the share of a processor that it got in the last window, if it wanted much more. Said once."""
        if self._told or self._share is None:
            return None
        self._told = True
        return self._share

    def _count(self, passed: float) -> None:
        before, self._seen = self._seen, self._look()
        self._count_wishes(passed, self._seen.processor - before.processor)
        self._silent += passed
        if self._seen.beat != before.beat:
            self._longest = max(self._longest or 0.0, self._silent)
            self._quiet = self._silent = self._computing = 0.0
        elif self._seen.processor - before.processor >= COMPUTES * passed:
            self._computing += passed
            self._quiet = 0.0
        elif self._seen.stopped or not self._seen.wants:
            self._quiet += passed

    def _count_wishes(self, passed: float, got: float) -> None:
        self._wanted += passed if self._seen.wants else 0.0
        self._got += got
        lasted = self._looked - self._since
        if lasted >= WINDOW:
            starves = self._wanted >= WANTED * lasted and self._got < GOT * lasted
            self._share = self._got / lasted if starves else None
            self._since, self._wanted, self._got = self._looked, 0.0, 0.0

    def _limit(self) -> float:
        if self._longest is None:
            return STARTING * self._patience
        return max(self._patience, SLOWEST * self._longest)


def vitals(pid: int, beat_file: Path) -> Vitals:
    """Look at a process and its children, and at the file that it touches as it makes progress."""
    processor, states = 0.0, ""
    for process in family(pid):
        with contextlib.suppress(psutil.Error, OSError):  # it has just ended
            times = process.cpu_times()
            processor += times.user + times.system
            states += "".join(map(_state, Path(f"/proc/{process.pid}/task").iterdir()))
    return Vitals(_beat(beat_file), processor, bool(set("RD") & set(states)), bool(set("Tt") & set(states)))


def is_stopped(pid: int) -> bool:
    """Whether a process is stopped."""
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
    return False


def family(pid: int) -> list[psutil.Process]:
    """A process and its children, the process last; empty if it is gone."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        return [*process.children(recursive=True), process]
    return []


def _state(task: Path) -> str:
    """The state of a thread, one letter as in proc(5). Its name stands before, in brackets, and may hold anything."""
    with contextlib.suppress(OSError):
        return (task / "stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    return ""


def _beat(file: Path) -> int:
    with contextlib.suppress(OSError):
        return file.stat().st_mtime_ns
    return 0
