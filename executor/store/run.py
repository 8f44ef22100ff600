"""A run as the store knows it: its states with the one table of legal moves, and its progress."""

from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import Any


class RunState(str, Enum):
    """Where a run stands."""

    RECEIVING = "receiving"
    QUEUED = "queued"
    TRAINING = "training"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """Whether no move leads out of it."""
        return self not in LEGAL


LEGAL: dict[RunState, set[RunState]] = {
    RunState.RECEIVING: {RunState.QUEUED, RunState.CANCELLED},
    RunState.QUEUED: {RunState.TRAINING, RunState.CANCELLED},
    RunState.TRAINING: {RunState.QUEUED, RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED},
}


class TrainerExit(IntEnum):
    """How the trainer process ends by itself; the service reads it."""

    SUCCEEDED = 0
    CRASHED = 1
    REFUSED = 3  # the run cannot be trained, and another attempt would not help
    INTERRUPTED = 4  # it was told to stop
    OUT_OF_MEMORY = 5  # it has noted that the next attempt is to compute a batch in smaller parts
    UNWRITABLE = 6  # the disk of the workspace is full, read-only or broken


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What the trainer says of itself; written by the trainer alone. See `RunStatus` for the units."""

    phase: str | None = None
    kind: str | None = None
    epoch: int = 0
    epochs: int = 0
    step: int = 0
    steps: int = 0
    loss: float | None = None
    images_per_second: float | None = None
    eta_seconds: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    history: dict[str, list[float]] = field(default_factory=dict)
    better: bool | None = None  # by the proof on the eval documents; None: there were none
    verdict: str | None = None
    error: str | None = None
    device: str | None = None


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training attempt, as the service knows it.

    Attributes:
        options: the training options, complete. configuration: the executor's, as they were at its creation.
        total: train documents to expect. train_rows, eval_rows: how many it has in its spool, once queued.
    """

    number: int
    name: str
    state: RunState
    options: dict[str, Any]
    configuration: dict[str, Any]
    total: int | None
    train_rows: int | None
    eval_rows: int | None
    attempts: int
    pid: int | None
    error: str | None
    verdict: str | None
    created_at: str
    started_at: str | None
    ended_at: str | None
