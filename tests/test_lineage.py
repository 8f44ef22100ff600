"""What a version has seen, as a run writes it down, and which documents of another run are known by it."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from executor import Document, DocumentArray
from executor.compute.ranks import Ranks
from executor.documents import Match
from executor.errors import WorkspaceError
from executor.models.building import build_model
from executor.models.model import EmbeddingModel, ModelConfig
from executor.store.lineage import Lineage, lineage_of
from executor.store.run import RunState
from executor.worker.run_documents import RunDocuments
from workshop import Workshop

PART = {"val_split": 0.3}


@pytest.fixture(scope="module")
def model() -> EmbeddingModel:
    return build_model(ModelConfig(model="small", input_size=32))


@pytest.fixture
def workshop(tmp_path: Path) -> Iterator[Workshop]:
    workshop = Workshop(tmp_path / "workspace", allowed_roots=[str(tmp_path)])
    yield workshop
    workshop.close()


def picture(number: int) -> np.ndarray:
    """(32, 32, 3) uint8: 4 × 4 tiles, so that no two of them look alike."""
    tiles = np.random.default_rng([7, number]).integers(0, 256, (4, 4, 3), np.uint8)
    return np.kron(tiles, np.ones((8, 8, 1), np.uint8))


def png(number: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture(number)).save(file, "PNG")
    return file.getvalue()


def docs(numbers: range, prefix: str = "d", **tags: Any) -> DocumentArray:
    return DocumentArray(
        Document(id=f"{prefix}{number}", blob=picture(number), tags={"finetuner_label": number % 4, **tags})
        for number in numbers
    )


def divided(
    workshop: Workshop, model: EmbeddingModel, run: str, train: DocumentArray, given: DocumentArray = (), **options: Any
) -> tuple[set[str], set[str], list[str]]:
    """Divide the documents of a run, as its trainer does. Its model is there then.

    Returns: the ids of the documents to train on, those of the documents that prove it, and what there is to notice.
    """
    if len(given):
        workshop.receive(run, given, split="eval", **options)
    workshop.receive(run, train, **options)
    workshop.queue(run)
    store = workshop.store
    store.advance(run, RunState.TRAINING)
    data = RunDocuments(store, store.get(run), model, Ranks(), check=lambda: None, warn=lambda _: None)
    data.receive()
    data.decode()
    task = data.task(data.kind(), torch.device("cpu"), 16)
    store.workspace.model_folder(run).mkdir()  # nobody loads it here
    store.advance(run, RunState.SUCCEEDED)

    def ids(dataset: Any, items: np.ndarray) -> set[str]:
        return {str(dataset.document(int(item)).id) for item in items}

    proof = set() if task.eval_set is None else ids(task.eval_set.dataset, task.eval_set.items)
    return ids(task.dataset, task.items), proof, data.noticed()


def test_what_a_version_has_seen_is_kept_with_all_that_its_base_had_seen(workshop, model):
    first, _, _ = divided(workshop, model, "first", docs(range(60)), **PART)
    seen = lineage_of(workshop.store.workspace, "first")
    assert len(seen.taught) == 2 * len(first)  # what was sent, and the picture
    assert len(seen.labels) == 4
    divided(workshop, model, "second", docs(range(60, 120)), base="first", **PART)
    more = lineage_of(workshop.store.workspace, "second")
    assert seen.taught < more.taught
    assert seen.proved < more.proved
    assert not more.taught & more.proved


@pytest.mark.parametrize(("total", "said"), [(60, False), (63, False), (64, True)])
def test_documents_are_said_to_be_missing_only_where_fewer_came_than_announced(workshop, model, total, said):
    again = docs([*range(60), 0, 1, 2])  # three of them come twice
    _, _, noticed = divided(workshop, model, "run", again, total=total, **PART)
    sentence = "63 of the 64 documents that `total` announced had arrived when the run began"
    assert [warning for warning in noticed if "`total`" in warning and sentence not in warning] == []
    assert any(sentence in warning for warning in noticed) is said


@pytest.mark.parametrize("form", ["as before", "other ids", "another form"])
def test_nothing_proves_a_model_that_taught_its_base_in_whatever_form_it_comes_again(workshop, model, form):
    taught, proved, _ = divided(workshop, model, "first", docs(range(60)), **PART)
    again = docs(range(80), prefix="d" if form == "as before" else "e")
    if form == "another form":
        for number, doc in enumerate(again):
            doc.blob, doc.buffer = None, png(number)
    _, proof, _ = divided(workshop, model, "second", again, base="first", **PART)
    old = {int(id[1:]) for id in proof} - set(range(60, 80))
    assert old
    assert old <= {int(id[1:]) for id in proved}
    assert not old & {int(id[1:]) for id in taught}


def test_pictures_of_a_group_that_taught_the_base_prove_nothing(workshop, model):
    grouped = docs(range(60))
    for doc in grouped:
        doc.tags["finetuner_group"] = f"visit {doc.id}"
    taught, _, _ = divided(workshop, model, "first", grouped, **PART)
    others = docs(range(100, 160), prefix="e")
    for number, doc in enumerate(others):
        doc.tags["finetuner_group"] = f"visit d{number}"
    _, proof, _ = divided(workshop, model, "second", others, base="first", **PART)
    assert proof
    assert not {f"d{int(id[1:]) - 100}" for id in proof} & taught


def test_other_pictures_with_the_same_ids_are_new(workshop, model):
    divided(workshop, model, "first", docs(range(60)), **PART)
    other = docs(range(100, 160))
    for number, doc in enumerate(other):
        doc.id = f"d{number}"
    _, proof, noticed = divided(workshop, model, "second", other, base="first", **PART)
    assert len(proof) >= 16
    assert not noticed


def test_eval_documents_that_were_left_out_as_copies_do_not_prove_the_next_run(workshop, model):
    copies = DocumentArray(
        Document(id=f"c{number}", buffer=png(number), tags={"finetuner_label": number % 4}) for number in range(40)
    )
    _, proof, _ = divided(workshop, model, "first", docs(range(60)), copies)
    assert proof == set()
    _, proof, _ = divided(workshop, model, "second", docs(range(40), "again"), base="first", **PART)
    assert proof == set()


def test_a_candidate_of_a_session_proves_nothing_of_a_model_trained_on_that_session(workshop, model):
    def match(number: int, label: int) -> Match:
        return Match(id=f"m{number}", blob=picture(number), tags={"finetuner_label": label})

    sessions = DocumentArray(
        Document(id=f"q{number}", blob=picture(number), matches=[match(100 + number, 1), match(200 + number, -1)])
        for number in range(50)
    )
    taught, _, _ = divided(workshop, model, "first", sessions, **PART)
    candidates = docs(range(100, 150), prefix="m")
    _, proof, _ = divided(workshop, model, "second", candidates, base="first", **PART)
    assert proof
    assert not {f"q{int(id[1:]) - 100}" for id in proof} & taught


def test_it_holds_although_the_runs_before_are_deleted_and_their_names_used_again(workshop, model):
    taught, _, _ = divided(workshop, model, "first", docs(range(60)), **PART)
    divided(workshop, model, "second", docs(range(100, 160)), base="first", **PART)
    with workshop.supervised() as supervisor:
        supervisor.delete("first")
    divided(workshop, model, "first", docs(range(200, 260)), base="second", **PART)
    _, proof, _ = divided(workshop, model, "third", docs(range(60)), base="first", **PART)
    assert not proof & taught


def test_a_label_that_taught_the_base_is_not_called_unseen(workshop, model):
    many = docs(range(400))
    for number, doc in enumerate(many):
        doc.tags["finetuner_label"] = number % 50
    divided(workshop, model, "first", many[:300])
    divided(workshop, model, "second", many[300:], base="first")
    first, second = (
        json.loads(workshop.store.workspace.parts_file(run).read_text())["whole_classes"] for run in ("first", "second")
    )
    assert len(first) == 2
    assert second == first  # which taught nothing


@pytest.mark.parametrize("content", [b"", b"{}", b"\x08\0\0\0\0\0\0\0{}      "])
def test_a_damaged_file_is_said_to_be(workshop, model, content):
    file = workshop.store.workspace.lineage_file("first")
    file.parent.mkdir(parents=True)
    Lineage(taught=frozenset([bytes(16)])).save(file)
    assert lineage_of(workshop.store.workspace, "first").taught == {bytes(16)}
    file.write_bytes(content)
    with pytest.raises(WorkspaceError, match="which says what 'first' was trained on, is damaged"):
        lineage_of(workshop.store.workspace, "first")
