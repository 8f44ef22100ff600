"""Whether a model is called better: by proof or by its mean, and in which words."""

import numpy as np
import pytest

from executor.evaluation.metrics import DECIDING, METRICS, Scores
from executor.evaluation.proof import paired_difference, verdict


def scored(*values: float, first: int = 0) -> Scores:
    """Scores whose deciding metric has these values, and whose others have the opposite."""
    deciding = np.asarray(values)
    per_query = {name: deciding if name == DECIDING else 1 - deciding for name in METRICS}
    return Scores(per_query, skipped=0, query_index=np.arange(first, first + len(values)))


BASE = scored(*[0.5] * 8)
BETTER_IN_ALL = scored(*[0.75] * 8)
BETTER_IN_THE_MEAN = scored(*[0.25] * 3, *[0.75] * 5)  # 0.5625: too few queries to prove it
WORSE = scored(*[0.25] * 8)


@pytest.mark.parametrize(
    ("tuned", "by_interval", "by_mean"),
    [(BETTER_IN_ALL, True, True), (BETTER_IN_THE_MEAN, False, True), (BASE, False, False), (WORSE, False, False)],
    ids=["better in all", "better in the mean", "the same", "worse"],
)
def test_better_is_what_is_proven_or_what_has_the_higher_mean(tuned: Scores, by_interval: bool, by_mean: bool) -> None:
    assert verdict(BASE, tuned)[0] is by_interval  # what is not said is meant
    assert verdict(BASE, tuned, by="interval")[0] is by_interval
    assert verdict(BASE, tuned, by="mean")[0] is by_mean


@pytest.mark.parametrize(
    ("tuned", "by", "words"),
    [
        (BETTER_IN_ALL, "interval", "0.750 on 8 queries: +0.250, 95 % interval +0.250 to +0.250, which is better."),
        (BETTER_IN_ALL, "mean", "0.750 on 8 queries: +0.250, 95 % interval +0.250 to +0.250, which is better."),
        (
            WORSE,
            "interval",
            "0.250 on 8 queries: -0.250, 95 % interval -0.250 to -0.250, which does not prove it better.",
        ),
        (WORSE, "mean", "0.250 on 8 queries: -0.250, 95 % interval -0.250 to -0.250, not better."),
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
        paired_difference(BASE, scored(*[0.5] * 8, first=1))


def test_level_resamples_and_seed_of_the_interval_are_those_asked_for() -> None:
    tuned = scored(*np.random.default_rng(0).uniform(size=8))

    def interval(**options: float) -> tuple[float, ...]:
        return paired_difference(BASE, tuned, **options)[1:]  # type: ignore[arg-type]

    low, high = interval(level=0.95, resamples=1000, seed=0)
    narrow = interval(level=0.5)
    assert low < narrow[0] < narrow[1] < high
    assert interval() == (low, high)
    assert interval(resamples=50) != (low, high)
    assert interval(seed=1) != (low, high)
