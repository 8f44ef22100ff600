"""`/delete` removes an ended run with all its files. A kill meanwhile leaves all of the run, or nothing."""

import asyncio
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import coloured
from doors import Opened, opened
from executor import Document, DocumentArray
from executor.documents import RunStatus
from executor.endpoints.table import call
from executor.errors import Conflict, UnknownRun, WorkspaceError
from executor.parameters import TrainingOptions
from executor.store.run import RunState
from executor.store.runs import Quarantined, RunStore
from executor.store.workspace import Workspace
from serving import ROOT, Service


def documents(count: int = 12, prefix: str = "d") -> DocumentArray:
    return DocumentArray(
        Document(id=f"{prefix}{number}", blob=coloured(number % 3, number), tags={"finetuner_label": number % 3})
        for number in range(count)
    )


def train(service: Service, run: str, **parameters: Any) -> RunStatus:
    service.post("/fit", documents(), returns=RunStatus, run=run, total=12, epochs=1, **parameters)
    return service.wait(run)


def refusal(service: Service, run: str) -> tuple[int, str]:
    answer = service.http("/delete", run=run)
    return answer.status_code, answer.json()["detail"]


# --- the store: what may be deleted, and a kill meanwhile ------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RunStore]:
    opened = RunStore(Workspace(tmp_path / "workspace"))
    yield opened
    opened.close()


def make_run(store: RunStore, name: str, *way: RunState, base: str = "base") -> None:
    """A run with files, events, problems and progress, that went this way."""
    store.create(name, TrainingOptions(base=base))
    for state in way:
        store.advance(name, state)
    store.quarantine(name, "train", [Quarantined("0", "d1", "bad")], spooled=True)
    model = store.workspace.model_folder(name)
    model.mkdir(parents=True)
    (model / "weights.safetensors").write_bytes(b"weights")
    store.workspace.spool_file(name).write_bytes(b"documents")


def files(workspace: Workspace) -> list[str]:
    return sorted(str(path.relative_to(workspace.root)) for path in workspace.root.rglob("*/*") if path.is_file())


SUCCEEDED = (RunState.QUEUED, RunState.TRAINING, RunState.SUCCEEDED)


@pytest.mark.parametrize("way", [(), SUCCEEDED[:1], SUCCEEDED[:2]], ids=["receiving", "queued", "training"])
def test_a_run_that_has_not_ended_is_not_deleted_but_to_be_cancelled_first(
    store: RunStore, way: tuple[RunState, ...]
) -> None:
    make_run(store, "a", *way)
    before = files(store.workspace)
    with pytest.raises(Conflict, match=r"Run 'a' is .*; cancel it before"):
        store.delete("a")
    assert files(store.workspace) == before
    assert store.exists("a")


@pytest.mark.parametrize("way", [(), SUCCEEDED[:1], SUCCEEDED[:2]], ids=["receiving", "queued", "training"])
def test_what_an_open_run_starts_from_is_not_deleted(store: RunStore, way: tuple[RunState, ...]) -> None:
    make_run(store, "a", *SUCCEEDED)
    make_run(store, "b", *way, base="a")
    with pytest.raises(Conflict, match="Run 'b' starts from run 'a'"):
        store.delete("a")
    store.advance("b", RunState.CANCELLED)
    store.delete("a")
    assert not store.exists("a")


def test_what_is_served_is_not_deleted_until_another_version_is_served(store: RunStore) -> None:
    make_run(store, "a", *SUCCEEDED)
    store.promote("a")
    with pytest.raises(Conflict, match=r"^Run 'a' is the version now served; promote another, or base, before"):
        store.delete("a")
    store.promote("base")
    store.delete("a")
    assert not store.exists("a")


def test_a_deleted_run_leaves_no_row_and_no_file(store: RunStore) -> None:
    make_run(store, "kept", *SUCCEEDED)
    before = files(store.workspace)
    make_run(store, "a", *SUCCEEDED)
    store.delete("a")
    assert files(store.workspace) == before
    assert [run.name for run in store.all()] == ["kept"]
    assert (store.events("a"), store.count_problems("a")) == ([], 0)
    with pytest.raises(UnknownRun, match="There is no run 'a'"):
        store.delete("a")


def test_a_run_of_which_no_request_was_answered_is_undone_and_no_other(store: RunStore) -> None:
    before = files(store.workspace)
    make_run(store, "a")
    store.undo("a")
    assert (store.exists("a"), store.events("a"), files(store.workspace)) == (False, [], before)
    make_run(store, "answered")
    store.acknowledge("answered")
    make_run(store, "queued", *SUCCEEDED[:1])
    for name in ("answered", "queued"):
        with pytest.raises(Conflict, match="a request for it was answered"):
            store.undo(name)
        assert store.workspace.model_folder(name).is_dir()


def test_a_deleted_run_is_not_promoted_afterwards(store: RunStore) -> None:
    make_run(store, "a", *SUCCEEDED)
    store.delete("a")
    with pytest.raises(UnknownRun):
        store.promote("a")
    assert store.promoted() == "base"


def test_a_name_that_is_taken_is_refused_in_a_sentence(store: RunStore) -> None:
    make_run(store, "a", *SUCCEEDED)
    with pytest.raises(Conflict, match="There is a run 'a' already"):
        store.create("a")


def test_a_run_whose_folder_cannot_be_moved_is_still_there(store: RunStore) -> None:
    make_run(store, "a", *SUCCEEDED)
    (store.workspace.root / "deleted").write_text("in the way")
    with pytest.raises(WorkspaceError, match="cannot be used"):
        store.delete("a")
    assert store.exists("a")
    assert store.workspace.model_folder("a").is_dir()


def test_a_run_whose_rows_cannot_be_removed_is_still_there_with_its_files(store: RunStore) -> None:
    make_run(store, "a", *SUCCEEDED)
    whole = files(store.workspace), store.get("a"), store.events("a")
    with sqlite3.connect(store.workspace.database) as db:
        db.execute("CREATE TRIGGER kept BEFORE DELETE ON events BEGIN SELECT RAISE(ABORT, 'not now'); END")
    with pytest.raises(WorkspaceError, match="not now"):
        store.delete("a")
    assert (files(store.workspace), store.get("a"), store.events("a")) == whole
    with sqlite3.connect(store.workspace.database) as db:
        db.execute("DROP TRIGGER kept")
    db.close()
    store.delete("a")
    assert files(store.workspace) == []


def test_what_a_killed_service_was_deleting_is_undone_where_its_rows_are_left_and_else_finished(
    store: RunStore,
) -> None:
    for name in ("half", "over"):
        make_run(store, name, *SUCCEEDED)
    whole = files(store.workspace), store.get("half"), store.events("half")
    for name in ("half", "over"):
        store.workspace.discard(name, store.get(name).number)
    with sqlite3.connect(store.workspace.database) as db:
        db.execute("DELETE FROM runs WHERE name = 'over'")
    db.close()
    reopened = RunStore(store.workspace)
    reopened.finish_deletes()
    left = [file for file in whole[0] if "/over/" not in file]
    assert (files(reopened.workspace), reopened.get("half"), reopened.events("half")) == (left, *whole[1:])
    assert list(reopened.workspace.discarded()) == []
    reopened.close()


def test_a_file_that_cannot_be_removed_is_left_for_the_next_start_and_the_run_is_gone(
    store: RunStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    make_run(store, "a", *SUCCEEDED)
    with monkeypatch.context() as stubborn:
        stubborn.setattr(shutil, "rmtree", lambda place: os.listdir(place / "nowhere"))
        store.delete("a")
    assert "Files of the deleted run a are left until the next start" in caplog.text
    assert not store.exists("a")
    assert len(list(store.workspace.discarded())) == 1
    store.finish_deletes()
    assert list(store.workspace.discarded()) == []


def test_the_room_for_a_delete_is_laid_aside_again_after_it(store: RunStore) -> None:
    store.finish_deletes()  # as a service does when it starts
    before = reserve(store)
    assert before > 0
    make_run(store, "a", *SUCCEEDED)
    store.delete("a")
    assert reserve(store) == before


def reserve(store: RunStore) -> int:
    return (store.workspace.root / "reserve").stat().st_size


# Everything that a delete does to the disk passes an audit hook or is a statement: it dies at the one of this number.
DELETE_AND_DIE = """
import contextlib, os, signal, sqlite3, sys
sys.modules["torch"] = None
from pathlib import Path
from executor.store.runs import Quarantined, RunStore
from executor.store.workspace import Workspace
left, connections = float("inf"), []
def step(*_):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
def hook(event, arguments):
    if event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir"):
        step()
    elif event == "sqlite3.connect/handle":
        connections.append(arguments[0])
sys.addaudithook(hook)
store = RunStore(Workspace(Path(sys.argv[1])))
for connection in connections:
    with contextlib.suppress(sqlite3.ProgrammingError):  # closed already
        connection.set_trace_callback(step)
left = int(sys.argv[2])
store.delete("a")
"""


@pytest.mark.process
def test_a_kill_in_the_middle_of_a_delete_leaves_the_run_or_nothing_of_it(tmp_path: Path) -> None:
    seen = set()
    for number in range(100):
        store = RunStore(Workspace(tmp_path / str(number)))
        make_run(store, "a", *SUCCEEDED)
        whole = files(store.workspace), store.get("a"), store.events("a")
        root = str(store.workspace.root)
        killed = subprocess.run([sys.executable, "-c", DELETE_AND_DIE, root, str(number)], cwd=ROOT, timeout=60)
        store.finish_deletes()
        if store.exists("a"):
            assert (files(store.workspace), store.get("a"), store.events("a")) == whole
        else:
            assert (files(store.workspace), store.events("a"), store.count_problems("a")) == ([], [], 0)
        seen.add(store.exists("a"))
        store.close()
        if killed.returncode == 0:
            break
        assert killed.returncode == -signal.SIGKILL
    assert number > 8
    assert seen == {True, False}


# --- a caller who goes before it is done ------------------------------------------------------------------------------


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Opened]:
    with opened(tmp_path) as running:
        running.service.supervisor.close()  # nobody shall train what these tests send
        yield running


def call_and_go(door: Opened, place: Any, method: str, path: str, *docs: Document, **parameters: Any) -> None:
    """Make a call whose caller goes while a method of a part of the service is at work for it."""
    slow = getattr(place, method)
    begun, goes_on = threading.Event(), threading.Event()

    def slowly(*arguments: Any) -> Any:
        begun.set()
        goes_on.wait(30)
        return slow(*arguments)

    async def leave() -> None:
        calling = asyncio.create_task(call(door.service, path, DocumentArray(docs), parameters))
        await asyncio.to_thread(begun.wait, 30)
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
        goes_on.set()
        await asyncio.wait_for(asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()})), 30)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(place, method, slowly)
        asyncio.run(leave())  # which waits for the threads


def test_a_deleted_model_is_gone_from_memory_also_if_the_caller_did_not_wait_for_the_end(door: Opened) -> None:
    service = door.service
    make_run(service.store, "a", *SUCCEEDED)
    model = service.store.workspace.model_folder("a")
    shutil.rmtree(model)
    service.embedder.version("base")  # makes it
    shutil.copytree(service.store.workspace.base, model)
    assert door.post("/embed", [{"blob": coloured(0).tolist()}], model="a").status_code == 200
    call_and_go(door, service.supervisor, "delete", "/delete", run="a")
    assert not service.store.exists("a")
    gone = door.post("/embed", [{"blob": coloured(0).tolist()}], model="a")
    assert (gone.status_code, gone.json()["detail"].startswith("There is no model 'a'")) == (404, True)


def test_what_was_done_for_a_caller_who_has_gone_is_counted(door: Opened) -> None:
    call_and_go(door, door.service.receiver, "receive", "/fit", *documents(5), run="a")
    call_and_go(door, door.service, "serve", "/promote", run="base")
    deadline = time.monotonic() + 30
    while (counted := door.series())['finetuner_documents_total{split="train"}'] != 5:  # in a thread of the service's
        assert time.monotonic() < deadline
    assert counted['finetuner_promotions_total{outcome="by_hand"}'] == 1


# --- the endpoint ----------------------------------------------------------------------------------------------------


@pytest.mark.flow
def test_an_ended_run_is_deleted_with_its_files_and_answered_with_its_last_status(service: Service) -> None:
    train(service, "gone", promote="never")
    folder = service.run_folder("gone")
    service.post("/embed", documents(1), returns=Document, model="gone")
    (last,) = service.post("/delete", returns=RunStatus, run="gone")
    assert (last.run, last.state) == ("gone", "succeeded")
    assert not folder.exists()
    assert "gone" not in [status.run for status in service.post("/status", returns=RunStatus)]
    code, message = refusal(service, "gone")
    assert code >= 400
    assert message.startswith("There is no run 'gone'")
    embedded = service.http("/embed", [{"uri": "data:,"}], model="gone")
    assert embedded.json()["detail"].startswith("There is no model 'gone'")


@pytest.fixture(scope="module")
def parent(service: Service) -> str:
    """A run that has succeeded and is promoted."""
    train(service, "parent", promote="always")
    return "parent"


@pytest.mark.flow
def test_the_version_now_served_is_not_deleted_until_another_is_served(service: Service, parent: str) -> None:
    code, message = refusal(service, parent)
    assert code >= 400
    assert message == "Run 'parent' is the version now served; promote another, or base, before you delete it."


@pytest.mark.flow
def test_a_run_is_refused_as_long_as_another_waits_to_start_from_it(service: Service, parent: str) -> None:
    service.http("/promote", run="base")
    service.post("/fit", documents(3), returns=RunStatus, run="child", base=parent, total=12)
    assert "Run 'child' starts from run 'parent'" in refusal(service, parent)[1]
    assert "cancel it before" in refusal(service, "child")[1]
    service.cancel("child")
    deleted = service.http("/delete", run=parent)
    assert (deleted.status_code, deleted.json()["data"][0]["state"]) == (200, "succeeded")
    assert service.http("/delete", run="child").status_code == 200


@pytest.mark.flow
def test_a_run_without_a_name_never_gets_that_of_a_deleted_one(service: Service) -> None:
    (first,) = service.post("/fit", documents(3), returns=RunStatus)
    service.http("/cancel", run=first.run)
    service.http("/delete", run=first.run)
    (second,) = service.post("/fit", documents(3), returns=RunStatus)
    assert second.run != first.run
    service.http("/cancel", run=second.run)
