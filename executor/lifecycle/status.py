"""The status of a run, put together from what the service and the trainer wrote."""

from collections.abc import Callable

from docarray import DocList

from ..documents import Problem, RunStatus
from ..store.run import Run, RunState
from ..store.runs import RunStore
from .sources import are_wanted, copied


def status_of(store: RunStore, run: Run, counts: Callable[[str], tuple[int, int]]) -> RunStatus:
    """Return the status of `run`. Args: counts: returns how many documents (train, eval) a receiving run has."""
    progress = store.progress(run.name)
    if run.state is RunState.RECEIVING:
        train, evaluation = counts(run.name)
    else:
        train, evaluation = run.train_rows or 0, run.eval_rows or 0
    quarantined = {split: store.count_problems(run.name, split, spooled=True) for split in ("train", "eval")}
    promoted = store.promoted()
    return RunStatus(
        id=run.name,
        run=run.name,
        state=run.state.value,
        phase=(progress.phase or "starting") if run.state is RunState.TRAINING else None,
        kind=progress.kind or run.options.kind,
        train_documents=train - quarantined["train"],
        eval_documents=evaluation - quarantined["eval"],
        skipped=store.count_problems(run.name),
        problems=DocList[Problem](Problem(id=doc, reason=why) for doc, why in store.problems(run.name)),
        epoch=progress.epoch,
        epochs=progress.epochs or run.options.epochs or 0,
        step=progress.step,
        steps=progress.steps,
        loss=progress.loss,
        images_per_second=progress.images_per_second,
        eta_seconds=progress.eta_seconds if run.state is RunState.TRAINING else None,
        metrics=progress.metrics,
        history=progress.history,
        promoted=promoted == run.name,
        model=promoted,
        space=progress.space,
        index_plan=progress.index_plan,
        verdict=run.verdict,
        warnings=progress.warnings,
        error=run.error,
        attempts=run.attempts,
        device=progress.device,
        disk_bytes=store.workspace.disk_bytes(run.name),
        automatic=run.configuration.automatic,
        level=run.configuration.level,
        sources=copied(store, run.name) if are_wanted(run.options) else {},
        events=store.count_events(run.name),
        created_at=run.created_at,
        started_at=run.started_at,
        ended_at=run.ended_at,
    )
