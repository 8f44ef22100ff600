"""What a trainer says of its run while it goes on: its progress, for `/status`, and events of its history."""

import logging
import time
from dataclasses import replace
from typing import Any

from ..compute.ranks import Ranks
from ..errors import WorkspaceError
from ..store.run import Progress, Run
from ..store.runs import RunStore

REPORT_SECONDS = 0.2  # between reports of what changes with every step

_log = logging.getLogger(__name__)


class ProgressWriter:
    """Publishes progress and events. Of several ranks only the first does, and what cannot be written ends no run.

    Attributes: now: the progress as it was last reported.
    """

    def __init__(self, store: RunStore, run: Run, ranks: Ranks) -> None:
        self.now = Progress(phase="starting", epochs=run.options.epochs)
        self._store = store
        self._run = run.name
        self._ranks = ranks
        self._reported = 0.0

    def report(self, **changes: Any) -> None:
        """Publish fields of `Progress`. Where they cannot be written now, the next report has them too."""
        if not self._ranks.first:
            return
        self.now = replace(self.now, **changes)
        try:
            self._store.report(self._run, self.now)
        except WorkspaceError as error:
            _log.warning("Progress is not written: %s", error)
        self._reported = time.monotonic()

    @property
    def is_due(self) -> bool:
        """Whether the last report is old enough for a next one."""
        return time.monotonic() - self._reported >= REPORT_SECONDS

    def conclude(self) -> None:
        """Publish the last report once more: the service decides by it. Raises: WorkspaceError: it is not written."""
        self._store.report(self._run, self.now)

    def refuse(self, reason: str) -> None:
        """Say why the run cannot be trained, by whichever rank has found out. Raises: WorkspaceError."""
        if not self._ranks.first:
            self._store.report(self._run, replace(self._store.progress(self._run), error=reason))
        self.report(error=reason)

    def tell(self, kind: str, message: str) -> None:
        """Append to the run's history."""
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
        """Append the latest epoch of a history, which has a value an epoch under each name."""
        values = ", ".join(f"{name} {series[-1]:.4g}" for name, series in history.items())
        self.tell("epoch", f"epoch {len(history['loss'])} of {self.now.epochs}: {values}")
