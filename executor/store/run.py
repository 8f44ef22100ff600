"""A run as the store knows it: its states, the one table of legal moves, and its progress."""

from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import Any

from pydantic import BaseModel, ConfigDict

from ..parameters import ExecutorOptions, TrainingOptions


class RunState(str, Enum):
    """The state of a run."""

    RECEIVING = "receiving"
    QUEUED = "queued"
    TRAINING = "training"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """Whether a run in this state can never leave it."""
        return self not in LEGAL


LEGAL: dict[RunState, set[RunState]] = {
    RunState.RECEIVING: {RunState.QUEUED, RunState.CANCELLED},
    RunState.QUEUED: {RunState.TRAINING, RunState.CANCELLED},
    RunState.TRAINING: {RunState.QUEUED, RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED},
}


KILLED_FOR_MEMORY = "killed"  # kind of event: the kernel killed the trainer; the service notes it


class TrainerExit(IntEnum):
    """The exit codes of the trainer process. The service reads them."""

    SUCCEEDED = 0
    CRASHED = 1
    REFUSED = 3  # the run cannot be trained, and another attempt would not help
    INTERRUPTED = 4  # it was told to stop
    OUT_OF_MEMORY = 5  # it has noted that the next attempt must use smaller parts of a batch
    UNWRITABLE = 6  # the disk of the workspace is full, read-only or broken


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What the trainer reports about itself; only the trainer writes it. See `RunStatus` for the units."""

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
    better: bool | None = None  # than `served`, as proven on documents that were held out; None: there is no proof
    served: str | None = None  # the version that was served when the tuned model was measured
    warnings: list[str] = field(default_factory=list)
    space: str | None = None  # of the embeddings of the tuned model
    index_plan: dict[str, Any] = field(default_factory=dict)  # what to do with an index; empty without a proof
    verdict: str | None = None
    error: str | None = None
    device: str | None = None


class Configuration(BaseModel):
    """The settings of the service when it created a run, and which options the run's requests have set.

    Attributes:
        options: the executor's. given: the names of the training options that requests have set.
        automatic: 0, or which of the automatic runs that are judged it is. level: the chance of a false promotion that
            it was given then; see `store/budget.py`.
        directory: the service's working directory. path: its Python search path; the trainer imports from there, too.
        trace: the `traceparent` of the run's span, and `asked_by` that of the request that created it, if it is traced.
    """

    model_config = ConfigDict(frozen=True)

    options: ExecutorOptions = ExecutorOptions()
    given: tuple[str, ...] = ()
    automatic: int = 0
    level: float | None = None
    directory: str = "."
    path: tuple[str, ...] = ()
    trace: str | None = None
    asked_by: str | None = None


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training attempt, as the service knows it.

    Attributes:
        options: the training options, complete. configuration: the executor's, as they were at its creation.
        total: how many train documents to expect. train_rows, eval_rows: how many documents its spool has, once the
            run is queued.
        acknowledged: whether a request for it was answered, as far as that matters: while it is receiving.
        repeated: how many train documents have come again. arrived: once the run is queued, how many came through
            `/fit` in all, those included; None: it is not known.
    """

    number: int
    name: str
    state: RunState
    options: TrainingOptions
    configuration: Configuration
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
    acknowledged: bool = True
    repeated: int = 0
    arrived: int | None = None

    @property
    def ranks(self) -> int:
        """How many processes train it: one per device."""
        return len(self.configuration.options.devices or ("",))
