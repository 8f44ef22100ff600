"""Spans of OpenTelemetry, against a real collector: of calls, of their stages, of a run in two processes."""

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from collector import Collector, Span, collecting
from conftest import images
from executor import tracing
from executor.errors import ConfigurationError
from serving import as_json
from test_serve import SMALL, Command

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
HEADERS = {"traceparent": f"00-{TRACE}-{CALLER}-01"}
STAGES = ["embed.queue", "embed.decode", "embed.forward"]
OF_A_RUN = ["run.receiving", "run.waiting", "run.training", "run.loading", "run.epoch", "run.evaluating", "run.saving"]


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as running:
        yield running


@pytest.fixture(scope="module")
def door(collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of our own door, alone, told by the usual variables where the collector is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.port}")
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")  # milliseconds, so that the tests need not wait long
        command = Command(tmp_path_factory.mktemp("door"), *SMALL, "--trainer-yields", "false")
        yield command.address
        assert command.end() == 0


def post(door: str, path: str, docs: object = (), headers: dict[str, str] = HEADERS, **parameters: object) -> dict:
    answer = requests.post(
        door + path, json={"data": list(map(as_json, docs)), "parameters": parameters}, headers=headers, timeout=120
    )
    answer.raise_for_status()
    return answer.json()


@pytest.mark.flow
def test_a_call_of_embed_shows_its_stages_in_the_trace_of_its_caller(door: str, collector: Collector) -> None:
    post(door, "/embed", images(5))
    found = collector.wait("POST /embed", *STAGES, trace=TRACE)
    (call,) = found["POST /embed"]
    assert (call.parent, call.service) == (CALLER, "finetuner-executor")
    queue, decode, forward = (found[name][0] for name in STAGES)
    assert {stage.parent for stage in (queue, decode, forward)} == {call.id}
    assert call.began <= queue.began <= queue.ended == decode.began < forward.ended <= call.ended
    assert decode.began < decode.ended
    assert forward.attributes == {"finetuner.version": "base", "finetuner.images": 5}


@pytest.mark.flow
def test_a_run_is_one_trace_from_its_first_request_to_its_promotion(door: str, collector: Collector) -> None:
    headers = {"traceparent": f"00-{'1' * 32}-{CALLER}-01"}
    post(door, "/fit", images(12), headers, run="seen", total=24, epochs=2, batch_size=8, promote="always")
    post(door, "/fit", images(12, prefix="e"), {}, run="seen")
    found = collector.wait(*OF_A_RUN, "promotion", "run", trace="1" * 32, seconds=120)
    (call,), (run,) = found["POST /fit"], found["run"]
    assert run.parent == call.id
    assert call.parent == CALLER
    spans = [span for name in (*OF_A_RUN, "promotion") for span in found[name]]
    assert {span.parent for span in spans} == {run.id}
    assert {span.service for span in spans} == {"finetuner-executor", "finetuner-trainer"}
    assert [epoch.attributes["finetuner.epoch"] for epoch in found["run.epoch"]] == [1, 2]
    receiving, waiting, training = (found[name][0] for name in OF_A_RUN[:3])
    assert run.began == receiving.began < receiving.ended <= waiting.ended <= training.ended == run.ended
    assert all(within(span, run) for span in spans)
    assert found["promotion"][0].attributes == {"finetuner.version": "seen"}
    assert not run.failed


def within(span: Span, other: Span) -> bool:
    """Whether a span lies in another. The store's clock has milliseconds."""
    return other.began - 1e6 <= span.began and span.ended <= other.ended + 1e6
