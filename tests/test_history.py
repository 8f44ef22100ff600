"""The history of real runs: which events `/events` tells, in which order, and how a status points to them."""

import os
import signal
import time
from typing import Any

import pytest

from conftest import images
from executor import Document, DocumentArray
from executor.documents import Event, RunStatus
from serving import Service

pytestmark = pytest.mark.flow


def history(service: Service, run: str) -> list[Event]:
    return list(service.post("/events", returns=Event, run=run, limit=10_000))


def kinds(service: Service, run: str) -> list[str]:
    return [event.kind for event in history(service, run)]


def fit(service: Service, run: str, docs: DocumentArray, **parameters: Any) -> None:
    service.post("/fit", docs, returns=RunStatus, run=run, total=len(docs), **parameters)


class Whole:
    """A run without eval documents to its end, and the numbers of its events as a watcher asked for the new ones."""

    def __init__(self, service: Service) -> None:
        fit(service, "whole", images(16, classes=4), epochs=3, promote="always")
        self.numbers: list[int] = []
        while True:
            self.ended = service.status("whole")
            after = self.numbers[-1] if self.numbers else 0
            new = service.post("/events", returns=Event, run="whole", after=after, limit=self.ended.events or 1)
            self.numbers += [event.number for event in new]
            assert len(self.numbers) >= self.ended.events
            if self.ended.ended_at:
                break
            time.sleep(0.1)


@pytest.fixture(scope="module")
def whole(service: Service) -> Whole:
    return Whole(service)


def test_a_run_that_succeeds_tells_how_it_was_received_started_trained_and_ended(
    service: Service, whole: Whole
) -> None:
    assert kinds(service, "whole") == [
        *("received", "queued", "training", "epoch", "epoch", "epoch", "promoted", "succeeded"),
    ]
    events = history(service, "whole")
    losses = [f"epoch {epoch} of 3: loss {loss:.4g}" for epoch, loss in enumerate(whole.ended.history["loss"], 1)]
    assert [event.message.split(",")[0] for event in events if event.kind == "epoch"] == losses
    assert events[-1].message == whole.ended.verdict


def test_a_status_counts_the_events_so_that_a_watcher_asks_for_the_new_ones_only(
    service: Service, whole: Whole
) -> None:
    assert whole.numbers == list(range(1, service.status("whole").events + 1))
    some = service.http("/events", run="whole", after=2, limit=1).json()["data"]
    assert [event["number"] for event in some] == [3]


def test_a_model_without_a_proof_is_said_to_be_unproven_and_how_it_would_be_served(whole: Whole) -> None:
    assert (whole.ended.promoted, whole.ended.model, whole.ended.metrics) == (True, "whole", {})
    assert "unproven: 16 documents are too few to hold some out; send 24 more" in whole.ended.verdict
    assert "/promote" in whole.ended.verdict


def test_skipped_documents_and_adaptations_are_told(service: Service) -> None:
    bad = Document(id="bad", buffer=b"no image", tags={"finetuner_label": 1})
    docs = images(16, classes=4) + DocumentArray([bad])
    fit(service, "skipping", docs, epochs=1, num_items_per_class=8, promote="never")
    service.wait("skipping")
    told = history(service, "skipping")
    assert [event.message[:14] for event in told if event.kind == "skipped"] == ["document 'bad'"]
    assert [event for event in told if event.kind == "warning" and "num_items_per_class" in event.message]
    assert [event.kind for event in told if event.kind in ("epoch", "promoted", "succeeded")] == ["epoch", "succeeded"]


class Killed:
    """A run whose trainer is killed, which is resumed, and is cancelled in the end."""

    def __init__(self, service: Service) -> None:
        fit(service, "killed", images(16, classes=4), epochs=100_000)
        self.trained = service.wait("killed", until=lambda status: status.epoch > 1)
        files = service.run_folder("killed") / "images"
        self.images_bytes = sum(path.stat().st_blocks * 512 for path in files.iterdir())
        (trainer,) = service.trainers()
        os.kill(trainer.pid, signal.SIGKILL)
        service.wait("killed", until=lambda status: status.attempts == 2)
        service.cancel("killed")
        self.ended = service.status("killed")


@pytest.fixture(scope="module")
def killed(service: Service) -> Killed:
    return Killed(service)


def test_a_run_whose_trainer_is_killed_tells_why_it_was_resumed_and_from_where(
    service: Service, killed: Killed
) -> None:
    told = [(event.kind, event.message) for event in history(service, "killed") if event.kind != "epoch"]
    assert [kind for kind, _ in told] == [
        "received",
        "queued",
        "training",
        "queued",
        "resumed",
        "training",
        "cancelled",
    ]
    assert told[4][1].startswith("the trainer was killed by signal 9 (SIGKILL); it goes on from step ")


def test_the_disk_use_of_a_run_is_in_its_status_and_shrinks_when_it_ends(killed: Killed) -> None:
    assert killed.trained.disk_bytes > killed.images_bytes > 0
    assert 0 < killed.ended.disk_bytes < killed.trained.disk_bytes


def test_a_run_that_fails_tells_its_error(service: Service) -> None:
    fit(service, "failing", images(4, classes=1))
    ended = service.wait("failing")
    assert (ended.state, type(ended.error)) == ("failed", str)
    assert service.http("/status", run="failing").json()["data"][0]["error"] == ended.error
    last = history(service, "failing")[-1]
    assert (last.kind, last.message) == ("failed", ended.error)
