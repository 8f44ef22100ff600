"""`/cancel` ends a run in any state, and the service goes on as if the run had never been."""

import os
from typing import Any

import psutil
import pytest
import requests
from jina.excepts import BadServer

from conftest import coloured, images
from executor import Document
from executor.documents import RunStatus
from serving import DOORS, Service

pytestmark = pytest.mark.flow


class Cancelled:
    """A run that would train for hours: what was served meanwhile, who waited for it, and how it was cancelled."""

    def __init__(self, service: Service) -> None:
        docs = images(12)
        service.post("/fit", docs, returns=RunStatus, run="long", total=12, epochs=100_000)
        service.wait("long", until=lambda status: status.phase == "training" and status.step > 2)
        (self.trainer,) = service.trainers()
        self.policies = {os.sched_getscheduler(thread.id) for thread in self.trainer.threads()}
        self.embedded = service.post("/embed", docs, returns=Document)
        self.embedded_over_http = service.http("/embed", [{"blob": coloured(0).tolist()}]).json()["data"]

        service.post("/fit", images(3), returns=RunStatus, run="waiting", total=3)
        (self.waiting,) = service.post("/cancel", returns=RunStatus, run="waiting")
        service.post("/fit", docs, returns=RunStatus, run="next", total=12, epochs=1, promote="never")
        self.next_before = service.status("next")
        self.meanwhile = service.status("long")

        (self.answer,) = service.post("/cancel", returns=RunStatus, run="long")
        self.trainer_is_gone = not psutil.pid_exists(self.trainer.pid)
        self.next_after = service.wait("next")
        self.again = service.post("/cancel", returns=RunStatus, run="long")[0]
        self.of_the_ended = service.post("/cancel", returns=RunStatus, run="next")[0]
        self.trainers = service.trainers()


@pytest.fixture(scope="module")
def cancelled(service: Service) -> Cancelled:
    return Cancelled(service)


def test_embed_and_status_answer_while_a_run_trains(cancelled: Cancelled) -> None:
    assert [doc.embedding is None for doc in cancelled.embedded] == [False] * 12
    assert cancelled.embedded_over_http[0]["embedding"]
    assert cancelled.meanwhile.state == "training"


def test_a_trainer_yields_to_no_other_process_where_that_is_off(cancelled: Cancelled) -> None:
    assert cancelled.policies == {os.SCHED_OTHER}  # where it is on: test_graceful_end.py


def test_a_run_in_training_is_cancelled_and_its_trainer_is_gone(cancelled: Cancelled) -> None:
    assert (cancelled.answer.run, cancelled.answer.state) == ("long", "cancelled")
    assert cancelled.answer.ended_at
    assert cancelled.trainer_is_gone


def test_cancelling_again_changes_nothing(cancelled: Cancelled) -> None:
    assert cancelled.again == cancelled.answer


def test_a_queued_run_is_cancelled_and_the_one_in_training_goes_on(cancelled: Cancelled) -> None:
    waiting = cancelled.waiting
    assert (waiting.state, waiting.attempts, waiting.started_at) == ("cancelled", 0, None)
    assert cancelled.meanwhile.state == "training"
    assert cancelled.meanwhile.attempts == 1


def test_after_a_cancelled_run_the_next_one_trains(cancelled: Cancelled) -> None:
    assert cancelled.next_before.state == "queued"
    assert cancelled.next_after.state == "succeeded"
    assert cancelled.trainers == []


def test_cancelling_an_ended_run_leaves_it_as_it_is(cancelled: Cancelled) -> None:
    assert cancelled.of_the_ended.state == "succeeded"


@pytest.mark.parametrize("protocol", DOORS)
def test_a_receiving_run_is_cancelled_and_takes_no_more_documents(service: Service, run: str, protocol: str) -> None:
    service.post("/fit", images(3), returns=RunStatus, run=run)
    (status,) = service.post("/cancel", protocol=protocol, returns=RunStatus, run=run)
    assert (status.run, status.state) == (run, "cancelled")
    assert status.ended_at
    with pytest.raises(BadServer, match=r"is cancelled and takes no more documents"):
        service.post("/fit", images(4), returns=RunStatus, run=run)


@pytest.mark.parametrize(("parameters", "reason"), [({"run": "nobody"}, "There is no run 'nobody'"), ({}, "needs the")])
def test_cancelling_nothing_in_particular_is_refused(service: Service, parameters: dict[str, Any], reason: str) -> None:
    response: requests.Response = service.http("/cancel", **parameters)
    assert response.status_code >= 400
    assert reason in response.json()["detail"]
