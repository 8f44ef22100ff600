"""`/evaluate` says how good a version is on the documents that are sent. On those of a run: test_proof.py."""

import base64
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from conftest import coloured, encoded, images
from executor import Document, DocumentArray
from executor.documents import Evaluation, Match, RunStatus
from executor.evaluation.metrics import METRICS
from sentences import assert_plain
from serving import DOOR, Service

pytestmark = pytest.mark.flow
URI = "data:image/png;base64," + base64.b64encode(encoded(coloured(0))).decode()


def evaluate(service: Service, docs: DocumentArray, **parameters: Any) -> Evaluation:
    (evaluation,) = service.post("/evaluate", docs, returns=Evaluation, **parameters)
    return evaluation


def test_evaluate_returns_exactly_the_six_metrics(service: Service) -> None:
    evaluation = evaluate(service, images(12), model="base")
    assert set(evaluation.metrics) == set(METRICS)
    assert all(0 <= value <= 1 for value in evaluation.metrics.values())
    assert (evaluation.model, evaluation.queries, evaluation.skipped) == ("base", 12, 0)


def test_evaluate_over_http_returns_one_plain_document(service: Service) -> None:
    data = [
        {"uri": "data:image/png;base64," + base64.b64encode(encoded(doc.blob)).decode(), "tags": doc.tags}
        for doc in images(12)
    ]
    (answer,) = service.http("/evaluate", data, model="base").json()["data"]
    over_grpc = evaluate(service, images(12), model="base")
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
    docs = images(6)
    docs.append(Document(id="single", blob=coloured(3), tags={"finetuner_label": 99}))
    evaluation = evaluate(service, docs, model="base")
    assert (evaluation.queries, evaluation.skipped) == (6, 1)


def test_a_document_that_cannot_be_embedded_is_skipped(service: Service) -> None:
    docs = images(6)
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
        (None, {"run": "without-eval"}, "has no eval documents"),
        ([{}, {"tags": {}}], {}, "finetuner_label"),
        ([{"tags": {"finetuner_label": 1}}, {}], {}, "mixture"),
        ([{"tags": {"finetuner_label": 1}}], {"model": "nobody"}, "nobody"),
        (None, {"k": 3}, "has no parameter 'k'"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_with_the_reason(
    service: Service,
    docs: list[dict[str, Any]] | None,
    parameters: dict[str, Any],
    reason: str,
) -> None:
    if parameters.get("run") == "without-eval":
        service.post("/fit", images(2), returns=RunStatus, run="without-eval")
        service.cancel("without-eval")
    response = service.http("/evaluate", [fields | {"uri": "data:,"} for fields in docs or ()], **parameters)
    assert response.status_code >= 400
    assert reason in response.json()["detail"]


@pytest.mark.parametrize(
    ("docs", "words"),
    [
        ([{"tags": {"finetuner_label": 1}}, {}], ["1 labelled (such as 'data[0]'), 1 with", "(such as 'data[1]')"]),
        (
            [{"matches": [{"uri": URI, "tags": {"finetuner_label": 5}}]}],
            ["Session 'data[0]': match 'data[0].matches[0]'"],
        ),
    ],
)
def test_documents_without_ids_are_named_by_their_places_and_no_kind_is_asked_for(
    service: Service, docs: list[dict[str, Any]], words: list[str]
) -> None:
    detail = service.http("/evaluate", [doc | {"uri": URI} for doc in docs], protocol=DOOR).json()["detail"]
    assert_plain(detail, *words)
    assert "kind" not in detail


@pytest.mark.parametrize("ids", [True, False])
def test_a_part_of_a_set_that_comes_twice_is_named_and_nothing_is_scored(service: Service, ids: bool) -> None:
    """Each of its documents would find itself: the figures would be near 1."""
    data = [
        {
            "id": f"d{n}" if ids else None,
            "uri": "data:image/png;base64," + base64.b64encode(encoded(coloured(n, n))).decode(),
            "tags": {"finetuner_label": n % 2},
        }
        for n in range(4)
    ]
    with ThreadPoolExecutor() as pool:
        sent = [pool.submit(service.http, "/evaluate", data, protocol=DOOR, model="base", total=8) for _ in range(2)]
    for answer in (each.result() for each in sent):
        assert answer.status_code == 400
        named = "Document 'd0'" if ids else "A document without an id"
        assert f"{named} came in two requests of this set" in answer.text
