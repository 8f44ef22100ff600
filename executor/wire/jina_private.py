"""Every private part of Jina 3.34 that is patched or read, in one place, each with the reason.

`PRIVATE` lists them. A test looks for each by name, so that an upgrade of Jina that has moved one says which.
"""

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import jina.helper
from fastapi import FastAPI
from jina.proto import jina_pb2
from jina.serve.instrumentation import InstrumentationMixin
from jina.serve.runtimes.asyncio import AsyncNewLoopRuntime
from jina.serve.runtimes.gateway.gateway import BaseGateway
from jina.serve.runtimes.servers.composite import CompositeBaseServer
from jina.serve.runtimes.servers.grpc import GRPCServer
from jina.serve.runtimes.servers.http import HTTPServer
from jina.serve.runtimes.servers.websocket import WebSocketServer
from jina.serve.stream import RequestStreamer
from jina.types.request import Request as JinaRequest
from jina.types.request.data import DataRequest

__all__ = ["BaseGateway", "CompositeBaseServer", "GRPCServer", "HTTPServer", "WebSocketServer"]


class Part(NamedTuple):
    """A private part: whose it is, its name, and why it is needed. `in_source`: an attribute of its instances."""

    owner: Any
    name: str
    why: str
    in_source: bool = False


PRIVATE = (
    Part(jina.helper, "extend_rest_interface", "No other way leads to the app of an executor's HTTP server."),
    Part(GRPCServer, "aio_tracing_server_interceptors", "No option adds an interceptor to a gRPC server."),
    Part(InstrumentationMixin, "aio_tracing_server_interceptors", "The interceptors that Jina itself wants stay."),
    Part(InstrumentationMixin, "aio_tracing_client_interceptors", "The gateway presents the token to its executors."),
    Part(DataRequest, "add_exception", "Here Jina puts its traceback into the answer."),
    Part(JinaRequest, "add_exception", "What it does besides is still done."),
    Part(AsyncNewLoopRuntime, "async_teardown", "Jina cuts off the requests under way; here they are waited for."),
    Part(AsyncNewLoopRuntime, "server", "The servers of a process, to be told to end.", in_source=True),
    Part(CompositeBaseServer, "servers", "The same, where one process serves several protocols.", in_source=True),
    Part(CompositeBaseServer, "_server_kwargs", "The settings of each protocol's server."),
    Part(CompositeBaseServer, "_should_exit", "Jina's own says that a gateway of gRPC alone shall end."),
    Part(GRPCServer, "server", "The server of the library, which knows how to end gracefully.", in_source=True),
    Part(HTTPServer, "_request_handler", "Its streamer meets the refusals of the executors.", in_source=True),
    Part(RequestStreamer, "wait_floating_requests_end", "Jina's own waits for ever for a call that broke off."),
    Part(RequestStreamer, "total_num_floating_tasks_alive", "What it waits for, set back.", in_source=True),
)


def extend_http_app(extend: Callable[[FastAPI], FastAPI]) -> None:
    """Let `extend` change the app of the HTTP servers that Jina is about to start in this process."""
    jina.helper.extend_rest_interface = extend


def set_grpc_interceptors(make: Callable[[list[Any]], list[Any]]) -> None:
    """Let `make` choose the interceptors of the gRPC servers in this process. Args: make: gets Jina's own."""

    def interceptors(server: GRPCServer) -> list[Any]:
        return make(InstrumentationMixin.aio_tracing_server_interceptors(server) or [])

    GRPCServer.aio_tracing_server_interceptors = interceptors


def replace_exceptions(replaced: Callable[[Exception], Exception]) -> None:
    """Let the exceptions that Jina puts into answers be what `replaced` makes of them."""

    def add_exception(request: DataRequest, error: Exception, executor: Any = None) -> None:
        JinaRequest.add_exception(request, replaced(error), executor)

    DataRequest.add_exception = add_exception


def before_teardown(do: Callable[[list[Any]], Awaitable[None]]) -> None:
    """Let `do` come before Jina's own end of a process. Args: do: gets the servers of the process."""

    async def teardown(runtime: Any) -> None:
        await do(getattr(runtime.server, "servers", [runtime.server]))
        await _own_teardown(runtime)

    AsyncNewLoopRuntime.async_teardown = teardown


_own_teardown = AsyncNewLoopRuntime.async_teardown


def library_server(server: Any) -> Any:
    """The server of grpc or uvicorn within one of Jina's."""
    return server.server


def replace_wait_for_floating_requests(wait: Callable[[Callable[[], bool]], Awaitable[None]]) -> None:
    """Let `wait` decide how long a gateway waits for calls to executors that nobody waits for.

    Jina counts every call as such a one, and one whose reading fails (a message that is malformed, a server that has
    been stopped) for good. Args: wait: gets a function that says whether there are any left.
    """

    async def wait_and_forget(streamer: Any) -> None:
        await wait(lambda: streamer.total_num_floating_tasks_alive > 0)
        streamer.total_num_floating_tasks_alive = 0  # each server of a gateway asks again

    RequestStreamer.wait_floating_requests_end = wait_and_forget


def settings_of_servers(gateway: CompositeBaseServer) -> list[tuple[str, dict[str, Any]]]:
    """The protocol and the arguments of each server of a gateway."""
    return [(str(settings["runtime_args"]["protocol"]).lower(), settings) for settings in gateway._server_kwargs]


def wrap_streamer(server: HTTPServer, wrap: Callable[[Any], Any]) -> None:
    """Put something between a gateway's HTTP server and its way to the executors."""
    server._request_handler.streamer = wrap(server._request_handler.streamer)


def refusal_in(response: Any) -> tuple[list[str], str] | None:
    """The arguments of the exception that an executor answered with, and its sentence; None if it answered well."""
    header = getattr(response, "header", None)  # a dry run asks for documents, not for responses
    if header is None or header.status.code != jina_pb2.StatusProto.ERROR:
        return None
    return list(header.status.exception.args), str(header.status.description)
