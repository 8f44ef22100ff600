"""What becomes of the runs of `/fit`: models in the order of the queue, or failures that say why. Real trainers."""

import base64
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from jina.excepts import BadServer

from conftest import coloured, encoded, images
from executor import Document, DocumentArray
from executor.documents import Match, RunStatus
from executor.store.run import RunState
from serving import Service, as_json
from workshop import Workshop

pytestmark = pytest.mark.flow


def data_uri(image: np.ndarray) -> str:
    return "data:image/png;base64," + base64.b64encode(encoded(image)).decode()


def enormous_png() -> bytes:
    """A PNG file of a few bytes whose header claims 60,000 × 60,000 pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(bytes(1000))
    chunks = b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in (header, data)
    )
    return b"\x89PNG\r\n\x1a\n" + chunks


# --- the order of the queue ------------------------------------------------------------------------------------------


def test_runs_wait_for_the_one_that_trains_and_then_train_in_the_order_in_which_they_were_started(
    service: Service,
) -> None:
    service.post("/fit", images(12), returns=RunStatus, run="holding", total=12, epochs=100_000)
    service.wait("holding", until=lambda status: status.state == "training")
    service.post("/fit", images(12), returns=RunStatus, run="made-first")
    assert service.post("/fit", images(12), returns=RunStatus, run="started-first", total=12)[0].state == "queued"
    assert service.post("/fit", returns=RunStatus, run="made-first")[0].state == "queued"
    assert service.status("holding").state == "training"
    service.cancel("holding")
    service.wait("started-first", until=lambda status: status.state == "training")
    assert service.status("made-first").state == "queued"
    for name in ("made-first", "started-first"):
        service.cancel(name)


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


class Sessions:
    """A run of sessions, from the class run's model, all of it frozen but a new head; a later request names that."""

    def __init__(self, service: Service) -> None:
        docs = DocumentArray()
        for number in range(16):
            fits, not_fits = (1.0, -1) if number % 2 else (True, -1.0)
            matches = [
                Match(
                    id=f"s{number}-{other}",
                    blob=coloured((number + other) % 4, 100 + number),
                    tags={"finetuner_label": not_fits if other else fits},
                )
                for other in range(3)
            ]
            docs.append(Document(id=f"s{number}", blob=coloured(number % 4, number), matches=matches))
        service.post("/fit", docs[:8], returns=RunStatus, run="session-run")
        later = {"base": "class-run", "freeze": True, "embedding_dim": 8, "epochs": 3}
        (self.named,) = service.post("/fit", docs[8:], returns=RunStatus, run="session-run", **later)
        self.contradicted = service.http("/fit", run="session-run", epochs=4).json()["detail"]
        service.post("/fit", returns=RunStatus, run="session-run")
        self.ended = service.wait("session-run")


@pytest.fixture(scope="module")
def session_run(service: Service, class_run: RunStatus) -> Sessions:
    return Sessions(service)


def test_sessions_train_to_the_end(session_run: Sessions) -> None:
    ended = session_run.ended
    assert (ended.state, ended.error, ended.kind) == ("succeeded", None, "session")
    assert (ended.train_documents, ended.skipped) == (16, 0)


def test_an_option_may_be_named_by_a_later_request_and_holds_from_then_on(session_run: Sessions) -> None:
    assert session_run.named.epochs == 3
    assert "'epochs' of run 'session-run' is 3 since an earlier request, not 4" in session_run.contradicted
    assert session_run.ended.epochs == session_run.ended.epoch == 3


def test_embedding_dim_is_the_length_of_the_embeddings(service: Service, session_run: Sessions) -> None:
    embedded = service.post("/embed", images(2), returns=Document, model="session-run")
    assert [doc.embedding.shape for doc in embedded] == [(8,), (8,)]


def weights(service: Service, run: str) -> dict[str, np.ndarray]:
    file = service.run_folder(run) / "model" / "weights.safetensors"
    return {name: value for name, value in safetensors.numpy.load_file(file).items() if name.startswith("backbone.")}


def test_a_run_starts_from_the_run_named_as_base_and_freeze_keeps_its_backbone(
    service: Service, session_run: Sessions
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
    service.post("/fit", images(3), returns=RunStatus, run=run, base="promoted")
    service.post("/promote", returns=RunStatus, run="base")
    with pytest.raises(BadServer, match=r"is .*class-run.* since an earlier request"):
        service.post("/fit", images(3), returns=RunStatus, run=run, base="base")


def test_a_run_that_has_ended_takes_no_more_documents_and_says_so(service: Service, class_run: RunStatus) -> None:
    with pytest.raises(BadServer, match="is succeeded and takes no more documents"):
        service.post("/fit", images(2, prefix="late"), returns=RunStatus, run="class-run")


# --- runs that fail, and say why: more of them in test_bad_input.py --------------------------------------------------


def test_a_run_without_anything_trainable_fails_and_lists_its_problems(service: Service) -> None:
    docs = DocumentArray(
        Document(id=name, uri=f"nowhere/{name}.png", tags={"finetuner_label": name}) for name in ("a", "b")
    )
    service.post("/fit", docs, returns=RunStatus, run="nothing-trainable", total=2)
    status = service.wait("nothing-trainable")
    assert status.state == "failed"
    assert "None of the documents can be trained on" in status.error
    assert (status.skipped, {problem.id for problem in status.problems}) == (2, {"a", "b"})


@pytest.mark.process
def test_a_loss_that_is_not_finite_fails_the_run_and_names_the_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "poisoned.py").write_text(
        "import numpy as np\n"
        "def content(doc):\n"
        "    return np.full((8, 8, 3), np.nan if doc.id == 'poison' else 0.5, np.float32).transpose(2, 0, 1)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    workshop = Workshop(tmp_path / "workspace", preprocess_fn="poisoned:content", fit_defaults={"batch_size": 6})
    docs = DocumentArray(
        Document(id="poison" if number == 5 else f"d{number}", text="x", tags={"finetuner_label": number % 2})
        for number in range(12)
    )
    workshop.receive("nan", docs)
    workshop.queue("nan")
    with workshop.supervised():
        run = workshop.wait("nan")
    assert run.state is RunState.FAILED
    assert run.error is not None
    assert "The loss became nan at step" in run.error
    assert "poison" in run.error
    assert workshop.store.promoted() == "base"
    workshop.close()


def test_many_receiving_runs_take_few_file_descriptors(service: Service) -> None:
    executor = service.executor()
    names = [f"many-{number}" for number in range(60)]
    for name in names[:30]:
        assert service.http("/fit", [as_json(doc) for doc in images(1)], run=name).ok
    before = executor.num_fds()
    for name in names[30:]:
        assert service.http("/fit", [as_json(doc) for doc in images(1)], run=name).ok
    assert executor.num_fds() <= before + 10
    for name in names:
        assert service.http("/cancel", run=name).json()["data"][0]["state"] == "cancelled"
