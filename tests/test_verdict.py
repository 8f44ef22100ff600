"""Whether a model is called better: by proof or by its mean, and in which words."""

import numpy as np
import pytest

from executor.evaluation.intervals import TOO_FEW, said
from executor.evaluation.metrics import DECIDING, METRICS, Scores
from executor.evaluation.proof import caution, paired_difference, verdict


def scored(*values: float, first: int = 0) -> Scores:
    """Scores whose deciding metric has these values, and whose others have the opposite."""
    deciding = np.asarray(values)
    per_query = {name: deciding if name == DECIDING else 1 - deciding for name in METRICS}
    return Scores(per_query, skipped=0, query_index=np.arange(first, first + len(values)))


BASE = scored(*[0.5] * 24)
BETTER_IN_ALL = scored(*[0.75] * 24)
BETTER_IN_THE_MEAN = scored(*[0.25] * 11, *[0.75] * 13)  # 0.521: too little to prove it
WORSE = scored(*[0.25] * 24)


@pytest.mark.parametrize(
    ("tuned", "by_interval", "by_mean"),
    [(BETTER_IN_ALL, True, True), (BETTER_IN_THE_MEAN, False, True), (BASE, False, False), (WORSE, False, False)],
    ids=["better in all", "better in the mean", "the same", "worse"],
)
def test_better_is_what_is_proven_or_what_has_the_higher_mean(tuned: Scores, by_interval: bool, by_mean: bool) -> None:
    assert verdict(BASE, tuned)[0] is by_interval  # what is not said is meant
    assert verdict(BASE, tuned, by="interval")[0] is by_interval
    assert verdict(BASE, tuned, by="mean")[0] is by_mean


def test_an_interval_that_leaves_all_open_is_said_to_be_none() -> None:
    few = scored(*[1.0] * 4)
    assert paired_difference(few, few) == (0, -1, 1)
    assert verdict(few, few)[1] == (
        "mAP@R went from 1.000 to 1.000 on 4 queries: +0.000, with too few queries for a 95 % interval, which does not "
        "prove it better."
    )
    assert (said(0, 1), said(-1, 1, signed=True)) == (TOO_FEW, TOO_FEW)
    assert (said(0, 0.9), said(0, 1, signed=True)) == ("0.000 to 0.900", "+0.000 to +1.000")


@pytest.mark.parametrize(
    ("tuned", "by", "words"),
    [
        (BETTER_IN_ALL, "interval", "0.750 on 24 queries: +0.250, 95 % interval +0.250 to +0.250, which is better."),
        (BETTER_IN_ALL, "mean", "0.750 on 24 queries: +0.250, 95 % interval +0.250 to +0.250, which is better."),
        (
            WORSE,
            "interval",
            "0.250 on 24 queries: -0.250, 95 % interval -0.250 to -0.250, which does not prove it better.",
        ),
        (WORSE, "mean", "0.250 on 24 queries: -0.250, 95 % interval -0.250 to -0.250, not better."),
    ],
)
def test_the_verdict_says_what_was_measured_and_what_follows(tuned: Scores, by: str, words: str) -> None:
    assert verdict(BASE, tuned, by=by)[1] == f"mAP@R went from 0.500 to {words}"


def test_the_same_scores_have_the_same_verdict_every_time() -> None:
    assert len({verdict(BASE, BETTER_IN_THE_MEAN) for _ in range(5)}) == 1


def test_the_difference_is_of_the_metric_that_is_named() -> None:
    assert paired_difference(BASE, BETTER_IN_ALL) == (0.25, 0.25, 0.25)
    assert paired_difference(BASE, BETTER_IN_ALL, "mrr") == (-0.25, -0.25, -0.25)


def test_the_difference_of_different_queries_is_refused_though_they_are_as_many() -> None:
    with pytest.raises(ValueError, match=r"^The two scores are of different queries; score both models"):
        paired_difference(BASE, scored(*[0.5] * 24, first=1))


def test_the_level_of_the_interval_is_the_one_asked_for() -> None:
    tuned = scored(*np.random.default_rng(0).uniform(size=24))
    mean, low, high = paired_difference(BASE, tuned)
    _, narrow_low, narrow_high = paired_difference(BASE, tuned, level=0.5)
    assert low < narrow_low < mean < narrow_high < high
    assert paired_difference(BASE, tuned, level=0.95) == (mean, low, high)


@pytest.mark.parametrize(
    ("clusters", "unit", "extent", "warning"),
    [
        (None, "query", "24 queries", ""),
        (np.arange(24) % 20, "class", "24 queries of 20 classes", ""),
        (np.arange(24) % 19, "class", "24 queries of 19 classes", "Few classes prove little: have 20 or more, not 19."),
        (np.arange(24) % 2, "group", "24 queries of 2 groups", "Few groups prove little: have 20 or more, not 2."),
        (np.zeros(24, int), "session", "24 queries of 1 session", "One session alone proves nothing."),
    ],
)
def test_the_verdict_says_on_how_much_it_rests(
    clusters: np.ndarray | None, unit: str, extent: str, warning: str
) -> None:
    base, tuned = (
        Scores(dict.fromkeys(METRICS, values), 0, np.arange(24), clusters, unit)
        for values in (np.full(24, 0.5), np.random.default_rng(0).uniform(size=24))
    )
    said = verdict(base, tuned)[1]
    assert f" on {extent}: " in said
    assert said.endswith("which does not prove it better.")
    assert caution(tuned) == warning


def test_an_interval_of_differences_lies_within_what_they_can_be() -> None:
    base, tuned = (
        Scores(dict.fromkeys(METRICS, np.asarray(values)), 0, np.arange(3))
        for values in ([0.0, 0.0, 1.0], [1.0, 1.0, 0.0])
    )
    assert paired_difference(base, tuned)[1:] == (-1.0, 1.0)
