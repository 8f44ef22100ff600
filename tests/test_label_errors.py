"""Neighbours show which labels are wrong, even if the model has learned the wrong labels by heart."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from executor.compute.ranks import ALONE
from executor.documents import Document, DocumentArray
from executor.errors import BadDocument
from executor.evaluation.eval_set import EvalSet
from executor.evaluation.label_errors import find_label_errors
from executor.loading.datasets import ClassDataset, InstanceDataset
from executor.models.building import build_model
from executor.models.model import ModelConfig
from executor.worker import label_check
from executor.worker.label_check import Part, check_labels, features_of

pytestmark = pytest.mark.compute

CPU = torch.device("cpu")
WRONG = 0.1


def flipped(labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The labels with a tenth of them wrong, and which these are."""
    random = np.random.default_rng(seed)
    wrong = np.zeros(len(labels), bool)
    wrong[random.permutation(len(labels))[: round(WRONG * len(labels))]] = True
    return np.where(wrong, (labels + random.integers(1, 10, len(labels))) % 10, labels), wrong


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    pixels, labels = load_digits(return_X_y=True)
    return pixels.astype(np.float32), labels


# --- what is found -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("strength", [0, 40], ids=["knows nothing of the labels", "has learned them by heart"])
def test_wrong_labels_are_found_whatever_the_tuned_model_has_learned(digits, seed, strength):
    pixels, labels = digits
    given, wrong = flipped(labels, seed)
    tuned = np.concatenate([pixels, strength * np.eye(10, dtype=np.float32)[given]], axis=1)
    check = find_label_errors(pixels, tuned, given)
    assert check.extent == "all"
    assert wrong[check.suspects].mean() >= 0.8  # of pixels; with networks: benchmarks/label_errors.py
    assert wrong[check.suspects].sum() >= 0.95 * wrong.sum()
    assert (check.suggested == labels[check.suspects])[wrong[check.suspects]].mean() > 0.95
    assert (np.diff(check.margins) <= 0).all()
    assert wrong[check.suspects[:20]].mean() > 0.95


def test_few_are_suspected_where_all_labels_are_right(digits):
    pixels, labels = digits
    check = find_label_errors(pixels, pixels, labels)
    assert check.accuracy > 0.95
    assert len(check.suspects) < 0.04 * len(labels)


def test_documents_that_belong_together_do_not_vouch_for_each_other(digits):
    pixels, labels = digits
    copies = np.repeat(np.arange(0, 600, 5), 8)  # a picture of each five, eight times
    pixels, labels = np.concatenate([pixels[:600], pixels[copies]]), np.concatenate([labels[:600], labels[copies]])
    units = np.concatenate([np.arange(600), copies])
    given = labels.copy()
    wrong = np.isin(units, [0, 50])
    given[wrong] = (labels[wrong] + 1) % 10
    apart, together = (find_label_errors(pixels, pixels, given, which) for which in (None, units))
    assert not wrong[apart.suspects].any()
    assert wrong[together.suspects].sum() == wrong.sum()


def test_where_the_features_say_nothing_of_the_labels_nothing_is_said():
    random = np.random.default_rng(0)
    features = random.normal(size=(600, 32)).astype(np.float32)
    for classes in (2, 10):
        check = find_label_errors(features, features, random.integers(0, classes, 600))
        assert check.extent == "none"
        assert not len(check.suspects)


def test_where_the_features_say_little_only_the_surest_are_suspected(digits):
    pixels, labels = digits
    given, wrong = flipped(labels, 0)
    random = np.random.default_rng(0)
    one, other = (pixels + random.normal(0, 5.5, pixels.shape).astype(np.float32) for _ in range(2))
    check = find_label_errors(one, other, given)
    assert check.extent == "surest"
    assert 0 < len(check.suspects) < wrong.sum()
    assert check.margins.min() >= 0.5
    assert wrong[check.suspects].mean() >= 0.85


def test_few_documents_are_not_judged_and_neither_is_a_label_of_few(digits):
    pixels, labels = digits
    assert find_label_errors(pixels[:99], pixels[:99], labels[:99]) is None
    rare = labels.copy()
    rare[:3] = 10
    assert not np.isin([0, 1, 2], find_label_errors(pixels, pixels, rare).suspects).any()
    assert find_label_errors(pixels[:300], pixels[:300], np.arange(300)) is None


def test_features_that_are_all_alike_break_nothing():
    check = find_label_errors(np.ones((200, 8), np.float32), np.ones((200, 8), np.float32), np.arange(200) % 2)
    assert check.extent == "none"


# --- in a run ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    return build_model(ModelConfig(model="small", input_size=16))


@pytest.fixture(scope="module")
def documents(digits) -> tuple[DocumentArray, np.ndarray]:
    """Digits of 16 × 16 pixels, labelled by words, a tenth of them wrongly."""
    pixels, labels = digits
    given, wrong = flipped(labels, 0)
    images = np.repeat(np.kron(pixels.reshape(-1, 8, 8) * 15.9, np.ones((2, 2)))[..., None], 3, axis=3)
    docs = DocumentArray(
        Document(id=f"doc-{number}", blob=image, tags={"finetuner_label": f"digit {label}"})
        for number, (image, label) in enumerate(zip(images.astype(np.uint8), given, strict=True))
    )
    return docs, wrong


def checked(parts, model, **how):
    defaults = {"prepared_for": lambda model, items: items, "check": lambda: None, "device": CPU, "ranks": ALONE}
    return check_labels(parts, model, model, **(defaults | how))


def part_of(name: str, docs: DocumentArray, first: int = 0) -> Part:
    dataset = ClassDataset(docs)
    return Part(name, EvalSet(dataset, np.arange(len(dataset)), device=CPU), first + np.arange(len(dataset)))


def test_documents_for_training_and_for_the_proof_judge_each_other(documents, model, monkeypatch):
    docs, wrong = documents
    monkeypatch.setattr(label_check, "SHOWN", 100)
    parts = [
        part_of("train", docs[:1200]),
        part_of("eval", docs[1200:], 1200),
    ]  # each numbers the labels in its own order
    errors = checked(parts, model)
    assert errors.checked == len(docs)
    assert errors.found > len(errors.suspects) == 100
    assert {suspect.part for suspect in errors.suspects} == {"train", "eval"}
    assert np.mean([wrong[int(suspect.name.removeprefix("doc-"))] for suspect in errors.suspects]) > 0.9
    for suspect in errors.suspects:
        assert suspect.caption.startswith("digit ")
        assert suspect.suggested.startswith("digit ")
        assert suspect.suggested != suspect.caption
        assert (suspect.id, suspect.given, suspect.proposed) == (suspect.name, suspect.caption, suspect.suggested)
        assert suspect.image.shape == (16, 16, 3)


def test_of_very_many_documents_a_share_of_each_part_is_checked(documents, model, monkeypatch):
    docs, _ = documents
    monkeypatch.setattr(label_check, "MOST", 300)
    assert 280 < checked([part_of("train", docs[:1200]), part_of("eval", docs[1200:], 1200)], model).checked <= 300


def test_documents_without_labels_are_not_checked(documents, model):
    dataset = InstanceDataset(documents[0][:200])
    part = Part("train", EvalSet(dataset, np.arange(200), device=CPU), np.arange(200))
    assert checked([part], model) is None


def test_documents_that_cannot_be_read_any_more_end_the_check_and_not_the_run(documents, model):
    def gone(model, items):
        raise BadDocument("it was there a minute ago")

    assert checked([part_of("train", documents[0])], model, prepared_for=gone) is None


def test_the_check_can_be_stopped_between_parts(documents, model):
    def stop():
        raise InterruptedError

    with pytest.raises(InterruptedError):
        checked([part_of("train", documents[0])], model, check=stop)


def test_features_are_those_before_the_head_unless_the_head_alone_was_trained(model):
    images = torch.zeros(2, 3, 16, 16)
    with torch.inference_mode():
        assert features_of(model)(images).shape == (2, model.features)
        frozen = build_model(ModelConfig(model="small", input_size=16, freeze=True))
        assert features_of(frozen)(images).shape == (2, frozen.dim)
