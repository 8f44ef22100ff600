"""When a run that is receiving has waited long enough for further documents."""

import threading
import time

START_GRACE_SECONDS = 1.0  # a client splits one call into several requests: `start` waits for the rest


class Deadlines:
    """Says which runs are due: those without new documents for too long, and those asked to start.

    Threads may share an instance.

    Args: silence: seconds without a new document after which a run is due, once it has a train document.
    """

    def __init__(self, silence: float) -> None:
        self._silence = silence
        self._lock = threading.Lock()
        self._arrivals: dict[str, float] = {}  # time of the last document, by a clock that never jumps
        self._starts: dict[str, float] = {}  # when to start, for runs that were asked to

    def arrived(self, run: str, *, train: bool) -> None:
        """Note that documents have arrived. A train document starts the clock; then any document restarts it."""
        with self._lock:
            if train or run in self._arrivals:
                self._arrivals[run] = time.monotonic()
            if run in self._starts:
                self._starts[run] = time.monotonic() + START_GRACE_SECONDS

    def start_soon(self, run: str) -> None:
        """Make a run due once no request of the same call has followed for `START_GRACE_SECONDS`."""
        with self._lock:
            self._starts[run] = time.monotonic() + START_GRACE_SECONDS

    def due(self) -> list[str]:
        """The runs that are due now."""
        now = time.monotonic()
        with self._lock:
            silent = {run for run, last in self._arrivals.items() if now - last >= self._silence}
            return sorted(silent | {run for run, start in self._starts.items() if now >= start})

    def forget(self, run: str) -> None:
        """Forget a run that takes no more documents: it is never due again."""
        with self._lock:
            self._arrivals.pop(run, None)
            self._starts.pop(run, None)
