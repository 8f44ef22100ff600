"""How a trained model is judged: the proof against the served version, and what to know before trusting it."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from executor import ClassDataset, Document, DocumentArray, SessionDataset
from executor.documents import Match
from executor.evaluation.eval_set import EvalSet, Measured
from executor.evaluation.metrics import score_classes
from executor.parameters import TrainingOptions
from executor.training.micro_batch import MicroBatch
from executor.training.recipe import Outcome, Task, fine_tune
from executor.training.watching import Watcher
from executor.worker.inspection import Inspection
from executor.worker.judgement import Judgement, judge, why_unproven

CLASSES, EACH = 30, 8


def task(labels: list[int], proof: np.ndarray | None) -> Task:
    docs = DocumentArray(Document(text="x", tags={"finetuner_label": label}) for label in labels)
    dataset = ClassDataset(docs)
    items = np.arange(len(dataset))
    eval_set = None if proof is None else EvalSet(dataset, proof, device=torch.device("cpu"))
    return Task(dataset=dataset, items=items if proof is None else np.setdiff1d(items, proof), eval_set=eval_set)


def measured(noise: float | np.ndarray, seed: int, labels: np.ndarray) -> Measured:
    """A model that sees each class at a place of its own, more or less clearly."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(9).normal(size=(CLASSES, 16))
    embeddings = centres[labels] + np.reshape(noise, (-1, 1)) * random.normal(size=(len(labels), 16))
    return Measured(score_classes(embeddings.astype(np.float32), labels.tolist()), embeddings)


LABELS = np.repeat(np.arange(CLASSES), EACH)
WHOLE = task([*LABELS.tolist(), *LABELS.tolist()], np.arange(len(LABELS)))


def judged(served: Measured | None, tuned: Measured | None, of: Task = WHOLE, **arguments: Any) -> Judgement:
    history = arguments.pop("history", {"loss": [2.0, 1.0]})
    chosen = {"weights": arguments.pop("weights", "of the last epoch"), "chosen_by": arguments.pop("chosen_by", 0)}
    outcome = Outcome(history=history, before=served, after=tuned, **chosen)
    settings = {"whole_classes": (), "promote_by": "interval", "unproven": "The model is unproven.", "noticed": []}
    return judge(of, outcome, served, served_version="shop", **settings | arguments)


def test_a_clearly_better_model_is_better_than_the_one_served() -> None:
    found = judged(measured(1.0, 0, LABELS), measured(0.5, 0, LABELS))
    assert found.better is True
    assert found.verdict.startswith("Against the version served (shop), mAP@R went from ")
    assert set(found.metrics) >= {"served/mrr", "tuned/mrr"}
    assert found.warnings == []


def test_a_worse_model_and_the_same_model_are_not_better() -> None:
    served = measured(0.7, 0, LABELS)
    assert judged(served, measured(1.0, 0, LABELS)).better is False
    assert judged(served, served).better is False


def test_without_a_proof_it_is_neither_and_the_verdict_says_how_to_serve_it_all_the_same() -> None:
    found = judged(None, None, task(LABELS.tolist(), None))
    assert found.better is None
    assert "unproven" in found.verdict
    assert "/promote" in found.verdict


def test_a_model_that_has_become_worse_on_classes_held_out_whole_is_not_called_better() -> None:
    unseen = (0, 1, 2, 3, 4, 5)
    noise = np.where(np.isin(LABELS, unseen), 2.5, 0.3)
    found = judged(measured(1.0, 0, LABELS), measured(noise, 0, LABELS), whole_classes=unseen)
    assert found.metrics["tuned/mean_average_precision_at_r"] > found.metrics["served/mean_average_precision_at_r"]
    assert found.metrics["tuned/unseen/mrr"] < found.metrics["served/unseen/mrr"]
    assert found.better is False
    assert "On 6 classes that it has never seen" in found.verdict
    assert "proven worse" in found.verdict


def test_a_gain_that_the_documents_are_too_few_to_prove_is_said_with_what_they_could_show() -> None:
    for seed in range(20):
        served, tuned = measured(0.80, seed, LABELS), measured(0.79, seed + 1, LABELS)
        gain = tuned.scores.mean()["mean_average_precision_at_r"] - served.scores.mean()["mean_average_precision_at_r"]
        found = judged(served, tuned)
        told = any("too few to prove the gain that was measured" in warning for warning in found.warnings)
        assert told == (gain > 0 and not found.better)


@pytest.mark.parametrize("classes", [2, 3])
def test_an_automatic_run_is_judged_by_no_fewer_than_20_queries(classes: int) -> None:
    few = LABELS[: classes * EACH]
    found = judged(measured(1.0, 0, few), measured(0.3, 0, few), chance=0.01)
    assert (found.better is None) == (len(few) < 20)
    assert ("judged by 20 queries or more, not 16" in found.verdict) == (len(few) < 20)
    assert "tuned/mrr" in found.metrics
    assert judged(measured(1.0, 0, few), measured(0.3, 0, few)).better is not None  # a run that a person started


# --- which weights the model has -------------------------------------------------------------------------------------

CPU = torch.device("cpu")


def test_the_verdict_says_that_there_was_nothing_to_choose_an_epoch_by() -> None:
    said = "It has the weights of the last epoch: the documents are too few to choose an epoch by."
    assert judged(measured(1.0, 0, LABELS), measured(0.5, 0, LABELS)).verdict.endswith(f"which is better. {said}")
    assert said in judged(None, None, task(LABELS.tolist(), None)).verdict


def test_the_verdict_says_which_epoch_was_chosen_and_by_what() -> None:
    found = judged(measured(1.0, 0, LABELS), measured(0.5, 0, LABELS), weights="of epoch 3 of 5", chosen_by=40)
    assert found.verdict.endswith(" It has the weights of epoch 3 of 5: the best on 40 documents kept to choose by.")


def layer(of: Task, options: TrainingOptions) -> Outcome:
    """What became of the training of a single layer."""
    parts = MicroBatch(None, say=print)
    return fine_tune(nn.Linear(4, 4), of, options, device=CPU, watcher=Watcher(), micro_batch=parts, max_cache_bytes=0)


def trained(choose: bool, **options: Any) -> Outcome:
    """What became of a training for 3 epochs on vectors that an untrained layer tells apart already."""
    random = np.random.default_rng(0)
    blobs = [np.eye(4)[number % 4] + random.normal(0, 0.01, 4) for number in range(80)]
    dataset = ClassDataset(
        DocumentArray(
            Document(blob=blob.astype(np.float32), tags={"finetuner_label": number % 4})
            for number, blob in enumerate(blobs)
        )
    )
    kept = EvalSet(dataset, np.arange(40), device=CPU) if choose else None
    of = Task(dataset=dataset, items=np.arange(40, 80), choose_set=kept)
    return layer(of, TrainingOptions(epochs=3, precision="fp32", **options))


@pytest.mark.parametrize(
    ("choose", "options", "weights"),
    [
        (False, {}, "of the last epoch"),
        (False, {"ema": 0.9}, "averaged up to the last epoch"),
        (True, {}, "of epoch 1 of 3"),  # all epochs are equally good, and the first of them is kept
        (True, {"ema": 0.9}, "averaged up to epoch 1 of 3"),
    ],
)
def test_a_training_tells_which_weights_it_has_left(choose: bool, options: dict[str, Any], weights: str) -> None:
    outcome = trained(choose, **options)
    assert outcome.weights == weights
    assert outcome.used["weights"] == weights


def test_an_epoch_is_chosen_by_nothing_where_the_documents_to_choose_by_have_nothing_to_find() -> None:
    blobs = np.random.default_rng(0).normal(size=(24, 3, 4)).astype(np.float32)
    dataset = SessionDataset(
        DocumentArray(
            Document(
                blob=blob[0],
                matches=[
                    Match(blob=blob[1], tags={"finetuner_label": 1 if number < 12 else -1}),
                    Match(blob=blob[2], tags={"finetuner_label": -1}),
                ],
            )
            for number, blob in enumerate(blobs)
        )
    )
    no_hits = EvalSet(dataset, np.flatnonzero(dataset.labels[:, 0] >= 12), device=CPU)
    task = Task(dataset=dataset, items=np.flatnonzero(dataset.labels[:, 0] < 12), choose_set=no_hits)
    outcome = layer(task, TrainingOptions(epochs=2, precision="fp32", patience=1))
    assert (outcome.weights, outcome.chosen_by) == ("of the last epoch", 0)


# --- what to know before trusting it ---------------------------------------------------------------------------------


def test_a_loss_that_hardly_fell_is_said_and_one_that_fell_is_not() -> None:
    served = measured(0.8, 0, LABELS)
    assert any("hardly fell" in warning for warning in judged(served, served, history={"loss": [1.0, 0.99]}).warnings)
    assert not any("hardly" in warning for warning in judged(served, served, history={"loss": [1.0, 0.9]}).warnings)
    assert not any("hardly" in warning for warning in judged(served, served, history={"loss": [1.0]}).warnings)


def test_labels_with_one_document_and_labels_without_a_proof_are_named() -> None:
    labels = [*LABELS.tolist(), 100, 101, 101]
    found = judged(measured(1, 0, LABELS), measured(1, 1, LABELS), task(labels, np.flatnonzero(LABELS < 20)))
    assert any(warning.startswith("1 labels have a single document (100)") for warning in found.warnings)
    assert any("12 of 12 labels have too few documents to hold some out" in warning for warning in found.warnings)


@pytest.mark.parametrize(
    ("val_split", "documents", "reason"),
    [("auto", 12, "send 28 more"), ("auto", 500, "do not belong together"), (0.0, 500, "val_split is 0")],
)
def test_why_there_is_no_proof_is_said(val_split: float | str, documents: int, reason: str) -> None:
    assert reason in why_unproven(task(LABELS.tolist(), None), val_split, documents)


# --- what is seen of the documents -----------------------------------------------------------------------------------


def seen(*tags: dict[str, Any]) -> Inspection:
    inspection = Inspection()
    for each in tags:
        inspection.see(Document(text="x", tags=each))
    return inspection


@pytest.mark.parametrize("name", ["label", "Label", "class", "category", "finetuner-label", "labels", "class_name"])
def test_a_tag_that_looks_like_a_label_is_said(name: str) -> None:
    (warning,) = seen({name: 1}, {name: 2}).warnings()
    assert warning.startswith(f"2 documents have tags[{name!r}] and no tags['finetuner_label']")


@pytest.mark.parametrize("name", ["price", "colour", "finetuner_group", "classy", "yes"])
def test_another_tag_is_not(name: str) -> None:
    assert seen({name: 1}).warnings() == []


def test_a_document_that_has_a_label_may_have_such_tags_besides() -> None:
    assert seen({"finetuner_label": 1, "category": "shoe"}).warnings() == []


def test_groups_are_kept_in_the_order_of_the_documents() -> None:
    assert seen({"finetuner_group": "a"}, {}, {"finetuner_group": 1}).groups == ["'a'", None, "1"]
