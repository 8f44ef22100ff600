"""The report of a run of a workspace: what the trainer puts into it, and what the service adds when it has decided.

Torch is not imported here: the service uses `settle` and `read`.
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..documents import LABEL_TAG
from ..errors import FinetunerError, NotFound
from ..store.run import Run
from ..store.runs import RunStore
from ..store.workspace import find_workspace
from .gallery import choose_queries, make_gallery, rank_sessions
from .page import render
from .report import Change, Interval, Outcomes, Query, Report, compare, load
from .saving import save

if TYPE_CHECKING:
    from ..evaluation.eval_set import EvalSet, Measured

UNPROVEN = "There were no eval documents that could be scored, so the model is unproven."


def write(
    store: RunStore,
    run: Run,
    *,
    kind: str,
    classes: int | None,
    counts: tuple[int, int, int],
    history: dict[str, list[float]],
    device: str,
    eval_set: "EvalSet | None",
    before: "Measured | None",
    after: "Measured | None",
    verdict: str,
) -> None:
    """Write the report of a run that has been trained. Args: counts: train, eval and held out documents."""
    metrics: dict[str, Change] = {}
    difference: Interval | None = None
    outcomes: Outcomes | None = None
    gallery: list[Query] = []
    if eval_set is not None and before is not None and after is not None:
        metrics, difference, outcomes = compare(before.scores, after.scores)
        gallery = _gallery(eval_set, before.embeddings, after.embeddings)
    report = Report(
        run=run.name,
        kind=kind,
        base=run.options.base,
        created_at=run.created_at,
        started_at=run.started_at,
        ended_at=None,
        train_documents=counts[0],
        eval_documents=counts[1],
        held_out=counts[2],
        skipped=store.count_problems(run.name),
        problems=store.problems(run.name),
        classes=classes,
        options=run.options.model_dump(mode="json"),
        device=device,
        history=history,
        metrics=metrics,
        difference=difference,
        outcomes=outcomes,
        queries=before.scores.queries if before is not None else 0,
        queries_skipped=before.scores.skipped if before is not None else 0,
        verdict=verdict,
        promoted=None,
        gallery=gallery,
    )
    save(report, store.workspace.run_folder(run.name))


def settle(store: RunStore, run: Run, *, promoted: bool) -> None:
    """Write into the report of a run that has succeeded what became of it."""
    folder = store.workspace.run_folder(run.name)
    save(replace(load(folder), promoted=promoted, verdict=run.verdict or "", ended_at=run.ended_at), folder)


def main(name: str, folder: Path) -> int:
    """Write the report of a run again, print its path, and return the exit code."""
    try:
        place = find_workspace(folder).run_folder(name)
        print(save(load(place), place))
    except FinetunerError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def read(store: RunStore, name: str) -> str:
    """Return the report of a run as HTML. Raises: UnknownRun. NotFound: the run has no report, or not yet."""
    run = store.get(name)
    try:
        return render(load(store.workspace.run_folder(name)))
    except NotFound:
        raise NotFound(
            f"Run {name!r} is {run.state.value} and has no report; a run writes one when it succeeds."
        ) from None


def _gallery(eval_set: "EvalSet", before: np.ndarray, after: np.ndarray) -> list[Query]:
    """Queries with their neighbours; positions are those in the eval set."""
    labels = eval_set.labels
    if eval_set.dataset.kind == "unlabeled":
        return []
    sessions = eval_set.dataset.kind == "session"
    choices = (rank_sessions if sessions else choose_queries)(before, after, labels)

    def document(position: int) -> Any:
        return eval_set.dataset.document(int(eval_set.items[position]))

    def caption(position: int) -> str:
        doc = document(position)
        return str(doc.id if sessions else doc.tags.get(LABEL_TAG, doc.id))

    def fits(query: int, found: int) -> bool:
        return bool(labels[found, 1] == 1 if sessions else labels[query] == labels[found])

    return make_gallery(choices, image=eval_set.image, caption=caption, fits=fits)
