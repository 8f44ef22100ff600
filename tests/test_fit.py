"""`/fit` makes runs of documents. What becomes of the runs: test_fit_runs.py."""

import base64
import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from docarray import DocList
from jina import Client
from jina.excepts import BadServer

from conftest import coloured, encoded, images
from executor import Document, DocumentArray
from executor.documents import RunStatus
from serving import Service

# No run starts before a test says so, and none trains.
pytestmark = [pytest.mark.flow, pytest.mark.usefixtures("busy")]


@contextlib.contextmanager
def refusal(*parts: str) -> Iterator[None]:
    """The calls within are refused over gRPC, in a sentence that has all `parts` in it."""
    with pytest.raises(BadServer) as refused:
        yield
    sentence = refused.value.args[0].status.description
    assert [part for part in parts if part not in sentence] == [], sentence


def send(
    service: Service, docs: Any, *, protocol: str = "grpc", request_size: int = 100, **parameters: Any
) -> list[RunStatus]:
    """One call of Jina's client to /fit; returns the answers of all its requests."""
    client = Client(host="127.0.0.1", port=service.ports[protocol], protocol=protocol)
    answers = client.post(
        "/fit",
        docs,
        request_size=request_size,
        prefetch=1,
        parameters=parameters,
        return_type=DocList[RunStatus],
    )
    return list(answers)


def pixels(count: int, prefix: str = "d") -> DocumentArray:
    """Labelled documents with small arrays."""
    return images(count, prefix=prefix, size=8)


def inline(count: int) -> DocumentArray:
    """Labelled documents with their images as `data:` uris, as one sends them over HTTP."""
    return DocumentArray(
        Document(id=f"u{number}", uri=data_uri(coloured(number % 3, number, 8)), tags={"finetuner_label": number % 3})
        for number in range(count)
    )


def data_uri(image: np.ndarray) -> str:
    return "data:image/png;base64," + base64.b64encode(encoded(image)).decode()


# --- documents of one call belong to one run -------------------------------------------------------------------------


def test_the_answer_is_the_status_of_the_run_with_the_documents_already_counted(service: Service, run: str) -> None:
    (status,) = send(service, pixels(7), run=run)
    assert (status.run, status.state, status.train_documents, status.eval_documents) == (run, "receiving", 7, 0)


def test_250_documents_of_one_call_over_grpc_are_three_requests_of_one_run(service: Service) -> None:
    answers = send(service, pixels(250))
    assert len(answers) == 3
    assert len({status.run for status in answers}) == 1
    assert sorted(status.train_documents for status in answers) == [100, 200, 250]
    service.cancel(answers[0].run)


def test_250_documents_of_one_call_over_http_belong_to_one_run(service: Service) -> None:
    answers = send(service, inline(250), protocol="http")
    assert len({status.run for status in answers}) == 1
    assert service.status(answers[0].run).train_documents == 250
    service.cancel(answers[0].run)


def test_all_250_documents_of_a_raw_http_post_count(service: Service, run: str) -> None:
    data = [{"uri": doc.uri, "tags": doc.tags} for doc in inline(250)]
    response = service.http("/fit", data, run=run)
    assert response.status_code == 200, response.text
    # Jina's own gateway makes three requests of it, and answers when the first one is answered.
    service.wait(run, until=lambda status: status.train_documents == 250, seconds=30)


def test_documents_go_to_the_run_that_is_receiving_when_none_is_named(service: Service, run: str) -> None:
    send(service, pixels(3), run=run)
    (status,) = send(service, pixels(6))
    assert (status.run, status.train_documents) == (run, 6)


def test_without_a_receiving_run_a_new_name_is_given(service: Service) -> None:
    first = send(service, pixels(3))[0].run
    service.cancel(first)
    second = send(service, pixels(3))[0].run
    service.cancel(second)
    assert first
    assert second
    assert first != second


def test_the_same_id_counts_once(service: Service, run: str) -> None:
    send(service, pixels(5), run=run)
    assert send(service, pixels(5), run=run)[0].train_documents == 5


def test_a_document_seen_again_counts_once_and_its_id_with_other_content_is_another(service: Service, run: str) -> None:
    send(service, pixels(2), run=run)
    send(service, pixels(2), run=run)
    assert service.status(run).train_documents == 2
    send(service, DocumentArray([Document(id="d0", text="other", tags={})]), run=run)
    status = service.status(run)
    assert (status.train_documents, status.skipped) == (3, 0)


def test_documents_without_an_id_all_count(service: Service, run: str) -> None:
    data = [{"uri": doc.uri, "tags": doc.tags} for doc in inline(5)]
    assert service.http("/fit", data, run=run).json()["data"][0]["train_documents"] == 5


def test_eval_documents_are_counted_apart(service: Service, run: str) -> None:
    send(service, pixels(4, prefix="e"), run=run, split="eval")
    (status,) = send(service, pixels(6), run=run)
    assert (status.train_documents, status.eval_documents) == (6, 4)


# --- when a run starts -----------------------------------------------------------------------------------------------


def test_a_run_starts_when_total_documents_have_arrived_and_not_before(service: Service, run: str) -> None:
    assert send(service, pixels(5), run=run, total=8)[0].state == "receiving"
    assert send(service, pixels(8), run=run)[0].state == "queued"


def test_eval_documents_do_not_count_towards_total(service: Service, run: str) -> None:
    send(service, pixels(6, prefix="e"), run=run, split="eval", total=6)
    assert service.status(run).state == "receiving"


def test_quarantined_documents_count_as_arrived(service: Service, run: str) -> None:
    docs = pixels(5)
    docs.append(Document(id="nameless", blob=coloured(0)))
    (status,) = send(service, docs, run=run, kind="class", total=6)
    assert (status.state, status.train_documents, status.skipped) == ("queued", 5, 1)


def test_start_takes_all_requests_of_the_call(service: Service, run: str) -> None:
    send(service, pixels(250), run=run, start=True)
    status = service.wait(run, until=lambda status: status.state != "receiving")
    assert (status.state, status.train_documents) == ("queued", 250)


def test_start_takes_all_documents_of_a_raw_http_post(service: Service, run: str) -> None:
    service.http("/fit", [{"uri": doc.uri, "tags": doc.tags} for doc in inline(250)], run=run, start=True)
    status = service.wait(run, until=lambda status: status.state != "receiving")
    assert (status.state, status.train_documents) == ("queued", 250)


@pytest.mark.parametrize("protocol", ["grpc", "http", "websocket"])
def test_a_request_without_documents_starts_the_run(service: Service, run: str, protocol: str) -> None:
    send(service, pixels(6), run=run)
    service.post("/fit", protocol=protocol, returns=RunStatus, run=run)
    assert service.status(run).state == "queued"


def test_without_any_run_receiving_a_request_without_documents_is_refused(service: Service) -> None:
    response = service.http("/fit")
    assert response.status_code >= 400
    assert "No run is receiving documents" in response.json()["detail"]


# --- after the start -------------------------------------------------------------------------------------------------


def test_a_repeated_request_is_answered_after_the_run_has_started(service: Service, run: str) -> None:
    send(service, pixels(4, prefix="e"), run=run, split="eval")
    send(service, pixels(8), run=run, total=8)
    assert send(service, pixels(8), run=run, total=8)[0].state == "queued"
    assert send(service, pixels(4, prefix="e"), run=run, split="eval")[0].eval_documents == 4


def test_a_repeated_request_with_quarantined_documents_is_answered(service: Service, run: str) -> None:
    docs = pixels(5)
    docs.append(Document(id="nameless", blob=coloured(0)))
    send(service, docs, run=run, kind="class", total=6)
    assert send(service, docs, run=run, kind="class", total=6)[0].skipped == 1


def test_new_documents_are_refused_after_the_start_with_the_state(service: Service, run: str) -> None:
    send(service, pixels(8), run=run, total=8)
    with refusal(repr(run), "is queued and takes no more documents"):
        send(service, pixels(9), run=run)
    assert service.status(run).train_documents == 8


# --- options ---------------------------------------------------------------------------------------------------------


def test_a_later_contradiction_of_a_training_option_is_refused_by_name(service: Service, run: str) -> None:
    send(service, pixels(3), run=run, learning_rate=0.01)
    with refusal("'learning_rate'", "is 0.01 since an earlier request, not 0.02"):
        send(service, pixels(6), run=run, learning_rate=0.02)
    assert service.status(run).train_documents == 3


def test_the_same_option_again_is_no_contradiction(service: Service, run: str) -> None:
    send(service, pixels(3), run=run, epochs=7, freeze=True, loss="triplet", val_split=0.25)
    (status,) = send(service, pixels(6), run=run, epochs=7, freeze=True, loss="triplet", val_split=0.25)
    assert status.train_documents == 6


def test_options_of_the_first_request_stick(service: Service, run: str) -> None:
    send(service, pixels(3), run=run, epochs=7)
    assert send(service, pixels(6), run=run)[0].epochs == 7


def test_options_of_fit_defaults_apply_where_the_request_is_silent(service: Service, run: str) -> None:
    assert send(service, pixels(3), run=run)[0].epochs == service.options["fit_defaults"]["epochs"]


def test_an_option_named_with_its_default_holds_too(service: Service, run: str) -> None:
    send(service, pixels(4), run=run, total=9)
    send(service, pixels(4, prefix="x"), run=run, epochs=service.options["fit_defaults"]["epochs"])
    answer = service.http("/fit", run=run, epochs=7)
    assert f"'epochs' of run '{run}' is 2 since an earlier request, not 7" in answer.json()["detail"]


def test_whole_floats_are_taken_as_integers(service: Service, run: str) -> None:
    response = service.http("/fit", [{"uri": inline(1)[0].uri}], run=run, epochs=4.0, batch_size=8.0, total=30.0)
    assert response.json()["data"][0]["epochs"] == 4


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"epoch": 3}, "epoch"),
        ({"epochs": 2.5}, "epochs"),
        ({"epochs": "3"}, "epochs"),
        ({"kind": "classes"}, "kind"),
        ({"split": "test"}, "split"),
        ({"start": "yes"}, "start"),
        ({"promote": "maybe"}, "promote"),
        ({"loss": "best"}, "loss"),
        ({"run": "../up"}, "run"),
        ({"run": "base"}, "run"),
        ({"base": "no-such-run"}, "base"),
    ],
)
def test_a_wrong_parameter_is_refused_by_name(service: Service, parameters: dict[str, Any], named: str) -> None:
    before = len(service.post("/status", returns=RunStatus))
    with refusal(named):
        send(service, pixels(2), **parameters)
    assert len(service.post("/status", returns=RunStatus)) == before


def test_an_unknown_parameter_is_refused_with_the_accepted_ones(service: Service) -> None:
    response = service.http("/fit", [{"uri": inline(1)[0].uri}], epoch=3)
    assert response.status_code >= 400
    for accepted in ("run", "split", "total", "start", "kind", "base", "epochs", "val_split", "patience", "promote"):
        assert accepted in response.json()["detail"]
