"""Which documents of a run are trained on, and which prove its model, stays as it is when the run is resumed."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import coloured, encoded
from executor import Document, DocumentArray
from executor.compute.ranks import Ranks
from executor.models.building import build_model
from executor.models.model import ModelConfig
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
    for file in away:
        file.rename(file.with_suffix(".png"))
    files[50].unlink()
    shutil.rmtree(workshop.store.workspace.image_folder("run"))  # as on another machine
    assert attempt(workshop) == (trained - {50}, proof - {50})
    workshop.close()
