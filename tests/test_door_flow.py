"""Our HTTP door in a Flow: by `FinetunerGateway` over all its executors, and beside them by `http_port`."""

import asyncio
import base64
import json
import os
import re
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest
import requests
from jina import Client

import fronts
from conftest import coloured, encoded
from executor import Document, DocumentArray
from serving import ROOT

pytestmark = pytest.mark.flow
PNG = encoded(coloured(0))
URI = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
GATEWAY = {"uses": "executor.gateway.FinetunerGateway", "uses_with": {"max_request_bytes": 8 << 20}}
OPTIONS = fronts.SMALL | {"http_port": 0, "receive_timeout": 1.0}


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[fronts.Served]:
    folder, ports = tmp_path_factory.mktemp("doors"), fronts.ports_for("http", "grpc")
    with fronts.serving(folder, ports, fronts.flow(folder, ports, GATEWAY, OPTIONS)) as running:
        yield running


def own_door(served: fronts.Served) -> str:
    """The address that the executor printed: its port was a free one."""
    (address,) = re.findall(r"FinetunerExecutor serves HTTP on (\S+)", served.log)
    return str(address)


def test_both_doors_give_a_raw_image_the_same_embedding_and_do_not_send_it_back(served):
    vectors = []
    for address in (served.url, own_door(served)):
        answer = requests.post(f"{address}/embed", PNG, headers={"Content-Type": "image/png"}, timeout=60)
        (doc,) = answer.json()["data"]
        assert doc["buffer"] is None
        vectors.append(doc["embedding"])
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-5)


def test_one_call_of_many_documents_is_answered_whole_and_in_order_by_the_gateway(served):
    docs = [{"id": str(number), "uri": URI} for number in range(250)]
    answer = served.post("/embed", data=docs).json()["data"]
    assert [doc["id"] for doc in answer] == [doc["id"] for doc in docs]
    assert all(doc["embedding"] for doc in answer)


@pytest.mark.timeout(60)  # Jina's own way would wait for ever
def test_a_call_that_wants_its_answers_in_order_ends_if_they_are_faster_than_its_requests(served):
    async def docs() -> AsyncIterator[Document]:
        for number in range(3):
            yield Document(id=str(number), uri=URI)
        await asyncio.sleep(1)  # all are answered when the call ends

    client = Client(port=served.ports["grpc"])
    answer = client.post("/embed", docs, request_size=1, return_type=DocumentArray, results_in_order=True)
    assert [doc.id for doc in answer] == ["0", "1", "2"]


def test_a_hundred_documents_are_all_that_is_evaluated(served):
    docs = [{"uri": URI, "tags": {"finetuner_label": number % 2}} for number in range(100)]
    for address in (served.url, own_door(served)):
        answer = requests.post(f"{address}/evaluate", json={"data": docs}, timeout=60)
        assert (answer.status_code, answer.json()["data"][0]["queries"]) == (200, 100), answer.text


def test_the_gateway_answers_openai_s_client_with_its_errors(served):
    body = {"model": "promoted", "input": [URI, {"image": URI}], "encoding_format": "base64"}
    answer = requests.post(f"{served.url}/v1/embeddings", json=body, timeout=60).json()
    assert (answer["model"], len(answer["data"]), answer["usage"]["total_tokens"]) == ("base", 2, 2)
    refused = requests.post(f"{served.url}/v1/embeddings", json=body | {"model": "nowhere"}, timeout=60)
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")


def test_the_options_of_the_gateway_are_those_of_its_door(served):
    answer = requests.post(f"{served.url}/embed", b"x" * (9 << 20), headers={"Content-Type": "image/png"}, timeout=60)
    assert answer.status_code == 413


def test_the_page_is_at_both_doors_and_kept_up_to_date(served):
    for address in (served.url, own_door(served)):
        page = requests.get(f"{address}/ui/", timeout=60)
        assert (page.status_code, "<h1>Runs</h1>" in page.text) == (200, True)
        with requests.get(f"{address}/ui/live", stream=True, timeout=60) as live:
            lines = live.iter_lines(chunk_size=1, decode_unicode=True)
            assert "event: parts" in (next(lines), next(lines), next(lines))
        assert requests.get(f"{address}/ui/start", timeout=60).status_code == 200
        assert "There is no run" in requests.get(f"{address}/ui/runs/nowhere", timeout=60).text
        (csrf,) = re.findall(r'data-csrf="(\w+)"', page.text)
        word = {"csrf": csrf, "id": "a", "what": "undo"}
        done = requests.post(
            f"{address}/ui/runs/x/label", word, cookies=page.cookies, timeout=60, allow_redirects=False
        )
        assert done.status_code == 303


def test_what_only_the_page_asks_for_is_asked_of_our_executor_alone(served):
    (small,) = served.post("/thumbnails", data=[{"uri": URI}], parameters={"side": 32}).json()["data"]
    assert small["uri"].startswith("data:image/")
    unknown = served.post("/compare", parameters={"second": "nobody"})
    assert (unknown.status_code, "nobody" in unknown.text) == (404, True)
    wrong = served.post("/gallery", parameters={"run": "nobody", "offset": float(2**70)})
    assert wrong.status_code == 400


def test_a_run_waits_for_the_lines_of_a_body_that_comes_slowly(served):
    """Of these the executor has the first 1,000 for longer than a run waits for more (`receive_timeout`)."""
    lines = [
        json.dumps({"id": str(number), "uri": URI, "tags": {"finetuner_label": number % 2}}) for number in range(1001)
    ]

    def slowly() -> Iterator[bytes]:
        yield "\n".join(lines[:1000]).encode() + b"\n"
        time.sleep(2.5)
        yield lines[1000].encode()

    address = f"{served.url}/fit?run=slow&kind=class&total=1001"
    answer = requests.post(address, slowly(), headers={"Content-Type": "application/x-ndjson"}, timeout=60)
    (status,) = answer.json()["data"]
    assert (answer.status_code, status["train_documents"]) == (200, 1001)
    served.post("/cancel", parameters={"run": "slow"})


def test_watching_an_unknown_run_is_the_same_404_at_both_doors(served):
    for address in (served.url, own_door(served)):
        answer = requests.get(f"{address}/watch?run=nowhere", timeout=60)
        assert (answer.status_code, list(answer.json())) == (404, ["detail"])
        assert answer.json()["detail"].startswith("There is no run 'nowhere'")


def test_health_and_figures_say_of_which_executor_they_are(served):
    ready = served.get("/readyz")
    assert (ready.status_code, ready.json()["served"], ready.json()["executor"]) == (200, "base", "executor0/rep-0")
    first, *figures = served.get("/metrics").text.splitlines()
    assert first == "# executor: executor0/rep-0"
    assert 'finetuner_runs{state="queued"} 0.0' in figures
    assert "executor" not in requests.get(f"{own_door(served)}/readyz", timeout=60).json()


def test_a_gateway_that_yaml_names_gives_each_refusal_the_status_that_one_named_by_its_class_does(served):
    """What test_http_status.py tries one by one."""
    wrong = served.post("/fit", parameters={"epoch": 3})
    assert wrong.status_code == 400
    assert wrong.json()["detail"].startswith("/fit has no parameter 'epoch'; it accepts: kind, base,")
    assert served.post("/status", parameters={"run": "nowhere"}).status_code == 404
    docs, over = [{"uri": URI, "tags": {"finetuner_label": 2**53}}], {"run": "over"}
    (status,) = served.post("/fit", data=docs, parameters=over).json()["data"]
    assert (status["train_documents"], status["skipped"]) == (1, 0)
    assert served.post("/cancel", parameters=over).json()["data"][0]["state"] == "cancelled"
    assert served.post("/fit", data=docs, parameters=over).status_code == 409
    too_large = served.post("/fit", data=[{"uri": URI, "tags": {"n": 2**70}}])
    assert (too_large.status_code, "larger than 9.007e+15; send it as text" in too_large.text) == (400, True)
    for body, code in (("{}", 200), ("", 200), ('{"data": null}', 200), ("{", 422), ('{"data": 3}', 422)):
        headers = {"Content-Type": "application/json"}
        assert requests.post(f"{served.url}/status", data=body, headers=headers, timeout=60).status_code == code
    assert "There is no run 'nowhere'" in served.get("/watch?run=nowhere").text
    (whole,) = served.post("/embed", data=[{"uri": URI, "tags": {"ean": -(2**53)}, "matches": None}]).json()["data"]
    assert (whole["tags"]["ean"], type(whole["tags"]["ean"]), whole["matches"]) == (-(2**53), int, [])


def pid_of_executor(served: fronts.Served) -> int:
    lock = next((served.folder / "workspace").rglob("service.lock"))
    return int(Path(lock).read_text())


def test_an_executor_that_is_stopped_is_not_ready_until_it_goes_on(served):
    os.kill(pid_of_executor(served), signal.SIGSTOP)
    try:
        answer = served.get("/readyz")
        assert (answer.status_code, answer.json()["ready"], "SIGCONT" in answer.text) == (503, False, True)
        figures = served.get("/metrics")
        assert (figures.status_code, "SIGCONT" in figures.text) == (503, True)
    finally:
        os.kill(pid_of_executor(served), signal.SIGCONT)
    assert served.get("/readyz").status_code == served.get("/metrics").status_code == 200


def test_a_dead_executor_is_told_at_once(served, tmp_path):
    os.kill(pid_of_executor(served), signal.SIGKILL)
    assert served.get("/healthz").status_code == 200
    for answer in (served.get("/readyz"), served.get("/metrics"), served.post("/status"), served.post("/embed")):
        assert answer.status_code == 503
        assert "No executor of this Flow answers" in answer.text
    assert served.get("/readyz").json()["ready"] is False
    command = [str(ROOT / "scripts" / "healthy"), str(served.ports["grpc"])]  # as the image asks
    code, said = fronts.ended(tmp_path, command)
    assert (code, said.count("\n"), "is not well" in said) == (1, 1, True)
    page = served.get("/ui/")
    assert (page.status_code, "The service behind this page does not answer" in page.text) == (503, True)
    assert "data-retry" in page.text
