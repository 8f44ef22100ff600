"""Sets of documents that arrive in several requests, as Jina cuts a call."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from executor.endpoints import gathering
from executor.endpoints.gathering import Gatherings
from executor.errors import BadRequest


async def together(parts: list[list[str]]) -> str:
    return "".join(sorted(word for part in parts for word in part))


def join(sets: Gatherings[list[str], str], words: str, total: int, key: str = "set") -> Coroutine[Any, Any, str]:
    return sets.join(key, list(words), len(words), total, together)


def test_the_requests_of_a_set_wait_for_each_other_and_get_the_same_answer() -> None:
    async def scenario() -> list[str]:
        sets: Gatherings[list[str], str] = Gatherings()
        return await asyncio.gather(join(sets, "dc", 5), join(sets, "ab", 5), join(sets, "e", 5))

    assert asyncio.run(scenario()) == ["abcde"] * 3


def test_sets_of_other_keys_are_apart_and_a_set_can_come_again() -> None:
    async def scenario() -> list[str]:
        sets: Gatherings[list[str], str] = Gatherings()
        first = await asyncio.gather(
            join(sets, "a", 2), join(sets, "x", 2, "other"), join(sets, "b", 2), join(sets, "y", 2, "other")
        )
        return [*first, *await asyncio.gather(join(sets, "c", 2), join(sets, "d", 2))]

    assert asyncio.run(scenario()) == ["ab", "xy", "ab", "xy", "cd", "cd"]


def test_more_documents_than_announced_are_refused_for_all() -> None:
    async def scenario() -> list[Any]:
        sets: Gatherings[list[str], str] = Gatherings()
        return await asyncio.gather(join(sets, "ab", 3), join(sets, "cd", 3), return_exceptions=True)

    found = asyncio.run(scenario())
    assert [type(each) for each in found] == [BadRequest] * 2
    assert "4 documents came, and total is 3" in str(found[0])


def test_a_set_that_is_never_complete_ends_with_what_came(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "PATIENCE_SECONDS", 0.05)

    async def scenario() -> list[Any]:
        sets: Gatherings[list[str], str] = Gatherings()
        found = await asyncio.gather(join(sets, "ab", 9), join(sets, "c", 9), return_exceptions=True)
        return [*found, *await asyncio.gather(join(sets, "ab", 3), join(sets, "c", 3))]

    *refused, one, other = asyncio.run(scenario())
    assert ["3 of 9 documents came" in str(each) for each in refused] == [True, True]
    assert (one, other) == ("abc", "abc")


def test_a_failure_reaches_every_request() -> None:
    async def fail(parts: list[list[str]]) -> str:
        raise ValueError("no")

    async def scenario() -> list[Any]:
        sets: Gatherings[list[str], str] = Gatherings()
        requests = [sets.join("set", ["a"], 1, 2, fail) for _ in range(2)]
        return await asyncio.gather(*requests, return_exceptions=True)

    assert [type(each) for each in asyncio.run(scenario())] == [ValueError] * 2


def test_a_caller_that_goes_away_does_not_end_the_others() -> None:
    async def scenario() -> str:
        sets: Gatherings[list[str], str] = Gatherings()
        gone = asyncio.ensure_future(join(sets, "a", 2))
        await asyncio.sleep(0)
        gone.cancel()
        return await join(sets, "b", 2)

    assert asyncio.run(scenario()) == "ab"


def test_a_request_whose_caller_has_gone_is_no_part_of_the_set_any_more() -> None:
    async def scenario() -> str:
        sets: Gatherings[list[str], str] = Gatherings()
        gone = asyncio.create_task(join(sets, "ab", 4))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        again = asyncio.create_task(join(sets, "ab", 4))
        await asyncio.sleep(0)
        assert not again.done(), "it does not complete the set with itself"
        return await join(sets, "cd", 4)

    assert asyncio.run(scenario()) == "abcd"
