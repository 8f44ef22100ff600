"""What a service does by itself: it starts a run that receives nothing more, and keeps the next trainer ready."""

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

import psutil
import pytest

from conftest import images
from executor import DocumentArray
from executor.documents import Event, RunStatus
from executor.store.run import RunState, TrainerExit
from serving import ROOT, Service, served
from workshop import Workshop


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A Flow that keeps a next trainer, and waits two seconds for documents."""
    with served(tmp_path_factory.mktemp("standby"), standby_seconds=600) as running:
        yield running


def wait_until(found: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def waiting(service: Service) -> psutil.Process:
    """The trainer that waits for a run, once it does."""
    found: list[psutil.Process] = []

    def look() -> bool:
        found.extend(trainer for trainer in service.trainers() if "standby" in trainer.cmdline())
        return bool(found)

    wait_until(look)
    return found[0]


def fit(service: Service, docs: DocumentArray, run: str, **options: object) -> None:
    service.post("/fit", docs, returns=RunStatus, run=run, total=len(docs), **options)


@pytest.fixture(scope="module")
def first(service: Service) -> psutil.Process:
    """The trainer that waits after a first run, which nothing but time has started. A deleted run had its name."""
    service.post("/fit", images(12), returns=RunStatus, run="first", total=13)
    service.cancel("first")
    service.http("/delete", run="first")
    (fresh,) = service.post("/fit", images(6, prefix="n"), returns=RunStatus, run="first", epochs=1)
    assert (fresh.state, fresh.train_documents, fresh.attempts) == ("receiving", 6, 0)
    assert service.wait("first").state == "succeeded"
    return waiting(service)


@pytest.mark.flow
def test_a_run_starts_when_no_document_has_arrived_for_receive_timeout_seconds(
    service: Service, first: psutil.Process
) -> None:
    run = service.status("first")
    waited = datetime.fromisoformat(run.started_at) - datetime.fromisoformat(run.created_at)
    assert waited >= timedelta(seconds=service.options["receive_timeout"])


@pytest.mark.flow
def test_the_name_of_a_deleted_run_serves_for_a_clean_new_one(service: Service, first: psutil.Process) -> None:
    """What its first answer has said is asserted where it was made."""
    ended = service.status("first")
    assert (ended.state, ended.train_documents, ended.skipped, ended.attempts) == ("succeeded", 6, 0, 1)
    assert [event.kind for event in service.post("/events", returns=Event, run="first")].count("received") == 1


@pytest.mark.flow
def test_the_next_run_gets_the_trainer_that_waited(service: Service, first: psutil.Process) -> None:
    fit(service, images(18, prefix="s"), "second", epochs=12)  # so that it is seen while it trains
    service.wait("second", until=lambda status: status.step > 0)
    assert "second" in " ".join(first.cmdline())  # it is called by its run now
    assert service.wait("second").state == "succeeded"
    assert "The run cannot go on" not in (service.run_folder("second") / "trainer.log").read_text()


@pytest.mark.flow
def test_a_run_trains_also_if_the_trainer_that_waited_was_killed(service: Service, first: psutil.Process) -> None:
    waiting(service).send_signal(signal.SIGKILL)
    fit(service, images(18, prefix="t"), "third")
    status = service.wait("third")
    assert (status.state, status.attempts) == ("succeeded", 1)


@pytest.mark.flow
def test_the_trainer_that_waits_dies_with_the_service(service: Service, first: psutil.Process) -> None:
    left = waiting(service)
    executor = left.parent()
    assert executor is not None
    executor.kill()
    left.wait(20)  # raises TimeoutExpired if it lives on
    service.kill()  # the tests above are the last that it has served


def trainers_of(folder: Path) -> list[psutil.Process]:
    """The processes that this one has started on a workspace below `folder`."""
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            found += [child] if str(folder) in " ".join(child.cmdline()) else []
    return found


@pytest.mark.process
def test_no_trainer_waits_longer_than_is_wanted(tmp_path: Path) -> None:
    workshop = Workshop(tmp_path / "workspace", fit_defaults={"epochs": 1})
    workshop.receive("only", images(18))
    workshop.queue("only")
    with workshop.supervised(standby_seconds=0.2):
        assert workshop.wait("only").state is RunState.SUCCEEDED, workshop.log("only")
        wait_until(lambda: not trainers_of(tmp_path))  # it waited for a moment, and then no more
    workshop.close()


# A process that must not yield, as in some sandboxes.
FORBIDDEN = """
import os, sys
def forbidden(*arguments): raise PermissionError(1, "Operation not permitted")
os.sched_setscheduler = forbidden
from executor.__main__ import main
sys.exit(main())
"""


@pytest.mark.process
@pytest.mark.parametrize("waits", [True, False])
def test_the_log_of_a_run_says_that_its_trainer_cannot_yield_also_if_it_waited(tmp_path: Path, waits: bool) -> None:
    workshop = Workshop(tmp_path / "workspace", fit_defaults={"epochs": 1})
    workshop.receive("run", images(6))
    workshop.store.advance("run", RunState.CANCELLED)  # so that the trainer has nothing to do
    command = ["standby"] if waits else ["train", "--run", "run"]
    command += ["--workspace", str(workshop.store.workspace.root), "--yields"]
    log = workshop.store.workspace.log_file("run")
    with (
        open(log, "ab") as output,
        subprocess.Popen(
            [sys.executable, "-c", FORBIDDEN, *command],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL if waits else output,
            stderr=subprocess.DEVNULL if waits else output,
        ) as trainer,
    ):
        assert trainer.stdin is not None
        trainer.stdin.write(b"run\n")
        trainer.stdin.flush()
        assert trainer.wait(60) == TrainerExit.INTERRUPTED, log.read_text()
    assert log.read_text().count("This process cannot yield to others") == 1
    workshop.close()
