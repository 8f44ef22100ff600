"""Every private part of Jina 3.34 that we patch or read, in one place, each with the reason.

`PRIVATE` lists them. A test looks for each by name. If an upgrade of Jina moves one, the test says which.
"""

import weakref
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Set
from typing import Any, NamedTuple, TypeGuard

import jina.helper
from fastapi import FastAPI
from fastapi.routing import APIWebSocketRoute
from google.protobuf.message import DecodeError
from jina.proto import jina_pb2
from jina.serve.instrumentation import InstrumentationMixin
from jina.serve.runtimes.asyncio import AsyncNewLoopRuntime
from jina.serve.runtimes.gateway import websocket_fastapi_app
from jina.serve.runtimes.gateway.gateway import BaseGateway
from jina.serve.runtimes.gateway.streamer import GatewayStreamer
from jina.serve.runtimes.servers import BaseServer
from jina.serve.runtimes.servers.composite import CompositeBaseServer
from jina.serve.runtimes.servers.grpc import GRPCServer
from jina.serve.runtimes.servers.http import HTTPServer
from jina.serve.runtimes.servers.websocket import WebSocketServer
from jina.serve.runtimes.worker.request_handling import WorkerRequestHandler
from jina.serve.stream import RequestStreamer
from jina.types.request import Request as JinaRequest
from jina.types.request.data import DataRequest
from uvicorn.protocols.http import auto

HttpProtocol: Any = auto.AutoHTTPProtocol  # before we put ours in its place

__all__ = ["BaseGateway", "CompositeBaseServer", "GRPCServer", "HTTPServer", "WebSocketServer"]


class Part(NamedTuple):
    """A private part of Jina.

    Attributes:
        owner: the class, module or function that has it. why: why we need it.
        in_source: it is set on instances only, so the test looks for it in the source of the class or function.
    """

    owner: Any
    name: str
    why: str
    in_source: bool = False


PRIVATE = (
    Part(jina.helper, "extend_rest_interface", "It is the only way to the app of an executor's HTTP server."),
    Part(GRPCServer, "aio_tracing_server_interceptors", "No option adds an interceptor to a gRPC server."),
    Part(InstrumentationMixin, "aio_tracing_server_interceptors", "Jina's own interceptors must stay."),
    Part(InstrumentationMixin, "aio_tracing_client_interceptors", "The gateway sends the token to its executors."),
    Part(DataRequest, "add_exception", "Jina puts its traceback into the answer here."),
    Part(JinaRequest, "add_exception", "Everything else that it does must still happen."),
    Part(AsyncNewLoopRuntime, "async_teardown", "Jina cuts off the requests under way; we wait for them first."),
    Part(BaseServer, "_teardown_instrumentation", "Jina waits for a collector of traces that does not answer."),
    Part(AsyncNewLoopRuntime, "server", "We tell the servers of a process to end.", in_source=True),
    Part(CompositeBaseServer, "servers", "The same, if one process serves several protocols.", in_source=True),
    Part(CompositeBaseServer, "_server_kwargs", "The settings of each protocol's server."),
    Part(CompositeBaseServer, "_should_exit", "Jina's own tells a gateway that serves only gRPC to end."),
    Part(GRPCServer, "server", "The library's server, which knows how to end gracefully.", in_source=True),
    Part(HTTPServer, "_request_handler", "Its streamer gets the refusals of the executors.", in_source=True),
    Part(GatewayStreamer, "_endpoints_models_map", "The classes that a Flow exchanges.", in_source=True),
    Part(WorkerRequestHandler, "endpoint_discovery", "Some endpoints are not told to gateways."),
    Part(GatewayStreamer, "_connection_pool", "A call that goes to one executor alone.", in_source=True),
    Part(RequestStreamer, "wait_floating_requests_end", "Jina's own waits for ever for a call that broke off."),
    Part(RequestStreamer, "_stream_requests", "Jina's own never ends some calls that want their answers in order."),
    Part(auto, "AutoHTTPProtocol", "uvicorn waits for ever for a request, and Jina chooses its protocol."),
    Part(websocket_fastapi_app.get_fastapi_app, "active_connections", "It keeps what has ended.", in_source=True),
    Part(RequestStreamer, "total_num_floating_tasks_alive", "What it waits for; we reset it.", in_source=True),
)


_DISCOVER = WorkerRequestHandler.endpoint_discovery


def extend_http_app(extend: Callable[[FastAPI], FastAPI]) -> None:
    """Let `extend` change the app of the HTTP servers that Jina is about to start in this process."""
    jina.helper.extend_rest_interface = extend


def add_to_http_app(extend: Callable[[FastAPI], FastAPI]) -> None:
    """The same, after what others have put there to change it."""
    others = jina.helper.extend_rest_interface
    extend_http_app(lambda app: extend(others(app)))


class KeepsNothing(list[Any]):
    """A list into which Jina puts each websocket, but from which it takes few."""

    def append(self, _: Any) -> None:
        """Leave it out."""

    def remove(self, _: Any) -> None:
        """It is not there."""


def is_websocket_gateway(app: FastAPI) -> bool:
    """Whether an app is that of Jina's gateway by websocket."""
    return any(_is_jinas(route) for route in app.routes)


def forget_websockets(app: FastAPI) -> None:
    """Let Jina's gateway keep no websockets that have ended: 10,000 of them take a gigabyte."""
    endpoints: list[Any] = [route.endpoint for route in app.routes if _is_jinas(route)]
    for endpoint in endpoints:
        cells = dict(zip(endpoint.__code__.co_freevars, endpoint.__closure__, strict=True))
        cells["manager"].cell_contents.active_connections = KeepsNothing()


def _is_jinas(route: Any) -> TypeGuard[APIWebSocketRoute]:
    """Others may have added routes of their own."""
    module = getattr(getattr(route, "endpoint", None), "__module__", "")
    return isinstance(route, APIWebSocketRoute) and module == websocket_fastapi_app.__name__


def set_grpc_interceptors(make: Callable[[list[Any]], list[Any]], options: dict[str, Any]) -> None:
    """Let `make` choose the interceptors of the gRPC servers in this process.

    Args:
        make: takes Jina's own interceptors and returns those to use.
        options: of the servers; the operator's own have precedence.
    """

    def interceptors(server: GRPCServer) -> list[Any]:
        server.grpc_server_options = {**options, **(server.grpc_server_options or {})}
        return make(InstrumentationMixin.aio_tracing_server_interceptors(server) or [])

    GRPCServer.aio_tracing_server_interceptors = interceptors


def use_http_protocol(protocol: type[Any]) -> None:
    """Let the HTTP servers that Jina is about to start in this process speak by `protocol`."""
    auto.AutoHTTPProtocol = protocol


def replace_exceptions(replaced: Callable[[Exception], Exception]) -> None:
    """Replace each exception that Jina puts into an answer by what `replaced` makes of it."""

    def add_exception(request: DataRequest, error: Exception, executor: Any = None) -> None:
        JinaRequest.add_exception(request, replaced(error), executor)

    DataRequest.add_exception = add_exception


def before_teardown(do: Callable[[list[Any]], Awaitable[None]]) -> None:
    """Run `do` before Jina ends a process. Args: do: takes the servers of the process."""

    async def teardown(runtime: Any) -> None:
        await do(getattr(runtime.server, "servers", [runtime.server]))
        await _own_teardown(runtime)

    AsyncNewLoopRuntime.async_teardown = teardown


_own_teardown = AsyncNewLoopRuntime.async_teardown


def replace_end_of_tracing(end: Callable[[Any], object]) -> None:
    """Let `end` end the providers of spans and of metrics that Jina has set up for a server of this process."""

    def teardown(server: Any) -> None:
        for provider in (server.tracer_provider, server.meter_provider):
            if provider is not None:
                end(provider)

    BaseServer._teardown_instrumentation = teardown


def library_server(server: Any) -> Any:
    """Return the server of grpc or uvicorn inside one of Jina's servers."""
    return server.server


def replace_wait_for_floating_requests(wait: Callable[[Callable[[], bool]], Awaitable[None]]) -> None:
    """Let `wait` decide how long a gateway that ends waits for its floating calls, the calls that nobody awaits.

    Jina counts every call as floating. If a call cannot be read (a malformed message, a stopped server), Jina never
    stops counting it.

    Args: wait: takes a function that says whether any calls are left.
    """

    async def wait_and_forget(streamer: Any) -> None:
        await wait(lambda: streamer.total_num_floating_tasks_alive > 0)
        streamer.total_num_floating_tasks_alive = 0  # each server of a gateway waits again

    RequestStreamer.wait_floating_requests_end = wait_and_forget


def order_answers_ourselves() -> None:
    """Let a gateway put the answers of a call in order without Jina's way to do that.

    Jina's own waits for ever if the last answer is there before the gateway has seen that there are no more requests,
    because it then looks for the end where it is not. So the call goes Jina's other way, and answers wait here.
    """
    RequestStreamer._stream_requests = _stream_in_order


_own_stream_requests = RequestStreamer._stream_requests


async def _stream_in_order(
    streamer: Any, request_iterator: Any, results_in_order: bool = False, *arguments: Any, **named: Any
) -> AsyncIterator[Any]:
    due: deque[str] = deque()  # ids of the requests whose answers have not gone out
    early: dict[str, Any] = {}
    requests = _noting(request_iterator, due) if results_in_order else request_iterator
    async for response in _own_stream_requests(streamer, requests, False, *arguments, **named):
        if not results_in_order:
            yield response
            continue
        early[response.header.request_id] = response
        while due and due[0] in early:
            yield early.pop(due.popleft())


def _noting(requests: Any, ids: deque[str]) -> Any:
    """Return an iterator of the same kind that notes the id of each request as it comes."""

    async def one_by_one() -> AsyncIterator[Any]:
        async for request in requests:
            ids.append(request.header.request_id)
            yield request

    def at_once() -> Iterator[Any]:
        for request in requests:
            ids.append(request.header.request_id)
            yield request

    return one_by_one() if hasattr(requests, "__anext__") or hasattr(requests, "__aiter__") else at_once()


def settings_of_servers(gateway: CompositeBaseServer) -> list[tuple[str, dict[str, Any]]]:
    """Return the protocol and the arguments of each server of a gateway."""
    return [(str(settings["runtime_args"]["protocol"]).lower(), settings) for settings in gateway._server_kwargs]


def wrap_streamer(server: HTTPServer, wrap: Callable[[Any], Any]) -> Any:
    """Wrap the streamer with which a gateway's HTTP server calls the executors, and return it."""
    server._request_handler.streamer = wrap(server._request_handler.streamer)
    return server._request_handler.streamer


class Models(NamedTuple):
    """The classes of the documents that an endpoint of a Flow takes and returns."""

    given: Any
    returned: Any


def models_of(streamer: Any, path: str) -> Models | None:
    """Return the classes of an endpoint of a Flow; None: no executor has it."""
    found = (streamer._endpoints_models_map or {}).get(path)
    return None if found is None else Models(found["input"], found["output"])


def hide_endpoints(hidden: Set[str]) -> None:
    """Do not tell gateways of some endpoints of the executors in this process.

    Every executor behind ours would need all that a gateway knows of, or Jina would not start the Flow.

    A gateway asks once for each of its protocols. Jina makes the schemas of all endpoints for that, which takes a
    second of the thread that serves, so it is done once.
    """
    made: weakref.WeakKeyDictionary[WorkerRequestHandler, Any] = weakref.WeakKeyDictionary()

    async def discover_others(handler: WorkerRequestHandler, empty: Any, context: Any) -> Any:
        if handler in made:
            return made[handler]
        found = await _DISCOVER(handler, empty, context)
        told = [path for path in found.endpoints if path not in hidden]
        del found.endpoints[:]
        found.endpoints.extend(told)
        for path in hidden & found.schemas.fields.keys():
            del found.schemas.fields[path]
        made[handler] = found
        return found

    WorkerRequestHandler.endpoint_discovery = discover_others


async def ask_one(streamer: Any, known_by: str, path: str, docs: Any, parameters: dict[str, Any]) -> Any:
    """Call an endpoint of the one executor of a Flow that has the endpoint `known_by`, which may be a hidden one.

    Args: docs: a DocList of one class. Returns: the response, whose class of documents is not set; None: there is no
        such executor, or it cannot be reached.
    """
    names = [node.name for node in streamer.topology_graph.all_nodes if known_by in (node.endpoints or ())]
    if not names:
        return None
    request = DataRequest()
    request.document_array_cls = type(docs)
    request.data.docs = docs
    request.header.exec_endpoint = path
    request.parameters = parameters
    sent = streamer._connection_pool.send_requests_once([request], deployment=names[0], head=True, endpoint=path)
    answer = None if sent is None else await sent
    if isinstance(answer, BaseException):  # Jina returns some
        raise answer
    return None if answer is None else answer[0]


def refusal_in(response: Any) -> tuple[list[str], str] | None:
    """Return the arguments and the sentence of the exception that an executor answered with; None without one."""
    header = getattr(response, "header", None)  # a dry run gets documents instead of responses
    if header is None or header.status.code != jina_pb2.StatusProto.ERROR:
        return None
    return list(header.status.exception.args), str(header.status.description)


def is_request(message: bytes) -> bool:
    """Whether a websocket's message is a request of Jina's client, or the byte with which that ends a call.

    It decodes all of the message: a damaged document would end the connection, too.
    """
    if message == bytes(True):
        return True
    try:
        jina_pb2.DataRequestProto.FromString(message)
    except DecodeError:
        return False
    return bool(message)  # no bytes are a request without content, but Jina fails on them


def says_error(message: bytes) -> bool:
    """Whether an answer, as a websocket carries it, says that the call failed. Its documents are not read."""
    try:
        return bool(
            jina_pb2.DataRequestProtoWoData.FromString(message).header.status.code == jina_pb2.StatusProto.ERROR
        )
    except DecodeError:
        return False
