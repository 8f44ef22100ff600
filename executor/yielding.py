"""The trainer leaves a share of the cores to requests while they come, and has all of them when none does.

It keeps its threads and is only moved: with another number of them it would add up in another order, and a run would
no longer end with the same weights, bit for bit, whatever traffic there was.
"""

import contextlib
import os
import time
from collections.abc import Iterable
from pathlib import Path

QUIET_SECONDS = 1.0  # without a request, after which the trainer has all cores again
SHARE = 4  # one core of so many is left to requests, at least one


class Yielding:
    """Moves the threads of a process between all cores and some of them; Linux alone can do that."""

    def __init__(self) -> None:
        self._all = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        self._some = self._all[max(1, len(self._all) // SHARE) :]
        self._yielded: int | None = None  # the process that has some cores only

    def tend(self, pid: int | None, last_request: float) -> None:
        """Give the process the cores it shall have now. Args: last_request: when it came, by `time.monotonic`."""
        if not self._some or pid is None:
            self._yielded = None
            return
        requests_come = time.monotonic() - last_request < QUIET_SECONDS
        if requests_come and self._yielded != pid:
            _move(pid, self._some)
            self._yielded = pid
        elif not requests_come and self._yielded == pid:
            _move(pid, self._all)
            self._yielded = None


def _move(pid: int, cores: Iterable[int]) -> None:
    """Let all threads of a process run on `cores`; those it starts later inherit that. A process that ends is left."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(int(thread.name), cores)
