"""What can be made again is kept within a bound, survives damage, and goes with its run."""

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from executor.store.cache import Cache


@pytest.fixture
def make_cache(tmp_path: Path) -> Iterator[Callable[..., Cache]]:
    made: list[Cache] = []

    def make(limit: int = 10_000, owners: tuple[int, ...] = (1, 2)) -> Cache:
        made.append(Cache(tmp_path / "pieces.sqlite", limit, lambda: owners))
        return made[-1]

    yield make
    for cache in made:
        cache.close()


def keys(*numbers: int) -> list[bytes]:
    return [bytes([number]) for number in numbers]


def test_pieces_are_found_by_sort_and_key_also_after_a_restart(make_cache):
    cache = make_cache()
    cache.put("192", {b"a": b"one", b"b": b"two"})
    cache.put("512", {b"a": b"large"})
    cache.put("192", {b"b": b"second"})
    cache.close()
    assert cache.get("192", [b"a"]) == {}
    again = make_cache()
    assert again.get("192", [b"a", b"b", b"c"]) == {b"a": b"one", b"b": b"second"}
    assert again.get("512", [b"a", b"b"]) == {b"a": b"large"}


def test_the_oldest_go_first_and_the_bound_holds(make_cache, tmp_path):
    cache = make_cache(limit=10_000)
    for number in range(30):
        cache.put("s", {bytes([number]): bytes(1000)})
    found = cache.get("s", keys(*range(30)))
    assert sorted(found) == keys(*range(30 - len(found), 30))
    assert 8 <= len(found) <= 10
    cache.put("s", {b"x": bytes(20_000)})  # larger than all that is allowed
    assert cache.get("s", [b"x"]) == {}


def test_what_a_run_owned_goes_with_it(make_cache):
    cache = make_cache()
    for owner in (0, 1, 2):
        cache.put("s", {bytes([owner]): b"x"}, owner)
    cache.forget(1)
    assert sorted(cache.get("s", keys(0, 1, 2))) == keys(0, 2)
    cache.close()
    assert sorted(make_cache(owners=()).get("s", keys(0, 1, 2))) == keys(0)  # its service was killed before `forget`


def test_a_damaged_file_is_begun_anew(make_cache, tmp_path):
    cache = make_cache()
    cache.put("s", {b"a": b"x"})
    cache.close()
    (tmp_path / "pieces.sqlite").write_bytes(b"this is no database, and much longer than a header" * 50)
    cache = make_cache()
    assert cache.get("s", [b"a"]) == {}
    cache.put("s", {b"a": b"y"})
    assert cache.get("s", [b"a"]) == {b"a": b"y"}


def test_a_piece_that_was_changed_on_the_disk_is_none(make_cache, tmp_path):
    cache = make_cache()
    cache.put("s", {b"a": b"good", b"b": b"good"})
    with sqlite3.connect(tmp_path / "pieces.sqlite") as db:
        db.execute(
            "UPDATE pieces SET content = CAST(substr(content, 1, 4) || x'6576696c' AS BLOB) WHERE key = ?", (b"a",)
        )
    assert cache.get("s", [b"a", b"b"]) == {b"b": b"good"}


def test_where_nothing_can_be_written_nothing_is_kept_and_that_is_said_once(make_cache, tmp_path, caplog):
    (tmp_path / "pieces.sqlite").mkdir()
    cache = make_cache()
    for _ in range(3):
        cache.put("s", {b"a": b"x"})
        assert cache.get("s", [b"a"]) == {}
    assert len(caplog.records) == 1
    assert "nothing is kept there until it can" in caplog.text
