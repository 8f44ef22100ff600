"""The trace of a run while it is trained: a span of each phase, and one of each epoch."""

import time

from .. import tracing
from ..store.run import Run

_OF_EPOCHS = ("training", "saving")  # a checkpoint is written within an epoch, or between two


class Phases:
    """Makes spans within the run's. Times are nanoseconds since 1970."""

    def __init__(self, run: Run) -> None:
        self._within = run.configuration.trace
        self._attributes: dict[str, tracing.Value] = {"finetuner.run": run.name, "finetuner.attempts": run.attempts}
        self._phase: str | None = None
        self._since = self._epoch_since = time.time_ns()

    def enter(self, phase: str) -> None:
        """Begin a phase, which ends the one before."""
        if phase == self._phase:
            return
        before, self._phase = self._phase, phase
        now = time.time_ns()
        if before not in (None, "training"):  # training is shown by its epochs
            self._record(f"run.{before}", self._since, now, {})
        if phase == "training" and before not in _OF_EPOCHS:
            self._epoch_since = now
        self._since = now

    def epochs_begin(self) -> None:
        """The next epoch begins now: what was tried before was none of them."""
        self._epoch_since = time.time_ns()

    def epoch(self, number: int, loss: float) -> None:
        """End an epoch."""
        now = time.time_ns()
        self._record("run.epoch", self._epoch_since, now, {"finetuner.epoch": number, "finetuner.loss": loss})
        self._epoch_since = now

    def end(self) -> None:
        """End the last phase."""
        self.enter("ended")

    def _record(self, name: str, began: int, ended: int, more: tracing.Attributes) -> None:
        if self._within is not None:
            with tracing.within(self._within):
                tracing.record(name, began, ended, {**self._attributes, **more})
