"""A service is started on a workspace that was left in the midst of things, moved, edited and damaged."""

import contextlib
import json
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import encoded, images
from doors import Opened, opened
from executor import Document, DocumentArray
from executor.models.versions import ensure_base
from executor.store.run import RunState
from serving import as_json
from test_hostile import data_uri
from workshop import Workshop

pytestmark = pytest.mark.process


def as_uris(docs: DocumentArray) -> DocumentArray:
    """The same pictures in `data:` uris: they need no directory."""
    return DocumentArray(Document(id=doc.id, uri=data_uri(encoded(doc.blob)), tags=doc.tags) for doc in docs)


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opened]:
    """A service in another directory than before; the old one is gone. `trained` was the only run that ended."""
    folder = tmp_path_factory.mktemp("damaged")
    (folder / "first").mkdir()
    with contextlib.chdir(folder / "first"):
        first = Workshop(folder / "workspace")
        base = ensure_base(first.store.workspace, first.options)
        first.receive("trained", images(24), promote="never")
        first.queue("trained")
        first.store.advance("trained", RunState.TRAINING)
        first.store.advance("trained", RunState.SUCCEEDED)
        shutil.copytree(base, first.store.workspace.model_folder("trained"))  # of what weights does not matter here
        docs = as_uris(images(24))
        docs[0].uri = "away.png"
        first.receive("open", docs[:12], total=24, promote="always")
        first.close()
    shutil.rmtree(folder / "first")
    damage(folder / "workspace")
    with opened(folder) as second:
        yield second


def damage(root: Path) -> None:
    """What backups that were broken off, editors, newer releases and full disks leave behind."""
    (root / "deleted").mkdir(exist_ok=True)
    (root / "deleted" / ".DS_Store").write_text("")
    weights = root / "base" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    description = root / "runs" / "trained" / "model" / "model.json"
    description.write_text(description.read_text()[:100])
    with contextlib.closing(sqlite3.connect(root / "runs.sqlite")) as database, database:
        database.execute("INSERT OR REPLACE INTO progress VALUES ('open', ?)", (json.dumps({"of_a_newer_release": 1}),))


def sent(docs: DocumentArray) -> list[dict[str, Any]]:
    return [as_json(doc) for doc in docs]


def wait(door: Opened, run: str, until: Callable[[dict[str, Any]], Any] = lambda status: status["ended_at"]) -> Any:
    """Ask until the run has ended (or `until` is true) and return its status."""
    deadline = time.monotonic() + 120
    while not until(status := door.post("/status", run=run).json()["data"][0]):
        assert time.monotonic() < deadline, status
        time.sleep(0.1)
    return status


def test_the_base_model_is_built_anew_and_serves(door: Opened) -> None:
    (doc,) = door.post("/embed", sent(images(1))).json()["data"]
    assert doc["embedding"] is not None


def test_a_model_that_was_cut_short_is_refused_in_a_sentence(door: Opened) -> None:
    for endpoint, parameters in (("/embed", {"model": "trained"}), ("/promote", {"run": "trained"})):
        answer = door.post(endpoint, sent(images(1)) if endpoint == "/embed" else [], **parameters)
        assert answer.status_code >= 400
        sentence = answer.json()["detail"]
        assert "model.json" in sentence
        assert str(door.service.store.workspace.root) not in sentence
        assert "report it" not in sentence
    assert door.post("/status", run="trained").json()["data"][0]["state"] == "succeeded"


def test_a_promotion_that_keeps_failing_is_given_up_and_the_open_run_of_the_old_directory_is_trained_next(
    door: Opened,
) -> None:
    door.post("/fit", sent(images(24)), run="spoilt", total=24, promote="always")
    door.post("/fit", sent(as_uris(images(24))[12:]), run="open", start=True)  # its other documents
    description = door.service.store.workspace.model_folder("spoilt") / "model.json"
    wait(door, "spoilt", until=lambda status: status["space"] or status["ended_at"])  # told before the report is made,
    description.write_text("{")  # and the model is read after it
    status = wait(door, "spoilt")
    assert (status["state"], status["promoted"]) == ("succeeded", False)
    assert "It was not promoted, because it could not be served" in status["verdict"]
    assert "model.json" in status["verdict"]
    status = wait(door, "open")
    assert (status["state"], status["train_documents"]) == ("succeeded", 23), status["error"]
    assert status["promoted"]
    assert [problem["id"] for problem in status["problems"]] == ["d0"]
    told = [event["message"] for event in door.post("/events", run="open").json()["data"]]
    assert any("The directory that the service was in when this run was created is gone" in each for each in told), told
