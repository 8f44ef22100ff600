"""Runs that are trained elsewhere than they were received, or whose documents share ids or are for evaluation alone."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import images
from executor import Document, DocumentArray
from executor.store.run import TrainerExit
from workshop import Workshop

pytestmark = pytest.mark.process


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workshop]:
    """A workspace that was first served from a folder of its own."""
    (tmp_path / "first").mkdir()
    monkeypatch.chdir(tmp_path / "first")
    opened = Workshop(tmp_path / "workspace")
    yield opened
    opened.close()


def test_a_run_is_trained_though_the_directory_of_its_service_is_gone_and_ids_are_shared(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs = DocumentArray(Document(id=doc.id[-1], blob=doc.blob, tags=doc.tags) for doc in images(30))
    workshop.receive("a", docs + DocumentArray([Document(id="away", uri="away.png", tags=docs[0].tags)]), total=99)
    workshop.receive("a", docs[:6], split="eval")
    monkeypatch.chdir(tmp_path)
    shutil.rmtree(tmp_path / "first")
    workshop.queue("a")
    done = workshop.train("a")
    assert done.returncode == TrainerExit.SUCCEEDED, done.stderr[-2000:]
    assert workshop.store.get("a").train_rows == 31
    assert [name for name, _ in workshop.store.problems("a")] == ["away"]
    told = workshop.events("a", "warning")
    assert any("The directory that the service was in when this run was created is gone" in each for each in told)
    (about_ids,) = (each for each in workshop.store.progress("a").warnings if "several documents" in each)
    assert about_ids.startswith("10 ids in the train documents belong to several documents with other content each")
    assert "'0', '1', '2', '3', '4', …" in about_ids
    (about_total,) = (each for each in workshop.store.progress("a").warnings if "`total`" in each)
    assert about_total.startswith("31 of the 99 documents that `total` announced had arrived")


def test_a_run_with_eval_documents_alone_fails_in_a_sentence(workshop: Workshop) -> None:
    workshop.receive("a", images(3), split="eval")
    workshop.queue("a")
    assert workshop.train("a").returncode == TrainerExit.REFUSED
    assert workshop.store.progress("a").error == (
        "The run has no usable train documents, only 3 eval documents; "
        "send those to train on with split: train to another run."
    )
