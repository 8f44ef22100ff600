"""A next trainer waits with its imports done, and trainers make way for other processes."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from executor import DocumentArray
from serving import Service, served

Labelled = Callable[..., DocumentArray]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A Flow that keeps a next trainer."""
    with served(tmp_path_factory.mktemp("standby"), standby_seconds=600) as running:
        yield running


def trainers(service: Service) -> list[psutil.Process]:
    """The processes of the service that train, or wait to."""
    assert service.process is not None
    found = psutil.Process(service.process.pid).children(recursive=True)
    return [each for each in found if {"train", "standby"} & set(" ".join(each.cmdline()).split())]


def waiting(service: Service, seconds: float = 60) -> psutil.Process:
    """The trainer that waits for a run, once it does."""
    deadline = time.monotonic() + seconds
    while not (found := [each for each in trainers(service) if "standby" in each.cmdline()]):
        assert time.monotonic() < deadline, "no trainer waits"
        time.sleep(0.1)
    return found[0]


def fit(service: Service, docs: DocumentArray, run: str, **options: object) -> None:
    from executor.documents import RunStatus

    service.post("/fit", docs, returns=RunStatus, run=run, total=len(docs), **options)


@pytest.fixture(scope="module")
def first(service: Service) -> psutil.Process:
    """The trainer that waits after a first run."""
    from conftest import coloured
    from executor import Document

    docs = DocumentArray(Document(blob=coloured(n % 3, n), tags={"finetuner_label": n % 3}) for n in range(18))
    fit(service, docs, "first")
    assert service.wait("first").state == "succeeded"
    return waiting(service)


def test_the_next_run_gets_the_trainer_that_waited(service: Service, first: psutil.Process, labelled: Labelled) -> None:
    fit(service, labelled(18, prefix="s"), "second", epochs=50)
    service.wait("second", until=lambda status: status.step > 0)
    assert "second" in " ".join(first.cmdline())  # it is called by its run now
    assert service.wait("second").state == "succeeded"
    assert "The run cannot go on" not in (service.run_folder("second") / "trainer.log").read_text()


def test_a_run_trains_also_if_the_trainer_that_waited_was_killed(
    service: Service, first: psutil.Process, labelled: Labelled
) -> None:
    waiting(service).send_signal(signal.SIGKILL)
    fit(service, labelled(18, prefix="t"), "third")
    status = service.wait("third")
    assert (status.state, status.attempts) == ("succeeded", 1)


def test_the_trainer_that_waits_dies_with_the_service(tmp_path: Path, labelled: Labelled) -> None:
    with served(tmp_path, standby_seconds=600) as service:
        fit(service, labelled(18), "only")
        assert service.wait("only").state == "succeeded"
        left = waiting(service)
        assert service.process is not None
        executor = left.parent()
        assert executor is not None
        executor.kill()
        left.wait(20)  # raises TimeoutExpired if it lives on
        service.kill()


def test_no_trainer_waits_where_none_is_wanted(tmp_path: Path, labelled: Labelled) -> None:
    with served(tmp_path, standby_seconds=0.2) as service:
        fit(service, labelled(18), "only")
        assert service.wait("only").state == "succeeded"
        deadline = time.monotonic() + 30
        while trainers(service):  # it waited for a moment, and then no more
            assert time.monotonic() < deadline
            time.sleep(0.1)


@pytest.mark.parametrize("yields", [True, False])
def test_every_thread_of_a_trainer_yields_to_other_processes_unless_that_is_off(
    yields: bool, tmp_path: Path, labelled: Labelled
) -> None:
    with served(tmp_path, trainer_yields=yields) as running:
        fit(running, labelled(18), "run", epochs=100_000)
        running.wait("run", until=lambda status: status.step > 0)
        (trainer,) = trainers(running)
        policies = {os.sched_getscheduler(thread.id) for thread in trainer.threads()}
        assert policies == {os.SCHED_IDLE if yields else os.SCHED_OTHER}
        running.http("/cancel", run="run")
