"""The interval that decides a promotion. Whole classes, sessions or groups vary in it, not single pictures."""

import tracemalloc

import numpy as np
import pytest

from executor.evaluation.eval_set import score_embeddings
from executor.evaluation.intervals import bootstrap_interval, cluster_interval, joined
from executor.evaluation.metrics import DECIDING, METRICS, Scores, score_classes, score_instances, score_sessions
from executor.evaluation.proof import caution, paired_difference, verdict


def differences(classes: int, sizes: int | np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """What a model gains on each query where the truth is 0: (Q,) float64, and the queries' classes (Q,) int64."""
    clusters = np.repeat(np.arange(classes), sizes)
    return rng.normal(0, 0.07, classes)[clusters] + rng.normal(0, 0.11, len(clusters)), clusters


def scores(values: np.ndarray, clusters: np.ndarray | None = None, unit: str = "class") -> Scores:
    return Scores(dict.fromkeys(METRICS, values), 0, np.arange(len(values)), clusters, unit)


def tried(classes: int, trials: int = 1000, largest: int = 10) -> tuple[float, float]:
    """How often the interval covers the truth, 0, and how often it lies above; classes have 2 to `largest` queries."""
    rng = np.random.default_rng(classes)
    found = np.array(
        [cluster_interval(*differences(classes, rng.integers(2, largest + 1, classes), rng)) for _ in range(trials)]
    )
    return float(((found[:, 0] <= 0) & (found[:, 1] >= 0)).mean()), float((found[:, 0] > 0).mean())


@pytest.mark.parametrize("classes", [2, 3, 5, 10, 20, 40])
def test_the_interval_covers_the_truth_in_95_of_100_cases_and_a_model_that_is_not_better_is_rarely_proven(classes):
    covered, proven = tried(classes)
    assert 0.93 <= covered <= (0.975 if classes >= 20 else 1)
    assert proven <= 0.035


def test_single_queries_would_cover_the_truth_far_too_rarely():
    rng = np.random.default_rng(0)
    found = [cluster_interval(differences(20, 10, rng)[0]) for _ in range(300)]
    assert np.mean([low <= 0 <= high for low, high in found]) < 0.8


def test_the_interval_of_classes_is_wider_than_that_of_their_queries_where_classes_differ():
    values, clusters = differences(20, 10, np.random.default_rng(0))
    low, high = cluster_interval(values, clusters)
    low_alone, high_alone = cluster_interval(values)
    assert low < low_alone < high_alone < high


def test_classes_of_one_query_each_have_students_interval():
    from scipy.stats import ttest_1samp

    values = np.random.default_rng(0).normal(size=12)
    expected = tuple(ttest_1samp(values, 0).confidence_interval(0.9))
    assert cluster_interval(values, np.arange(12), level=0.9) == pytest.approx(expected)
    assert cluster_interval(values, level=0.9) == pytest.approx(expected)


def test_classes_of_one_size_have_students_interval_of_their_means():
    from scipy.stats import ttest_1samp

    values, clusters = differences(8, 5, np.random.default_rng(0))
    expected = ttest_1samp(values.reshape(8, 5).mean(1), 0).confidence_interval()
    assert cluster_interval(values, clusters) == pytest.approx(tuple(expected))


def test_a_class_with_most_of_the_queries_does_not_make_a_narrow_interval():
    rng = np.random.default_rng(0)
    found = [cluster_interval(*differences(10, np.array([200, *[5] * 9]), rng)) for _ in range(500)]
    assert np.mean([low <= 0 <= high for low, high in found]) >= 0.93


def test_the_numbers_and_the_order_of_the_classes_do_not_matter():
    rng = np.random.default_rng(0)
    values, clusters = differences(9, rng.integers(1, 20, 9), rng)
    order = rng.permutation(len(values))
    again = cluster_interval(values[order], 1000 - 7 * clusters[order])
    assert again == pytest.approx(cluster_interval(values, clusters))


@pytest.mark.parametrize("queries", [1, 2, 500])
def test_one_class_never_proves_anything(queries):
    before, after = (scores(np.full(queries, value), np.zeros(queries, int)) for value in (0.1, 0.9))
    assert paired_difference(before, after) == (pytest.approx(0.8), -1, 1)
    assert not verdict(before, after)[0]
    assert caution(after) == "One class alone proves nothing."


def test_one_query_never_proves_anything():
    better, sentence = verdict(scores(np.array([0.0]), unit="query"), scores(np.array([1.0]), unit="query"))
    assert not better
    assert "on 1 query:" in sentence
    assert caution(scores(np.array([1.0]), unit="query")) == "One query alone proves nothing."


@pytest.mark.parametrize(("sessions", "proven"), [(2, False), (5, False), (6, True)])
def test_a_few_sessions_that_gain_the_same_may_do_so_by_chance(sessions, proven):
    before, after = (scores(np.full(sessions, value), unit="session") for value in (0.5, 1.0))
    assert verdict(before, after)[0] is proven


def test_coins_that_are_flipped_are_not_proven_better():
    rng = np.random.default_rng(0)
    for sessions in (2, 3, 4, 5, 6, 10):
        gains = rng.choice([-1.0, 0.0, 1.0], (2000, sessions), p=[0.25, 0.5, 0.25])
        assert np.mean([cluster_interval(row)[0] > 0 for row in gains]) <= 0.035


def test_equal_models_are_never_proven_better():
    rng = np.random.default_rng(0)
    embeddings, labels = rng.normal(size=(60, 8)).astype(np.float32), np.arange(60) % 12
    for kept in (60, 20, 14):  # 14: two classes of two
        same = score_classes(embeddings[:kept], labels[:kept].tolist())
        difference, low, high = paired_difference(same, same)
        assert low <= difference == 0 <= high
        assert not verdict(same, same)[0]


def test_the_same_scores_have_the_same_interval():
    values, clusters = differences(7, 5, np.random.default_rng(0))
    assert cluster_interval(values, clusters) == cluster_interval(values, clusters)


def test_no_query_and_clusters_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="No query was scored"):
        cluster_interval(np.array([]))
    with pytest.raises(ValueError, match="2 clusters for 3 queries"):
        cluster_interval(np.zeros(3), np.array([0, 1]))
    with pytest.raises(ValueError, match="2 clusters for 3 queries"):
        joined(np.array([0, 1, 2]), np.array([0, 1]))


def test_a_hundred_thousand_queries_take_little_memory():
    values, clusters = differences(1000, 100, np.random.default_rng(0))
    cluster_interval(values[:100], clusters[:100])  # scipy is loaded once
    tracemalloc.start()
    try:
        cluster_interval(values, clusters)
        cluster_interval(values)
        joined(clusters, np.arange(len(values)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 40 * 2**20


def test_resamples_are_drawn_in_parts_that_take_little_memory():
    values = np.random.default_rng(0).random(20_000)
    tracemalloc.start()
    try:
        bootstrap_interval(values, 0.95, 1000, seed=0)  # all at once: 320 MB
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100 * 2**20


# --- what rises and falls together ---------------------------------------------------------------------------------


def test_groups_within_a_class_leave_the_class_as_it_is():
    assert joined(np.array([5, 5, 5, 2, 2]), np.array([0, 0, 1, 2, 3])).tolist() == [1, 1, 1, 0, 0]


def test_a_group_that_spans_two_classes_joins_them():
    assert joined(np.array([0, 0, 1, 1, 2, 2]), np.array([7, 8, 8, 9, 4, 5])).tolist() == [0, 0, 0, 0, 1, 1]


def test_classes_that_are_linked_through_a_third_one_are_joined():
    assert joined(np.array([0, 1, 1, 2, 3]), np.array([0, 0, 1, 1, 2])).tolist() == [0, 0, 0, 0, 1]


def test_documents_of_no_group_are_not_joined():
    assert joined(np.array([0, 1, 2]), np.array([-1, -1, -1])).tolist() == [0, 1, 2]
    assert joined(np.array([0, 1, 2]), np.array([-1, 3, 3])).tolist() == [0, 1, 1]


def test_the_clusters_of_classes_are_their_labels_where_something_else_fits():
    embeddings = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    scored = score_classes(embeddings, ["a", "b", "a", "alone", "b"])
    assert (scored.unit, scored.units, scored.queries) == ("class", 2, 4)
    assert scored.clusters.tolist() == [0, 1, 0, 1]


def test_sessions_and_pictures_without_labels_stand_alone_unless_they_are_in_a_group():
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(6, 4)).astype(np.float32)
    alone = score_instances(embeddings, embeddings)
    assert (alone.unit, alone.units) == ("query", 6)
    bursts = alone.grouped(np.array([0, 0, 0, 1, 1, -1]))
    assert (bursts.unit, bursts.units) == ("group", 3)
    sessions = score_sessions(embeddings[:2], embeddings[2:], [0, 0, 1, 1], [1, -1, 1, -1])
    assert (sessions.unit, sessions.units) == ("session", 2)
    assert sessions.grouped(np.array([3, 4])).unit == "session"
    assert sessions.grouped(np.array([3, 3])).units == 1


def test_groups_reach_the_scores_of_classes_and_of_the_roots_of_sessions():
    embeddings = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    by_class = score_embeddings("class", embeddings, np.array([0, 0, 1, 1, 2, 2]), groups=np.array([0, 1, 1, 2, 3, 3]))
    assert (by_class.unit, by_class.clusters.tolist()) == ("group", [0, 0, 0, 0, 1, 1])
    labels = np.array([[0, 0], [0, 1], [0, -1], [1, 0], [1, 1], [1, -1]])
    by_session = score_embeddings("session", embeddings, labels, groups=np.array([4, 5, 6, 4, 7, 8]))
    assert by_session.clusters.tolist() == [0, 0]


# --- what the verdict says -----------------------------------------------------------------------------------------


def gain(classes: int, gained: float = 0.05) -> tuple[Scores, Scores]:
    values, clusters = differences(classes, 10, np.random.default_rng(0))
    low = np.full(len(values), 0.4)
    return scores(low, clusters), scores(low + 0.1 * values + gained, clusters)


def test_the_verdict_says_on_how_many_queries_of_how_many_classes():
    assert "on 200 queries of 20 classes:" in verdict(*gain(20))[1]
    embeddings = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
    sessions = score_sessions(embeddings[:2], embeddings, [0, 0, 1, 1], [1, -1, 1, -1])
    assert "on 2 sessions:" in verdict(sessions, sessions)[1]


def test_of_fewer_than_20_classes_it_is_said_that_they_prove_little():
    assert "Few classes prove little" in caution(gain(19)[1])
    assert caution(gain(20)[1]) == ""


def test_a_gain_in_all_of_a_few_classes_is_proven_and_a_loss_is_not():
    before, after = gain(4)
    assert verdict(before, after)[0]
    assert not verdict(after, before)[0]
    assert verdict(before, after, by="mean")[0]


def test_a_single_metric_stays_within_its_range():
    values, clusters = differences(3, 4, np.random.default_rng(0))
    low, high = scores(np.clip(0.95 + values, 0, 1), clusters).interval(DECIDING)
    assert 0 <= low < high == 1
    assert scores(np.full(5, 0.5), np.zeros(5, int)).interval(DECIDING) == (0, 1)
