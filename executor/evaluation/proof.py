"""Whether one model is better than another on the same queries: intervals, and the verdict."""

import numpy as np

from .metrics import DECIDING, Scores, bootstrap_interval


def paired_difference(
    before: Scores,
    after: Scores,
    name: str = DECIDING,
    *,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Return the mean of after - before over the queries, and its confidence interval: (mean, low, high).

    The interval is a percentile bootstrap of the per-query differences: both models see the same queries, so what
    makes a query hard for both cancels out.

    Raises: ValueError: the two are not of the same queries, or of none.
    """
    if not np.array_equal(before.query_index, after.query_index):
        raise ValueError("The two scores are of different queries; score both models on the same documents.")
    difference = after.per_query[name] - before.per_query[name]
    low, high = bootstrap_interval(difference, level, resamples, seed)
    return float(difference.mean()), low, high


def verdict(base: Scores, tuned: Scores, *, by: str = "interval") -> tuple[bool, str]:
    """Return whether `tuned` is better than `base` in mAP@R, and a sentence that says so.

    By `interval`: proven, that is, the 95 % interval of the paired difference, by bootstrap over the queries, lies
    above zero. By `mean`: the mean is higher.
    """
    before, after = base.mean()[DECIDING], tuned.mean()[DECIDING]
    difference, low, high = paired_difference(base, tuned)
    better = low > 0 if by == "interval" else difference > 0
    return better, (
        f"mAP@R went from {before:.3f} to {after:.3f} on {tuned.queries} queries: "
        f"{difference:+.3f}, 95 % interval {low:+.3f} to {high:+.3f}, "
        + ("which is better." if better else "which does not prove it better." if by == "interval" else "not better.")
    )
