"""A save that is killed at any file boundary leaves what was there before, or what was to be, and never half of it.

A kill is played in this process: from the chosen moment on every call that would change a file fails, also those that
clean up. What a kill leaves in SQLite is what a rollback leaves.
"""

import contextlib
import functools
import itertools
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from executor.bulk.parts import Embedded, Output
from executor.compute.ranks import ALONE
from executor.errors import ConfigurationError, UnknownRun
from executor.evaluation.map_fitting import learn_maps
from executor.models.building import build_model
from executor.models.model import EmbeddingModel, ModelConfig
from executor.models.saving import load_model, save_model
from executor.models.space_map import KnownMap, unit_length
from executor.models.versions import ensure_base, load_version
from executor.parameters import parse_executor_options
from executor.serving.following import FollowedVersions
from executor.serving.spaces import Leap
from executor.serving.stored import map_file
from executor.store import files as files_of_store
from executor.store.files import publish_file, publish_folder, remove_leftovers
from executor.store.published import Place
from executor.store.run import RunState
from executor.store.runs import RunStore
from executor.store.workspace import Workspace
from executor.training.micro_batch import MicroBatch
from executor.training.state import TrainState
from executor.training.tried import KeptTrials
from executor.worker.checkpoints import load_checkpoint, save_checkpoint

pytestmark = pytest.mark.compute

CHANGES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.chmod", "shutil.rmtree"}
IN_OPEN_FOLDER = {"os.remove", "os.rmdir"}  # `rmtree` names files within a folder that it has opened


class Killed(BaseException):
    """The process is gone."""


class Death:
    """Kills what is done in `folder` before its file boundary number `at`; counts them while `at` is None."""

    def __init__(self) -> None:
        self.folder = ""
        self.at: int | None = None
        self.seen = 0

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.folder or event not in CHANGES:
            return
        inside = event in IN_OPEN_FOLDER and arguments[1] != -1
        if not inside and not any(str(each).startswith(self.folder) for each in arguments):
            return
        if self.at is not None and self.seen >= self.at:
            raise Killed
        self.seen += 1

    @contextlib.contextmanager
    def watch(self, folder: Path, at: int | None) -> Any:
        self.folder, self.at, self.seen = str(folder), at, 0
        try:
            with contextlib.suppress(Killed):
                yield
        finally:
            self.folder = ""


death = Death()
sys.addaudithook(death)  # it cannot be removed, and does nothing while no folder is watched


@dataclass(frozen=True)
class Way:
    """A way to publish files.

    Attributes:
        before: makes what is there already. save: what is killed. seen: what a reader finds afterwards, or at the next
            start; None: nothing.
        ends: the values of `seen` that are right after a kill.
    """

    before: Callable[[Path], object]
    save: Callable[[Path], object]
    seen: Callable[[Path], object]
    ends: tuple[object, ...]


def text(file: Path) -> str | None:
    return file.read_text() if file.exists() else None


def files(value: str) -> Callable[[Path], None]:
    def write(place: Path) -> None:
        (place / "one").write_text(value)
        (place / "inner").mkdir()
        (place / "inner" / "other").write_text(value)

    return write


def both(folder: Path) -> object:
    found = {text(folder / "p" / "one"), text(folder / "p" / "inner" / "other")}
    return found.pop() if len(found) == 1 else "half of it"


def model(seed: int) -> Callable[[Path], None]:
    return lambda folder: save_model(built(seed), folder / "model")


@functools.cache
def built(seed: int) -> EmbeddingModel:
    return build_model(ModelConfig(model="small", input_size=16, embedding_dim=None, seed=seed))


def seed_of(folder: Path) -> object:
    return load_model(folder / "model").config.seed if (folder / "model").exists() else None


def options(dim: int) -> Any:
    return parse_executor_options({"model": "small", "input_size": 16, "embedding_dim": dim})


def checkpoint(done: int) -> Callable[[Path], None]:
    return lambda folder: save_checkpoint(folder, TrainState(done=done, tensors={"a": torch.ones(3)}), done)


def done_of(folder: Path) -> object:
    state = load_checkpoint(folder)
    return None if state is None else state.done


def trials(score: float) -> Callable[[Path], None]:
    def save(folder: Path) -> None:
        kept = KeptTrials(folder / "trials.json", ALONE)
        kept.trial(0, {}).scores[1] = score
        kept.save()

    return save


def score_of(folder: Path) -> object:
    tried = KeptTrials(folder / "trials.json", ALONE).now.tried
    return tried[0].score if tried else None


def halved(folder: Path) -> None:
    MicroBatch(None, 64, file=folder / "micro_batch").halve(0)


def run_with_files(folder: Path) -> None:
    store = RunStore(Workspace(folder))
    store.create("a")
    store.advance("a", RunState.CANCELLED)
    for name in ("one", "inner/other"):
        file = store.workspace.run_folder("a") / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("x")
    store.close()


def delete_run(folder: Path) -> None:
    store = RunStore(Workspace(folder))
    try:
        store.delete("a")
    finally:
        store.close()


def run_and_files(folder: Path) -> object:
    """What the next start finds of the run: its row, and its files."""
    store = RunStore(Workspace(folder))
    store.finish_deletes()
    place = store.workspace.run_folder("a")
    found = [text(place / name) for name in ("one", "inner/other")]
    try:
        name = store.get("a").name
        return name if found == ["x", "x"] else "a row without its files"
    except UnknownRun:
        return None if not place.exists() else "files without their row"
    finally:
        store.close()


SPACES = {"one": "1" * 12, "two": "2" * 12}


def versions(folder: Path) -> None:
    """Two versions to publish, of which the first is published."""
    for value in SPACES:
        (folder / value).mkdir()
        files(value)(folder / value)
    publish("one")(folder)


def publish(version: str) -> Callable[[Path], object]:
    return lambda folder: Place(str(folder / "published")).publish(version, SPACES[version], folder / version)


def published(folder: Path) -> object:
    """What a reader gets."""
    place = Place(str(folder / "published"))
    pointer = place.pointer()
    assert pointer is not None
    FollowedVersions(place, folder / "fetched").bring(pointer)
    assert text(folder / "fetched" / pointer.space / "one") == pointer.version
    return pointer.version


def parts(folder: Path) -> None:
    output = Output(folder / "whole.parquet", {})
    for number in (0, 1):
        output.write(number, [Embedded(str(number), None, np.ones(2, np.float32), "base", "a space")])


def join(folder: Path) -> None:
    output = Output(folder / "whole.parquet", {})
    if output.finished is None:
        output.join(2)


def joined_ids(folder: Path) -> object:
    file = folder / "whole.parquet"
    return tuple(parquet.read_table(file)["id"].to_pylist()) if file.exists() else None


def stored_vectors(folder: Path) -> None:
    """More rows than a part has."""
    column = pa.array(VECTORS.tolist(), pa.list_(pa.float32()))
    parquet.write_table(pa.table({"embedding": column}), folder / "in.parquet")


def map_vectors(folder: Path) -> None:
    with contextlib.suppress(ConfigurationError):  # it is there already
        map_file(folder / "in.parquet", folder / "whole.parquet", LEAP)


def mapped(folder: Path) -> object:
    file = folder / "whole.parquet"
    if not file.exists():
        return None
    found = np.array(parquet.read_table(file)["embedding"].to_pylist())
    return found.shape == VECTORS.shape and np.allclose(found, LEAP.map(VECTORS), atol=1e-6)


VECTORS = unit_length(np.random.default_rng(0).normal(size=(10_001, 2)).astype(np.float32))
MAPS = [fitted.map for fitted in learn_maps((VECTORS[:50], VECTORS[50:100]), (VECTORS[:50], VECTORS[50:100]))]
LEAP = Leap(
    version="one",
    to="two",
    source=SPACES["one"],
    target=SPACES["two"],
    map=MAPS[0],
    known=KnownMap(version="one", space=SPACES["one"], own_space=SPACES["two"], forward=MAPS[0], backward=MAPS[1]),
    forward=True,
)

PATHS = {
    "a file": Way(
        lambda folder: (folder / "f").write_text("old"),
        lambda folder: publish_file(folder / "f", b"new"),
        lambda folder: text(folder / "f"),
        ("old", "new"),
    ),
    "a folder": Way(
        lambda folder: publish_folder(folder / "p", files("old")),
        lambda folder: publish_folder(folder / "p", files("new")),
        both,
        ("old", "new"),
    ),
    "a new folder": Way(
        lambda folder: None, lambda folder: publish_folder(folder / "p", files("new")), both, (None, "new")
    ),
    "a model": Way(model(1), model(2), seed_of, (1, 2)),
    "the base model": Way(
        lambda folder: ensure_base(Workspace(folder), options(2)),
        lambda folder: ensure_base(Workspace(folder), options(3)),
        lambda folder: load_version(Workspace(folder), options(3), "base").dim,
        (3,),
    ),
    "a checkpoint": Way(lambda folder: [checkpoint(1)(folder), checkpoint(2)(folder)], checkpoint(3), done_of, (2, 3)),
    "trials": Way(trials(0.25), trials(0.5), score_of, (0.25, 0.5)),
    "a halving": Way(halved, halved, lambda folder: MicroBatch(None, 64, file=folder / "micro_batch").at(0), (32, 16)),
    "a published version": Way(versions, publish("two"), published, ("one", "two")),
    "a version that is published again": Way(versions, publish("one"), published, ("one",)),
    "the output of bulk": Way(parts, join, joined_ids, (None, ("0", "1"))),
    "mapped vectors": Way(stored_vectors, map_vectors, mapped, (None, True)),
    "a deletion": Way(run_with_files, delete_run, run_and_files, ("a", None)),
}


@pytest.mark.parametrize("name", PATHS)
def test_a_save_that_is_killed_at_any_file_boundary_leaves_the_old_or_the_new(name: str, tmp_path: Path) -> None:
    path = PATHS[name]
    with death.watch(begun(path, tmp_path / "whole"), None):
        path.save(tmp_path / "whole")
    boundaries = death.seen
    assert boundaries >= 3
    new = path.seen(tmp_path / "whole")
    found = []
    for at in range(boundaries):
        folder = begun(path, tmp_path / str(at))
        with death.watch(folder, at):
            path.save(folder)
            pytest.fail(f"it was not killed at {at}")
        found.append(path.seen(folder))
        if found[-1] != new:  # done again, it comes to its end
            path.save(folder)
            assert path.seen(folder) == new
        remove_leftovers(folder)
        assert [left.name for left in folder.glob(".*-*")] == []
    assert set(found) <= set(path.ends), list(enumerate(found))
    assert found[0] == path.ends[0]


def begun(path: Way, folder: Path) -> Path:
    """Return the folder with what is there already. That is made once for each test: to make a model takes long."""
    made = folder.with_name("before")
    if not made.exists():
        made.mkdir()
        path.before(made)
    return Path(shutil.copytree(made, folder, symlinks=True))


@pytest.mark.parametrize("name", ["the output of bulk", "mapped vectors"])
def test_after_a_kill_at_any_file_boundary_a_second_call_leaves_the_file_and_no_parts(
    name: str, tmp_path: Path
) -> None:
    path = PATHS[name]
    for at in itertools.count():
        folder = begun(path, tmp_path / str(at))
        again = killed(folder, at, path.save)
        path.save(folder)
        assert path.seen(folder) == path.ends[-1]
        assert [left.name for left in folder.iterdir() if left.name.endswith(".parts")] == [], at
        if not again:
            break


def killed(folder: Path, at: int, work: Callable[[Path], object]) -> bool:
    """Kill some work at a file boundary. Return whether it was: false if it has ended before."""
    ended = False
    with death.watch(folder, at):
        work(folder)
        ended = True
    return not ended


@pytest.mark.parametrize("next_start", [remove_leftovers, PATHS["a folder"].save], ids=["clears", "saves again"])
def test_two_kills_lose_no_folder_on_a_disk_that_cannot_exchange_two(
    next_start: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files_of_store, "exchange", lambda one, other: False)  # as on NFS; no such disk is here
    path, found = PATHS["a folder"], set()
    for first in itertools.count():
        once = begun(path, tmp_path / str(first))
        if not killed(once, first, path.save):
            break
        for second in itertools.count():
            twice = Path(shutil.copytree(once, tmp_path / f"{first}-{second}"))
            again = killed(twice, second, next_start)
            remove_leftovers(twice)
            found.add(both(twice))
            assert [left.name for left in twice.glob(".*-*")] == []
            if not again:
                break
    assert found == {"old", "new"}
