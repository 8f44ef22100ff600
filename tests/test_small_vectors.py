"""Shortened and encoded vectors: what they keep, how they are packed, and how much they lose."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from executor import ClassDataset, Document, DocumentArray
from executor.errors import InvalidParameter, WorkspaceError
from executor.evaluation.eval_set import EvalSet, Measured
from executor.evaluation.metrics import score_classes
from executor.evaluation.small_vector_scores import score_small_vectors
from executor.models.small_vectors import (
    FILE,
    KEPT,
    Encoding,
    SmallVectors,
    learn_small_vectors,
    read_small_vectors,
    without_documents,
    write_small_vectors,
)
from executor.models.space_map import unit_length

SIZE = 40
ENCODINGS: tuple[Encoding, ...] = get_args(Encoding)


def embeddings(count: int = 500, seed: int = 0, low: float = -1.0) -> np.ndarray:
    """Unit vectors that mostly lie in ten directions; with `low` 0 all values are positive, as after a ReLU."""
    random = np.random.default_rng(seed)
    directions = np.random.default_rng(9).normal(size=(10, SIZE))
    values = random.normal(size=(count, 10)) @ directions + 0.3 * random.normal(size=(count, SIZE))
    return unit_length((np.maximum(values, 0) if low == 0 else values).astype(np.float32))


@pytest.fixture(scope="module")
def small() -> SmallVectors:
    return learn_small_vectors(embeddings(), unit=True)


def test_the_first_components_keep_most_of_the_cosines(small: SmallVectors) -> None:
    fresh = embeddings(seed=1)
    short = small(fresh, 10, "float")
    assert short.shape == (500, 10)
    assert short.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(short, axis=1), 1, atol=1e-5)
    assert np.abs(short @ short.T - fresh @ fresh.T).mean() < 0.05
    np.testing.assert_allclose(
        small.shortened(fresh, SIZE) @ small.shortened(fresh, SIZE).T, fresh @ fresh.T, atol=1e-5
    )


@pytest.mark.parametrize("dimensions", [None, 10, SIZE])
def test_int8_is_the_nearest_multiple_of_the_scale_and_uses_its_range(
    small: SmallVectors, dimensions: int | None
) -> None:
    fresh = embeddings(seed=1)
    plain, whole = small(fresh, dimensions, "float"), small(fresh, dimensions, "int8")
    assert whole.dtype == np.int8
    scale = small.scale if dimensions in (None, SIZE) else 8 / dimensions**0.5 / 127 if dimensions > 64 else 1 / 127
    inside = np.abs(whole) < 127
    np.testing.assert_allclose((whole * scale)[inside], plain[inside], atol=scale * 0.501)
    assert (whole > -128).all()
    assert np.abs(whole).max() > 60
    assert inside.mean() > 0.999


def test_binary_has_eight_values_to_a_byte_the_first_in_the_highest_bit(small: SmallVectors) -> None:
    fresh = embeddings(seed=1)
    for dimensions in (None, 10, 12):
        packed = small(fresh, dimensions, "binary")
        values = small(fresh, dimensions, "float")
        assert packed.dtype == np.uint8
        assert packed.shape == (500, -(-values.shape[1] // 8))
        assert (packed[:, 0] >= 128).tolist() == (values[:, 0] > 0).tolist()
        np.testing.assert_array_equal(np.unpackbits(packed, axis=1, count=values.shape[1]), values > 0)


def test_bits_of_values_that_are_never_negative_still_tell_vectors_apart() -> None:
    positive = embeddings(low=0)
    small = learn_small_vectors(positive, unit=True)
    bits = np.unpackbits(small(embeddings(seed=1, low=0), None, "binary"), axis=1)
    assert 0.2 < bits.mean() < 0.8
    bits = np.unpackbits(without_documents(SIZE, unit=True, two_sided=False)(positive, None, "binary"), axis=1)
    assert (bits.std(axis=0) > 0).mean() > 0.5


def test_without_documents_it_is_the_same_everywhere_and_good_enough_to_search() -> None:
    one, other = (without_documents(SIZE, unit=True, two_sided=True) for _ in range(2))
    fresh = embeddings(seed=1)
    for dimensions, encoding in ((16, "float"), (None, "int8"), (None, "binary"), (16, "int8")):
        np.testing.assert_array_equal(one(fresh, dimensions, encoding), other(fresh, dimensions, encoding))
    whole = one(fresh, None, "int8").astype(np.float32)
    assert (unit_length(whole) * fresh).sum(1).min() > 0.999


def test_the_space_says_what_was_done(small: SmallVectors) -> None:
    assert small.suffix(None, "float") == ""
    assert small.suffix(SIZE, "float") == ""  # all there are
    assert small.suffix(8, "float") == "/8"
    assert small.suffix(None, "int8") == "/int8"
    assert small.suffix(8, "binary") == "/8/binary"


def test_all_dimensions_are_the_plain_vector(small: SmallVectors) -> None:
    fresh = embeddings(3, 1)
    np.testing.assert_array_equal(small(fresh, SIZE, "float"), fresh)
    np.testing.assert_array_equal(small(fresh, SIZE, "int8"), small(fresh, None, "int8"))


def test_what_there_is_not_is_refused_by_name(small: SmallVectors) -> None:
    with pytest.raises(InvalidParameter, match=f"'dimensions' is {SIZE + 1}, but the embeddings have {SIZE} values"):
        small(embeddings(), SIZE + 1, "float")
    with pytest.raises(InvalidParameter, match="There are: float, binary"):
        without_documents(SIZE, unit=False, two_sided=True)(embeddings(), None, "int8")


def test_a_matrix_is_made_once_and_only_the_last_few_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    real = np.linalg.qr

    def counting(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        made.append(values.shape[1])
        return real(values)

    small = learn_small_vectors(embeddings(), unit=True)
    monkeypatch.setattr(np.linalg, "qr", counting)
    with ThreadPoolExecutor(4) as callers:
        first, *others = callers.map(lambda _: small.matrix(30, "float"), range(4))
    assert made == [30]
    assert all(other is first for other in others)
    for dimensions in range(1, KEPT + 1):
        small.matrix(dimensions, "int8")
    assert small.matrix(1, "float") is small.matrix(1, "binary")
    assert made == [30, *range(1, KEPT + 1)]
    again = small.matrix(30, "float")
    assert made[-1] == 30  # it was forgotten meanwhile, and is the same
    np.testing.assert_array_equal(again, first)


@pytest.mark.parametrize("two_sided", [True, False])
def test_with_its_matrix_at_hand_nothing_is_made(two_sided: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    small, fresh = without_documents(SIZE, unit=True, two_sided=two_sided), embeddings(3, 1)
    forms: list[tuple[int | None, Encoding]] = [(dims, form) for dims in (None, 12, SIZE) for form in ENCODINGS]
    wanted = [(small(fresh, *form), small.matrix(*form)) for form in forms]
    small = without_documents(SIZE, unit=True, two_sided=two_sided)
    monkeypatch.setattr(np.linalg, "qr", None)
    for form, (vectors, matrix) in zip(forms, wanted, strict=True):
        np.testing.assert_array_equal(small(fresh, *form, matrix), vectors)


def test_what_is_written_is_read_again(tmp_path: Path, small: SmallVectors) -> None:
    assert read_small_vectors(tmp_path) is None
    fresh = embeddings(seed=1)
    for written in (small, without_documents(SIZE, unit=False, two_sided=False)):
        write_small_vectors(tmp_path, written)
        read = read_small_vectors(tmp_path)
        assert read is not None
        for dimensions, encoding in ((8, "float"), (None, "binary")):
            np.testing.assert_array_equal(read(fresh, dimensions, encoding), written(fresh, dimensions, encoding))
    (tmp_path / FILE).write_bytes(b"nonsense")
    with pytest.raises(WorkspaceError, match="damaged"):
        read_small_vectors(tmp_path)


def test_very_long_vectors_keep_as_many_components_as_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("executor.models.small_vectors.WHOLE_BASIS", 30)
    monkeypatch.setattr("executor.models.small_vectors.MOST_OF_LONGER", 20)
    for count in (500, 12):  # more and fewer documents than components
        small = learn_small_vectors(embeddings(count), unit=True)
        np.testing.assert_allclose(small.rotation.T @ small.rotation, np.eye(20), atol=1e-5)
        assert np.abs(small(embeddings(count), 10, "float")).max() <= 1
        with pytest.raises(InvalidParameter, match=r"40 values \(shortened: at most 20\)"):
            small(embeddings(), 21, "float")


def test_each_form_is_scored_and_what_loses_more_takes_less_room() -> None:
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(30), 10)
    centres = random.normal(size=(30, 160))
    vectors = unit_length((centres[labels] + 2.2 * random.normal(size=(300, 160))).astype(np.float32))
    dataset = ClassDataset(DocumentArray(Document(text="x", tags={"finetuner_label": int(label)}) for label in labels))
    eval_set = EvalSet(dataset, np.arange(300), device=torch.device("cpu"))
    measured = Measured(score_classes(vectors, labels.tolist()), vectors)
    small = learn_small_vectors(vectors, unit=True)
    scores = {
        (score.dimensions, score.encoding, score.rescored): score
        for score in score_small_vectors(eval_set, measured, small)
    }
    assert set(scores) == {
        (size, encoding, rescored)
        for size in (160, 128, 64)
        for encoding, rescored in (("float", False), ("int8", False), ("binary", False), ("binary", True))
    }
    assert scores[160, "float", False].difference == 0
    assert (scores[160, "float", False].size, scores[64, "int8", False].size) == (640, 64)
    assert scores[64, "binary", False].size == 8
    assert abs(scores[160, "int8", False].difference) < 0.01
    for size in (160, 128, 64):
        assert scores[size, "binary", False].value < scores[size, "binary", True].value
    assert scores[160, "binary", True].difference > scores[160, "binary", False].difference
    assert scores[64, "binary", False].value < scores[160, "binary", False].value


def test_equal_bits_are_decided_by_chance_and_not_against_the_model() -> None:
    """With all bits equal, a search finds what chance finds: R / (N - 1) at each place."""
    labels = np.repeat(np.arange(2), 100)
    same = np.ones((200, 64), np.float32) / 8
    dataset = ClassDataset(DocumentArray(Document(text="x", tags={"finetuner_label": int(label)}) for label in labels))
    eval_set = EvalSet(dataset, np.arange(200), device=torch.device("cpu"))
    measured = Measured(score_classes(same, labels.tolist()), same)
    small = without_documents(64, unit=True, two_sided=True)
    (bits,) = [s for s in score_small_vectors(eval_set, measured, small) if s.encoding == "binary" and not s.rescored]
    assert 0.15 < bits.value < 0.4  # about half of each half
    assert measured.scores.mean()["mean_average_precision_at_r"] == 0
