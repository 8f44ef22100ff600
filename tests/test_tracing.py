"""Spans of OpenTelemetry, against a real collector: of calls, of their stages, of a run in two processes."""

import socket
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import requests
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from collector import Collector, Span, collecting, spans_of
from conftest import images
from executor import tracing
from executor.errors import ConfigurationError
from executor.store.run import Configuration, RunState
from executor.store.runs import RunStore
from executor.store.workspace import Workspace
from executor.worker.elsewhere import start
from serving import Service, as_json
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
        command = Command(tmp_path_factory.mktemp("door"), *SMALL, "--trainer-yields", "false", "--trainer-nice", "0")
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


@pytest.fixture(scope="module")
def flow(collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A Flow with Jina's tracing and our gateway. Its exporter would wait for an hour for an answer."""
    folder = tmp_path_factory.mktemp("flow")
    service = Service(folder / "workspace", folder / "cwd", gateway="executor.gateway.FinetunerGateway")
    service.flow = {
        "tracing": True,
        "traces_exporter_host": "http://127.0.0.1",
        "traces_exporter_port": collector.port,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")
        patch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "3600")
        service.start()
    yield service
    if service.process is not None and service.process.poll() is None:
        service.kill()


def way_up(span: Span, found: dict[str, list[Span]]) -> list[str]:
    """The names of the spans around a span, and in the end the id of the one that a caller had."""
    by_id = {span.id: span for spans in found.values() for span in spans}
    names = []
    while span.parent in by_id:
        span = by_id[span.parent]
        names.append(span.name)
    return [*names, span.parent]


@pytest.mark.flow
def test_a_flow_with_jinas_tracing_leads_a_call_through_gateway_and_executor(
    flow: Service, collector: Collector
) -> None:
    headers = {"traceparent": f"00-{'2' * 32}-{CALLER}-01"}
    post(f"http://127.0.0.1:{flow.ports['http']}", "/embed", images(3), headers)
    found = collector.wait("POST /embed", "/embed", *STAGES, trace="2" * 32, below=CALLER)
    up = way_up(found["embed.forward"][0], found)
    assert up[0] == "/embed"
    assert up[-2:] == ["POST /embed", CALLER]


@pytest.mark.flow
def test_a_run_is_one_trace_from_its_first_request_to_its_promotion(flow: Service, collector: Collector) -> None:
    headers = {"traceparent": f"00-{'1' * 32}-{CALLER}-01"}
    door = f"http://127.0.0.1:{flow.ports['http']}"
    post(door, "/fit", images(12), headers, run="seen", total=24, epochs=2, batch_size=8, promote="always")
    post(door, "/fit", images(12, prefix="e"), {}, run="seen")
    found = collector.wait(*OF_A_RUN, "promotion", "run", trace="1" * 32, below=CALLER, seconds=240)
    (run,) = found["run"]
    up = way_up(run, found)
    assert up[0] == "/fit"
    assert up[-2:] == ["POST /fit", CALLER]
    spans = [span for name in (*OF_A_RUN, "promotion") for span in found[name]]
    assert {span.parent for span in spans} == {run.id}
    assert {found[name][0].service for name in OF_A_RUN[3:]} == {"finetuner-trainer"}
    assert run.service != "finetuner-trainer"
    assert [epoch.attributes["finetuner.epoch"] for epoch in found["run.epoch"]] == [1, 2]
    receiving, waiting, training = (found[name][0] for name in OF_A_RUN[:3])
    assert run.began == receiving.began < receiving.ended <= waiting.ended <= training.ended == run.ended
    assert all(within(span, run) for span in spans)
    assert found["promotion"][0].attributes == {"finetuner.version": "seen"}
    assert not run.failed


@pytest.mark.flow
def test_a_flow_ends_though_its_collector_does_not_answer(flow: Service, collector: Collector) -> None:
    collector.fall_silent()
    flow.http("/embed")
    assert flow.stop() == 0
    collector.answer()


def within(span: Span, other: Span) -> bool:
    """Whether a span lies in another. The store's clock has milliseconds."""
    return other.began - 1e6 <= span.began and span.ended <= other.ended + 1e6


@pytest.fixture
def traced(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tracing is on in this process, whose end waits for a busy machine."""
    monkeypatch.setattr(tracing, "END_SECONDS", 60.0)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.port}")
    tracing.start("tests")
    yield
    tracing.end()


def last_spans_are_on_their_way() -> bool:
    return any(thread.name == "last-spans" for thread in threading.enumerate())


def test_an_end_waits_for_no_collector_that_takes_and_never_answers(
    traced: None, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "END_SECONDS", 0.5)
    collector.fall_silent()
    with tracing.span("lost"):
        pass
    tracing.end()
    assert last_spans_are_on_their_way()
    assert not tracing.is_on()
    collector.answer()


def test_an_end_waits_for_no_collector_where_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as nobody:  # bound, so that nobody else gets the port; connections are refused
        nobody.bind(("127.0.0.1", 0))
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        tracing.start("tests")
        with tracing.span("lost"):
            pass
        tracing.end()
    assert not tracing.is_on()


def test_what_was_made_before_an_end_arrives(traced: None, collector: Collector) -> None:
    with tracing.span("last", {"finetuner.run": "a"}):
        pass
    tracing.end()
    (span,) = collector.wait("last", seconds=20)["last"]
    assert (span.service, span.parent, span.attributes) == ("tests", "", {"finetuner.run": "a"})


def test_spans_go_over_http_too(monkeypatch: pytest.MonkeyPatch) -> None:
    came: list[tuple[str, list[Span]]] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["content-length"]))
            came.append((self.path, spans_of(ExportTraceServiceRequest.FromString(content))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    with HTTPServer(("127.0.0.1", 0), Receiver) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
        monkeypatch.setattr(tracing, "END_SECONDS", 60.0)
        tracing.start("tests")
        with tracing.span("over http"):
            pass
        tracing.end()
        server.shutdown()
    assert [(path, span.name) for path, spans in came for span in spans] == [("/v1/traces", "over http")]


def test_a_promised_span_is_the_parent_of_what_came_before_it(traced: None, collector: Collector) -> None:
    with tracing.span("asked"):
        promised, asked = tracing.promise(), tracing.here()
    with tracing.within(promised):
        tracing.record("part", 2_000, 3_000)
    with tracing.within(asked):
        tracing.record("whole", 1_000, 4_000, own=promised, error="it failed")
    tracing.end()
    found = collector.wait("asked", "part", "whole")
    (ask,), (part,), (whole,) = found["asked"], found["part"], found["whole"]
    assert (part.parent, whole.parent, ask.parent) == (whole.id, ask.id, "")
    assert (whole.began, whole.ended, whole.failed, part.failed) == (1_000, 4_000, True, False)
    assert {span.trace for span in (ask, part, whole)} == {ask.trace}


def test_each_state_of_a_run_is_a_span_and_a_resumed_run_has_some_twice(
    traced: None, collector: Collector, tmp_path: Path
) -> None:
    store = RunStore(Workspace(tmp_path))
    with tracing.span("asked for it"):
        store.create("failing", configuration=Configuration(trace=tracing.promise(), asked_by=tracing.here()))
        store.create("untraced")
    for run in ("failing", "untraced"):
        for state in (RunState.QUEUED, RunState.TRAINING, RunState.QUEUED, RunState.TRAINING):
            store.advance(run, state)
        store.advance(run, RunState.FAILED, error="it failed")
    store.close()
    tracing.end()
    (asked,) = collector.wait("asked for it")["asked for it"]
    found = collector.wait("run", trace=asked.trace)
    assert {name: len(spans) for name, spans in found.items()} == {
        "asked for it": 1,
        "run": 1,
        "run.receiving": 1,
        "run.waiting": 2,
        "run.training": 2,
    }
    (run,) = found["run"]
    assert (run.parent, run.failed) == (asked.id, True)
    assert [span.failed for span in found["run.training"]] == [False, True]
    assert "untraced" not in {span.attributes.get("finetuner.run") for span in collector.spans()}


@pytest.mark.process
def test_a_command_that_trains_finds_the_trace_of_its_run(tmp_path: Path) -> None:
    program = "import os, sys; open(sys.argv[1], 'w').write(os.environ['TRACEPARENT'])"
    start([sys.executable, "-c", program, str(tmp_path / "said")], HEADERS["traceparent"]).wait()
    assert (tmp_path / "said").read_text() == HEADERS["traceparent"]


def test_a_caller_who_is_not_sampled_is_not_recorded(traced: None, collector: Collector) -> None:
    with tracing.within(f"00-{'3' * 32}-{CALLER}-00"):
        assert not tracing.is_recording()
        with tracing.span("unseen"):
            pass
    tracing.end()
    assert not collector.spans("3" * 32)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "smoke"}, "it takes grpc or http/protobuf"),
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "this service exports by otlp, or none"),
        ({"OTEL_EXPORTER_OTLP_TIMEOUT": "soon"}, "Tracing cannot be set up from the variables OTEL_…: "),
    ],
)
def test_a_wrong_variable_is_refused_at_the_start(
    variables: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", **variables}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=message):
        tracing.start("tests")
    assert not tracing.is_on()


@pytest.mark.parametrize("variable", [{}, {"OTEL_SDK_DISABLED": "true"}, {"OTEL_TRACES_EXPORTER": "none"}])
def test_without_a_collector_nothing_is_traced(variable: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", **variable} if variable else {}).items():
        monkeypatch.setenv(name, value)
    tracing.start("tests")
    assert not tracing.is_on()
    with tracing.span("none"), tracing.span_of_call("/none"), tracing.within("00-00-00-00"):
        assert tracing.here() is None
        assert tracing.promise() is None
        tracing.record("none", 1, 2)
