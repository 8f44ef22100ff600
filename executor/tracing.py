"""Spans of OpenTelemetry. Where tracing is off, each costs a look at a variable, and OpenTelemetry is not imported.

It is on where the environment names a collector (`OTEL_EXPORTER_OTLP_ENDPOINT` and the like), or where Jina's tracing
is. A context travels as text, in the form of W3C's header `traceparent`: to a trainer in the configuration of its run.
"""

import contextlib
import functools
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar, copy_context
from typing import Any, TypeVar

from .errors import ConfigurationError

END_SECONDS = 1.0  # for the last spans, when a process ends; a collector that does not answer costs no more
EXPORTERS = ("OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
SCOPE = "finetuner-executor"

Value = str | int | float | bool
Attributes = Mapping[str, Value]
T = TypeVar("T")

_log = logging.getLogger(__name__)
_provider: Any = None  # of the SDK
_tracer: Any = None
_exporter: Any = None  # ours, which we can cut off
_chosen: ContextVar[int | None] = ContextVar("chosen", default=None)  # the id of the next span


def is_on() -> bool:
    """Whether spans are made in this process."""
    return _tracer is not None


def provider() -> Any:
    """Return the SDK's TracerProvider; None where tracing is off."""
    return _provider


def start(service: str) -> None:
    """Make spans from now on if the environment names a collector.

    Args: service: the name of this process for the collector, unless `OTEL_SERVICE_NAME` has another.
    Raises: ConfigurationError: a variable has a value that cannot be used.
    """
    global _exporter
    if _tracer is not None or not _is_wanted():
        return
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    named = {} if os.environ.get("OTEL_SERVICE_NAME") else {SERVICE_NAME: service}
    try:
        _exporter = _make_exporter()
        made = TracerProvider(resource=Resource.create(named), shutdown_on_exit=False)
        made.add_span_processor(BatchSpanProcessor(_exporter))
    except ConfigurationError:
        raise
    except Exception as error:  # the SDK raises whatever a wrong value leads to
        raise ConfigurationError(f"Tracing cannot be set up from the variables OTEL_…: {error}") from error
    _take(made)


def use(jinas: Any) -> None:
    """Make spans from now on by Jina's TracerProvider. Trainers are told of its collector by the environment."""
    try:
        # Jina tells an executor the provider alone, and the SDK has no public way from there to the address.
        (processor,) = jinas._active_span_processor._span_processors
        exporter = processor.span_exporter
        address = f"{'http' if exporter._insecure else 'https'}://{exporter._endpoint}"
    except (AttributeError, ValueError) as error:
        _log.warning("Trainers are traced only where OTEL_EXPORTER_OTLP_ENDPOINT is set: %s", error)
    else:
        os.environ.setdefault("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc")
        os.environ.setdefault("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", address)
    _take(jinas)


def _take(given: Any) -> None:
    global _provider, _tracer
    from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

    class Ids(RandomIdGenerator):
        """Random ids, except where a span was promised its id."""

        def generate_span_id(self) -> int:
            return _chosen.get() or super().generate_span_id()

    given.id_generator = Ids()  # of the tracers that are made from now on
    _provider, _tracer = given, given.get_tracer(SCOPE)


def _is_wanted() -> bool:
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    if os.environ.get("OTEL_TRACES_EXPORTER", "").strip().lower() == "none":
        return False
    return any(os.environ.get(name) for name in EXPORTERS)


def _make_exporter() -> Any:
    kind = os.environ.get("OTEL_TRACES_EXPORTER") or "otlp"
    if kind != "otlp":
        raise ConfigurationError(f"OTEL_TRACES_EXPORTER is {kind!r}; this service exports by otlp, or none.")
    protocol = next((os.environ[name] for name in PROTOCOLS if os.environ.get(name)), "grpc")
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

        return OTLPSpanExporter()
    if protocol == "http/protobuf":
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as OverHttp

        return OverHttp()
    raise ConfigurationError(f"OTEL_EXPORTER_OTLP_PROTOCOL is {protocol!r}; it takes grpc or http/protobuf.")


def end() -> None:
    """Send the last spans, for `END_SECONDS` at most, and make no more."""
    global _provider, _tracer, _exporter
    if _provider is None:
        return
    if not shut_down(_provider) and _exporter is not None:
        _exporter.shutdown()
    _provider = _tracer = _exporter = None


def shut_down(given: Any) -> bool:
    """Let a provider of the SDK send what it has, and make no more. Return whether that was done in `END_SECONDS`.

    By itself it waits half a minute for a collector that accepts and never answers.
    """
    sending = threading.Thread(target=given.shutdown, name="last-spans", daemon=True)
    sending.start()
    sending.join(END_SECONDS)
    if sending.is_alive():
        _log.warning("The collector of traces did not take the last ones within %g s", END_SECONDS)
    return not sending.is_alive()


@contextlib.contextmanager
def _made(name: str, attributes: Attributes) -> Iterator[None]:
    with _tracer.start_as_current_span(name, attributes=attributes):
        yield


def span(name: str, attributes: Attributes | None = None) -> contextlib.AbstractContextManager[None]:
    """Make a span of a `with` block. An exception that leaves it is noted in the span."""
    return _NOTHING if _tracer is None else _made(name, attributes or {})


_NOTHING = contextlib.nullcontext()


def span_of_call(name: str) -> contextlib.AbstractContextManager[None]:
    """Make a span of a `with` block, unless a door has begun one for it."""
    return _NOTHING if _tracer is None or _here() is not None else _made(name, {})


def is_recording() -> bool:
    """Whether a span that is made now would be recorded."""
    return _tracer is not None and (here := _here()) is not None and here.trace_flags.sampled


def _here() -> Any:
    """Return the SpanContext of the current span; None without one."""
    from opentelemetry.trace import get_current_span

    found = get_current_span().get_span_context()
    return found if found.is_valid else None


def record(
    name: str,
    began: int,
    ended: int,
    attributes: Attributes | None = None,
    *,
    own: str | None = None,
    error: str | None = None,
) -> None:
    """Make a span of something that is over.

    Args: began, ended: nanoseconds since 1970. own: a `traceparent` of `promise`, whose id is that of this span.
        error: what went wrong, if it did.
    """
    if _tracer is None:
        return
    from opentelemetry.trace import Status, StatusCode

    token = _chosen.set(None if own is None else int(own.split("-")[2], 16))
    try:
        made = _tracer.start_span(name, start_time=began, attributes=attributes)
    finally:
        _chosen.reset(token)
    if error is not None:
        made.set_status(Status(StatusCode.ERROR, error))
    made.end(ended)


# contexts as text ---------------------------------------------------------------------------------------------------


def here() -> str | None:
    """Return the current span as a `traceparent`; None without one."""
    found = None if _tracer is None else _here()
    return None if found is None else _written(found.trace_id, found.span_id, found.trace_flags)


def promise() -> str | None:
    """Return the `traceparent` of a span within the current one that is made later, by `record`; None without one."""
    found = None if _tracer is None else _here()
    if found is None:
        return None
    return _written(found.trace_id, _provider.id_generator.generate_span_id(), found.trace_flags)


def _written(trace: int, span_id: int, flags: int) -> str:
    return f"00-{trace:032x}-{span_id:016x}-{flags:02x}"


@contextlib.contextmanager
def _attached(traceparent: str) -> Iterator[None]:
    from opentelemetry.context import attach, detach
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    token = attach(TraceContextTextMapPropagator().extract({"traceparent": traceparent}))
    try:
        yield
    finally:
        detach(token)


def within(traceparent: str | None) -> contextlib.AbstractContextManager[None]:
    """Let the spans of a `with` block be children of another span. Args: None: nothing changes."""
    return _NOTHING if _tracer is None or traceparent is None else _attached(traceparent)


def carried(function: Callable[[], T]) -> Callable[[], T]:
    """Return a function that another thread may call within the span that is current here."""
    return function if _tracer is None else functools.partial(copy_context().run, function)
