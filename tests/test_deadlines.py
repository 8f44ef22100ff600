"""When a run has waited long enough: after its last document, or after a request to start."""

import pytest

from desk import SILENCE, Clock
from executor.lifecycle.deadlines import START_GRACE_SECONDS, Deadlines


@pytest.fixture
def waiting(clock: Clock) -> Deadlines:
    return Deadlines(SILENCE)


def test_a_run_is_due_when_no_train_document_has_come_for_so_long(clock: Clock, waiting: Deadlines) -> None:
    waiting.arrived("a", train=True)
    clock.now += SILENCE - 0.01
    assert waiting.due() == []
    clock.now += 0.01
    assert waiting.due() == ["a"]


def test_each_document_lets_the_time_begin_anew(clock: Clock, waiting: Deadlines) -> None:
    waiting.arrived("a", train=True)
    for train in (True, False):  # eval documents count once the run has train documents
        clock.now += SILENCE - 1
        waiting.arrived("a", train=train)
    clock.now += SILENCE - 1
    assert waiting.due() == []
    clock.now += 1
    assert waiting.due() == ["a"]


def test_a_run_with_eval_documents_alone_is_due_after_twice_the_time(clock: Clock, waiting: Deadlines) -> None:
    waiting.arrived("a", train=False)
    clock.now += 2 * SILENCE - 0.01
    assert waiting.due() == []
    clock.now += 0.01
    assert waiting.due() == ["a"]
    waiting.arrived("a", train=True)
    clock.now += SILENCE
    assert waiting.due() == ["a"]


def test_a_run_that_was_asked_to_start_is_due_after_a_moment_without_further_requests(
    clock: Clock, waiting: Deadlines
) -> None:
    waiting.start_soon("a")
    assert waiting.due() == []
    clock.now += START_GRACE_SECONDS - 0.01
    waiting.arrived("a", train=True)  # another request of the same call
    clock.now += START_GRACE_SECONDS - 0.01
    waiting.arrived("a", train=False)
    clock.now += START_GRACE_SECONDS - 0.01
    assert waiting.due() == []
    clock.now += 0.01
    assert waiting.due() == ["a"]


def test_a_start_that_nothing_was_sent_for_is_due_all_the_same(clock: Clock, waiting: Deadlines) -> None:
    waiting.start_soon("a")
    clock.now += START_GRACE_SECONDS
    assert waiting.due() == ["a"]


def test_every_run_has_a_time_of_its_own_and_is_named_once(clock: Clock, waiting: Deadlines) -> None:
    waiting.arrived("c", train=True)
    waiting.arrived("b", train=True)
    waiting.start_soon("b")  # due in both ways
    clock.now += SILENCE
    waiting.arrived("a", train=True)
    waiting.start_soon("d")
    assert waiting.due() == ["b", "c"]


def test_a_forgotten_run_is_never_due_until_documents_come_again(clock: Clock, waiting: Deadlines) -> None:
    for run in ("a", "b"):
        waiting.arrived(run, train=True)
        waiting.start_soon(run)
    waiting.forget("a")
    waiting.forget("a")  # forgetting it again does no harm, nor does one that nobody knows
    waiting.forget("unknown")
    clock.now += SILENCE
    assert waiting.due() == ["b"]
    waiting.arrived("a", train=False)  # as if it were new
    clock.now += SILENCE
    assert waiting.due() == ["b"]


def test_a_run_stays_due_until_it_is_forgotten(clock: Clock, waiting: Deadlines) -> None:
    waiting.arrived("a", train=True)
    clock.now += SILENCE
    assert waiting.due() == waiting.due() == ["a"]
