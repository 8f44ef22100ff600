"""A service is started on a workspace that was killed in the midst of things, moved, edited and damaged."""

import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from conftest import encoded, images
from executor import Document, DocumentArray
from executor.documents import Event, RunStatus
from serving import Service
from test_hostile import data_uri, refused

pytestmark = pytest.mark.flow


def as_uris(docs: DocumentArray) -> DocumentArray:
    """The same pictures in `data:` uris: they need no directory."""
    return DocumentArray(Document(id=doc.id, uri=data_uri(encoded(doc.blob)), tags=doc.tags) for doc in docs)


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service in another directory than before; the old one is gone. `trained` was the only run that ended."""
    folder = tmp_path_factory.mktemp("damaged")
    with Service(folder / "workspace", folder / "first", receive_timeout=1000.0) as first:
        first.post("/fit", images(24), returns=RunStatus, run="trained", total=24, promote="never")
        assert first.wait("trained").state == "succeeded"
        docs = as_uris(images(24))
        docs[0].uri = "away.png"
        first.post("/fit", docs[:12], returns=RunStatus, run="open", total=24)
        first.kill()
    shutil.rmtree(folder / "first")
    root = first.run_folder("open").parent.parent
    damage(root)
    second = Service(folder / "workspace", folder / "second", receive_timeout=1000.0)
    with second:
        yield second


def damage(root: Path) -> None:
    """What backups that were broken off, editors, newer releases and full disks leave behind."""
    (root / "deleted").mkdir(exist_ok=True)
    (root / "deleted" / ".DS_Store").write_text("")
    weights = root / "base" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    description = root / "runs" / "trained" / "model" / "model.json"
    description.write_text(description.read_text()[:100])
    with closing(sqlite3.connect(root / "runs.sqlite")) as database, database:
        database.execute("INSERT OR REPLACE INTO progress VALUES ('open', ?)", (json.dumps({"of_a_newer_release": 1}),))


def test_the_base_model_is_built_anew_and_serves(flow: Service) -> None:
    (doc,) = flow.post("/embed", images(1), returns=Document)
    assert doc.embedding is not None


def test_a_model_that_was_cut_short_is_refused_in_a_sentence(flow: Service) -> None:
    for endpoint, parameters in (("/embed", {"model": "trained"}), ("/promote", {"run": "trained"})):
        sentence = refused(flow, endpoint, images(1) if endpoint == "/embed" else None, **parameters)
        assert "model.json" in sentence
        assert str(flow.workspace) not in sentence
        assert "report it" not in sentence
    assert flow.status("trained").state == "succeeded"


def test_an_open_run_of_the_old_directory_gets_its_other_documents_and_is_trained(flow: Service) -> None:
    flow.post("/fit", as_uris(images(24))[12:], returns=RunStatus, run="open", start=True)
    status = flow.wait("open")
    assert (status.state, status.train_documents) == ("succeeded", 23), status.error
    assert [problem.id for problem in status.problems] == ["d0"]
    told = [event.message for event in flow.post("/events", returns=Event, run="open")]
    assert any("The directory that the service was in when this run was created is gone" in each for each in told), told


def test_a_promotion_that_keeps_failing_is_given_up_and_the_next_run_is_trained(flow: Service) -> None:
    flow.post("/fit", images(24), returns=RunStatus, run="spoilt", total=24, promote="always")
    flow.post("/fit", images(24), returns=RunStatus, run="next", total=24, promote="always")
    description = flow.run_folder("spoilt") / "model" / "model.json"
    flow.wait("spoilt", until=lambda status: status.space or status.ended_at)  # it is told before the report is made,
    description.write_text("{")  # and the model is read after it
    status = flow.wait("spoilt")
    assert (status.state, status.promoted) == ("succeeded", False)
    assert "It was not promoted, because it could not be served" in status.verdict
    assert "model.json" in status.verdict
    assert flow.wait("next").promoted
