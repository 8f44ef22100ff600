"""The limits of `/fit`, and of `/embed`. Each refuses with a sentence that names it. What was received before stays."""

from collections.abc import Iterator
from typing import Any

import pytest
from jina.excepts import BadServerFlow

from conftest import coloured
from executor import Document, DocumentArray
from executor.documents import RunStatus
from serving import Service, served

pytestmark = pytest.mark.flow

LIMITS = {
    "max_open_runs": 2,
    "max_documents_per_run": 4,
    "max_document_bytes": 5000,
    "max_request_bytes": 100_000,
    "receive_timeout": 1000.0,
    "max_queued_images": 64,
}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with served(tmp_path_factory.mktemp("limits"), **LIMITS) as running:
        yield running


@pytest.fixture(autouse=True)
def no_open_runs(service: Service) -> Iterator[None]:
    yield
    for status in service.post("/status", returns=RunStatus):
        service.http("/cancel", run=status.run)


def documents(first: int, count: int, size: int = 16) -> DocumentArray:
    return DocumentArray(
        Document(id=f"d{number}", blob=coloured(number % 2, number, size), tags={"finetuner_label": number % 2})
        for number in range(first, first + count)
    )


def refusal(service: Service, docs: list[dict[str, Any]], run: str) -> str:
    answer = service.http("/fit", docs, run=run)
    assert answer.status_code >= 400
    return str(answer.json()["detail"])


ONE = [{"id": "one", "uri": "data:,", "tags": {"finetuner_label": 1}}]


def test_more_documents_than_a_run_may_have_are_refused_and_the_others_stay(service: Service) -> None:
    service.post("/fit", documents(0, 4), returns=RunStatus, run="many")
    assert refusal(service, ONE, "many") == (
        "Run 'many' has 4 documents and max_documents_per_run is 4; start it, or raise that option of the executor."
    )
    assert service.status("many").train_documents == 4


def test_one_run_more_than_may_be_open_is_refused_until_another_ends(service: Service) -> None:
    for name in ("first", "second"):
        service.post("/fit", documents(0, 2), returns=RunStatus, run=name)
    assert refusal(service, ONE, "third") == (
        "2 runs are open, as many as max_open_runs allows; wait for one to end, cancel one, "
        "or raise that option of the executor."
    )
    assert service.http("/status", run="third").status_code >= 400
    service.http("/cancel", run="first")
    assert service.http("/fit", ONE, run="third").status_code == 200


def test_what_is_quarantined_and_what_matches_counts_too(service: Service) -> None:
    bad = [{"id": f"bad{number}", "uri": "/etc/passwd"} for number in range(4)]
    (status,) = service.http("/fit", bad, run="bad").json()["data"]
    assert (status["train_documents"], status["skipped"]) == (0, 4)
    assert "matches and quarantined ones included" in refusal(service, ONE, "bad")
    assert service.http("/fit", bad, run="bad").status_code == 200  # a retry is free
    matches = [{"uri": "data:,", "tags": {"finetuner_label": 1}}] * 4
    assert "A new run was sent 5 documents" in refusal(service, [ONE[0] | {"matches": matches}], "many-matches")


def test_a_request_that_is_too_large_is_refused_and_the_service_goes_on(service: Service) -> None:
    large = DocumentArray([Document(id="large", text="x" * 110_000)])
    with pytest.raises(BadServerFlow, match="larger than max"):
        service.post("/fit", large, returns=RunStatus, run="large")
    assert service.http("/status", run="large").status_code >= 400  # there is no such run
    assert service.http("/status").status_code == 200


def test_a_document_that_is_too_large_is_quarantined_and_its_neighbours_stay(service: Service) -> None:
    docs = documents(0, 2) + documents(2, 1, size=64)
    (status,) = service.post("/fit", docs, returns=RunStatus, run="large")
    assert (status.train_documents, status.skipped) == (2, 1)
    assert status.problems[0].reason == (
        "it has 12313 bytes and max_document_bytes is 5000; send a smaller image, or raise that option of the executor"
    )


def test_one_call_to_embed_may_have_more_documents_than_may_wait(service: Service) -> None:
    """Jina cuts it into requests, which come at the same time. Each is a caller, and of a caller only a few count."""
    answer = service.post("/embed", documents(0, 1000, size=4), returns=Document)
    assert len(answer) == 1000
    assert all(doc.embedding is not None for doc in answer)
