"""What a trainer reports while it trains: its progress, for `/status`, and events for the history of the run."""

import contextlib
import logging
import time
from dataclasses import replace
from typing import Any

from ..compute.ranks import Ranks
from ..errors import WorkspaceError
from ..store.run import Progress, Run
from ..store.runs import RunStore
from .phases import Phases
from .tracking import Tracker

BEAT_SECONDS = 0.1
LEAST_LEFT = 1.0  # seconds, of a run that takes longer than was expected
REPORT_SECONDS = 0.2  # between reports of values that change with every step

_log = logging.getLogger(__name__)


class ProgressWriter:
    """Publishes progress and events. Only the first rank publishes, and a failed write does not end the run.

    Attributes: now: the latest progress, even if it could not be written.
    """

    def __init__(self, store: RunStore, run: Run, ranks: Ranks) -> None:
        before = store.progress(run.name)  # of an earlier attempt: what a run has shown never goes back
        self.now = replace(
            before, phase="starting", epochs=before.epochs or run.options.epochs or 0, eta_seconds=None, warnings=[]
        )
        self._ends: float | None = None  # when it is expected to
        self._store = store
        self._run = run.name
        self._ranks = ranks
        self._reported = self._beat = 0.0
        self._beat_file = store.workspace.beat_file(run.name)
        self._phases = Phases(run)
        self._tracker = Tracker(run.configuration.options.tensorboard if ranks.first else None, run.name, self.warn)

    def report(self, **changes: Any) -> None:
        """Publish fields of `Progress`. If they cannot be written now, the next report includes them."""
        if not self._ranks.first:
            return
        self.beat()
        if "phase" in changes:
            self._phases.enter(changes["phase"])
        if self._ends is not None:
            changes = {"eta_seconds": max(LEAST_LEFT, self._ends - time.monotonic())} | changes
        self.now = _forward(self.now, replace(self.now, **changes))
        try:
            self._store.report(self._run, self.now)
        except WorkspaceError as error:
            _log.warning("Progress is not written: %s", error)
        self._reported = time.monotonic()

    def epochs_begin(self) -> None:
        """The first epoch begins now."""
        self._phases.epochs_begin()

    def end(self) -> None:
        """Nothing more is reported."""
        if self._ranks.first:
            self._phases.end()

    def expect_end(self, seconds: float) -> None:
        """Let every further report count down to the end of the run."""
        self._ends = time.monotonic() + seconds

    def beat(self) -> None:
        """Show the service that there is progress: see `lifecycle/watchdog.py`. This may be called at every turn."""
        if self._ranks.first and time.monotonic() - self._beat >= BEAT_SECONDS:
            self._beat = time.monotonic()
            with contextlib.suppress(OSError):  # the disk cannot be written; that shows elsewhere
                self._beat_file.touch()

    @property
    def is_due(self) -> bool:
        """Whether it is time for the next report."""
        return time.monotonic() - self._reported >= REPORT_SECONDS

    def conclude(self) -> None:
        """Publish the last report again, because the service decides by it. Raises: WorkspaceError: that failed."""
        self._store.report(self._run, self.now)
        self._tracker.end(self.now.metrics)

    def refuse(self, reason: str) -> None:
        """Report why the run cannot be trained. Any rank may call this.

        Raises: WorkspaceError: it cannot be written; the first rank only logs that.
        """
        if not self._ranks.first:
            self._store.report(self._run, replace(self._store.progress(self._run), error=reason))
        self.report(error=reason)

    def tell(self, kind: str, message: str) -> None:
        """Append an event to the run's history."""
        if not self._ranks.first:
            return
        try:
            self._store.event(self._run, kind, message)
        except WorkspaceError:
            _log.exception("The history lacks: %s: %s", kind, message)

    def warn(self, note: str) -> None:
        """Append a warning to the run's history."""
        self.tell("warning", note)

    def tell_epoch(self, history: dict[str, list[float]]) -> None:
        """Append the latest epoch as an event. Args: history: one list per measured value, one entry per epoch."""
        number = len(history["loss"])
        self._phases.epoch(number, history["loss"][-1])
        values = ", ".join(f"{name} {series[-1]:.4g}" for name, series in history.items())
        self._tracker.epochs(history)
        self.tell("epoch", f"epoch {number} of {self.now.epochs}: {values}")


def _forward(before: Progress, now: Progress) -> Progress:
    """Return `now`, but no step before those shown: a further attempt makes the steps since its checkpoint again."""
    known = max(now.history, before.history, key=lambda history: len(history.get("loss", ())))
    return replace(now, step=max(before.step, now.step), epoch=max(before.epoch, now.epoch), history=known)
