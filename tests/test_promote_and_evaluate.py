"""`/promote`, `/evaluate` and `/cancel`: which version is served and why, how good it is, and how to end a run."""

import base64
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import psutil
import pytest
import requests
from jina.excepts import BadServer

from conftest import coloured, encoded
from executor import Document, DocumentArray
from executor.documents import Evaluation, Match, RunStatus
from executor.evaluation.metrics import METRICS
from serving import Service


def tinted(label: int, seed: int) -> np.ndarray:
    """An image, 16 × 16 × 3, whose label is the difference of its red and its blue; brightness and green vary more."""
    random = np.random.default_rng([label, seed])
    grey, green, tint = random.integers(60, 190), random.integers(0, 255), 45 * (label - 1)
    image = np.array([grey + tint, green, grey - tint]) + random.integers(-10, 10, (16, 16, 3))
    return np.clip(image, 0, 255).astype(np.uint8)


def tints(count: int, prefix: str, first_seed: int) -> DocumentArray:
    return DocumentArray(
        Document(
            id=f"{prefix}{number}",
            blob=tinted(number % 3, first_seed + number),
            tags={"finetuner_label": number % 3},
        )
        for number in range(count)
    )


def colours(count: int, prefix: str = "c") -> DocumentArray:
    return DocumentArray(
        Document(id=f"{prefix}{number}", blob=coloured(number % 3, number), tags={"finetuner_label": number % 3})
        for number in range(count)
    )


def evaluate(service: Service, docs: DocumentArray | None = None, **parameters: Any) -> Evaluation:
    (evaluation,) = service.post("/evaluate", docs, returns=Evaluation, **parameters)
    return evaluation


def trainers(service: Service) -> list[psutil.Process]:
    """The trainer processes of a service."""
    children = psutil.Process(service.process.pid).children(recursive=True)
    return [child for child in children if "train" in child.cmdline()]


# --- promotion by proof ----------------------------------------------------------------------------------------------


def train(service: Service, run: str, *, documents: int, held: int, **parameters: Any) -> RunStatus:
    """A run to its end, with `held` eval documents; the status shows the version that is served then."""
    if held:
        service.post("/fit", tints(held, "held", 10_000), returns=RunStatus, run=run, split="eval", **parameters)
    docs = tints(documents, "train", 0)
    service.post("/fit", docs, returns=RunStatus, run=run, total=documents, **parameters)
    status = service.wait(run)
    assert status.state == "succeeded", status.error
    return status


# Each run follows the one before, so that the version served before it is known.


@pytest.fixture(scope="module")
def better(service: Service) -> RunStatus:
    return train(service, "better", documents=48, held=60, epochs=8, batch_size=24, num_items_per_class=8)


@pytest.fixture(scope="module")
def not_better(service: Service, better: RunStatus) -> RunStatus:
    return train(service, "not-better", documents=12, held=12, epochs=1, learning_rate=1e-9)


@pytest.fixture(scope="module")
def always(service: Service, not_better: RunStatus) -> RunStatus:
    return train(service, "always", documents=12, held=12, epochs=1, learning_rate=1e-9, promote="always")


@pytest.fixture(scope="module")
def never(service: Service, always: RunStatus) -> RunStatus:
    return train(service, "never", documents=12, held=0, epochs=1, promote="never")


@pytest.fixture(scope="module")
def unproven(service: Service, never: RunStatus) -> RunStatus:
    return train(service, "unproven", documents=12, held=0, epochs=1)


def test_a_model_that_is_proven_better_is_promoted(better: RunStatus) -> None:
    name = "mean_average_precision_at_r"
    assert better.metrics[f"tuned/{name}"] > better.metrics[f"base/{name}"]
    assert (better.promoted, better.model) == (True, "better")
    assert "which is better. It was promoted." in better.verdict


def test_a_model_that_is_not_proven_better_is_not_promoted(not_better: RunStatus) -> None:
    assert (not_better.promoted, not_better.model) == (False, "better")
    assert "does not prove it better. It was not promoted (promote=if_better)." in not_better.verdict


def test_promote_always_promotes_without_proof(always: RunStatus) -> None:
    assert (always.promoted, always.model) == (True, "always")
    assert "does not prove it better. It was promoted." in always.verdict


def test_promote_never_leaves_the_served_version_alone(never: RunStatus) -> None:
    assert (never.promoted, never.model) == (False, "always")
    assert "It was not promoted (promote=never)." in never.verdict


def test_without_eval_documents_a_model_is_promoted_and_said_to_be_unproven(unproven: RunStatus) -> None:
    assert (unproven.promoted, unproven.model, unproven.metrics) == (True, "unproven", {})
    assert "unproven" in unproven.verdict


# --- /promote --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["grpc", "http", "websocket"])
def test_promoting_a_run_serves_it_and_promoting_base_rolls_back(
    service: Service, never: RunStatus, protocol: str
) -> None:
    (status,) = service.post("/promote", protocol=protocol, returns=RunStatus, run="never")
    assert (status.run, status.promoted, status.model) == ("never", True, "never")
    assert service.post("/embed", colours(1), returns=Document)[0].tags["finetuner_model"] == "never"
    statuses = service.post("/promote", protocol=protocol, returns=RunStatus, run="base")
    assert {status.model for status in statuses} == {"base"}
    assert service.post("/embed", colours(1), returns=Document)[0].tags["finetuner_model"] == "base"


@pytest.mark.parametrize("name", ["nobody", "half-way"])
def test_promoting_what_has_no_model_is_refused_by_name_and_changes_nothing(
    service: Service, better: RunStatus, name: str
) -> None:
    if name == "half-way":
        service.post("/fit", colours(2), returns=RunStatus, run=name)
        service.post("/cancel", returns=RunStatus, run=name)
    service.post("/promote", returns=RunStatus, run="base")
    with pytest.raises(BadServer, match=name):
        service.post("/promote", returns=RunStatus, run=name)
    assert service.status("better").model == "base"


def test_promote_needs_to_be_told_what(service: Service) -> None:
    response = service.http("/promote")
    assert response.status_code >= 400
    assert response.json()["detail"] == "/promote needs the parameter 'run'; it accepts: run."


# --- /evaluate -------------------------------------------------------------------------------------------------------


def test_evaluate_returns_exactly_the_six_metrics(service: Service) -> None:
    evaluation = evaluate(service, colours(12), model="base")
    assert set(evaluation.metrics) == set(METRICS)
    assert all(0 <= value <= 1 for value in evaluation.metrics.values())
    assert (evaluation.model, evaluation.queries, evaluation.skipped) == ("base", 12, 0)


def test_evaluate_over_http_returns_one_plain_document(service: Service) -> None:
    data = [
        {"uri": "data:image/png;base64," + base64.b64encode(encoded(doc.blob)).decode(), "tags": doc.tags}
        for doc in colours(12)
    ]
    (answer,) = service.http("/evaluate", data, model="base").json()["data"]
    over_grpc = evaluate(service, colours(12), model="base")
    assert (answer["model"], answer["queries"], answer["skipped"]) == ("base", 12, 0)
    assert answer["metrics"] == pytest.approx(over_grpc.metrics, abs=1e-4)


def test_the_query_itself_is_in_neither_ranking_nor_relevant_set(service: Service) -> None:
    same, other = coloured(0), coloured(2)
    docs = DocumentArray(
        Document(id=str(number), blob=image, tags={"finetuner_label": label})
        for number, (image, label) in enumerate([(same, 0), (other, 0), (same, 1), (other, 1)])
    )
    metrics = evaluate(service, docs, model="base").metrics
    assert metrics["recall_at_1"] == metrics["precision_at_1"] == metrics["mean_average_precision_at_r"] == 0.0


def test_a_label_with_one_document_is_skipped_as_a_query(service: Service) -> None:
    docs = colours(6)
    docs.append(Document(id="single", blob=coloured(3), tags={"finetuner_label": 99}))
    evaluation = evaluate(service, docs, model="base")
    assert (evaluation.queries, evaluation.skipped) == (6, 1)


def test_a_document_that_cannot_be_embedded_is_skipped(service: Service) -> None:
    docs = colours(6)
    docs.append(Document(id="bad", uri="nowhere.png", tags={"finetuner_label": 0}))
    evaluation = evaluate(service, docs, model="base")
    assert (evaluation.queries, evaluation.skipped) == (6, 1)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_1_and_1_0_and_true_are_one_label_and_the_text_1_is_another(service: Service, protocol: str) -> None:
    labels: tuple[Any, ...] = (1, 1.0, True, "1", 2, 2.0)
    data = [
        {
            "id": f"d{number}",
            "uri": "data:image/png;base64," + base64.b64encode(encoded(coloured(number))).decode(),
            "tags": {"finetuner_label": label},
        }
        for number, label in enumerate(labels)
    ]
    if protocol == "http":
        answer = service.http("/evaluate", data, model="base").json()["data"][0]
        counts = answer["queries"], answer["skipped"]
    else:
        evaluation = evaluate(service, DocumentArray(Document(**fields) for fields in data), model="base")
        counts = evaluation.queries, evaluation.skipped
    assert counts == (5, 1)


def test_the_parameter_run_evaluates_on_the_eval_documents_of_that_run(service: Service, better: RunStatus) -> None:
    for version, which in (("better", "tuned"), ("base", "base")):
        evaluation = evaluate(service, run="better", model=version)
        assert (evaluation.model, evaluation.queries) == (version, 60)
        of_the_run = {name: better.metrics[f"{which}/{name}"] for name in METRICS}
        assert evaluation.metrics == pytest.approx(of_the_run, abs=1e-4)


def test_evaluate_measures_the_promoted_version_by_default(service: Service, better: RunStatus) -> None:
    service.post("/promote", returns=RunStatus, run="better")
    assert evaluate(service, colours(6)).model == "better"
    service.post("/promote", returns=RunStatus, run="base")
    assert evaluate(service, colours(6)).model == "base"


def test_sessions_are_evaluated_with_their_matches_as_candidates(service: Service) -> None:
    docs = DocumentArray(
        Document(
            id=f"s{number}",
            blob=coloured(number, 1),
            matches=[
                Match(blob=coloured(number + other, 2), tags={"finetuner_label": 1 if other == 0 else -1})
                for other in range(3)
            ],
        )
        for number in range(4)
    )
    evaluation = evaluate(service, docs, model="base")
    assert set(evaluation.metrics) == set(METRICS)
    assert (evaluation.queries, evaluation.skipped) == (4, 0)


@pytest.mark.parametrize(
    ("docs", "parameters", "reason"),
    [
        (None, {}, "no documents"),
        (None, {"run": "nobody"}, "nobody"),
        (None, {"run": "unproven"}, "has no eval documents"),
        ([{}, {"tags": {}}], {}, "finetuner_label"),
        ([{"tags": {"finetuner_label": 1}}, {}], {}, "mixture"),
        ([{"tags": {"finetuner_label": 1}}], {"model": "nobody"}, "nobody"),
        (None, {"k": 3}, "has no parameter 'k'"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_with_the_reason(
    service: Service,
    unproven: RunStatus,
    docs: list[dict[str, Any]] | None,
    parameters: dict[str, Any],
    reason: str,
) -> None:
    response = service.http("/evaluate", [fields | {"uri": "data:,"} for fields in docs or ()], **parameters)
    assert response.status_code >= 400
    assert reason in response.json()["detail"]


# --- /cancel ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def training(service: Service, request: pytest.FixtureRequest) -> Iterator[str]:
    """A run that would train for hours."""
    name = f"long-{request.node.name[-40:].replace('[', '-').replace(']', '')}"
    service.post("/fit", colours(12), returns=RunStatus, run=name, total=12, epochs=100_000)
    service.wait(name, until=lambda status: status.state == "training")
    yield name
    service.post("/cancel", returns=RunStatus, run=name)


@pytest.mark.parametrize("protocol", ["grpc", "http", "websocket"])
def test_a_run_in_training_is_cancelled_and_its_trainer_is_gone(service: Service, training: str, protocol: str) -> None:
    (trainer,) = trainers(service)
    (status,) = service.post("/cancel", protocol=protocol, returns=RunStatus, run=training)
    assert (status.run, status.state) == (training, "cancelled")
    assert status.ended_at
    trainer.wait(5)  # raises if it still runs
    assert trainers(service) == []


def test_a_run_that_has_made_steps_is_cancelled_for_good(service: Service, training: str) -> None:
    service.wait(training, until=lambda status: status.step > 2)
    service.post("/cancel", returns=RunStatus, run=training)
    assert trainers(service) == []
    assert service.status(training).state == "cancelled"


def test_a_receiving_run_is_cancelled_and_takes_no_more_documents(service: Service) -> None:
    service.post("/fit", colours(3), returns=RunStatus, run="receiving")
    (status,) = service.post("/cancel", returns=RunStatus, run="receiving")
    assert status.state == "cancelled"
    with pytest.raises(BadServer, match=r"is cancelled and takes no more documents"):
        service.post("/fit", colours(4), returns=RunStatus, run="receiving")


def test_a_queued_run_is_cancelled_and_the_one_in_training_goes_on(service: Service, training: str) -> None:
    service.post("/fit", colours(3), returns=RunStatus, run="queued", total=3)
    assert service.status("queued").state == "queued"
    (status,) = service.post("/cancel", returns=RunStatus, run="queued")
    assert (status.state, status.attempts, status.started_at) == ("cancelled", 0, None)
    assert service.status(training).state == "training"
    assert len(trainers(service)) == 1


def test_cancelling_again_changes_nothing(service: Service) -> None:
    service.post("/fit", colours(3), returns=RunStatus, run="twice")
    first = service.post("/cancel", returns=RunStatus, run="twice")[0]
    assert service.post("/cancel", returns=RunStatus, run="twice")[0] == first


def test_cancelling_an_ended_run_leaves_it_as_it_is(service: Service, better: RunStatus) -> None:
    assert service.post("/cancel", returns=RunStatus, run="better")[0].state == "succeeded"


@pytest.mark.parametrize(("parameters", "reason"), [({"run": "nobody"}, "There is no run 'nobody'"), ({}, "needs the")])
def test_cancelling_nothing_in_particular_is_refused(service: Service, parameters: dict[str, Any], reason: str) -> None:
    response: requests.Response = service.http("/cancel", **parameters)
    assert response.status_code >= 400
    assert reason in response.json()["detail"]


def test_after_a_cancelled_run_the_next_one_trains(
    service: Service, training: str, labelled: Callable[..., DocumentArray]
) -> None:
    service.post("/fit", labelled(12), returns=RunStatus, run="next", total=12, epochs=1, promote="never")
    service.post("/cancel", returns=RunStatus, run=training)
    assert service.wait("next").state == "succeeded"
