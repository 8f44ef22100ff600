"""Runs over the executor's own HTTP door: documents as JSON lines and forms, `/watch`, and the truth about health."""

import base64
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests

from conftest import coloured, encoded
from doors import Opened, opened
from executor import DocumentArrayMemmap
from sentences import assert_plain
from test_disk import Disk, make_disk

__all__ = ["make_disk"]  # a fixture
pytestmark = pytest.mark.process
FILES = [base64.b64encode(encoded(coloured(label))).decode() for label in range(3)]
URIS = [f"data:image/png;base64,{file}" for file in FILES]


@pytest.fixture(scope="module")
def door(tmp_path_factory) -> Iterator[Opened]:
    with opened(tmp_path_factory.mktemp("runs")) as running:
        yield running


def line(number: int, label: Any = 0) -> str:
    return json.dumps({"id": f"d{number}", "uri": URIS[number % 3], "tags": {"finetuner_label": label}})


def lines(door: Opened, body: Any, **query: Any) -> requests.Response:
    return door.send("/fit", body, "application/x-ndjson", **query)


def until(told: Callable[[], Any], seconds: float = 60.0) -> Any:
    """Ask until the answer is true, and return it."""
    deadline = time.monotonic() + seconds
    while not (found := told()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found


def test_json_lines_of_any_number_are_one_new_run_in_their_order(door):
    body = "\n".join(line(number) for number in range(1001))
    (status,) = lines(door, body, epochs=3).json()["data"]
    assert (status["state"], status["train_documents"]) == ("receiving", 1001)
    with DocumentArrayMemmap(door.service.store.workspace.spool_file(status["run"])) as spool:
        assert list(spool.ids()) == [f"d{number}" for number in range(1001)]
    door.post("/cancel", run=status["run"])


@pytest.mark.parametrize("form", ["application/x-ndjson", "application/json"])
def test_a_request_that_takes_longer_to_come_than_a_run_waits_is_part_of_it(tmp_path, form):
    with opened(tmp_path, receive_timeout=0.3) as door:
        door.service.supervisor.close()  # this test looks itself for what is due

        def slowly() -> Iterator[bytes]:
            docs = [line(2), line(3)]
            parts = docs if form == "application/x-ndjson" else ['{"data": [' + docs[0], ", " + docs[1] + "]}"]
            for part in parts:
                yield part.encode() + b"\n"
                time.sleep(0.6)
                door.service.receiver.queue_due()

        lines(door, "\n".join([line(0), line(1)]), run="slow", total=4).raise_for_status()
        answer = door.send("/fit", slowly(), form, **({"run": "slow"} if "x-nd" in form else {})).json()
        assert [(each["run"], each["state"], each["train_documents"]) for each in answer["data"]] == [
            ("slow", "queued", 4)
        ]


def test_a_bad_line_is_named_and_those_before_it_are_stored(door):
    body = "\n".join([*(line(number) for number in range(1002)), '{"uri": 3}', line(1003)])
    answer = lines(door, body, run="broken")
    assert answer.status_code == 422
    assert_plain(
        answer.json()["detail"], "Line 1003", "must be a text, not 3", "The 1002 documents before it are stored"
    )
    assert door.post("/status", run="broken").json()["data"][0]["train_documents"] == 1002
    door.post("/cancel", run="broken")


def test_no_lines_at_all_are_nothing_to_start(door):
    assert_plain(lines(door, "\n\n", run="none").json()["detail"], "Run 'none' has no documents")


def test_the_files_of_a_form_have_labels_by_their_names_or_by_data(door):
    files = [(f"label:{label}", (f"{number}.png", encoded(coloured(0)))) for label in ("a", "b") for number in (1, 2)]
    data = {"parameters": json.dumps({"run": "form", "kind": "class"})}
    (status,) = requests.post(f"{door.address}/fit", files=files, data=data, timeout=60).json()["data"]
    assert (status["train_documents"], status["skipped"]) == (4, 0)
    data["data"] = json.dumps([{"id": "x", "tags": {"finetuner_label": "c"}}])
    answer = requests.post(f"{door.address}/fit", files={"file": encoded(coloured(1))}, data=data, timeout=60)
    assert answer.json()["data"][0]["train_documents"] == 5
    door.post("/cancel", run="form")


def test_documents_for_a_run_past_receiving_are_a_409(door):
    lines(door, line(0), run="over")
    door.post("/cancel", run="over")
    answer = lines(door, line(1), run="over")
    assert answer.status_code == 409
    assert_plain(answer.json()["detail"], "Run 'over' is cancelled and takes no more documents")


def test_watch_streams_a_run_to_its_end_and_an_unknown_run_is_a_404(door):
    answer = door.get("/watch?run=nowhere")
    assert (answer.status_code, list(answer.json())) == (404, ["detail"])
    assert door.get("/watch?runs=x").status_code == 400
    lines(door, line(0), run="watched")
    with requests.get(f"{door.address}/watch?run=watched", stream=True, timeout=60) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        seen = (text for text in stream.iter_lines(chunk_size=1) if text)
        assert next(seen) == b"event: update"
        assert json.loads(next(seen).removeprefix(b"data: "))["state"] == "receiving"
        door.post("/cancel", run="watched")
        told = list(seen)
    assert json.loads(told[-2].removeprefix(b"data: "))["state"] == "cancelled"
    assert told[-1] == b"event: end"


def test_readiness_and_metrics_tell_of_a_stopped_trainer(door):
    before = door.series()
    body = "\n".join(line(number, number % 3) for number in range(12))
    lines(door, body, run="stopped", start="true", epochs=10_000)
    assert (
        door.series()['finetuner_documents_total{split="train"}']
        == before['finetuner_documents_total{split="train"}'] + 12
    )
    rate = until(lambda: door.series()["finetuner_trainer_images_per_second"])
    assert rate > 0
    pid = door.service.store.get("stopped").pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        answer = until(lambda: (found := door.get("/readyz")).json()["degraded"] and found)
        assert answer.status_code == 200
        (sentence,) = answer.json()["degraded"]
        assert_plain(sentence, "The trainer of run 'stopped' is stopped", "SIGCONT")
        series = door.series()
        assert series["finetuner_trainer_images_per_second"] == 0
        assert (series['finetuner_runs{state="training"}'], series["finetuner_queue_length"]) == (1, 0)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert door.post("/cancel", run="stopped").json()["data"][0]["state"] == "cancelled"
    assert door.get("/readyz").json()["degraded"] == []


def test_promotions_are_counted_by_their_outcome(door):
    before = door.series()
    body = "\n".join(line(number, number % 3) for number in range(12))
    lines(door, body, run="kept", start="true", epochs=1, promote="never")
    until(lambda: door.post("/status", run="kept").json()["data"][0]["state"] == "succeeded")
    door.post("/promote", run="kept")
    after = door.series()
    space = door.get("/readyz").json()["space"]
    assert after[f'finetuner_served_version_info{{space="{space}",version="kept"}}'] == 1
    door.post("/promote", run="base")
    grown = {
        outcome: door.series()[f'finetuner_promotions_total{{outcome="{outcome}"}}']
        - before[f'finetuner_promotions_total{{outcome="{outcome}"}}']
        for outcome in ("promoted", "kept", "failed", "by_hand")
    }
    assert grown == {"promoted": 0, "kept": 1, "failed": 0, "by_hand": 2}


def test_a_model_that_cannot_be_loaded_is_not_ready_and_says_why_without_its_place(tmp_path):
    with opened(tmp_path, model=str(tmp_path / "vit")) as running:
        until(lambda: "cannot be" in running.get("/readyz").json()["degraded"][0])
        answer = running.get("/readyz")
        assert (answer.status_code, answer.json()["ready"], answer.json()["space"]) == (503, False, None)
        assert_plain(
            answer.json()["degraded"][0], "The model 'base' cannot be loaded", "model='vit' is not a directory"
        )
        assert str(tmp_path) not in answer.text + running.post("/embed", [{"uri": "data:,x"}]).text
        assert running.get("/healthz").status_code == 200
        assert 'finetuner_served_version_info{space="",version="base"}' in running.series()


def test_with_a_full_disk_it_serves_on_and_says_so(make_disk: Callable[[int], Disk]):
    disk = make_disk(40)
    with opened(disk.folder) as running:
        until(lambda: running.get("/readyz").status_code == 200)
        disk.fill()
        answer = running.get("/readyz")
        assert (answer.status_code, answer.json()["ready"]) == (200, True)
        (sentence,) = answer.json()["degraded"]
        assert_plain(sentence, "The disk of the workspace cannot be written (No space left on device)", "/fit refuses")
        assert running.post("/embed", [{"blob": coloured(0).tolist()}]).json()["data"][0]["embedding"]
        refused = lines(running, line(0), run="full")
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        disk.free()
        assert running.get("/readyz").json()["degraded"] == []
