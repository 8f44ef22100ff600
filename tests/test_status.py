"""`/status`: what is said of a run, while it goes on and afterwards."""

from datetime import datetime, timedelta
from typing import Any

import pytest
import requests
from docarray import DocList
from jina import Client

from conftest import images
from executor import Document
from executor.documents import RunStatus
from executor.evaluation.metrics import METRICS
from serving import Service

pytestmark = pytest.mark.flow

STATES = ("receiving", "queued", "training", "succeeded")
PHASES = {"starting", "loading", "training", "evaluating", "saving"}
TEXT, WHOLE, NUMBER, TIME = (str,), (int,), (int, float), (str,)
FIELDS: dict[str, tuple[type, ...]] = {
    "run": TEXT,
    "state": TEXT,
    "phase": TEXT,
    "kind": TEXT,
    "train_documents": WHOLE,
    "eval_documents": WHOLE,
    "skipped": WHOLE,
    "epoch": WHOLE,
    "epochs": WHOLE,
    "step": WHOLE,
    "steps": WHOLE,
    "loss": NUMBER,
    "images_per_second": NUMBER,
    "eta_seconds": NUMBER,
    "promoted": (bool,),
    "model": TEXT,
    "attempts": WHOLE,
    "device": TEXT,
    "created_at": TIME,
    "started_at": TIME,
    "ended_at": TIME,
}
WHILE_TRAINING = {"phase", "eta_seconds"}


@pytest.fixture(scope="module")
def seen(service: Service) -> list[RunStatus]:
    """All statuses of one run that differ, from its first request to its end."""
    eval_docs, train = images(9, prefix="held", first_seed=1000), images(30, prefix="train")
    service.post("/fit", eval_docs, returns=RunStatus, run="followed", split="eval", epochs=40)
    train.append(Document(id="broken", uri="nowhere.png", tags={"finetuner_label": 0}))
    statuses = list(service.post("/fit", train, returns=RunStatus, run="followed"))
    service.post("/fit", returns=RunStatus, run="followed")

    def note(status: RunStatus) -> Any:
        if status != statuses[-1]:
            statuses.append(status)
        return status.ended_at

    service.wait("followed", until=note)
    return statuses


@pytest.fixture(scope="module")
def ended(seen: list[RunStatus]) -> RunStatus:
    return seen[-1]


def test_the_states_follow_each_other_in_the_legal_order(seen: list[RunStatus], ended: RunStatus) -> None:
    assert ended.state == "succeeded", ended.error
    states = [status.state for status in seen]
    order = [state for number, state in enumerate(states) if number == 0 or state != states[number - 1]]
    assert order == [state for state in STATES if state in order]
    assert {"receiving", "training", "succeeded"} <= set(order)


def test_there_is_a_phase_while_training_and_only_then(seen: list[RunStatus]) -> None:
    assert {status.phase for status in seen if status.state == "training"} <= PHASES
    assert {status.phase for status in seen if status.state != "training"} == {None}


def test_steps_and_epochs_never_go_back_and_end_complete(seen: list[RunStatus], ended: RunStatus) -> None:
    steps = [status.step for status in seen]
    assert steps == sorted(steps)
    assert (ended.epoch, ended.step) == (ended.epochs, ended.steps)
    assert (ended.epochs, ended.attempts) == (40, 1)
    assert ended.steps >= 40


def test_the_counts_are_of_documents_that_can_be_used(ended: RunStatus) -> None:
    assert (ended.train_documents, ended.eval_documents, ended.skipped) == (30, 9, 1)
    assert [problem.id for problem in ended.problems] == ["broken"]


def test_metrics_are_given_before_and_after(ended: RunStatus) -> None:
    assert set(ended.metrics) == {f"{which}/{name}" for which in ("base", "served", "tuned") for name in METRICS}
    assert all(0 <= value <= 1 for value in ended.metrics.values())


def test_history_has_one_entry_for_each_epoch(ended: RunStatus) -> None:
    assert "loss" in ended.history
    assert {name: len(values) for name, values in ended.history.items()} == dict.fromkeys(ended.history, 40)


def test_times_are_iso_8601_in_utc_and_in_order(ended: RunStatus) -> None:
    times = [datetime.fromisoformat(time) for time in (ended.created_at, ended.started_at, ended.ended_at)]
    assert [time.utcoffset() for time in times] == [timedelta(0)] * 3
    assert times == sorted(times)


@pytest.mark.parametrize("field", sorted(FIELDS.keys() - WHILE_TRAINING))
def test_a_field_has_its_type_over_grpc_and_over_http(service: Service, ended: RunStatus, field: str) -> None:
    over_http = service.http("/status", run="followed").json()["data"][0]
    assert type(getattr(ended, field)) in FIELDS[field]
    assert type(over_http[field]) in FIELDS[field]


@pytest.mark.parametrize("field", sorted(WHILE_TRAINING))
def test_a_field_of_a_run_in_training_has_its_type(seen: list[RunStatus], field: str) -> None:
    types = {type(getattr(status, field)) for status in seen if status.state == "training"}
    assert types - {type(None)}
    assert types <= {*FIELDS[field], type(None)}


def test_history_metrics_and_problems_are_plain_json_over_http(service: Service, ended: RunStatus) -> None:
    status = service.http("/status", run="followed").json()["data"][0]
    assert status["metrics"] == pytest.approx(ended.metrics)
    assert status["history"]["loss"] == pytest.approx(ended.history["loss"])
    assert [(problem["id"], bool(problem["reason"])) for problem in status["problems"]] == [("broken", True)]


def test_promoted_and_model_name_the_version_that_is_served(service: Service, ended: RunStatus) -> None:
    service.post("/promote", returns=RunStatus, run="followed")
    assert (service.status("followed").promoted, service.status("followed").model) == (True, "followed")
    service.post("/promote", returns=RunStatus, run="base")
    assert (service.status("followed").promoted, service.status("followed").model) == (False, "base")


@pytest.fixture(scope="module")
def three_runs(service: Service) -> list[str]:
    """Names of three runs, oldest first, all cancelled."""
    names = ["z-first", "a-second", "m-third"]
    for name in names:
        service.post("/fit", images(2), returns=RunStatus, run=name)
        service.cancel(name)
    return names


@pytest.mark.parametrize("protocol", ["grpc", "http", "websocket", "door"])
def test_all_runs_are_listed_newest_first(service: Service, three_runs: list[str], protocol: str) -> None:
    listed = [status.run for status in service.post("/status", protocol=protocol, returns=RunStatus)]
    assert [name for name in listed if name in three_runs] == three_runs[::-1]


@pytest.mark.parametrize(
    "body", [{"data": []}, {"data": [], "parameters": {}}, {"data": [], "parameters": {"run": "m-third"}}]
)
def test_a_bare_post_needs_no_documents(service: Service, three_runs: list[str], body: dict[str, Any]) -> None:
    response = requests.post(f"http://127.0.0.1:{service.ports['http']}/status", json=body, timeout=30)
    assert response.status_code == 200, response.text
    assert three_runs[-1] in {status["run"] for status in response.json()["data"]}


@pytest.mark.parametrize("protocol", ["grpc", "websocket"])
def test_an_unknown_run_is_refused_in_one_sentence_without_a_traceback(
    service: Service, three_runs: list[str], protocol: str
) -> None:
    answers = []  # Jina's websocket client does not always raise, but it always calls back
    client = Client(host="127.0.0.1", port=service.ports[protocol], protocol=protocol)
    client.post("/status", parameters={"run": "nobody"}, return_type=DocList[RunStatus], on_error=answers.append)
    (answer,) = answers
    assert answer.header.status.description.startswith("There is no run 'nobody'; there are: ")
    assert "m-third" in answer.header.status.description
    assert "Traceback" not in str(answer.header)
    assert ".py" not in str(answer.header)


def test_an_unknown_run_is_refused_in_one_sentence_over_http(service: Service, three_runs: list[str]) -> None:
    response = service.http("/status", run="nobody")
    assert response.status_code >= 400
    assert response.json().keys() == {"detail"}
    assert response.json()["detail"].startswith("There is no run 'nobody'; there are: ")


def test_an_unknown_parameter_is_refused_by_name(service: Service) -> None:
    response = service.http("/status", name="followed")
    assert response.status_code >= 400
    assert response.json()["detail"] == "/status has no parameter 'name'; it accepts: run."


@pytest.mark.parametrize("run", [3, ["a"], "", "a b", "../x"])
def test_an_ill_typed_run_is_refused_by_name(service: Service, run: Any) -> None:
    response = service.http("/status", run=run)
    assert response.status_code >= 400
    assert response.json()["detail"].startswith("Parameter 'run' of /status is ")
