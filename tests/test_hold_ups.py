"""A run's trouble stays the run's: the others go on while its documents cannot be stored or read."""

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from executor import Document, DocumentArray, DocumentArrayMemmap
from executor.compute.threads import Lanes
from executor.errors import Conflict
from executor.lifecycle.receiving import Receiver
from executor.parameters import FitParameters, parse_executor_options
from executor.store.connections import MOST_IDLE
from executor.store.run import Run, RunState
from executor.store.runs import RunStore
from executor.store.workspace import Workspace


class Desk:
    """A receiver on a workspace, whose runs are all due soon."""

    def __init__(self, folder: Path) -> None:
        self.store = RunStore(Workspace(folder))
        self.start_again()

    def start_again(self) -> None:
        self.receiver = Receiver(self.store, parse_executor_options({"receive_timeout": 0.001}).with_roots())

    def post(self, docs: DocumentArray, run: str) -> Run:
        return self.store.get(self.receiver.receive(docs, FitParameters(run=run)))


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path / "workspace")
    yield desk
    desk.receiver.close()
    desk.store.close()


@contextmanager
def held(desk: Desk, run: str) -> Iterator[list[object]]:
    """Another process holds the documents of a run while a request for it is under way, in a thread.

    The list has what became of the request once it has ended.
    """
    file = sqlite3.connect(desk.store.workspace.spool_file(run), isolation_level=None, check_same_thread=False)
    file.execute("BEGIN IMMEDIATE")
    request = threading.Thread(target=lambda: outcome.append(caught(lambda: desk.post(documents("late"), run=run))))
    outcome: list[object] = []
    request.start()
    try:
        while not desk.receiver.is_busy(run):
            time.sleep(0.01)
        yield outcome
        assert request.is_alive()  # else nothing was held up, and nothing is proven
    finally:
        file.execute("ROLLBACK")
        file.close()
        request.join()


def caught(call: Callable[[], object]) -> object:
    try:
        return call()
    except Exception as error:
        return error


def documents(*ids: str) -> DocumentArray:
    return DocumentArray(Document(id=id, uri="data:,x", tags={"finetuner_label": 1}) for id in ids)


def test_documents_that_cannot_be_stored_just_now_hold_up_no_other_run(desk: Desk) -> None:
    desk.post(documents("a"), run="held")
    with held(desk, "held"):
        assert desk.post(documents("b"), run="other").state is RunState.RECEIVING
        assert desk.receiver.counts("held") == (1, 0)
        time.sleep(0.01)
        desk.receiver.queue_due()
        states = {run.name: run.state for run in desk.store.all()}
        assert states == {"held": RunState.RECEIVING, "other": RunState.QUEUED}
    desk.receiver.queue_due()
    with DocumentArrayMemmap(desk.store.workspace.spool_file("held")) as docs:
        assert list(docs.ids()) == ["a", "late"]


def test_a_run_whose_documents_cannot_be_stored_just_now_can_be_cancelled(desk: Desk) -> None:
    desk.post(documents("a"), run="held")
    with held(desk, "held") as outcome:
        desk.store.advance("held", RunState.CANCELLED)
        desk.receiver.release("held")
        with pytest.raises(Conflict, match="just being stored; delete it in a moment"):
            desk.receiver.delete("held")
    (refusal,) = outcome
    assert isinstance(refusal, Conflict)
    assert "cancelled" in str(refusal)
    desk.receiver.delete("held")


def test_a_run_whose_documents_are_damaged_keeps_no_other_from_going_on(desk: Desk) -> None:
    for name in ("damaged", "other"):
        desk.post(documents("a"), run=name)
    desk.receiver.close()
    desk.store.workspace.spool_file("damaged").write_bytes(b"no database at all" * 99)
    desk.start_again()
    desk.receiver.go_on()
    time.sleep(0.01)
    desk.receiver.queue_due()
    assert desk.store.get("other").state is RunState.QUEUED
    told = [message for *_, kind, message in desk.store.events("damaged") if kind == "error"]
    assert "is not a file of documents" in told[0]


def test_many_receiving_runs_take_few_file_descriptors(desk: Desk) -> None:
    for number in range(MOST_IDLE):
        desk.post(documents("a"), run=f"r{number}")
    before = psutil.Process().num_fds()
    for number in range(2 * MOST_IDLE):
        desk.post(documents("a"), run=f"more{number}")
        desk.receiver.counts(f"more{number}")
    assert psutil.Process().num_fds() <= before + 6


def test_what_waits_in_one_lane_holds_up_no_other() -> None:
    lanes, gate = Lanes(2), threading.Event()
    slow = [lanes.submit("slow", lambda number=number: gate.wait() and number) for number in range(4)]
    assert [lanes.submit("quick", lambda number=number: number).result(60) for number in range(3)] == [0, 1, 2]
    assert not any(future.done() for future in slow)
    gate.set()
    assert [future.result(60) for future in slow] == [0, 1, 2, 3]
    with pytest.raises(ZeroDivisionError):
        lanes.submit("slow", lambda: 1 // 0).result(60)
    lanes.close()
