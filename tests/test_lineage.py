"""Which documents of a run its base version, or the version served, has seen before."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from executor import Document, DocumentArray, DocumentArrayMemmap
from executor.parameters import TrainingOptions
from executor.store.lineage import Seen
from executor.store.run import Run
from executor.store.runs import RunStore
from executor.store.workspace import Workspace


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RunStore]:
    store = RunStore(Workspace(tmp_path))
    yield store
    store.close()


def make(store: RunStore, name: str, base: str, ids: str, proof: list[int], given: str = "", prefix: str = "") -> Run:
    """A run that was based on another, with a document for each letter, some of which were held out."""
    run = store.create(name, TrainingOptions(base=base))
    for split, letters in (("train", ids), ("eval", given)):
        with DocumentArrayMemmap(store.workspace.spool_file(name), split=split) as docs:
            docs.extend(DocumentArray(Document(id=prefix + letter, text=f"content {letter}") for letter in letters))
    store.workspace.proof_file(name).write_text(json.dumps({"train": proof, "eval": []}))
    return run


def test_a_run_of_the_base_has_no_lineage(store: RunStore) -> None:
    assert store.seen_before(make(store, "first", "base", "abc", [0]), "train") == Seen()


def test_all_that_taught_any_version_before_is_taught_and_what_only_proved_one_is_not(store: RunStore) -> None:
    make(store, "first", "base", "abcd", [0, 1])
    make(store, "second", "first", "bcde", [0, 3])  # b proved both; e proved the second
    run = make(store, "third", "second", "abcdef", [])
    assert store.seen_before(run, "train") == Seen(taught=[2, 3], proved=[0, 1, 4])


def test_what_the_served_version_was_trained_on_is_told_from_what_taught_the_base(store: RunStore) -> None:
    make(store, "served", "base", "abcd", [0])
    make(store, "other", "base", "cdef", [2])
    run = make(store, "run", "other", "abcdefg", [], given="bfg")
    assert store.seen_before(run, "train").taught_served == []
    store.promote("served")
    assert store.seen_before(run, "train") == Seen(taught=[2, 3, 5], taught_served=[1], proved=[0, 4])
    assert store.seen_before(run, "eval") == Seen(taught=[1], taught_served=[0])


def test_documents_that_were_sent_to_prove_a_version_have_proved_it(store: RunStore) -> None:
    make(store, "first", "base", "abc", [], given="de")
    assert store.seen_before(make(store, "second", "first", "cdx", []), "train") == Seen(taught=[0], proved=[1])


def test_a_document_that_comes_with_a_new_id_is_known_by_its_content(store: RunStore) -> None:
    make(store, "first", "base", "abc", [0])
    run = make(store, "second", "first", "abcd", [], prefix="new-")
    assert store.seen_before(run, "train") == Seen(taught=[1, 2], proved=[0])
