"""When a run that is receiving has waited long enough for further documents."""

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

WITHOUT_TRAIN = 2  # times as long a run waits that has eval documents only: those to train on are still to come
START_GRACE_SECONDS = 1.0  # a client splits one call into several requests: `start` waits for the rest
TOLD_SECONDS = 3.0  # for which a word holds that a request is coming elsewhere; it is repeated each second


class Deadlines:
    """Says which runs are due: those without new documents for too long, and those asked to start.

    Threads may share an instance.

    Args: silence: seconds without a new document after which a run is due; it is twice as long for a run that has no
        train document yet.
    """

    def __init__(self, silence: float) -> None:
        self._silence = silence
        self._lock = threading.Lock()
        self._arrivals: dict[str, float] = {}  # time of the last document, by a clock that never jumps
        self._trained: set[str] = set()  # runs that have a train document
        self._starts: dict[str, float] = {}  # when to start, for runs that were asked to
        # Requests: since when they come, until when that holds, and for which run.
        self._coming: dict[object, tuple[float, float, str | None]] = {}

    def arrived(self, run: str, *, train: bool) -> None:
        """Note that documents have arrived: the clock starts anew."""
        with self._lock:
            self._arrivals[run] = time.monotonic()
            if train:
                self._trained.add(run)
            if run in self._starts:
                self._starts[run] = time.monotonic() + START_GRACE_SECONDS

    def start_soon(self, run: str) -> None:
        """Make a run due once no request of the same call has followed for `START_GRACE_SECONDS`."""
        with self._lock:
            self._starts[run] = time.monotonic() + START_GRACE_SECONDS

    @contextmanager
    def coming(self, run: str | None) -> Iterator[Callable[[str], None]]:
        """Hold up what becomes due by silence during this block: documents are on their way.

        A slow client needs longer for one request than a run waits for the next. A request that begins when a run is
        due already does not hold it up.

        Args: run: the one that they are for; None: that is not known yet, and every run waits.
        Yields: a function that is told the run when it is known.
        """
        request, since = object(), time.monotonic()

        def is_for(run: str | None) -> None:
            with self._lock:
                self._coming[request] = since, math.inf, run

        is_for(run)
        try:
            yield is_for
        finally:
            with self._lock:
                del self._coming[request]

    def still_coming(self, request: str, run: str | None) -> None:
        """As `coming`, for a request that comes to another process, which says so again and again.

        Args: request: what it is known by.
        """
        now = time.monotonic()
        with self._lock:
            since, _, _ = self._coming.get(request, (now, 0.0, None))
            self._coming[request] = since, now + TOLD_SECONDS, run

    def is_known(self, run: str) -> bool:
        """Whether documents of a run have arrived, or it was asked to start."""
        with self._lock:
            return run in self._arrivals or run in self._starts

    def due(self) -> list[str]:
        """The runs that are due now."""
        now = time.monotonic()
        with self._lock:
            for request in [each for each, (_, until, _) in self._coming.items() if now >= until]:
                del self._coming[request]
            ends = {run: last + self._patience(run) for run, last in self._arrivals.items()}
            silent = {run for run, end in ends.items() if now >= end and not self._is_coming(run, end)}
            return sorted(silent | {run for run, start in self._starts.items() if now >= start})

    def _is_coming(self, run: str, end: float) -> bool:
        return any(since < end and of in (None, run) for since, _, of in self._coming.values())

    def _patience(self, run: str) -> float:
        return self._silence if run in self._trained else WITHOUT_TRAIN * self._silence

    def forget(self, run: str) -> None:
        """Forget a run that takes no more documents: it is never due again."""
        with self._lock:
            self._arrivals.pop(run, None)
            self._trained.discard(run)
            self._starts.pop(run, None)
