"""Checkpoints on disk: complete or absent, and never a pickle."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from executor.training.state import TrainState
from executor.worker.checkpoints import CheckpointWriter, load_checkpoint, save_checkpoint


def state(done: int) -> TrainState:
    return TrainState(
        epoch=2,
        step=1,
        done=done,
        loss_sum=0.1 + 0.2,
        history={"loss": [0.5, 1 / 3]},
        best_score=0.25,
        best_epoch=1,
        tensors={
            "model": {"weight": torch.arange(6.0).reshape(2, 3), "count": torch.tensor(3), "empty": torch.empty(0)},
            "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "groups": [{"lr": 1e-3, "betas": (0.9, 0.999)}]},
            "random": {"cpu": torch.get_rng_state()},
            "half": torch.ones(2, dtype=torch.bfloat16),
            "best_model": {},
        },
    )


def loaded(folder: Path) -> TrainState:
    found = load_checkpoint(folder)
    assert found is not None
    return found


def assert_same(first: Any, second: Any) -> None:
    if isinstance(first, torch.Tensor):
        assert first.dtype == second.dtype
        assert torch.equal(first, second)
    elif isinstance(first, dict):
        assert list(first) == list(second)
        for key in first:
            assert_same(first[key], second[key])
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert_same(one, other)
    else:
        assert first == second


def test_what_is_loaded_is_what_was_saved(tmp_path):
    save_checkpoint(tmp_path, state(7), 7)
    assert_same(vars(state(7)), vars(loaded(tmp_path)))


def test_the_newest_is_loaded(tmp_path):
    for done in (9, 10, 100):
        save_checkpoint(tmp_path, state(done), done)
    assert loaded(tmp_path).done == 100


def test_two_are_kept(tmp_path):
    for done in range(1, 6):
        save_checkpoint(tmp_path, state(done), done)
    assert sorted(int(place.name) for place in tmp_path.iterdir()) == [4, 5]


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path):
    save_checkpoint(tmp_path, state(3), 3)
    later = state(3)
    later.epoch, later.step = 3, 0
    save_checkpoint(tmp_path, later, 3)
    assert loaded(tmp_path).epoch == 3
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("exists", [True, False])
def test_where_there_is_none_there_is_none(tmp_path, exists):
    assert load_checkpoint(tmp_path if exists else tmp_path / "absent") is None


def newest(folder: Path) -> Path:
    return max(folder.iterdir())


def damage_tensors(place: Path) -> None:
    file = place / "tensors.safetensors"
    file.write_bytes(file.read_bytes()[:-20])


def flip_a_bit(place: Path) -> None:
    file = place / "tensors.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def test_a_checkpoint_that_cannot_be_written_is_told_and_the_next_one_is_written(tmp_path):
    told: list[str] = []
    writer = CheckpointWriter(tmp_path / "run" / "checkpoints", lambda error: told.append(str(error)))
    (tmp_path / "run").write_text("in the way")
    writer.write(state(1))
    writer.wait()
    assert [each.startswith("The checkpoint cannot be written to") for each in told] == [True]
    (tmp_path / "run").unlink()
    writer.write(state(2))
    writer.write(state(3))
    writer.wait()
    assert len(told) == 1
    assert loaded(tmp_path / "run" / "checkpoints").done == 3


DAMAGE = {
    "truncated tensors": damage_tensors,
    "a flipped bit": flip_a_bit,
    "no tensors": lambda place: (place / "tensors.safetensors").unlink(),
    "no state": lambda place: (place / "state.json").unlink(),
    "truncated state": lambda place: (place / "state.json").write_text((place / "state.json").read_text()[:-9]),
    "empty state": lambda place: (place / "state.json").write_text(""),
    "binary state": lambda place: (place / "state.json").write_bytes(b"\xff\x00\xfe"),
    "another JSON": lambda place: (place / "state.json").write_text("[]"),
    "a state that is no state": lambda place: (place / "state.json").write_text(
        json.dumps(json.loads((place / "state.json").read_text()) | {"state": {"dict": [["unknown", {"plain": 1}]]}})
    ),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=list(DAMAGE))
def test_the_one_before_a_damaged_one_is_used(tmp_path, damage, caplog):
    save_checkpoint(tmp_path, state(1), 1)
    save_checkpoint(tmp_path, state(2), 2)
    damage(newest(tmp_path))
    assert loaded(tmp_path).done == 1
    assert "is damaged" in caplog.text


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=list(DAMAGE))
def test_where_the_only_one_is_damaged_there_is_none(tmp_path, damage):
    save_checkpoint(tmp_path, state(1), 1)
    damage(newest(tmp_path))
    assert load_checkpoint(tmp_path) is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["dict", "list", "tensor"]), inner),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    save_checkpoint(folder, state(1), 1)
    save_checkpoint(folder, state(2), 2)
    return folder


@settings(deadline=None, max_examples=60, derandomize=True)
@given(garbage=json_values)
def test_whatever_stands_in_the_place_of_the_state_the_one_before_is_used(two, garbage):
    file = newest(two) / "state.json"
    whole = json.loads(file.read_text())
    file.write_text(json.dumps(whole | {"state": garbage}))
    try:
        assert loaded(two).done == 1
    finally:
        file.write_text(json.dumps(whole))


def test_a_half_written_one_is_not_seen(tmp_path):
    save_checkpoint(tmp_path, state(1), 1)
    unfinished = tmp_path / ".0000000002-abc"
    unfinished.mkdir()
    (unfinished / "state.json").write_text("{")
    assert loaded(tmp_path).done == 1


def test_nothing_in_a_checkpoint_is_a_pickle(tmp_path):
    save_checkpoint(tmp_path, state(1), 1)
    files = {file.name: file.read_bytes() for file in newest(tmp_path).iterdir()}
    assert set(files) == {"tensors.safetensors", "state.json"}
    json.loads(files["state.json"])
    length = int.from_bytes(files["tensors.safetensors"][:8], "little")
    json.loads(files["tensors.safetensors"][8 : 8 + length])
