"""When a run that is receiving has waited long enough for further documents."""

import threading
import time

START_GRACE_SECONDS = 1.0  # a client's call is split into requests: `start` waits for the rest of them


class Deadlines:
    """Says which runs are due: silent for too long, or asked to start. Threads may share an instance.

    Args: silence: seconds without a new train document after which a run is due.
    """

    def __init__(self, silence: float) -> None:
        self._silence = silence
        self._lock = threading.Lock()
        self._arrivals: dict[str, float] = {}  # of the last document, by a clock that never jumps
        self._starts: dict[str, float] = {}  # when to start, once that was asked for

    def arrived(self, run: str, *, train: bool) -> None:
        """Note that documents have arrived. Eval documents alone do not let the time begin to run."""
        with self._lock:
            if train or run in self._arrivals:
                self._arrivals[run] = time.monotonic()
            if run in self._starts:
                self._starts[run] = time.monotonic() + START_GRACE_SECONDS

    def start_soon(self, run: str) -> None:
        """Let a run be due as soon as no further request of the same call follows."""
        with self._lock:
            self._starts[run] = time.monotonic() + START_GRACE_SECONDS

    def due(self) -> list[str]:
        """The runs that are due now."""
        now = time.monotonic()
        with self._lock:
            silent = {run for run, last in self._arrivals.items() if now - last >= self._silence}
            return sorted(silent | {run for run, start in self._starts.items() if now >= start})

    def forget(self, run: str) -> None:
        """Let a run that receives no more never be due."""
        with self._lock:
            self._arrivals.pop(run, None)
            self._starts.pop(run, None)
