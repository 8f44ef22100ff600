"""Several readers behind one gateway follow one writer: promotions under traffic, a writer that is killed."""

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from conftest import images
from executor import Document
from executor.documents import ERROR_TAG, MODEL_TAG, SPACE_TAG, RunStatus
from serving import Service

pytestmark = pytest.mark.flow


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("writer")
    service = Service(folder / "workspace", folder / "cwd", publish_to=str(folder.parent / "shop"), role="train")
    with service:
        service.post("/fit", images(24), returns=RunStatus, run="tuned", total=24, promote="never")
        assert service.wait("tuned").state == "succeeded"
        yield service


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory, writer: Service) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("readers")
    service = Service(folder / "workspace", folder / "cwd", role="serve", serve_from=writer.options["publish_to"])
    service.replicas = 2
    with service:
        service_answers(service)
        yield service


def service_answers(readers: Service) -> None:
    """Wait until all readers have a version; they take turns."""
    answered = 0
    while answered < 4:
        answered = answered + 1 if readers.http("/embed").ok else 0


def spaces_of(readers: Service) -> set[str]:
    """The spaces that are served: the readers take turns."""
    return {readers.http("/status").json()["data"][0]["space"] for _ in range(4)}


def test_a_promotion_fails_no_request_and_no_answer_mixes_versions(writer: Service, readers: Service) -> None:
    before = spaces_of(readers)
    ended, answers = threading.Event(), []

    def ask() -> None:
        while not ended.is_set():
            answers.append(readers.post("/embed", images(6), returns=Document))

    callers = [threading.Thread(target=ask) for _ in range(2)]
    for caller in callers:
        caller.start()
    tuned = writer.post("/promote", returns=RunStatus, run="tuned")[0].space
    while spaces_of(readers) != {tuned}:
        pass
    writer.post("/promote", returns=RunStatus, run="base")
    while spaces_of(readers) != before:
        pass
    ended.set()
    for caller in callers:
        caller.join()
    vectors: dict[str, np.ndarray] = {}
    for docs in answers:
        assert not [doc.tags[ERROR_TAG] for doc in docs if ERROR_TAG in doc.tags]
        ((version, space),) = {(doc.tags[MODEL_TAG], doc.tags[SPACE_TAG]) for doc in docs}
        assert (version == "tuned") == (space == tuned)
        found = np.stack([doc.embedding for doc in docs])
        np.testing.assert_allclose(found, vectors.setdefault(space, found), atol=1e-6)
    assert set(vectors) == {tuned, *before}


def test_a_trainer_refuses_to_embed_and_a_reader_to_train(writer: Service, readers: Service) -> None:
    refused = writer.http("/embed", [{"uri": "a.png"}])
    assert "role 'train'" in refused.text
    assert "call a reader" in refused.text
    refused = readers.http("/fit", [{"uri": "a.png"}])
    assert "role 'serve'" in refused.text
    assert "call the service that trains for /fit" in refused.text


def test_readers_go_on_when_the_writer_is_gone_and_when_they_start_without_it(
    writer: Service, readers: Service, tmp_path: Path
) -> None:
    served = spaces_of(readers)
    writer.kill()
    assert spaces_of(readers) == served
    alone = Service(tmp_path / "workspace", tmp_path / "cwd", role="serve", serve_from=writer.options["publish_to"])
    with alone:
        service_answers(alone)
        assert spaces_of(alone) == served
