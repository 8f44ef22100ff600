"""Says whether one model is better than another on the same queries: the interval, and the verdict."""

import numpy as np

from .intervals import cluster_interval, difference_said
from .metrics import DECIDING, Scores

USUAL_LEVEL = 0.95  # of confidence: a model that is no better is called better with a chance of 2.5 %
LEAST_QUERIES = 20  # so many are held out where there are enough; by fewer no automatic run is judged
ENOUGH = 20  # clusters; with so many the 95 % interval was seen to cover the truth in 93 to 97 % of the cases

_PLURALS = {"class": "classes", "query": "queries"}


def level_judged_by(chance: float | None) -> float:
    """Return the confidence by which a run is judged.

    Args: chance: of calling a model better that is not, of an automatic run; None: the usual one.
    """
    return USUAL_LEVEL if chance is None else 1 - 2 * chance


def paired_difference(
    before: Scores, after: Scores, name: str = DECIDING, *, level: float = USUAL_LEVEL
) -> tuple[float, float, float]:
    """Return the mean of after - before over the queries, and its confidence interval: (mean, low, high).

    Both models see the same queries, so what makes a query hard for both cancels out. `cluster_interval` computes the
    interval: queries of a class, or of a group, rise and fall together. It lies within [-1, 1]. If nothing is known, as
    with one query or one class, it is all of [-1, 1].

    Raises: ValueError: the two scores are of different queries, or there are none.
    """
    if not np.array_equal(before.query_index, after.query_index):
        raise ValueError("The two scores are of different queries; score both models on the same documents.")
    difference = after.per_query[name] - before.per_query[name]
    low, high = cluster_interval(difference, after.clusters, level=level)
    return float(difference.mean()), max(low, -1.0), min(high, 1.0)


def verdict(base: Scores, tuned: Scores, *, by: str = "interval", level: float = USUAL_LEVEL) -> tuple[bool, str]:
    """Return whether `tuned` is better than `base` in mAP@R, and a sentence that says so and names how many queries.

    By `interval`, better means proven: the interval (of 95 %, or of another `level`) of the paired difference lies
    above zero. By `mean`, it means that the mean is higher.

    Raises: ValueError: the two scores are of different queries, or there are none.
    """
    before, after = base.mean()[DECIDING], tuned.mean()[DECIDING]
    difference, low, high = paired_difference(base, tuned, level=level)
    better = low > 0 if by == "interval" else difference > 0
    interval = difference_said(low, high, level=level, few=_plural(tuned.unit))
    return better, (
        f"mAP@R went from {before:.3f} to {after:.3f} on {_extent(tuned)}: {difference:+.3f}, {interval}, "
        + ("which is better." if better else "which does not prove it better." if by == "interval" else "not better.")
    )


def _extent(scores: Scores) -> str:
    """Say how many queries there are, and in how many classes or groups: '200 queries of 15 classes'."""
    if scores.units == scores.queries:
        return _counted(scores.queries, scores.unit)
    return f"{_counted(scores.queries, 'query')} of {_counted(scores.units, scores.unit)}"


def caution(scores: Scores) -> str:
    """Warn if there are few clusters, because then they prove little, however many queries they have."""
    if scores.units == 1:
        return f"One {scores.unit} alone proves nothing."
    if scores.units >= ENOUGH:
        return ""
    return f"Few {_plural(scores.unit)} prove little: have {ENOUGH} or more, not {scores.units}."


def _counted(count: int, unit: str) -> str:
    return f"{count} {unit if count == 1 else _plural(unit)}"


def _plural(unit: str) -> str:
    return _PLURALS.get(unit, f"{unit}s")
