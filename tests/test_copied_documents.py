"""Documents that a service copies by itself: from feedback, and from earlier runs."""

import threading
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from desk import NOTHING, Desk, documents
from executor import Document, DocumentArrayMemmap
from executor.errors import Overloaded, WorkspaceError
from executor.lifecycle import receiving, sources
from executor.store.run import RunState


def queued(desk: Desk, run: str, **fields: Any) -> None:
    """A run that took documents earlier."""
    desk.post(documents(prefix=run, **fields), run=run)
    desk.receiver.queue(run)


def until(condition: Callable[[], object]) -> None:
    """Wait until something has become true."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def damage(desk: Desk, run: str) -> Path:
    """Destroy the documents of a run; return where they were kept."""
    file: Path = desk.store.workspace.spool_file(run)
    desk.finish(run)
    file.rename(file.with_name("kept"))
    file.write_bytes(b"no documents")
    return file


def test_a_run_whose_sources_cannot_be_copied_is_not_begun(desk: Desk) -> None:
    queued(desk, "earlier")
    damage(desk, "earlier")
    with pytest.raises(WorkspaceError):
        desk.post(NOTHING, run="next", documents_from=("earlier",))
    assert not desk.store.exists("next")
    assert desk.post(documents()).state is RunState.RECEIVING, "a call without a run does not join it"


def test_a_run_that_got_documents_stays_although_sources_named_late_cannot_be_copied(desk: Desk) -> None:
    queued(desk, "earlier")
    file = damage(desk, "earlier")
    desk.post(documents(), run="next")
    with pytest.raises(WorkspaceError):
        desk.post(documents(prefix="e"), run="next", documents_from=("earlier",))
    assert desk.stored("next") == ["d0", "d1", "d2", "d3"]
    file.with_name("kept").replace(file)
    desk.post(documents(prefix="e"), run="next")
    assert len(desk.stored("next")) == 12


def test_copies_that_were_broken_off_are_tried_again_and_the_history_says_why(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receiving, "RETRY_SECONDS", 0.05)
    queued(desk, "earlier")
    file = damage(desk, "earlier")
    desk.post(documents(), run="next")
    with pytest.raises(WorkspaceError):
        desk.post(NOTHING, run="next", documents_from=("earlier",))
    again = desk.another()
    again.go_on()
    until(lambda: [kind for _, _, kind, _ in desk.store.events("next")] == ["received", "error"])
    file.with_name("kept").replace(file)
    until(lambda: len(desk.stored("next")) == 8)
    again.close()


def test_copies_that_were_broken_off_and_cannot_be_used_do_not_count_towards_the_total(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are counted once, although they were copied twice."""
    monkeypatch.setattr(sources, "_CHUNK", 2)
    queued(desk, "earlier", tags={})
    read = DocumentArrayMemmap.__iter__

    def broken_off(docs: DocumentArrayMemmap) -> Iterator[Document]:
        yield from islice(read(docs), 2)
        raise WorkspaceError("the disk is full")

    desk.post(documents(2), run="next", kind="class", total=4)
    with monkeypatch.context() as full:
        full.setattr(DocumentArrayMemmap, "__iter__", broken_off)
        with pytest.raises(WorkspaceError, match="disk is full"):
            desk.post(NOTHING, run="next", documents_from=("earlier",))
    assert len(desk.reasons("next")) == 2
    run = desk.post(documents(1, prefix="e"), run="next")
    assert (run.state, len(desk.reasons("next"))) == (RunState.RECEIVING, 4)
    assert desk.post(documents(1, prefix="f"), run="next").state is RunState.QUEUED


def test_nobody_waits_for_the_copies_of_another_run(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    queued(desk, "earlier")
    began, go_on = threading.Event(), threading.Event()
    read = DocumentArrayMemmap.__iter__

    def held_up(docs: DocumentArrayMemmap) -> Iterator[Document]:
        began.set()
        go_on.wait(60)
        return read(docs)

    monkeypatch.setattr(DocumentArrayMemmap, "__iter__", held_up)
    copying = threading.Thread(
        target=desk.post, args=(NOTHING,), kwargs={"run": "next", "documents_from": ("earlier",)}
    )
    copying.start()
    try:
        assert began.wait(60)
        assert desk.post(documents(), run="other").state is RunState.RECEIVING
    finally:
        go_on.set()
        copying.join()
    assert len(desk.stored("next")) == 4


def test_a_service_that_ends_copies_no_more_and_the_caller_may_send_it_again(desk: Desk) -> None:
    queued(desk, "earlier")
    desk.receiver.stop()
    with pytest.raises(Overloaded, match="just ending"):
        desk.post(NOTHING, run="next", documents_from=("earlier",))
    assert not desk.store.exists("next")


def test_copies_that_cannot_be_used_do_not_count_towards_the_total(desk: Desk) -> None:
    queued(desk, "earlier", tags={})
    run = desk.post(documents(2), run="next", kind="class", documents_from=("earlier",), total=4)
    assert (run.state, len(desk.reasons("next"))) == (RunState.RECEIVING, 4)
    assert desk.post(documents(2, prefix="e"), run="next").state is RunState.QUEUED
