"""SIGTERM to the service: what was answered is safe, no process is left, and the next start goes on from there."""

import os
import signal
import threading
import time
from collections.abc import Iterator

import psutil
import pytest

from conftest import coloured
from executor import Document, DocumentArray
from executor.documents import Event, RunStatus
from serving import Service

pytestmark = [pytest.mark.flow, pytest.mark.alone]

FOREVER = 100_000  # epochs


def documents(first: int, count: int, size: int = 24) -> DocumentArray:
    return DocumentArray(
        Document(id=f"d{number}", blob=coloured(number % 4, number, size), tags={"finetuner_label": number % 4})
        for number in range(first, first + count)
    )


class Ending:
    """A service that gets SIGTERM while it trains and receives; and its next life on the workspace."""

    def __init__(self, service: Service) -> None:
        self.service = service.start()
        service.post(
            "/fit", documents(0, 16), returns=RunStatus, run="night", total=16, epochs=FOREVER, promote="never"
        )
        service.wait("night", until=lambda status: status.step > 2)
        assert service.process is not None
        main = psutil.Process(service.process.pid)
        self._processes = [main, *main.children(recursive=True)]
        (trainer,) = service.trainers()
        self.policies = {os.sched_getscheduler(thread.id) for thread in trainer.threads()}
        self.acknowledged: list[str] = []
        caller = threading.Thread(target=self._fit)
        caller.start()
        while len(self.acknowledged) < 3:
            time.sleep(0.05)
        self.step_before = service.status("night").step
        self.exit_code = service.stop(signal.SIGTERM)
        caller.join()
        _, self.left = psutil.wait_procs(self._processes, timeout=5)
        checkpoints = service.run_folder("night") / "checkpoints"
        self.checkpoint = max(int(place.name) for place in checkpoints.iterdir() if place.name.isdigit())

    def _fit(self) -> None:
        number = 0
        while True:
            doc = documents(number, 1)
            try:
                self.service.post("/fit", doc, returns=RunStatus, run="receiving", total=FOREVER)
            except Exception:  # whatever a client makes of a service that is no more there
                return
            self.acknowledged.append(doc[0].id)
            number += 1

    def start_again(self) -> None:
        self.service.start()
        self.received = self.service.status("receiving").train_documents
        self.service.wait("night", until=lambda status: status.attempts == 2 and status.step > self.checkpoint)
        self.service.http("/cancel", run="night")
        self.events = list(self.service.post("/events", returns=Event, run="night", limit=10_000))


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ending]:
    folder = tmp_path_factory.mktemp("ending")
    # Jina's own gateway now and then waits for ever for a call that it has cut off itself.
    gateway = "executor.gateway.FinetunerGateway"
    options = {"receive_timeout": 1000.0, "trainer_yields": True}
    service = Service(folder / "workspace", folder / "cwd", gateway=gateway, **options)
    try:
        yield Ending(service)
    finally:
        service.__exit__()


@pytest.fixture(scope="module")
def restarted(ended: Ending) -> Ending:
    ended.start_again()
    return ended


def test_every_thread_of_a_trainer_yields_to_other_processes(ended: Ending) -> None:
    assert ended.policies == {os.SCHED_IDLE}  # where that is off: test_cancel.py


def test_it_ends_with_exit_code_0_and_leaves_no_process(ended: Ending) -> None:
    assert ended.exit_code == 0
    assert ended.left == []


def test_the_trainer_leaves_a_checkpoint_of_where_it_was(ended: Ending) -> None:
    assert ended.checkpoint >= ended.step_before


def test_every_document_that_was_acknowledged_is_there_at_the_next_start(restarted: Ending) -> None:
    assert len(restarted.acknowledged) <= restarted.received <= len(restarted.acknowledged) + 1


def test_the_next_start_goes_on_from_that_checkpoint_and_repeats_no_epoch(restarted: Ending) -> None:
    (resumed,) = [event for event in restarted.events if event.kind == "resumed"]
    assert resumed.message == f"the service was started again; it goes on from step {restarted.checkpoint}"
    epochs = [int(event.message.split()[1]) for event in restarted.events if event.kind == "epoch"]
    assert epochs == list(range(1, len(epochs) + 1))
    assert len(epochs) > restarted.checkpoint
