"""Maps between spaces: what is learned, what is kept beside the weights, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ortho_group

from executor.errors import WorkspaceError
from executor.evaluation.map_fitting import RANKS, Fitted, learn_maps
from executor.models.space_map import AT_ONCE, FILE, KnownMap, SpaceMap, read_map, unit_length, write_map

OLD, NEW, DOCUMENTS = 24, 16, 400


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float((unit_length(one) * unit_length(other)).sum(1).mean())


def vectors(count: int, seed: int, size: int = OLD) -> np.ndarray:
    return unit_length(np.random.default_rng(seed).normal(size=(count, size)).astype(np.float32))


def learned(old: np.ndarray, new: np.ndarray) -> tuple[SpaceMap, str, float]:
    """Learn from all but the last fifth; return the map, its kind, and the mean cosine on the last tenth."""
    forward, _, rest = both_ways(old, new)
    return forward.map, forward.kind, cosine(forward.map(old[rest:]), new[rest:])


def both_ways(old: np.ndarray, new: np.ndarray) -> tuple[Fitted, Fitted, int]:
    many, rest = len(old) * 8 // 10, len(old) * 9 // 10
    return *learn_maps((old[:many], new[:many]), (old[many:rest], new[many:rest])), rest


def test_a_rotation_is_found() -> None:
    old = vectors(DOCUMENTS, 0)
    _, kind, reached = learned(old, old @ ortho_group.rvs(OLD, random_state=0).astype(np.float32))
    assert reached > 0.9999, kind


def test_a_rotation_of_few_noisy_documents_is_found_best_by_a_rotation() -> None:
    old, noise = vectors(100, 0), np.random.default_rng(1).normal(0, 0.1, (100, OLD)).astype(np.float32)
    new = unit_length(old @ ortho_group.rvs(OLD, random_state=0).astype(np.float32) + noise)
    assert learned(old, new)[1] == "orthogonal"


def test_a_space_that_hardly_moved_is_mapped_by_what_is_left_of_it() -> None:
    old = vectors(60, 0)
    new = unit_length(old + np.random.default_rng(1).normal(0, 0.05, old.shape).astype(np.float32))
    _, kind, reached = learned(old, new)
    assert kind.startswith("residual")
    assert reached > 0.96


def test_an_affine_map_to_another_size_is_found_in_both_directions() -> None:
    random = np.random.default_rng(0)
    core = random.normal(size=(DOCUMENTS, 8)).astype(np.float32)
    old, new = (unit_length(core @ random.normal(size=(8, size)).astype(np.float32) + 0.3) for size in (OLD, NEW))
    for one, other in ((old, new), (new, old)):
        found, _, reached = learned(one, other)
        assert found.sizes == (one.shape[1], other.shape[1])
        assert reached > 0.98
        np.testing.assert_allclose(np.linalg.norm(found(one), axis=1), 1, atol=1e-5)


def test_mapped_queries_find_in_the_old_index_what_they_find_when_all_is_embedded_anew() -> None:
    """The old version sees everything alike but for a little: a regression on its vectors would find their mean."""
    random = np.random.default_rng(0)
    core = random.normal(size=(DOCUMENTS, 6))
    new = unit_length((core @ random.normal(size=(6, NEW))).astype(np.float32))
    old = unit_length((8 * np.ones(OLD) + core @ random.normal(size=(6, OLD))).astype(np.float32))
    _, backward, rest = both_ways(old, new)
    assert backward.map.sizes == (NEW, OLD)
    anew = new[rest:] @ new[rest:].T
    by_map = backward.map(new[rest:]) @ old[rest:].T
    agreement = [np.corrcoef(one, other)[0, 1] for one, other in zip(by_map, anew, strict=True)]
    assert np.mean(agreement) > 0.93
    assert backward.kind.startswith("adjoint of ")
    assert backward.goodness == pytest.approx(np.mean(agreement), abs=0.05)


def test_a_low_rank_is_taken_where_it_does_as_well() -> None:
    random, size = np.random.default_rng(0), 6 * RANKS[0]
    core = random.normal(size=(600, 5)).astype(np.float32)
    old, new = (core @ random.normal(size=(5, size)).astype(np.float32) for _ in range(2))
    found, kind, reached = learned(old, new)
    assert kind.endswith(f"rank {RANKS[0]}")
    assert found.dense is None
    assert found.down is not None
    assert found.down.shape == (size, RANKS[0])
    assert reached > 0.999


def test_equal_vectors_and_more_values_than_documents_are_no_trouble() -> None:
    same = np.tile(vectors(1, 0), (30, 1))
    np.testing.assert_allclose(learn_maps((same, same), (same, same))[0].map(same), same, atol=1e-5)
    few = vectors(10, 1, size=200), vectors(10, 2, size=200)
    for fitted in learn_maps(few, few):
        assert np.isfinite(fitted.map(few[0])).all()


def test_many_vectors_are_mapped_as_each_of_them_is() -> None:
    many = vectors(2 * AT_ONCE + 5, 0)
    found = known().forward
    np.testing.assert_allclose(found(many)[[0, AT_ONCE, -1]], found(many[[0, AT_ONCE, -1]]), atol=1e-6)


def known(**changes: object) -> KnownMap:
    old, new = vectors(100, 0), vectors(100, 0)[:, :NEW]
    maps = {
        "forward": learn_maps((old, unit_length(new)), (old, unit_length(new)))[0].map,
        "backward": SpaceMap(
            shift=np.zeros(OLD, np.float32), down=vectors(NEW, 1, 3), up=vectors(3, 2, OLD), unit=False
        ),
    }
    plan = {"from": "base", "advice": "nothing", "nothing": [0.1, 0.0, 0.2]}
    values = {"version": "base", "space": "0" * 12, "own_space": "1" * 12, "plan": plan, "kinds": ("ridge", "ridge")}
    return KnownMap(**(maps | values | changes))


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    written = known()
    write_map(tmp_path, written)
    read = read_map(tmp_path)
    assert read is not None
    for name in ("version", "space", "own_space", "plan", "kinds"):
        assert getattr(read, name) == getattr(written, name)
    np.testing.assert_array_equal(read.forward(vectors(5, 3)), written.forward(vectors(5, 3)))
    np.testing.assert_array_equal(read.backward(vectors(5, 3, NEW)), written.backward(vectors(5, 3, NEW)))


def test_a_version_of_an_earlier_release_has_no_map_and_a_damaged_file_is_named(tmp_path: Path) -> None:
    assert read_map(tmp_path) is None
    (tmp_path / FILE).write_bytes(b"nonsense")
    with pytest.raises(WorkspaceError, match=f"{FILE} is damaged"):
        read_map(tmp_path)


def test_vectors_of_another_size_are_refused_with_the_size_there_is() -> None:
    with pytest.raises(ValueError, match=rf"\(5, 3\); this map takes \(N, {OLD}\)"):
        known().forward(vectors(5, 0, 3))


def test_vectors_of_many_values_get_a_map_that_is_quick_for_a_query() -> None:
    random = np.random.default_rng(0)
    old = random.normal(size=(200, 600)).astype(np.float32)
    new = unit_length(old @ random.normal(size=(600, 600)).astype(np.float32))
    for fitted in learn_maps((old[:160], new[:160]), (old[160:], new[160:])):
        assert "rank" in fitted.kind
        assert fitted.map.dense is None
