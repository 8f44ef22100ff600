"""What to do with an index when the model changes: the figures, the advice, and what it says."""

import re

import numpy as np
import pytest
import torch

from executor import ClassDataset, Document, DocumentArray, InstanceDataset, SessionDataset
from executor.documents import Match
from executor.evaluation.eval_set import EvalSet, Measured, score_embeddings
from executor.evaluation.index_plan import ANEW, INDEX, NOTHING, QUERIES, IndexPlan, measure_plan
from executor.evaluation.metrics import DECIDING, score_instances
from executor.models.space_map import SpaceMap, unit_length

CLASSES, EACH, SIZE = 30, 8, 16
LABELS = np.repeat(np.arange(CLASSES), EACH)
CPU = torch.device("cpu")
TURN = np.linalg.qr(np.random.default_rng(5).normal(size=(SIZE, SIZE)))[0].astype(np.float32)


def eval_set() -> EvalSet:
    docs = DocumentArray(Document(text="x", tags={"finetuner_label": int(label)}) for label in LABELS)
    return EvalSet(ClassDataset(docs), np.arange(len(LABELS)), device=CPU)


def seen_with(noise: float, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(9).normal(size=(CLASSES, SIZE))
    return unit_length((centres[LABELS] + noise * random.normal(size=(len(LABELS), SIZE))).astype(np.float32))


def measured(vectors: np.ndarray) -> Measured:
    return Measured(score_embeddings("class", vectors, LABELS), vectors)


def straight(matrix: np.ndarray) -> SpaceMap:
    return SpaceMap(shift=np.zeros(matrix.shape[1], np.float32), dense=matrix.astype(np.float32))


def plan(old: np.ndarray, new: np.ndarray, forward: np.ndarray, backward: np.ndarray, **changes: object) -> IndexPlan:
    settings = {"version": "shop", "tolerance": 0.02} | changes
    return measure_plan(
        eval_set(), measured(old), measured(new), forward=straight(forward), backward=straight(backward), **settings
    )


def test_a_space_that_was_only_turned_needs_mapped_queries_and_nothing_else() -> None:
    old = seen_with(0.8)
    found = plan(old, old @ TURN, TURN, TURN.T)
    assert found.advice == QUERIES
    whole = found.figures[ANEW]
    assert whole is not None
    assert found.figures[NOTHING][0] < whole[0] / 2
    for way in (QUERIES, INDEX):
        assert found.figures[way] == pytest.approx(whole)
        assert found.losses[way] == pytest.approx((0, 0, 0), abs=1e-9)


def test_few_queries_that_happen_to_lose_nothing_prove_nothing() -> None:
    few = np.repeat(np.arange(10), 4)
    docs = DocumentArray(Document(text="x", tags={"finetuner_label": int(label)}) for label in few)
    apart = np.eye(SIZE, dtype=np.float32)[few]  # every query is found before and after
    same = Measured(score_embeddings("class", apart, few), apart)
    found = measure_plan(
        EvalSet(ClassDataset(docs), np.arange(len(few)), device=CPU),
        same,
        same,
        version="shop",
        forward=straight(np.eye(SIZE)),
        backward=straight(np.eye(SIZE)),
        tolerance=0.02,
    )
    assert found.losses[NOTHING] == (0, 0, 0)
    assert found.advice == ANEW
    assert "no cheaper way is proven to lose at most 0.02" in found.sentence()


def test_a_space_that_stayed_as_it_was_needs_nothing() -> None:
    old = seen_with(0.8)
    found = plan(old, old, np.eye(SIZE), np.eye(SIZE))
    assert found.advice == NOTHING
    assert "leave the index and the queries as they are (nothing)" in found.sentence()


def test_the_index_is_mapped_where_that_alone_is_within_the_tolerance() -> None:
    old = seen_with(0.8)
    assert plan(old, old @ TURN, TURN, np.eye(SIZE)).advice == INDEX


def test_a_base_that_was_poor_has_to_be_embedded_anew() -> None:
    poor, good = seen_with(4.0), seen_with(0.5, seed=1)
    assert plan(poor, good, np.eye(SIZE), np.eye(SIZE)).advice == ANEW


def test_a_loss_that_may_exceed_the_tolerance_is_not_advised_though_its_mean_does_not() -> None:
    new, old = seen_with(0.8), seen_with(0.8)
    old[::40] = seen_with(0.8, seed=3)[::40] * -1  # a few are lost
    found = plan(old, new, np.eye(SIZE), np.eye(SIZE), tolerance=0.0)
    mean, low, high = found.losses[NOTHING]
    assert low < mean < high
    assert plan(old, new, np.eye(SIZE), np.eye(SIZE), tolerance=(mean + high) / 2).advice == ANEW
    assert plan(old, new, np.eye(SIZE), np.eye(SIZE), tolerance=high).advice == NOTHING


def test_what_loses_on_classes_never_seen_is_not_advised() -> None:
    unseen = (0, 1, 2, 3, 4, 5)
    new = seen_with(0.5)
    old = np.where(np.isin(LABELS, unseen)[:, None], seen_with(4.0, seed=7), new)
    tolerance = plan(old, new, np.eye(SIZE), np.eye(SIZE)).losses[NOTHING][2]
    assert plan(old, new, np.eye(SIZE), np.eye(SIZE), tolerance=tolerance).advice == NOTHING
    careful = plan(old, new, np.eye(SIZE), np.eye(SIZE), tolerance=tolerance, unseen=unseen)
    assert careful.advice == ANEW
    assert re.search(r"On the 6 classes never seen: 0\.\d{3} if nothing is done", careful.sentence())


def test_the_status_has_exactly_these_fields_and_what_is_impossible_is_empty() -> None:
    old, new = seen_with(0.8), seen_with(0.8)[:, :10]
    found = plan(old, new, np.eye(SIZE)[:, :10], np.eye(SIZE)[:10])
    status = found.as_status()
    assert list(status) == ["from", "advice", "nothing", "map queries", "map index", "embed anew"]
    assert (status["from"], status["nothing"]) == ("shop", [])
    assert all(len(status[way]) == 3 for way in (QUERIES, INDEX, ANEW))
    assert status[ANEW][0] == pytest.approx(measured(new).scores.mean()[DECIDING])
    assert found.advice != NOTHING
    assert "There is none if nothing is done, as the sizes differ." in found.sentence()


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        ((-0.008, -0.033, 0.017), "it gains 0.008 (-0.017 to 0.033), and may lose 0.02."),
        ((0.008, -0.017, 0.033), "it loses 0.008 (-0.017 to 0.033), and may lose 0.02."),
        ((-0.0001, 0.0, 0.0), "it loses 0.000 (0.000 to 0.000), and may lose 0.02."),
    ],
)
def test_what_is_gained_is_not_called_a_negative_loss(loss: tuple[float, float, float], said: str) -> None:
    figures = {INDEX: (0.7, 0.6, 0.8), ANEW: (0.7, 0.6, 0.8)}
    made = IndexPlan(version="shop", figures=figures, losses={INDEX: loss}, advice=INDEX, tolerance=0.02)
    assert made.sentence().endswith(said)


# --- how old and new vectors are searched together -------------------------------------------------------------------


def test_a_query_never_finds_its_own_document_in_another_space() -> None:
    queries = np.eye(4, dtype=np.float32)
    stored = np.eye(4, dtype=np.float32)  # each document is nearest to itself, and that does not count
    scores = score_embeddings("class", queries, np.array([0, 0, 1, 1]), stored=stored)
    assert scores.mean()[DECIDING] == 0
    swapped = score_embeddings("class", queries, np.array([0, 0, 1, 1]), stored=stored[[1, 0, 3, 2]])
    assert swapped.mean()[DECIDING] == 1


def test_sessions_compare_new_roots_with_old_matches() -> None:
    docs = DocumentArray(
        Document(text="r", matches=[Match(text="m", tags={"finetuner_label": sign}) for sign in (1, -1)])
        for _ in range(2)
    )
    items = EvalSet(SessionDataset(docs), np.arange(6), device=CPU)
    east, north = [1.0, 0.0], [0.0, 1.0]
    stored = np.array([north, east, north, north, east, north], np.float32)
    queries = np.array([east, north, north, north, north, north], np.float32)
    scores = items.search(queries, stored)
    assert scores.per_query["recall_at_1"].tolist() == [1.0, 0.0]


def test_documents_without_labels_compare_the_first_view_with_the_stored_second() -> None:
    random = np.random.default_rng(0)
    first, second = random.normal(size=(2, 12, 4)).astype(np.float32)
    docs = DocumentArray(Document(text="x") for _ in range(12))
    items = EvalSet(InstanceDataset(docs), np.arange(12), device=CPU)
    old = Measured(score_instances(first, second), first, second)
    assert old.stored is second
    assert items.search(first, old.stored).mean() == old.scores.mean()
