"""`/fit`: documents become runs, and runs become models. Real Flow, real clients, real trainers."""

import base64
import contextlib
import struct
import uuid
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from docarray import DocList
from jina import Client
from jina.excepts import BadServer

from conftest import coloured, encoded
from executor import Document, DocumentArray
from executor.documents import Match, RunStatus
from serving import Service, served


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A Flow that waits long for further documents, so that no run starts before a test says so."""
    with served(tmp_path_factory.mktemp("fit"), receive_timeout=100.0) as running:
        yield running


@pytest.fixture
def run(service: Service, request: pytest.FixtureRequest) -> Iterator[str]:
    """A name for a run; the run is cancelled after the test."""
    name = request.node.name[-60:].lstrip("_").replace("[", "-").replace("]", "")
    yield name
    cancel(service, name)


@pytest.fixture
def busy(service: Service) -> Iterator[str]:
    """A run that holds the trainer, so that runs started meanwhile stay queued."""
    name = f"busy-{uuid.uuid4().hex}"
    send(service, pixels(12), run=name, total=12, epochs=100_000)
    service.wait(name, seconds=20, until=lambda status: status.state == "training")
    yield name
    cancel(service, name)


@contextlib.contextmanager
def refusal(*parts: str) -> Iterator[None]:
    """The calls within are refused over gRPC, in a sentence that has all `parts` in it."""
    with pytest.raises(BadServer) as refused:
        yield
    sentence = refused.value.args[0].status.description
    assert [part for part in parts if part not in sentence] == [], sentence


def cancel(service: Service, run: str) -> None:
    """Cancel a run if there is one."""
    if run in {status.run for status in service.post("/status", returns=RunStatus)}:
        service.post("/cancel", returns=RunStatus, run=run)


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


def pixels(count: int, classes: int = 3, prefix: str = "d") -> DocumentArray:
    """Labelled documents with small arrays."""
    return DocumentArray(
        Document(
            id=f"{prefix}{number}",
            blob=coloured(number % classes, number, size=8),
            tags={"finetuner_label": number % classes},
        )
        for number in range(count)
    )


def data_uri(image: np.ndarray) -> str:
    return "data:image/png;base64," + base64.b64encode(encoded(image)).decode()


def inline(count: int) -> DocumentArray:
    """Labelled documents with their images as `data:` uris, as one sends them over HTTP."""
    return DocumentArray(
        Document(id=f"u{number}", uri=data_uri(coloured(number % 3, number, 8)), tags={"finetuner_label": number % 3})
        for number in range(count)
    )


def enormous_png() -> bytes:
    """A PNG file of a few bytes whose header claims 60,000 × 60,000 pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(bytes(1000))
    chunks = b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in (header, data)
    )
    return b"\x89PNG\r\n\x1a\n" + chunks


# --- documents of one call belong to one run -------------------------------------------------------------------------


def test_the_answer_is_the_status_of_the_run_with_the_documents_already_counted(service: Service, run: str) -> None:
    (status,) = send(service, pixels(7), run=run)
    assert (status.run, status.state, status.train_documents, status.eval_documents) == (run, "receiving", 7, 0)


def test_250_documents_of_one_call_over_grpc_are_three_requests_of_one_run(service: Service) -> None:
    answers = send(service, pixels(250))
    assert len(answers) == 3
    assert len({status.run for status in answers}) == 1
    assert sorted(status.train_documents for status in answers) == [100, 200, 250]
    cancel(service, answers[0].run)


def test_250_documents_of_one_call_over_http_belong_to_one_run(service: Service) -> None:
    answers = send(service, inline(250), protocol="http")
    assert len({status.run for status in answers}) == 1
    assert service.status(answers[0].run).train_documents == 250
    cancel(service, answers[0].run)


def test_all_250_documents_of_a_raw_http_post_count(service: Service, run: str) -> None:
    data = [{"uri": doc.uri, "tags": doc.tags} for doc in inline(250)]
    response = service.http("/fit", data, run=run)
    assert response.status_code == 200, response.text
    assert service.status(run).train_documents == 250


def test_documents_go_to_the_run_that_is_receiving_when_none_is_named(service: Service, run: str) -> None:
    send(service, pixels(3), run=run)
    (status,) = send(service, pixels(6))
    assert (status.run, status.train_documents) == (run, 6)


def test_without_a_receiving_run_a_new_name_is_given(service: Service) -> None:
    first = send(service, pixels(3))[0].run
    cancel(service, first)
    second = send(service, pixels(3))[0].run
    cancel(service, second)
    assert first
    assert second
    assert first != second


def test_the_same_id_counts_once(service: Service, run: str) -> None:
    send(service, pixels(5), run=run)
    assert send(service, pixels(5), run=run)[0].train_documents == 5


def test_a_document_seen_again_replaces_nothing(service: Service, run: str) -> None:
    send(service, pixels(2), run=run)
    send(service, DocumentArray([Document(id="d0", text="other", tags={})]), run=run)
    status = service.status(run)
    assert (status.train_documents, status.skipped) == (2, 0)


def test_documents_without_an_id_all_count(service: Service, run: str) -> None:
    data = [{"uri": doc.uri, "tags": doc.tags} for doc in inline(5)]
    assert service.http("/fit", data, run=run).json()["data"][0]["train_documents"] == 5


def test_eval_documents_are_counted_apart(service: Service, run: str) -> None:
    send(service, pixels(4, prefix="e"), run=run, split="eval")
    (status,) = send(service, pixels(6), run=run)
    assert (status.train_documents, status.eval_documents) == (6, 4)


# --- when a run starts -----------------------------------------------------------------------------------------------


def test_a_run_starts_when_total_documents_have_arrived_and_not_before(service: Service, run: str, busy: str) -> None:
    assert send(service, pixels(5), run=run, total=8)[0].state == "receiving"
    assert send(service, pixels(8), run=run)[0].state == "queued"


def test_eval_documents_do_not_count_towards_total(service: Service, run: str, busy: str) -> None:
    send(service, pixels(6, prefix="e"), run=run, split="eval", total=6)
    assert service.status(run).state == "receiving"


def test_quarantined_documents_count_as_arrived(service: Service, run: str, busy: str) -> None:
    docs = pixels(5)
    docs.append(Document(id="nameless", blob=coloured(0)))
    (status,) = send(service, docs, run=run, kind="class", total=6)
    assert (status.state, status.train_documents, status.skipped) == ("queued", 5, 1)


def test_start_takes_all_requests_of_the_call(service: Service, run: str, busy: str) -> None:
    send(service, pixels(250), run=run, start=True)
    status = service.wait(run, until=lambda status: status.state != "receiving")
    assert (status.state, status.train_documents) == ("queued", 250)


def test_start_takes_all_documents_of_a_raw_http_post(service: Service, run: str, busy: str) -> None:
    service.http("/fit", [{"uri": doc.uri, "tags": doc.tags} for doc in inline(250)], run=run, start=True)
    status = service.wait(run, until=lambda status: status.state != "receiving")
    assert (status.state, status.train_documents) == ("queued", 250)


@pytest.mark.parametrize("protocol", ["grpc", "http", "websocket"])
def test_a_request_without_documents_starts_the_run(service: Service, run: str, busy: str, protocol: str) -> None:
    send(service, pixels(6), run=run)
    service.post("/fit", protocol=protocol, returns=RunStatus, run=run)
    assert service.status(run).state == "queued"


def test_without_any_run_receiving_a_request_without_documents_is_refused(service: Service) -> None:
    response = service.http("/fit")
    assert response.status_code >= 400
    assert "No run is receiving documents" in response.json()["detail"]


def test_a_second_run_is_queued_while_the_first_trains_and_trains_after_it(service: Service, run: str) -> None:
    send(service, pixels(12), run="holding", total=12, epochs=100_000)
    service.wait("holding", until=lambda status: status.state == "training")
    assert send(service, pixels(12), run=run, total=12)[0].state == "queued"
    assert service.status("holding").state == "training"
    cancel(service, "holding")
    assert service.wait(run, until=lambda status: status.state != "queued").state == "training"


def test_queued_runs_train_in_the_order_in_which_they_were_started(service: Service, busy: str) -> None:
    send(service, pixels(12), run="made-first")
    send(service, pixels(12), run="started-first", total=12)
    send(service, None, run="made-first")
    cancel(service, busy)
    service.wait("started-first", until=lambda status: status.state == "training")
    assert service.status("made-first").state == "queued"
    for name in ("made-first", "started-first"):
        cancel(service, name)


# --- after the start -------------------------------------------------------------------------------------------------


def test_a_repeated_request_is_answered_after_the_run_has_started(service: Service, run: str, busy: str) -> None:
    send(service, pixels(4, prefix="e"), run=run, split="eval")
    send(service, pixels(8), run=run, total=8)
    assert send(service, pixels(8), run=run, total=8)[0].state == "queued"
    assert send(service, pixels(4, prefix="e"), run=run, split="eval")[0].eval_documents == 4


def test_a_repeated_request_with_quarantined_documents_is_answered(service: Service, run: str, busy: str) -> None:
    docs = pixels(5)
    docs.append(Document(id="nameless", blob=coloured(0)))
    send(service, docs, run=run, kind="class", total=6)
    assert send(service, docs, run=run, kind="class", total=6)[0].skipped == 1


def test_new_documents_are_refused_after_the_start_with_the_state(service: Service, run: str, busy: str) -> None:
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


# --- runs that end well ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def class_run(service: Service) -> RunStatus:
    """A run of 40 documents in all forms, 4 bad ones and 3 sent twice, to its end."""
    folder = service.directory
    (folder / "files").mkdir()
    docs = DocumentArray()
    for number in range(40):
        image = coloured(number % 4, number)
        path = folder / "files" / f"{number}.png"
        path.write_bytes(encoded(image))
        form = (
            {"uri": f"files/{number}.png"},
            {"uri": path.as_uri()},
            {"uri": data_uri(image)},
            {"buffer": encoded(image, "JPEG")},
            {"blob": image},
        )[number % 5]
        docs.append(Document(id=f"good-{number}", tags={"finetuner_label": number % 4}, **form))
    (folder / "truncated.jpg").write_bytes(encoded(coloured(0, size=64), "JPEG")[:-400])
    (folder / "enormous.png").write_bytes(enormous_png())
    for name in ("truncated.jpg", "missing.jpg", "enormous.png"):
        docs.append(Document(id=name, uri=name, tags={"finetuner_label": 0}))
    docs.append(Document(id="unlabelled", blob=coloured(0)))
    docs.extend(docs[:3])
    service.post("/fit", docs, returns=RunStatus, run="class-run", kind="class", val_split=0.25, promote="always")
    service.post("/fit", returns=RunStatus, run="class-run")
    return service.wait("class-run")


def test_uri_file_uri_data_uri_buffer_and_blob_train_in_one_run(class_run: RunStatus) -> None:
    assert (class_run.state, class_run.error, class_run.kind) == ("succeeded", None, "class")
    assert class_run.attempts == 1


def test_train_documents_leaves_out_duplicates_and_bad_ones_and_is_before_val_split(class_run: RunStatus) -> None:
    assert (class_run.train_documents, class_run.skipped) == (40, 4)


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ("truncated.jpg", "truncated"),
        ("missing.jpg", "missing.jpg"),
        ("enormous.png", "60000×60000"),
        ("unlabelled", "finetuner_label"),
    ],
)
def test_a_bad_document_is_listed_with_its_reason(class_run: RunStatus, document: str, reason: str) -> None:
    reasons = {problem.id: problem.reason for problem in class_run.problems}
    assert reason in reasons[document]


def test_val_split_holds_out_documents_to_measure_on(class_run: RunStatus) -> None:
    assert class_run.metrics.keys() >= {"base/mean_average_precision_at_r", "tuned/mean_average_precision_at_r"}


@pytest.fixture(scope="module")
def session_run(service: Service, class_run: RunStatus) -> RunStatus:
    """A run of sessions, from the class run's model, all of it frozen but a new head, to its end."""
    docs = DocumentArray()
    for number in range(16):
        matches = [
            Match(
                id=f"s{number}-{other}",
                blob=coloured((number + other) % 4, 100 + number),
                tags={"finetuner_label": (1.0 if other == 0 else -1) if number % 2 else (True if other == 0 else -1.0)},
            )
            for other in range(3)
        ]
        docs.append(Document(id=f"s{number}", blob=coloured(number % 4, number), matches=matches))
    service.post(
        "/fit", docs, returns=RunStatus, run="session-run", base="class-run", freeze=True, embedding_dim=8, total=16
    )
    return service.wait("session-run")


def test_sessions_train_to_the_end(session_run: RunStatus) -> None:
    assert (session_run.state, session_run.error, session_run.kind) == ("succeeded", None, "session")
    assert (session_run.train_documents, session_run.skipped) == (16, 0)


def test_embedding_dim_is_the_length_of_the_embeddings(service: Service, session_run: RunStatus) -> None:
    embedded = service.post("/embed", pixels(2), returns=Document, model="session-run")
    assert [doc.embedding.shape for doc in embedded] == [(8,), (8,)]


def weights(service: Service, run: str) -> dict[str, np.ndarray]:
    file = service.run_folder(run) / "model" / "weights.safetensors"
    return {name: value for name, value in safetensors.numpy.load_file(file).items() if name.startswith("backbone.")}


def test_a_run_starts_from_the_run_named_as_base_and_freeze_keeps_its_backbone(
    service: Service, session_run: RunStatus
) -> None:
    before, after = weights(service, "class-run"), weights(service, "session-run")
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)


@pytest.fixture(scope="module")
def unlabeled_run(service: Service, class_run: RunStatus) -> RunStatus:
    """A run of documents without labels, from the promoted model, to its end."""
    service.post("/promote", returns=RunStatus, run="class-run")
    docs = DocumentArray(Document(id=f"n{number}", blob=coloured(number % 4, number)) for number in range(24))
    service.post("/fit", docs, returns=RunStatus, run="unlabeled-run", base="promoted", total=24)
    return service.wait("unlabeled-run")


def test_documents_without_labels_train_to_the_end(unlabeled_run: RunStatus) -> None:
    assert (unlabeled_run.state, unlabeled_run.error, unlabeled_run.kind) == ("succeeded", None, "unlabeled")


def test_training_without_freeze_changes_the_backbone(service: Service, unlabeled_run: RunStatus) -> None:
    before, after = weights(service, "class-run"), weights(service, "unlabeled-run")
    assert any(not np.array_equal(before[name], after[name]) for name in before)


def test_base_promoted_is_the_version_served_when_the_run_was_made(
    service: Service, run: str, class_run: RunStatus
) -> None:
    service.post("/promote", returns=RunStatus, run="class-run")
    send(service, pixels(3), run=run, base="promoted")
    service.post("/promote", returns=RunStatus, run="base")
    with refusal("'base'", "is 'class-run' since an earlier request"):
        send(service, pixels(3), run=run, base="base")


def test_a_run_that_has_ended_takes_no_more_documents_and_says_so(service: Service, class_run: RunStatus) -> None:
    with refusal("is succeeded and takes no more documents"):
        send(service, pixels(2, prefix="late"), run="class-run")


# --- runs that fail, and say why -------------------------------------------------------------------------------------


def failed(service: Service, name: str, docs: DocumentArray, **parameters: Any) -> RunStatus:
    """Train to the end, which is a failure."""
    service.post("/fit", docs, returns=RunStatus, run=name, total=len(docs), **parameters)
    status = service.wait(name)
    assert status.state == "failed"
    return status


def test_a_run_without_anything_trainable_fails_and_lists_its_problems(service: Service) -> None:
    docs = DocumentArray(
        Document(id=name, uri=f"nowhere/{name}.png", tags={"finetuner_label": name}) for name in ("a", "b")
    )
    status = failed(service, "nothing-trainable", docs)
    assert "None of the documents can be trained on" in status.error
    assert (status.skipped, {problem.id for problem in status.problems}) == (2, {"a", "b"})


def test_one_class_fails_with_the_count_and_1_and_1_0_and_true_are_one_label(service: Service) -> None:
    labels = (1, 1.0, True, 1, 1.0, True)
    docs = DocumentArray(
        Document(id=f"d{number}", blob=coloured(number), tags={"finetuner_label": label})
        for number, label in enumerate(labels)
    )
    status = failed(service, "one-class", docs)
    assert "All 6 documents have the label 1;" in status.error
    assert "at least 2 labels" in status.error


def test_a_mixture_with_kind_auto_fails_with_the_count_and_a_document_of_each_sort(
    service: Service, labelled: Callable[..., DocumentArray]
) -> None:
    docs = labelled(3, prefix="labelled-")
    docs.extend(Document(id=f"bare-{number}", blob=coloured(number)) for number in range(2))
    matches = [Match(blob=coloured(0), tags={"finetuner_label": label}) for label in (1, -1)]
    docs.append(Document(id="session-0", blob=coloured(0), matches=matches))
    error = failed(service, "mixture", docs).error
    assert "3 labelled (such as 'labelled-0')" in error
    assert "1 with matches (such as 'session-0')" in error
    assert "2 with neither label nor matches (such as 'bare-0')" in error
    assert "Set kind" in error


def test_an_option_may_be_named_by_a_later_request_and_holds_from_then_on(
    service: Service, labelled: Callable[..., DocumentArray]
) -> None:
    service.post("/fit", labelled(6, prefix="e"), returns=RunStatus, run="late", split="eval")
    first = service.post("/fit", labelled(9), returns=RunStatus, run="late", epochs=3, embedding_dim=8)[-1]
    assert first.epochs == 3
    answer = service.http("/fit", run="late", epochs=4)
    assert "'epochs' of run 'late' is 3 since an earlier request, not 4" in answer.json()["detail"]
    service.post("/fit", returns=RunStatus, run="late")
    status = service.wait("late")
    assert status.state == "succeeded", status.error
    assert status.epochs == status.epoch == 3
    (doc,) = service.post("/embed", labelled(1), returns=Document, model="late")
    assert doc.embedding.shape == (8,)


def test_an_option_named_with_its_default_holds_too(service: Service, labelled: Callable[..., DocumentArray]) -> None:
    service.post("/fit", labelled(4), returns=RunStatus, run="named", total=9)
    service.post(
        "/fit",
        labelled(4, prefix="x"),
        returns=RunStatus,
        run="named",
        epochs=service.options["fit_defaults"]["epochs"],
    )
    answer = service.http("/fit", run="named", epochs=7)
    assert "'epochs' of run 'named' is 2 since an earlier request, not 7" in answer.json()["detail"]
    service.http("/cancel", run="named")
