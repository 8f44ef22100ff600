"""The trace of a run: a span of each state that it was in, and in the end one of the whole run."""

from collections.abc import Iterable
from datetime import datetime, timezone

from .. import tracing
from .run import Run, RunState

_SPANS = {RunState.RECEIVING: "run.receiving", RunState.QUEUED: "run.waiting", RunState.TRAINING: "run.training"}


def entered(run: Run, events: Iterable[tuple[int, str, str, str]]) -> str:
    """Return since when a run is in its state. Args: events: its history, as `RunStore.events` returns it."""
    return max((at for _, at, kind, _ in events if kind == run.state.value), default=run.created_at)


def record_move(before: Run, now: Run, *, since: str) -> None:
    """Record a state that a run has left. Args: since: when it came into that state."""
    if now.configuration.trace is None:
        return
    attributes = {"finetuner.run": now.name, "finetuner.state": now.state.value, "finetuner.attempts": now.attempts}
    moved = nanoseconds(now.ended_at) if now.ended_at else _now()
    with tracing.within(now.configuration.trace):
        tracing.record(_SPANS[before.state], nanoseconds(since), moved, attributes, error=now.error)
    if now.state.ended:
        with tracing.within(now.configuration.asked_by):
            began, own = nanoseconds(now.created_at), now.configuration.trace
            tracing.record("run", began, moved, attributes, own=own, error=now.error)


def nanoseconds(at: str) -> int:
    """Return a time, as the store writes it, in nanoseconds since 1970."""
    return int(datetime.fromisoformat(at).timestamp() * 1e9)


def _now() -> int:
    return int(datetime.now(timezone.utc).timestamp() * 1e9)
