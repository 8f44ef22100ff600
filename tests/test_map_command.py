"""`python -m executor map`: stored vectors into the space of another version."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from executor.__main__ import main
from executor.evaluation.map_fitting import learn_maps
from executor.models.building import build_model
from executor.models.model import ModelConfig
from executor.models.saving import save_model, space_of
from executor.models.space_map import KnownMap, read_map, unit_length, write_map
from executor.serving import stored
from executor.serving.spaces import Leap, Spaces
from executor.serving.stored import loss_of
from executor.store.runs import RunStore
from executor.store.workspace import Workspace

pytestmark = pytest.mark.compute

OLD, NEW, ROWS = 24, 16, 95
PLAN = {
    "from": "base",
    "advice": "map index",
    "nothing": [],
    "map queries": [0.4, 0.3, 0.5],
    "map index": [0.55, 0.5, 0.6],
    "embed anew": [0.56, 0.51, 0.61],
}


def vectors(count: int, size: int = OLD, seed: int = 0) -> np.ndarray:
    return unit_length(np.random.default_rng(seed).normal(size=(count, size)).astype(np.float32))


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A base, a run `tuned` with a map from it, and a run `lonely` without one. Tests only read it."""
    found = Workspace(tmp_path_factory.mktemp("workspace"))
    RunStore(found).close()
    for version, size, seed in (("base", OLD, 0), ("tuned", NEW, 1), ("lonely", NEW, 2)):
        model = build_model(ModelConfig(model="small", input_size=16, embedding_dim=size, seed=seed))
        save_model(model, found.model_folder(version))
    old, new = vectors(200), vectors(200, NEW)
    maps = [fitted.map for fitted in learn_maps((old, new), (old, new))]
    spaces = {
        "version": "base",
        "space": space_of(found.base),
        "own_space": space_of(found.model_folder("tuned")),
        "plan": PLAN,
    }
    write_map(found.model_folder("tuned"), KnownMap(forward=maps[0], backward=maps[1], **spaces))
    return found


def write(file: Path, rows: np.ndarray | list[Any], space: str | None = None, **columns: Any) -> Path:
    embeddings = pa.array([None if row is None else np.asarray(row).tolist() for row in rows], pa.list_(pa.float32()))
    table = {"id": [f"d{number}" for number in range(len(rows))], "embedding": embeddings}
    if space is not None:
        table["space"] = [space if row is not None else None for row in rows]
    parquet.write_table(pa.table(table | columns), file, row_group_size=40)
    return file


def leap_of(workspace: Workspace) -> Leap:
    return Spaces(workspace.model_folder, lambda: []).leap("base", "tuned")


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["executor", "map", *map(str, arguments)])
    return main()


def test_vectors_are_mapped_and_all_else_is_copied(
    tmp_path: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[Any] = list(vectors(ROWS))
    rows[7] = None  # could not be embedded
    own = space_of(workspace.base)
    source = write(tmp_path / "in.parquet", rows, own, price=list(range(ROWS)))
    target = tmp_path / "out.parquet"
    names = ("--from", "base", "--to", "tuned", "--workspace", workspace.root)
    assert command(monkeypatch, source, target, *names) == 0
    said = capsys.readouterr().out
    assert said.startswith("On the eval documents of 'tuned': mAP@R 0.550 (0.500 to 0.600) with vectors mapped, 0.560 ")
    assert "a loss of 0.010. The advice was: map index." in said
    assert f"94 vectors in the space {space_of(workspace.model_folder('tuned'))}" in said
    table = parquet.read_table(target).to_pydict()
    known = read_map(workspace.model_folder("tuned"))
    assert known is not None
    assert table["id"] == [f"d{number}" for number in range(ROWS)]
    assert table["price"] == list(range(ROWS))
    assert (table["embedding"][7], table["space"][7], table["mapped_from"][7]) == (None, None, None)
    for number in (0, 6, 8, ROWS - 1):
        np.testing.assert_allclose(table["embedding"][number], known.forward(rows[number][None])[0], atol=1e-6)
        assert table["space"][number] == known.own_space
        assert table["mapped_from"][number] == own
    assert not list(tmp_path.glob("*.parts"))


def test_a_file_without_spaces_is_mapped_and_the_way_back_says_that_it_was_not_measured(
    tmp_path: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / "in.parquet", vectors(5, NEW))
    names = ("--from", "tuned", "--to", "base", "--workspace", workspace.root)
    assert command(monkeypatch, source, tmp_path / "out.parquet", *names) == 0
    assert "was not measured: a run measures how vectors are mapped into its own space only" in capsys.readouterr().out
    table = parquet.read_table(tmp_path / "out.parquet").to_pydict()
    assert {len(row) for row in table["embedding"]} == {OLD}
    assert set(table["space"]) == {space_of(workspace.base)}


def test_a_stopped_map_goes_on_and_makes_no_part_twice(
    tmp_path: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "PART_ROWS", 10)
    source = write(tmp_path / "in.parquet", vectors(ROWS))
    leap = leap_of(workspace)
    whole = tmp_path / "whole.parquet"
    assert stored.map_file(source, whole, leap) == ROWS

    def stop(line: str) -> None:
        if line.startswith("30 of"):
            raise KeyboardInterrupt

    target = tmp_path / "out.parquet"
    with pytest.raises(KeyboardInterrupt):
        stored.map_file(source, target, leap, say=stop)
    assert not target.exists()
    parts = {part.name: part.stat().st_mtime_ns for part in tmp_path.glob("out.parquet.parts/*.parquet")}
    assert len(parts) == 3
    made: list[str] = []

    def say(line: str) -> None:
        made.append(line)
        for name, modified in parts.items():
            assert (tmp_path / "out.parquet.parts" / name).stat().st_mtime_ns == modified

    assert stored.map_file(source, target, leap, say=say) == ROWS
    assert len(made) == 7
    assert parquet.read_table(target).equals(parquet.read_table(whole))


def test_parts_of_another_file_are_not_taken_for_this_one(
    tmp_path: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    leap = leap_of(workspace)

    def stop(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stored.map_file(write(tmp_path / "in.parquet", vectors(9)), tmp_path / "out.parquet", leap, say=stop)
    with pytest.raises(stored.ConfigurationError, match="has the parts of another file or map"):
        stored.map_file(write(tmp_path / "other.parquet", vectors(9)), tmp_path / "out.parquet", leap)


@pytest.mark.parametrize(
    ("rows", "space", "names", "words"),
    [
        (vectors(3, 7), None, ("base", "tuned"), "Row 0 of {source} has 7 values, and the vectors of 'base' have 24."),
        (vectors(3), "0" * 12, ("base", "tuned"), "has vectors of the space 000000000000, and those of 'base' are in"),
        (vectors(3), "{space}/int8", ("base", "tuned"), "has vectors of the space {space}/int8"),
        (
            vectors(3),
            None,
            ("base", "lonely"),
            "no map from the space of 'base' to that of 'lonely'; maps lead from it",
        ),
        (vectors(3), None, ("base", "base"), "'base' and 'base' have one space"),
        (vectors(3), None, ("base", "nobody"), "There is no model 'nobody'; there are: base, lonely, tuned."),
        (np.full((3, OLD), np.nan), None, ("base", "tuned"), "values that are not finite"),
        ([], None, ("base", "tuned"), "There are no rows"),
    ],
)
def test_what_cannot_be_mapped_is_refused_in_one_sentence(
    tmp_path: Path,
    workspace: Workspace,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    rows: Any,
    space: str | None,
    names: tuple[str, str],
    words: str,
) -> None:
    known = {"space": space_of(workspace.base), "source": str(tmp_path / "in.parquet")}
    source = write(tmp_path / "in.parquet", rows, None if space is None else space.format(**known))
    target = tmp_path / "out.parquet"
    version, to = names
    assert command(monkeypatch, source, target, "--from", version, "--to", to, "--workspace", workspace.root) == 2
    said = capsys.readouterr().err
    assert words.format(**known) in said
    assert said.count("\n") == 1
    assert not target.exists()


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"vector": [[1.0]]}, "has no column 'embedding'; it has: vector."),
        ({"embedding": [1.0]}, "is double; only lists of floats can be mapped."),
        ({"embedding": [[1]]}, "only lists of floats can be mapped."),
        (None, "cannot be read as parquet"),
    ],
)
def test_a_file_of_another_form_is_refused(
    tmp_path: Path, workspace: Workspace, table: dict[str, Any] | None, words: str
) -> None:
    source = tmp_path / "in.parquet"
    if table is None:
        source.write_bytes(b"nonsense")
    else:
        parquet.write_table(pa.table(table), source)
    with pytest.raises((stored.BadRequest, stored.ConfigurationError), match=words.replace("?", "")):
        stored.map_file(source, tmp_path / "out.parquet", leap_of(workspace))


def test_a_file_that_is_there_is_not_overwritten(tmp_path: Path, workspace: Workspace) -> None:
    source = write(tmp_path / "in.parquet", vectors(3))
    with pytest.raises(stored.ConfigurationError, match="exists already; name a new file"):
        stored.map_file(source, source, leap_of(workspace))


def test_fixed_size_lists_stay_so_and_doubles_are_mapped_too(tmp_path: Path, workspace: Workspace) -> None:
    rows = vectors(6)
    leap = leap_of(workspace)
    gaps = pa.array([False, True, False, False, False, False])
    flat = pa.array(rows.reshape(-1).astype(np.float64))
    column = pa.FixedSizeListArray.from_arrays(flat, OLD, mask=gaps)
    parquet.write_table(pa.table({"embedding": column}), tmp_path / "in.parquet")
    assert stored.map_file(tmp_path / "in.parquet", tmp_path / "out.parquet", leap) == 5
    mapped = parquet.read_table(tmp_path / "out.parquet").column("embedding")
    assert mapped.type == pa.list_(pa.float32(), NEW)
    assert mapped[1].as_py() is None
    found = mapped.to_pylist()
    np.testing.assert_allclose([found[0], *found[2:]], leap.map(np.delete(rows, 1, axis=0)), atol=1e-6)


@pytest.mark.parametrize(
    ("mapped", "said"), [(0.71, "a gain of 0.010."), (0.69, "a loss of 0.010."), (0.7, "a loss of 0")]
)
def test_what_a_map_gains_is_not_called_a_negative_loss(mapped: float, said: str) -> None:
    plan = {"advice": "map index", "map index": [mapped, 0.6, 0.8], "embed anew": [0.7, 0.6, 0.8]}
    leap = SimpleNamespace(known=SimpleNamespace(plan=plan), forward=True, version="base", to="shop")
    assert said in loss_of(leap)
