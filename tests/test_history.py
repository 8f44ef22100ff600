"""The history of real runs: which events `/events` tells, in which order, and how a status points to them."""

import os
import signal
import time
from typing import Any

from conftest import coloured
from executor import Document, DocumentArray
from executor.documents import Event, RunStatus
from serving import Service


def documents(count: int) -> DocumentArray:
    return DocumentArray(
        Document(id=f"d{number}", blob=coloured(number % 4, number), tags={"finetuner_label": number % 4})
        for number in range(count)
    )


def history(service: Service, run: str) -> list[Event]:
    return list(service.post("/events", returns=Event, run=run, limit=10_000))


def kinds(service: Service, run: str) -> list[str]:
    return [event.kind for event in history(service, run)]


def fit(service: Service, run: str, docs: DocumentArray, **parameters: Any) -> None:
    service.post("/fit", docs, returns=RunStatus, run=run, total=len(docs), **parameters)


def test_a_run_that_succeeds_tells_how_it_was_received_started_trained_and_ended(service: Service) -> None:
    fit(service, "whole", documents(16), epochs=3)
    ended = service.wait("whole")
    assert kinds(service, "whole") == [
        *("received", "queued", "training", "epoch", "epoch", "epoch", "promoted", "succeeded"),
    ]
    events = history(service, "whole")
    losses = [f"epoch {epoch} of 3: loss {loss:.4g}" for epoch, loss in enumerate(ended.history["loss"], 1)]
    assert [event.message.split(",")[0] for event in events if event.kind == "epoch"] == losses
    assert events[-1].message == ended.verdict


def test_skipped_documents_and_adaptations_are_told(service: Service) -> None:
    docs = documents(16) + DocumentArray([Document(id="bad", buffer=b"no image", tags={"finetuner_label": 1})])
    fit(service, "skipping", docs, epochs=1, num_items_per_class=8, promote="never")
    service.wait("skipping")
    told = history(service, "skipping")
    assert [event.message[:14] for event in told if event.kind == "skipped"] == ["document 'bad'"]
    assert [event for event in told if event.kind == "warning" and "num_items_per_class" in event.message]
    assert [event.kind for event in told if event.kind in ("epoch", "promoted", "succeeded")] == ["epoch", "succeeded"]


def test_a_run_whose_trainer_is_killed_tells_why_it_was_resumed_and_from_where(service: Service) -> None:
    fit(service, "killed", documents(16), epochs=100_000)
    service.wait("killed", until=lambda status: status.epoch > 1)
    os.kill(trainer(service), signal.SIGKILL)
    service.wait("killed", until=lambda status: status.attempts == 2)
    service.http("/cancel", run="killed")
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


def test_a_run_that_fails_tells_its_error(service: Service) -> None:
    fit(service, "failing", DocumentArray(doc for doc in documents(16) if doc.tags["finetuner_label"] == 0))
    ended = service.wait("failing")
    last = history(service, "failing")[-1]
    assert (ended.state, last.kind, last.message) == ("failed", "failed", ended.error)


def test_a_status_counts_the_events_so_that_a_watcher_asks_for_the_new_ones_only(service: Service) -> None:
    fit(service, "counted", documents(16), epochs=2)
    seen: list[int] = []
    while True:
        status = service.status("counted")
        after = seen[-1] if seen else 0
        new = service.post("/events", returns=Event, run="counted", after=after, limit=status.events or 1)
        seen += [event.number for event in new]
        assert len(seen) >= status.events
        if status.ended_at:
            break
        time.sleep(0.1)
    assert seen == list(range(1, service.status("counted").events + 1))


def test_the_disk_use_of_a_run_is_in_its_status_and_shrinks_when_it_ends(service: Service) -> None:
    fit(service, "large", documents(16), epochs=100_000)
    status = service.wait("large", until=lambda status: status.step > 0)
    images = sum(path.stat().st_blocks * 512 for path in (service.run_folder("large") / "images").iterdir())
    assert status.disk_bytes > images > 0
    service.http("/cancel", run="large")
    ended = service.status("large")
    assert 0 < ended.disk_bytes < status.disk_bytes


def trainer(service: Service) -> int:
    """The process of the trainer."""
    import psutil

    assert service.process is not None
    children = psutil.Process(service.process.pid).children(recursive=True)
    (pid,) = (child.pid for child in children if "train" in child.cmdline())
    return pid
