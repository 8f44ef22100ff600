"""A collector of OpenTelemetry: the OTLP service over gRPC, in this process. It keeps the spans that it gets."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc


class Span(NamedTuple):
    """A span as it came. Times are nanoseconds since 1970, ids are hexadecimal."""

    name: str
    service: str
    trace: str
    id: str
    parent: str
    began: int
    ended: int
    failed: bool
    attributes: dict[str, Any]


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Listens on a free port of this machine, in plaintext."""

    def __init__(self) -> None:
        self._arrived = threading.Condition()
        self._spans: list[Span] = []
        self._answers = threading.Event()
        self._answers.set()
        self._server = grpc.server(ThreadPoolExecutor(2))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802  (the service's own name)
        with self._arrived:
            self._spans += spans_of(request)
            self._arrived.notify_all()
        self._answers.wait()
        return trace_service_pb2.ExportTraceServiceResponse()

    def spans(self, trace: str | None = None) -> list[Span]:
        """Return what came so far, of one trace or of all."""
        with self._arrived:
            return [span for span in self._spans if trace in (None, span.trace)]

    def wait(
        self, *names: str, trace: str | None = None, below: str | None = None, seconds: float = 60.0
    ) -> dict[str, list[Span]]:
        """Wait until there are spans with all these names. Return all spans, by name.

        Args: below: wait also until each span's parent is there, but for this one: processes send theirs in any order.
        """
        deadline = time.monotonic() + seconds
        while True:
            found: dict[str, list[Span]] = {}
            for span in self.spans(trace):
                found.setdefault(span.name, []).append(span)
            missing = [name for name in names if name not in found]
            if below is not None:
                every = [span for spans in found.values() for span in spans]
                ids = {below, *(span.id for span in every)}
                missing += [f"the parent of {span.name}" for span in every if span.parent not in ids]
            if missing:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{missing} did not come; there are {sorted(found)}")
                with self._arrived:
                    self._arrived.wait(0.5)
                continue
            return found

    def fall_silent(self) -> None:
        """Take what comes, and never answer again."""
        self._answers.clear()

    def answer(self) -> None:
        """Answer again, also what waits."""
        self._answers.set()

    def close(self) -> None:
        """End it. Nothing listens on its port then."""
        self.answer()
        self._server.stop(0).wait()


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector for a test."""
    collector = Collector()
    try:
        yield collector
    finally:
        collector.close()


def spans_of(request: Any) -> list[Span]:
    """Return the spans of one request of OTLP."""
    return [
        _read(span, _values(group.resource.attributes).get("service.name", ""))
        for group in request.resource_spans
        for scope in group.scope_spans
        for span in scope.spans
    ]


def _read(span: Any, service: str) -> Span:
    return Span(
        span.name,
        service,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        span.status.code == 2,
        _values(span.attributes),
    )


def _values(attributes: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}
