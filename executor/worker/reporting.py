"""Writes the report of a training. It adds what the options do not say: what `auto` became, and which model it was."""

from typing import Any

import numpy as np

from ..errors import FinetunerError
from ..evaluation.eval_set import Measured
from ..evaluation.index_plan import Figure, IndexPlan
from ..images.reading import image_of
from ..loading.datasets import ClassDataset
from ..models.model import EmbeddingModel
from ..parameters import ExecutorOptions, TrainingOptions
from ..report import contents
from ..report.parts import IndexWay, Interval, LabelErrors, ModelFacts, SmallVectorForm, Tried
from ..store.run import Run
from ..store.runs import RunStore
from ..training.recipe import Outcome, Task
from ..training.tried import Trials
from .index_learning import LearnedIndex
from .judgement import Judgement

SAMPLED = 16  # images whose size is measured


def write_report(
    store: RunStore,
    run: Run,
    model: EmbeddingModel,
    task: Task,
    outcome: Outcome,
    judgement: Judgement,
    *,
    counts: tuple[int, int, int],
    device: str,
    served: str,
    before: Measured | None,
    label_errors: LabelErrors | None,
    copies: list[tuple[str, str, str]],
    index: LearnedIndex | None = None,
) -> None:
    """Write the report of a run that has been trained. The service later adds what became of the model.

    Args: counts: train, eval and held out documents. served: the version served now. before: what that one did on the
            eval set. index: the map from that one, and what was measured of it.
    """
    contents.write(
        store,
        run,
        kind=task.dataset.kind,
        classes=len(task.dataset.classes) if isinstance(task.dataset, ClassDataset) else None,
        counts=counts,
        choosing=0 if task.choose_set is None else task.choose_set.documents,
        history=outcome.history,
        device=device,
        eval_set=task.eval_set,
        before=before,
        after=outcome.after,
        verdict=judgement.verdict,
        served=served,
        used=used_settings(run.options, outcome, task, model, counts),
        model=model_facts(model, task, run.configuration.options),
        label_errors=label_errors,
        copies=copies,
        tried=tried_settings(outcome.trials),
        ways=[] if index is None or index.plan is None else index_ways(index.plan),
        small_vectors=[] if index is None else [SmallVectorForm(**vars(score)) for score in index.scores],
    )


def index_ways(plan: IndexPlan) -> list[IndexWay]:
    """Return what can be done with an index, as the report has it, the cheapest first."""

    def interval(figure: Figure | None) -> Interval | None:
        return None if figure is None else Interval(mean=figure[0], low=figure[1], high=figure[2])

    return [
        IndexWay(
            name=way,
            value=interval(figure),
            loss=interval(plan.losses.get(way)),
            unseen=interval(plan.unseen_figures.get(way)),
            advised=way == plan.advice,
        )
        for way, figure in plan.figures.items()
    ]


def used_settings(
    options: TrainingOptions, outcome: Outcome, task: Task, model: EmbeddingModel, counts: tuple[int, int, int]
) -> dict[str, Any]:
    """Return what was used for the options that do not say so themselves, by name, as JSON values.

    Args: counts: train, eval and held out documents.
    """
    received, given, held_out = counts
    share = round(held_out / received, 3) if received else 0.0
    return outcome.used | {
        "kind": task.dataset.kind,
        "embedding_dim": model.dim,
        "val_split": "eval documents were given" if given else share,
        "loss_options": options.loss_options or "the defaults of the loss",
    }


def tried_settings(trials: Trials) -> list[Tried]:
    """Return the trials as the report has them."""
    return [
        Tried(settings=trial.settings, epochs=trial.epochs, score=trial.score, chosen=number == trials.chosen)
        for number, trial in enumerate(trials.tried)
    ]


def model_facts(model: EmbeddingModel, task: Task, options: ExecutorOptions) -> ModelFacts:
    """Return which model was trained, and how large its images were when they were sent."""
    return ModelFacts(
        name=model.config.model,
        input_size=model.preprocessing.size,
        crop=model.preprocessing.crop,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        embedding_size=model.dim,
        image_side=None if options.preprocess_fn else _image_side(task, options),
    )


def _image_side(task: Task, options: ExecutorOptions) -> int | None:
    """Return the median shorter side of a few train images, in pixels; None if one of them can no longer be read."""
    items = task.items[np.linspace(0, len(task.items) - 1, min(SAMPLED, len(task.items))).astype(int)]
    try:
        images = [image_of(task.dataset.document(int(item)), options.image_policy()) for item in items]
    except FinetunerError:
        return None
    return int(np.median([min(image.shape[:2]) for image in images]))
