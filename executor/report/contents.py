"""The report of a run in a workspace: the trainer writes it, and the service adds what became of the model.

Torch is not imported here, because the service uses `settle` and `read`.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import NotFound
from ..evaluation.proof import level_judged_by
from ..store.run import Run
from ..store.runs import RunStore
from ..store.workspace import Workspace
from .classes import changes_by_class, confusions
from .gallery import choose_queries, make_gallery, rank_sessions
from .naming import label_of, name_of
from .page import render
from .parts import (
    Change,
    ClassChange,
    Confusion,
    IndexWay,
    Interval,
    LabelErrors,
    ModelFacts,
    Neighbour,
    Outcomes,
    Query,
    SmallVectorForm,
    Tried,
)
from .report import Report, compare, load
from .saving import save

if TYPE_CHECKING:
    from ..evaluation.eval_set import EvalSet, Measured

UNPROVEN = "The model is unproven: there were no eval documents that could be scored."


def write(
    store: RunStore,
    run: Run,
    *,
    kind: str,
    classes: int | None,
    counts: tuple[int, int, int],
    choosing: int,
    history: dict[str, list[float]],
    device: str,
    eval_set: "EvalSet | None",
    before: "Measured | None",
    after: "Measured | None",
    verdict: str,
    served: str,
    used: dict[str, Any],
    model: ModelFacts,
    label_errors: LabelErrors | None,
    copies: Sequence[tuple[str, str, str]] = (),
    tried: Sequence[Tried] = (),
    ways: Sequence[IndexWay] = (),
    small_vectors: Sequence[SmallVectorForm] = (),
) -> None:
    """Write the report of a run that has been trained.

    Args:
        counts: train, eval and held out documents. choosing: how many train documents were kept to choose the epoch by.
        before: what the version did on the eval set that was `served` when the training ended.
        after: what the tuned model did. used, model, label_errors, copies, tried, ways, small_vectors: as
            in the `Report`.
    """
    level = level_judged_by(run.configuration.level)
    metrics: dict[str, Change] = {}
    difference: Interval | None = None
    outcomes: Outcomes | None = None
    gallery: list[Query] = []
    by_class: list[ClassChange] = []
    confused: tuple[list[Confusion], int] = ([], 0)
    if eval_set is not None and before is not None and after is not None:
        metrics, difference, outcomes = compare(before.scores, after.scores, level=level)
        shown = _Shown(eval_set)
        gallery = shown.gallery(before.embeddings, after.embeddings)
        if isinstance(known := getattr(eval_set.dataset, "classes", None), list):
            labels, names = eval_set.labels, [str(label) for label in known]
            by_class = changes_by_class(before.scores, after.scores, labels, names)
            confused = confusions(before.embeddings, after.embeddings, labels, names, shown.document)
    report = Report(
        run=run.name,
        kind=kind,
        base=run.options.base,
        created_at=run.created_at,
        started_at=None,
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
        choosing=choosing,
        level=level,
        served=served,
        used=used,
        model=model,
        by_class=by_class,
        confusions=confused[0],
        confusion_queries=confused[1],
        label_errors=label_errors,
        copies=list(copies),
        tried=list(tried),
        ways=list(ways),
        small_vectors=list(small_vectors),
    )
    save(report, store.workspace.run_folder(run.name))


def settle(store: RunStore, run: Run, *, promoted: bool) -> None:
    """Add to the report of a run that has succeeded what became of its model, and from when to when it was trained.

    Its trainer does not know since when: it may have been there before.
    """
    folder = store.workspace.run_folder(run.name)
    report, verdict = load(folder), run.verdict or ""
    ended = replace(report, promoted=promoted, verdict=verdict, started_at=run.started_at, ended_at=run.ended_at)
    save(ended, folder)


def rewrite(workspace: Workspace, name: str) -> Path:
    """Write the report of a run again and return its path. Raises: NotFound: it has none."""
    folder = workspace.run_folder(name)
    return save(load(folder), folder)


def read(store: RunStore, name: str) -> str:
    """Return the report of a run as HTML. Raises: UnknownRun. NotFound: the run has no report."""
    return render(report_of(store, name))


def report_of(store: RunStore, name: str) -> Report:
    """Return the report of a run. Raises: UnknownRun. NotFound: the run has no report."""
    run = store.get(name)
    try:
        return load(store.workspace.run_folder(name))
    except NotFound:
        raise NotFound(
            f"Run {name!r} is {run.state.value} and has no report; a run writes one when it succeeds."
        ) from None


class _Shown:
    """Shows the documents of an eval set as pictures. A position is a document's place in the eval set."""

    def __init__(self, eval_set: "EvalSet") -> None:
        self._eval_set = eval_set
        self._sessions = eval_set.dataset.kind == "session"

    def gallery(self, before: np.ndarray, after: np.ndarray) -> list[Query]:
        """Return queries with their neighbours. Args: before, after: embeddings, (N, D) and (N, E)."""
        if self._eval_set.dataset.kind == "unlabeled":
            return []
        labels = self._eval_set.labels
        choices = (rank_sessions if self._sessions else choose_queries)(before, after, labels)

        def fits(query: int, found: int) -> bool:
            return bool(labels[found, 1] == 1 if self._sessions else labels[query] == labels[found])

        return make_gallery(choices, image=self._eval_set.image, caption=self._caption, fits=fits, name=self._name)

    def document(self, position: int) -> Neighbour:
        """Return a document of class data. It is marked neither as right nor as wrong."""
        return Neighbour(
            image=self._eval_set.image(position),
            caption=self._caption(position),
            name=self._name(position),
            fits=None,
        )

    def _doc(self, position: int) -> Any:
        return self._eval_set.dataset.document(int(self._eval_set.items[position]))

    def _caption(self, position: int) -> str:
        doc = self._doc(position)
        return str(doc.id) if self._sessions else label_of(doc)

    def _name(self, position: int) -> str:
        name = name_of(self._doc(position))
        return "" if name == self._caption(position) else name
