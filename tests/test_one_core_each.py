"""Threads that compute side by side: as many as are free, and none ends with something undone."""

import threading

import pytest

from executor.compute.one_core_each import OneCoreEach


def test_items_are_worked_on_side_by_side_and_busy_says_by_how_many() -> None:
    together = threading.Barrier(3)
    side_by_side: OneCoreEach[str] = OneCoreEach(2, "test", lambda _: [together.wait(30), together.wait(30)].clear())
    side_by_side.put("a")
    side_by_side.put("b")
    together.wait(30)  # both are being worked on
    assert side_by_side.busy == 2
    free = threading.Thread(target=side_by_side.wait_for, kwargs={"busy": 1})
    free.start()
    free.join(0.1)
    assert free.is_alive()
    together.wait(30)
    free.join(30)
    assert not free.is_alive()
    side_by_side.wait_for(busy=0)
    assert side_by_side.busy == 0
    side_by_side.close()


def test_what_was_put_is_done_before_the_threads_end() -> None:
    done: list[int] = []
    side_by_side: OneCoreEach[int] = OneCoreEach(3, "test", done.append)
    for number in range(100):
        side_by_side.put(number)
    side_by_side.close()
    assert sorted(done) == list(range(100))


def test_each_thread_has_begun_before_anything_is_put_and_one_that_fails_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    begun: list[str] = []
    done: list[int] = []
    side_by_side: OneCoreEach[int] = OneCoreEach(
        2, "test", lambda number: done.append(1 // number), begin=lambda: begun.append(threading.current_thread().name)
    )
    assert sorted(begun) == ["test-0", "test-1"]
    for number in (0, 0, 0, 1):
        side_by_side.put(number)
    side_by_side.close()
    assert done == [1]
    assert caplog.text.count("ZeroDivisionError") == 3
