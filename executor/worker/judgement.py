"""Judges a model that has been trained: whether it is proven better, and what to know before trusting it."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from ..evaluation.eval_set import Measured
from ..evaluation.hold_out import LEAST_DOCUMENTS
from ..evaluation.intervals import is_open, said
from ..evaluation.metrics import DECIDING
from ..evaluation.proof import LEAST_QUERIES, caution, level_judged_by, paired_difference, verdict
from ..loading.datasets import ClassDataset
from ..training.recipe import Outcome, Task

HARDLY = 0.02  # if the loss fell by a smaller share than this, it has hardly fallen
SHOWN = 5  # examples that a sentence names
ALL_THE_SAME = "To serve it all the same, call /promote with its name, or train with promote='always'."


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What was found.

    Attributes:
        better: whether the model is better than the version served; None: there is no proof.
        verdict: the same in words.
        metrics: `served/<metric>` and `tuned/<metric>`, and `…/unseen/<metric>` on the classes held out whole.
        warnings: most important first.
    """

    better: bool | None
    verdict: str
    metrics: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def judge(
    task: Task,
    outcome: Outcome,
    served: Measured | None,
    *,
    served_version: str,
    whole_classes: tuple[int, ...],
    promote_by: str,
    chance: float | None = None,
    unproven: str,
    noticed: list[str],
) -> Judgement:
    """Judge a tuned model.

    Args:
        served: what the version served now did on the eval set; None: there is no eval set.
        chance: of calling a model better that is not, of an automatic run; None: the usual one.
        whole_classes: the classes held out whole. unproven: why there is no eval set.
        noticed: warnings about the documents.
    """
    warnings = [*noticed, *_about_classes(task), *_about_loss(outcome.history)]
    weights = _about_weights(outcome)
    if outcome.after is None or served is None:
        return Judgement(better=None, verdict=f"{unproven} {weights} {ALL_THE_SAME}", warnings=warnings)
    level = level_judged_by(chance)
    better: bool | None
    better, sentence = verdict(served.scores, outcome.after.scores, by=promote_by, level=level)
    metrics = {f"served/{name}": value for name, value in served.scores.mean().items()}
    metrics |= {f"tuned/{name}": value for name, value in outcome.after.scores.mean().items()}
    sentence = f"Against the version served ({served_version}), {sentence}"
    unseen = _unseen(task, outcome, served, whole_classes)
    if unseen is not None:
        values, words, worse = unseen
        metrics |= values
        sentence = f"{sentence} {words}"
        better = better and not worse
    if little := caution(outcome.after.scores):
        warnings.append(little)
    difference, low, high = paired_difference(served.scores, outcome.after.scores, level=level)
    if difference > 0 and low <= 0 and not is_open(low, high, signed=True):
        warnings.append(
            f"The eval documents are too few to prove the gain that was measured ({difference:+.3f}): with "
            f"{outcome.after.scores.queries} queries only a gain of about {(high - low) / 2:.3f} shows. Send more "
            "labelled documents, of more classes above all."
        )
    if chance is not None and (queries := outcome.after.scores.queries) < LEAST_QUERIES:
        better = None
        sentence = (
            f"The model is unproven: an automatic run is judged by {LEAST_QUERIES} queries or more, not {queries}, and "
            f"spends nothing of the budget of false promotions until then. {sentence}"
        )
    return Judgement(better=better, verdict=f"{sentence} {weights}", metrics=metrics, warnings=warnings)


def why_unproven(task: Task, val_split: float | str, documents: int, *, given: bool = False) -> str:
    """Say why there is no eval set.

    Args: documents: how many train documents can be used. given: whether there were eval documents. All of them were
            left out then.
    """
    if given:
        reason = "No eval document is left that proves anything."
    elif task.dataset.kind == "unlabeled":
        reason = "Without labels there is nothing to prove it by; send labelled documents with split='eval'."
    elif val_split == "auto" and documents < LEAST_DOCUMENTS:
        reason = (
            f"{documents} documents are too few to hold some out; send {LEAST_DOCUMENTS - documents} more, or eval "
            "documents."
        )
    elif val_split != 0:
        reason = (
            "No label has enough documents to hold some out that do not belong together and that its base was not "
            "trained on; send eval documents."
        )
    else:
        reason = "val_split is 0 and there are no eval documents."
    return f"The model is unproven: {reason}"


def _about_weights(outcome: Outcome) -> str:
    """Say which weights the model has, and why these."""
    why = "the documents are too few to choose an epoch by"
    if outcome.chosen_by:
        why = f"the best on {outcome.chosen_by} documents kept to choose by"
    return f"It has the weights {outcome.weights}: {why}."


def _unseen(
    task: Task, outcome: Outcome, served: Measured, whole_classes: tuple[int, ...]
) -> tuple[dict[str, float], str, bool] | None:
    """Return metrics on the classes held out whole, a sentence, and whether the model is proven worse on them."""
    if not whole_classes or task.eval_set is None or outcome.after is None:
        return None
    of_unseen = np.isin(task.eval_set.labels, whole_classes)
    before, after = (scores.of(of_unseen) for scores in (served.scores, outcome.after.scores))
    values = {
        f"{version}/unseen/{name}": value
        for version, scores in (("served", before), ("tuned", after))
        for name, value in scores.mean().items()
    }
    difference, low, high = paired_difference(before, after)
    worse = high < 0
    return (
        values,
        f"On {len(whole_classes)} classes that it has never seen, mAP@R went from {before.mean()[DECIDING]:.3f} to "
        f"{after.mean()[DECIDING]:.3f} ({difference:+.3f}, {said(low, high, signed=True)})"
        + (", which is proven worse, so that it is not called better." if worse else "."),
        worse,
    )


def _about_classes(task: Task) -> Iterator[str]:
    if not isinstance(task.dataset, ClassDataset):
        return
    labels, counts = np.unique(task.dataset.labels[task.items], return_counts=True)
    if len(single := labels[counts == 1]):
        yield (
            f"{len(single)} labels have a single document ({_some(task.dataset, single)}): what documents of theirs "
            "have in common cannot be learned. Send more of each."
        )
    if task.eval_set is None:
        return
    proven = np.unique(np.asarray(task.eval_set.dataset.labels)[task.eval_set.items])
    if task.eval_set.dataset is task.dataset and len(missing := np.setdiff1d(labels, proven)):
        yield (
            f"{len(missing)} of {len(labels)} labels have too few documents to hold some out "
            f"({_some(task.dataset, missing)}): the proof says nothing about them."
        )


def _some(dataset: ClassDataset, labels: np.ndarray) -> str:
    names = [repr(dataset.classes[label]) for label in labels[:SHOWN].tolist()]
    return ", ".join(names) + (", …" if len(labels) > SHOWN else "")


def _about_loss(history: dict[str, list[float]]) -> Iterator[str]:
    loss = history.get("loss", [])
    if len(loss) > 1 and loss[0] > 0 and min(loss[1:]) > (1 - HARDLY) * loss[0]:
        yield (
            f"The loss hardly fell, from {loss[0]:.4g} to {loss[-1]:.4g}: the model has learned little. Try a higher "
            "learning_rate, more epochs, or look whether the labels say what the images show."
        )
