"""Which documents of a run are trained on, and which prove its model, stays as it is when the run is resumed."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import coloured, encoded
from executor import Document, DocumentArray
from executor.compute.ranks import Ranks
from executor.models.building import build_model
from executor.models.model import ModelConfig
from executor.store.lineage import lineage_of
from executor.store.proof_documents import proof_documents
from executor.store.run import RunState
from executor.worker.run_documents import RunDocuments
from workshop import Workshop

COUNT = 60


def photos(folder: Path) -> list[Path]:
    files = [folder / f"{number:02d}.png" for number in range(COUNT)]
    for number, file in enumerate(files):
        file.write_bytes(encoded(coloured(number % 3, number, 64)))
    return files


def attempt(workshop: Workshop) -> tuple[set[int], set[int]]:
    """What a trainer of the run trains on and proves its model by, as it finds the documents now."""
    model = build_model(ModelConfig(model="small", input_size=16))
    run = workshop.store.get("run")
    data = RunDocuments(workshop.store, run, model, Ranks(), check=lambda: None, warn=lambda _: None)
    data.receive()
    data.decode()
    task = data.task(data.kind(), torch.device("cpu"), 16)
    assert task.eval_set is not None
    return set(np.asarray(task.items).tolist()), set(task.eval_set.items.tolist())


@pytest.mark.parametrize("missing", [[3], [0, 1, 7, 20]])
def test_a_picture_that_is_there_again_proves_nothing_and_moves_no_other(tmp_path: Path, missing: list[int]) -> None:
    files = photos(tmp_path)
    workshop = Workshop(tmp_path / "workspace", allowed_roots=[str(tmp_path)])
    docs = DocumentArray(
        Document(id=file.name, uri=str(file), tags={"finetuner_label": number % 3}) for number, file in enumerate(files)
    )
    workshop.receive("run", docs, val_split=0.3)
    workshop.queue("run")
    workshop.store.advance("run", RunState.TRAINING)
    away = [files[number].rename(files[number].with_suffix(".away")) for number in missing]
    trained, proof = attempt(workshop)
    assert trained | proof == set(range(COUNT)) - set(missing)
    seen = lineage_of(workshop.store.workspace, "run")
    for file in away:
        file.rename(file.with_suffix(".png"))
    files[50].unlink()
    shutil.rmtree(workshop.store.workspace.image_folder("run"))  # as on another machine
    assert attempt(workshop) == (trained - {50}, proof - {50})
    assert lineage_of(workshop.store.workspace, "run") == seen  # the first attempt has trained on it
    workshop.close()


# --- after an earlier run --------------------------------------------------------------------------------------------


def pictures(first: int, count: int) -> DocumentArray:
    return DocumentArray(
        Document(id=f"p{number}", blob=coloured(number % 3, number), tags={"finetuner_label": number % 3})
        for number in range(first, first + count)
    )


def proven(workshop: Workshop, run: str, given: DocumentArray, **options: str) -> tuple[list[int], list[str]]:
    """Divide the documents of a run. Return which of the given ones prove it, and what there is to notice."""
    workshop.receive(run, given, split="eval", **options)
    workshop.receive(run, pictures(1000, 3))
    workshop.queue(run)
    workshop.store.advance(run, RunState.TRAINING)
    model = build_model(ModelConfig(model="small", input_size=16))
    data = RunDocuments(
        workshop.store, workshop.store.get(run), model, Ranks(), check=lambda: None, warn=lambda _: None
    )
    data.receive()
    data.decode()
    data.task(data.kind(), torch.device("cpu"), 16)
    return json.loads(workshop.store.workspace.proof_file(run).read_bytes())["eval"], data.noticed()


@pytest.fixture
def trained(tmp_path: Path) -> Iterator[Workshop]:
    """A run `before` was trained on p0 to p29, and p30 to p59 were sent to prove it."""
    workshop = Workshop(tmp_path / "workspace")
    workshop.receive("before", pictures(30, 30), split="eval")
    workshop.receive("before", pictures(0, 30))
    workshop.queue("before")
    workshop.store.advance("before", RunState.TRAINING)
    workshop.store.advance("before", RunState.SUCCEEDED)
    workshop.store.workspace.model_folder("before").mkdir()  # nobody loads it here
    yield workshop
    workshop.close()


def test_a_run_keeps_which_of_the_documents_that_prove_it_belong_together(trained: Workshop) -> None:
    given = pictures(100, 8)
    given.append(Document(id="again", buffer=encoded(given[4].blob), tags=given[4].tags))
    given[6].tags["finetuner_group"] = 1
    given[7].tags["finetuner_group"] = 1.0
    proven(trained, "run", given)
    with proof_documents(trained.store.workspace, "run") as docs:
        units = docs.units
        assert units is not None
        assert (len(docs), len(units), len(set(units))) == (9, 9, 7)
        assert units[4] == units[8]
        assert units[6] == units[7]


def test_a_picture_that_was_sent_with_two_labels_is_named(trained: Workshop) -> None:
    given = pictures(100, 8)
    given.append(Document(id="again", buffer=encoded(given[4].blob), tags=given[4].tags))
    _, noticed = proven(trained, "run", given)
    assert not [warning for warning in noticed if "another label" in warning]
    given[-1].tags = {"finetuner_label": "other"}
    _, noticed = proven(trained, "contradicts", given)
    (told,) = (warning for warning in noticed if "another label" in warning)
    assert told.startswith(f"1 picture was sent with another label too ({given[4].id!r} as ")
    assert "and 'again' as 'other')" in told


def test_eval_documents_that_taught_the_base_prove_nothing(trained: Workshop) -> None:
    proof, noticed = proven(trained, "run", pictures(20, 15), base="before")
    assert proof == [10, 11, 12, 13, 14]
    assert "10 of 15 eval documents were left out of the proof: the version that the run starts from" in noticed[0]
    assert "'p20', 'p21', 'p22', 'p23', 'p24', …" in noticed[0]
    proof, noticed = proven(trained, "one-left", pictures(0, 30) + pictures(500, 1), base="before")
    assert proof == []  # the one that is left finds no other
    assert "30 of 31 eval documents were left out" in noticed[0]


def test_eval_documents_that_taught_the_served_version_prove_nothing_where_there_are_others(trained: Workshop) -> None:
    trained.store.promote("before")
    proof, noticed = proven(trained, "many", pictures(20, 30))
    assert proof == list(range(10, 30))
    assert "10 of 30 eval documents were left out of the proof: the version served was trained on them" in noticed[0]
    proof, noticed = proven(trained, "few", pictures(20, 29))
    assert proof == list(range(29))
    assert "The version served was trained on 10 of the 29 documents that prove the model" in noticed[0]
