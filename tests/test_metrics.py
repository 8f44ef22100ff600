"""Retrieval metrics, compared with rankings worked by hand, pytorch-metric-learning and scikit-learn."""

from math import log2

import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from executor.evaluation import intervals, metrics
from executor.evaluation.metrics import METRICS, Scores, score_classes, score_instances, score_sessions
from executor.evaluation.proof import paired_difference


def at_degrees(*degrees: float) -> np.ndarray:
    """Unit vectors in the plane, (N, 2) float32: the nearer the angles, the more similar."""
    angles = np.radians(degrees)
    return np.stack((np.cos(angles), np.sin(angles)), axis=1).astype(np.float32)


def ranking(*labels: int) -> Scores:
    """The scores of one session whose matches are ranked in the order of `labels`."""
    matches = at_degrees(*range(1, len(labels) + 1))
    return score_sessions(at_degrees(0), matches, [0] * len(labels), labels)


def clusters(class_sizes: list[int], noise: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping random classes of these sizes in random order: (N, 16) float32 and (N,) int64."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(class_sizes)), class_sizes))
    centres = rng.normal(size=(len(class_sizes), 16))
    return (centres[labels] + noise * rng.normal(size=(len(labels), 16))).astype(np.float32), labels


SEVERAL_SIZES = [1, 2, 2, 3, 5, 8, 8, 13, 21, 40, 1]


# One ranking, worked by hand. Relevant items at ranks 2, 4 and 5 of 6: R = 3.
#   MAP@R: of the ranks only 2 is within R, where 1 of 2 is relevant: (1/2) / 3 = 1/6.
#   NDCG@10: (1/log2(3) + 1/log2(5) + 1/log2(6)) / (1/log2(2) + 1/log2(3) + 1/log2(4)).
BY_HAND = {
    "recall_at_1": 0,
    "recall_at_5": 1,
    "precision_at_1": 0,
    "mean_average_precision_at_r": 1 / 6,
    "ndcg_at_10": (1 / log2(3) + 1 / log2(5) + 1 / log2(6)) / (1 + 1 / log2(3) + 1 / 2),
    "mrr": 1 / 2,
}


@pytest.mark.parametrize("name", METRICS)
def test_relevant_items_at_ranks_2_4_and_5_score_as_worked_by_hand(name):
    assert ranking(-1, 1, -1, 1, 1, -1).mean()[name] == pytest.approx(BY_HAND[name])


@pytest.mark.parametrize("name", METRICS)
def test_a_perfect_ranking_scores_one(name):
    assert ranking(1, 1, 1, -1, -1).mean()[name] == pytest.approx(1)


def test_recall_at_5_asks_for_any_relevant_item_and_not_for_all():
    assert ranking(-1, -1, -1, -1, 1, 1, 1).mean()["recall_at_5"] == 1
    assert ranking(-1, -1, -1, -1, -1, 1, 1).mean()["recall_at_5"] == 0


def test_mean_average_precision_at_r_sums_the_precision_at_each_hit():
    # R = 4, hits at ranks 1 and 3 within the first 4: (1/1 + 2/3) / 4.
    assert ranking(1, -1, 1, -1, 1, 1).mean()["mean_average_precision_at_r"] == pytest.approx(5 / 12)


def test_ndcg_ignores_what_comes_after_rank_10():
    # Relevant at ranks 6 and 12; the ideal has both at the top: (1/log2(7)) / (1 + 1/log2(3)).
    labels = [1 if rank in (6, 12) else -1 for rank in range(1, 13)]
    assert ranking(*labels).mean()["ndcg_at_10"] == pytest.approx((1 / log2(7)) / (1 + 1 / log2(3)))


def test_the_ideal_of_ndcg_holds_no_more_than_10_relevant_items():
    assert ranking(*[1] * 12, -1).mean()["ndcg_at_10"] == pytest.approx(1)


def test_mrr_has_no_cut_off():
    assert ranking(*[-1] * 49, 1).mean()["mrr"] == pytest.approx(1 / 50)


def test_classes_score_as_worked_by_hand():
    # By angle: 0° a, 10° b, 30° a, 65° b. Rankings without the query, its class marked by *:
    #   0°: b a* b    10°: a a b*    30°: b a* b    65°: a b* a      R = 1, so MAP@R is 0 and MRR as below.
    scores = score_classes(at_degrees(0, 10, 30, 65), ["a", "b", "a", "b"])
    assert scores.per_query["mrr"] == pytest.approx([1 / 2, 1 / 3, 1 / 2, 1 / 2])
    assert scores.per_query["mean_average_precision_at_r"].tolist() == [0, 0, 0, 0]


def test_classes_agree_with_pytorch_metric_learning():
    import torch
    from pytorch_metric_learning.distances import CosineSimilarity
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
    from pytorch_metric_learning.utils.inference import CustomKNN

    names = {
        "precision_at_1": "precision_at_1",
        "mean_average_precision_at_r": "mean_average_precision_at_r",
        "mean_reciprocal_rank": "mrr",
    }
    embeddings, labels = clusters(SEVERAL_SIZES)
    calculator = AccuracyCalculator(
        include=tuple(names), k=len(labels) - 1, knn_func=CustomKNN(CosineSimilarity()), device=torch.device("cpu")
    )
    theirs = calculator.get_accuracy(torch.from_numpy(embeddings), torch.from_numpy(labels))
    ours = score_classes(embeddings, labels).mean()
    assert 0.1 < ours["mean_average_precision_at_r"] < 0.9
    assert {name: ours[name] for name in names.values()} == pytest.approx(
        {name: theirs[their_name] for their_name, name in names.items()}, abs=1e-6
    )


def test_ndcg_agrees_with_scikit_learn():
    embeddings, labels = clusters(SEVERAL_SIZES)
    scores = score_classes(embeddings, labels)
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    theirs = []
    for query in scores.query_index:
        others = np.arange(len(labels)) != query
        relevant = (labels[others] == labels[query]).astype(int)
        theirs.append(ndcg_score([relevant], [(unit @ unit[query])[others]], k=10))
    assert scores.per_query["ndcg_at_10"] == pytest.approx(theirs)


@pytest.mark.parametrize("chunk_bytes", [1, 20_000])
def test_small_chunks_score_as_one_chunk_does(monkeypatch, chunk_bytes):
    embeddings, labels = clusters(SEVERAL_SIZES)
    views = embeddings + np.float32(0.5)
    whole = [score_classes(embeddings, labels), score_instances(embeddings, views)]
    monkeypatch.setattr(metrics, "_CHUNK_BYTES", chunk_bytes)
    cut = [score_classes(embeddings, labels), score_instances(embeddings, views)]
    for one, many in zip(whole, cut, strict=True):
        for name in METRICS:
            assert many.per_query[name] == pytest.approx(one.per_query[name], abs=1e-12)


def test_scores_come_in_the_order_of_the_documents():
    embeddings, labels = clusters(SEVERAL_SIZES)
    backwards = score_classes(embeddings[::-1], labels[::-1])
    assert backwards.per_query["mrr"][::-1] == pytest.approx(score_classes(embeddings, labels).per_query["mrr"])
    assert backwards.query_index.tolist() == [i for i, label in enumerate(labels[::-1]) if label not in (0, 10)]


def test_a_query_does_not_find_itself_even_beside_an_exact_duplicate():
    # 0 and 1 are the same picture with different labels; the partner of each is far away.
    scores = score_classes(at_degrees(0, 0, 90, 180), [0, 1, 0, 1])
    assert scores.per_query["recall_at_1"][0] == 0
    assert scores.per_query["mrr"].tolist()[:2] == [1 / 2, 1 / 3]


def test_a_relevant_duplicate_is_found_first():
    scores = score_classes(at_degrees(0, 0, 5, 6), [0, 0, 1, 1])
    assert scores.per_query["recall_at_1"].tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("vector", [np.zeros(37), np.full(37, 0.1), np.random.default_rng(0).normal(size=37)])
def test_a_collapsed_model_finds_nothing(vector):
    collapsed = np.tile(vector.astype(np.float32), (101, 1))
    scores = score_classes(collapsed, np.sort(np.arange(101) % 10))
    for name in ("recall_at_1", "recall_at_5", "precision_at_1", "mean_average_precision_at_r", "ndcg_at_10"):
        assert not scores.per_query[name].any()
    assert scores.mean()["mrr"] == pytest.approx(1 / 91, rel=0.02)  # after all 90 or 91 others


def test_a_collapsed_model_finds_nothing_in_sessions_and_instances():
    same = np.ones((6, 3), dtype=np.float32)
    assert score_sessions(same[:2], same, [0, 0, 0, 1, 1, 1], [1, 1, -1, 1, -1, -1]).mean()["recall_at_1"] == 0
    assert score_instances(same, same).mean()["mrr"] == pytest.approx(1 / 6)


def test_differences_too_small_for_float32_cosines_still_rank():
    # Cosines differ by about 1e-9, as in a nearly collapsed model; in float32 all of them are 1.
    embeddings = np.array([[1, 0], [1, 1e-5], [1, 9e-5], [1, 1e-4]], dtype=np.float32)
    assert score_classes(embeddings, [0, 0, 1, 1]).mean()["recall_at_1"] == 1


def test_the_length_of_an_embedding_does_not_matter():
    embeddings, labels = clusters(SEVERAL_SIZES)
    lengths = np.random.default_rng(1).uniform(0.1, 10, size=(len(labels), 1)).astype(np.float32)
    assert score_classes(embeddings * lengths, labels).mean() == pytest.approx(score_classes(embeddings, labels).mean())


def test_autocast_does_not_reach_the_measurement():
    import torch

    embeddings, labels = clusters(SEVERAL_SIZES)
    plain = score_classes(embeddings, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lowered = score_classes(embeddings, labels)
    assert lowered.mean() == plain.mean()


def test_documents_alone_in_their_class_are_skipped_and_counted():
    scores = score_classes(at_degrees(0, 10, 20, 30), ["alone", "pair", "pair", "lonely"])
    assert (scores.skipped, scores.queries, scores.query_index.tolist()) == (2, 2, [1, 2])


def test_documents_alone_in_their_class_remain_candidates():
    scores = score_classes(at_degrees(0, 10, 40), ["pair", "alone", "pair"])
    assert scores.per_query["mrr"].tolist() == [1 / 2, 1 / 2]


def test_integers_and_strings_are_different_labels():
    scores = score_classes(at_degrees(0, 10, 20, 30), [1, "1", 1, "2"])
    assert scores.query_index.tolist() == [0, 2]


def test_string_labels_score_as_integers_do():
    embeddings, labels = clusters(SEVERAL_SIZES)
    assert score_classes(embeddings, [f"class {label}" for label in labels]).mean() == pytest.approx(
        score_classes(embeddings, labels).mean()
    )


@pytest.mark.parametrize("documents", [0, 3])
def test_nothing_to_score_has_no_mean(documents):
    scores = score_classes(np.ones((documents, 2), dtype=np.float32), list(range(documents)))
    assert (scores.queries, scores.skipped, scores.mean()) == (0, documents, {})


def test_the_candidates_of_a_session_are_its_own_matches():
    # The matches of session 1 lie nearer to root 0 than its own, and come between them.
    matches = at_degrees(20, 1, 30, 91)
    scores = score_sessions(at_degrees(0, 90), matches, [0, 1, 0, 1], [1, -1, -1, 1])
    assert scores.per_query["recall_at_1"].tolist() == [1, 1]


def test_sessions_without_a_positive_or_without_a_negative_are_skipped_and_counted():
    # Session 0 has only a negative, 1 both, 2 only a positive, 3 no matches.
    scores = score_sessions(at_degrees(0, 0, 0, 0), at_degrees(1, 2, 3, 4), [0, 1, 1, 2], [-1, 1, -1, 1])
    assert (scores.skipped, scores.query_index.tolist()) == (3, [1])
    assert scores.per_query["mrr"].tolist() == [1]


def test_sessions_of_several_sizes_score_as_each_does_alone(monkeypatch):
    monkeypatch.setattr(metrics, "_CHUNK_BYTES", 300)
    rng = np.random.default_rng(0)
    owners = rng.integers(0, 20, size=120)
    labels = rng.choice([1, -1], size=120)
    roots, matches = rng.normal(size=(20, 4)), rng.normal(size=(120, 4))
    together = score_sessions(roots, matches, owners, labels)
    assert together.queries > 15
    for position, session in enumerate(together.query_index):
        own = owners == session
        alone = score_sessions(roots[session : session + 1], matches[own], [0] * own.sum(), labels[own])
        assert {name: together.per_query[name][position] for name in METRICS} == pytest.approx(alone.mean())


def test_an_instance_is_sought_among_the_second_views_of_all():
    # Each first view is nearer to the other document's second view: 0° to -10° than to 20°, 50° to 20° than to -10°.
    scores = score_instances(at_degrees(0, 50), at_degrees(20, -10))
    assert scores.per_query["mrr"].tolist() == [1 / 2, 1 / 2]
    assert score_instances(at_degrees(0, 50), at_degrees(1, 51)).mean()["recall_at_1"] == 1


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_embeddings_that_are_not_finite_are_refused_with_their_count(value):
    embeddings = at_degrees(0, 10, 20, 30)
    embeddings[[1, 3], 0] = value
    with pytest.raises(ValueError, match="2 of 4 embeddings"):
        score_classes(embeddings, [0, 0, 1, 1])


def test_labels_that_do_not_fit_the_embeddings_are_refused():
    with pytest.raises(ValueError, match="3 labels for 4 embeddings"):
        score_classes(at_degrees(0, 10, 20, 30), [0, 0, 1])


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (lambda good, bad: score_sessions(bad, good, [0] * 4, [1, -1, 1, -1]), "1 of 4 embeddings in roots"),
        (lambda good, bad: score_sessions(good, bad, [0] * 4, [1, -1, 1, -1]), "1 of 4 embeddings in matches"),
        (lambda good, bad: score_instances(bad, good), "1 of 4 embeddings in first"),
        (lambda good, bad: score_instances(good, bad), "1 of 4 embeddings in second"),
        (lambda good, bad: score_instances(good, good[:3]), "There are 3 second views for 4 embeddings"),
        (lambda good, bad: score_instances(good, good[:, :1]), r"first and second have different dimensions: \[1, 2\]"),
        (lambda good, bad: score_sessions(good[:, :1], good, [0] * 4, [1] * 4), "roots and matches have different"),
        (lambda good, bad: score_classes(good[0], [0, 0]), r"embeddings has shape \(2,\); it must be \(N, D\)"),
    ],
)
def test_embeddings_that_do_not_fit_are_refused_with_what_they_are(score, message):
    good = at_degrees(0, 10, 20, 30)
    bad = good.copy()
    bad[2, 1] = np.nan
    with pytest.raises(ValueError, match=message):
        score(good, bad)


@pytest.mark.parametrize(
    ("sessions", "labels", "message"),
    [
        ([0, 0], [1, 0], r"^A match has a label other than"),
        ([0, 1], [1, -1], "outside 0 to 0"),
        ([0], [1, -1], "1 sessions for 2"),
        ([0, 0], [1], "1 labels for 2"),
        ([0, -1], [1, -1], "outside 0 to 0"),
    ],
)
def test_sessions_that_do_not_fit_are_refused(sessions, labels, message):
    with pytest.raises(ValueError, match=message):
        score_sessions(at_degrees(0), at_degrees(1, 2), sessions, labels)


def scored(values: np.ndarray) -> Scores:
    return Scores(dict.fromkeys(METRICS, values), skipped=0, query_index=np.arange(len(values)))


def test_the_interval_covers_the_mean_and_is_as_wide_as_the_normal_approximation():
    values = np.random.default_rng(0).uniform(size=400)
    low, high = scored(values).interval("mrr")
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)


def test_the_interval_shrinks_with_more_queries_and_grows_with_the_level():
    values = np.random.default_rng(0).uniform(size=4000)

    def width(n: int, level: float = 0.95) -> float:
        low, high = scored(values[:n]).interval("mrr", level=level)
        return high - low

    assert width(4000) < width(400) / 2
    assert width(400, level=0.8) < width(400)


def test_the_interval_is_the_same_for_the_same_seed_whatever_the_chunks(monkeypatch):
    scores = scored(np.random.default_rng(0).uniform(size=50))
    before = scores.interval("mrr", seed=3)
    monkeypatch.setattr(intervals, "_CHUNK_BYTES", 16 * 50 * 7)
    assert scores.interval("mrr", seed=3) == before
    assert scores.interval("mrr", seed=4) != before
    assert scores.interval("mrr", seed=3, resamples=50) != before


def test_the_interval_of_one_query_is_its_value():
    assert scored(np.array([0.25])).interval("mrr") == (0.25, 0.25)


def test_the_interval_of_no_query_is_refused():
    with pytest.raises(ValueError, match=r"^No query was scored, so there is nothing to take an interval of"):
        scored(np.array([])).interval("mrr")


def test_identical_scores_differ_by_exactly_zero():
    embeddings, labels = clusters(SEVERAL_SIZES)
    assert paired_difference(score_classes(embeddings, labels), score_classes(embeddings, labels)) == (0, 0, 0)


def test_a_clear_improvement_is_proven_and_its_reverse_is_a_loss():
    before = score_classes(*clusters(SEVERAL_SIZES, noise=1.0))
    after = score_classes(*clusters(SEVERAL_SIZES, noise=0.3))
    mean, low, high = paired_difference(before, after)
    assert 0 < low < mean < high
    name = "mean_average_precision_at_r"
    assert mean == pytest.approx(after.mean()[name] - before.mean()[name])
    assert paired_difference(after, before)[2] < 0


def test_pairing_proves_a_gain_that_two_separate_intervals_would_not():
    values = np.random.default_rng(0).uniform(0, 0.9, size=100)
    before, after = scored(values), scored(values + 0.01)
    assert before.interval("mrr")[1] > after.interval("mrr")[0]
    assert paired_difference(before, after, "mrr")[1] > 0


def test_scores_of_different_queries_are_not_compared():
    embeddings = at_degrees(0, 10, 20, 30)
    with pytest.raises(ValueError, match="different queries"):
        paired_difference(score_classes(embeddings, [0, 0, 1, 2]), score_classes(embeddings, [0, 1, 2, 2]))


# clusters, candidates and a nearness of one's own ---------------------------------------------------------------------


def scores_of(clusters: list[int] | None) -> Scores:
    """Scores of four queries, at the positions 0, 1, 3 and 4 of five documents."""
    values = np.array([0.1, 0.2, 0.3, 0.4])
    return Scores(
        {"recall_at_1": values},
        skipped=1,
        query_index=np.array([0, 1, 3, 4]),
        clusters=None if clusters is None else np.array(clusters),
        unit="query" if clusters is None else "class",
    )


def test_units_are_clusters_and_without_any_the_queries() -> None:
    assert scores_of(None).units == 4
    assert scores_of([7, 7, 2, 7]).units == 2


@pytest.mark.parametrize(
    ("clusters", "groups", "joined", "unit"),
    [
        (None, [0, 0, 0, 1, 2], [0, 0, 1, 2], "group"),  # the third document is no query
        ([5, 5, 6, 7], [-1, 0, -1, 0, -1], [0, 0, 0, 1], "group"),
        ([5, 5, 6, 7], [0, 0, -1, 1, 2], [0, 0, 1, 2], "class"),  # nothing is joined
        (None, [-1] * 5, [0, 1, 2, 3], "query"),
    ],
)
def test_queries_of_a_group_are_in_one_cluster(clusters, groups, joined, unit) -> None:
    scores = scores_of(clusters)
    grouped = scores.grouped(np.array(groups))
    assert grouped.unit == unit
    assert grouped.units == len(set(joined))
    if grouped.clusters is not None:
        same = grouped.clusters[:, None] == grouped.clusters
        np.testing.assert_array_equal(same, np.array(joined)[:, None] == np.array(joined))
    assert grouped.per_query is scores.per_query
    assert scores.unit == ("query" if clusters is None else "class"), "it is not changed itself"


def test_no_queries_are_grouped_into_none() -> None:
    none = score_classes(np.eye(3, dtype=np.float32), [0, 1, 2])
    assert none.grouped(np.array([0, 0, 0])) is none


@pytest.mark.parametrize("clusters", [None, [5, 5, 6, 7]])
def test_the_scores_of_some_queries_are_theirs_alone(clusters) -> None:
    scores = scores_of(clusters).of(np.array([True, False, True, True, False]))
    np.testing.assert_array_equal(scores.per_query["recall_at_1"], [0.1, 0.3])
    np.testing.assert_array_equal(scores.query_index, [0, 3])
    assert (scores.skipped, scores.unit) == (0, "query" if clusters is None else "class")
    if clusters is None:
        assert scores.clusters is None
    else:
        np.testing.assert_array_equal(scores.clusters, [5, 6])


def test_the_interval_of_clusters_stays_among_the_possible_and_is_wider_at_a_higher_level() -> None:
    values = np.array([0.0, 0.02, 0.5, 1.0, 0.97, 0.4])
    scores = Scores({"recall_at_1": values}, 0, np.arange(6), np.array([0, 0, 1, 2, 2, 1]), "class")
    assert scores.interval("recall_at_1") == (0.0, 1.0)
    narrow, low = scores.interval("recall_at_1", level=0.5), float(values.mean())
    assert 0 < narrow[0] < low < narrow[1] < 1


def test_what_a_cluster_is_is_said_by_each_kind() -> None:
    vectors = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    classes = score_classes(vectors, [0, 0, 1, 1, 1, 2])
    assert (classes.unit, classes.units) == ("class", 2)
    np.testing.assert_array_equal(classes.clusters, [0, 0, 1, 1, 1])
    assert score_sessions(vectors[:2], vectors[2:], [0, 0, 1, 1], [1, -1, 1, -1]).unit == "session"
    assert score_instances(vectors, vectors).clusters is None


def test_queries_are_compared_with_the_candidates_that_are_given() -> None:
    queries = np.eye(4, dtype=np.float32)
    stored = queries[[1, 0, 3, 2]]  # the partner of each query lies where the query does
    scores = score_classes(queries, [0, 0, 1, 1], candidates=stored)
    assert scores.mean()["recall_at_1"] == 1
    assert score_classes(queries, [0, 0, 1, 1]).mean()["recall_at_1"] == 0
    with pytest.raises(ValueError, match=r"candidates"):
        score_classes(queries, [0, 0, 1, 1], candidates=stored[:3])


def test_a_nearness_of_ones_own_is_asked_for_the_queries_of_a_size_and_takes_the_place_of_the_cosine() -> None:
    vectors = np.random.default_rng(1).normal(size=(7, 4)).astype(np.float32)
    labels = [0, 1, 0, 1, 1, 0, 0]
    asked: list[tuple[list[int], int]] = []

    def cosine(rows: np.ndarray, relevant: int) -> np.ndarray:
        asked.append((sorted(rows.tolist()), relevant))
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return unit[rows].astype(np.float64) @ unit.T.astype(np.float64)

    found = score_classes(vectors, labels, nearness=cosine)
    assert asked == [([1, 3, 4], 2), ([0, 2, 5, 6], 3)]
    expected = score_classes(vectors, labels)
    for name in METRICS:
        np.testing.assert_allclose(found.per_query[name], expected.per_query[name])
