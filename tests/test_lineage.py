"""Which documents of a run its base version has seen before."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from executor import Document, DocumentArray, DocumentArrayMemmap
from executor.parameters import TrainingOptions
from executor.store.run import Run
from executor.store.runs import RunStore
from executor.store.workspace import Workspace
from executor.worker.lineage import lineage_of


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RunStore]:
    store = RunStore(Workspace(tmp_path))
    yield store
    store.close()


def make(store: RunStore, name: str, base: str, ids: str, proof: list[int]) -> Run:
    """A run that was based on another, with a document for each letter, some of which were held out."""
    run = store.create(name, TrainingOptions(base=base))
    with DocumentArrayMemmap(store.workspace.spool_file(name)) as docs:
        docs.extend(DocumentArray(Document(id=id) for id in ids))
    store.workspace.proof_file(name).write_text(json.dumps({"train": proof, "eval": []}))
    return run


def test_a_run_of_the_base_has_no_lineage(store):
    run = make(store, "first", "base", "abc", [0])
    with DocumentArrayMemmap(store.workspace.spool_file("first")) as docs:
        assert lineage_of(store, run, docs) is None


def test_all_that_taught_any_version_before_is_taught_and_what_only_proved_one_is_not(store):
    make(store, "first", "base", "abcd", [0, 1])
    make(store, "second", "first", "bcde", [0, 3])  # b proved both; e proved the second
    run = make(store, "third", "second", "abcdef", [])
    with DocumentArrayMemmap(store.workspace.spool_file("third")) as docs:
        found = lineage_of(store, run, docs)
    assert found is not None
    assert dict(zip("abcdef", found.taught.tolist(), strict=True)) == dict.fromkeys("abef", False) | {
        "c": True,
        "d": True,
    }
    assert [id for id, proved in zip("abcdef", found.proved.tolist(), strict=True) if proved] == ["a", "b", "e"]
