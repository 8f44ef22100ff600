"""Errors on the wire: one sentence, no traceback, and over HTTP a status of their own.

Jina answers an exception over HTTP with status 500 and `repr(exception)`, and sends gRPC clients its traceback.
A `Refusal` is one sentence to both. If the executor itself serves HTTP, `extend_servers` replaces the 500 by the
error's own status. In a Flow the HTTP gateway is another process: see `gateway.py`.

If a token is configured, `extend_servers` also makes the servers of this process ask for it.
"""

import asyncio
import functools
import json
from collections.abc import Collection
from contextvars import ContextVar
from types import TracebackType
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from jina.logging.predefined import default_logger
from pydantic import ValidationError

from ..errors import BadDocument, BadRequest, FinetunerError, InternalError
from .jina_private import (
    add_to_http_app,
    extend_http_app,
    forget_websockets,
    is_request,
    is_websocket_gateway,
    replace_exceptions,
    says_error,
    set_grpc_interceptors,
    use_http_protocol,
)
from .limits import BodyLimit, ImpatientProtocol, grpc_options
from .origins import guard
from .token import DISCOVERY, REFUSED_WITHIN, App, Message, Receive, Send, TokenRequired, TokenRequiredByServer

UNREADABLE = 1003  # the code with which a websocket is closed: it got data of a kind that it does not take
LOOK_SECONDS = 0.2  # in which a client looks at an error that has come
MAX_BYTES_WITHOUT_DOCUMENTS = 64 * 1024  # a larger body has documents and is too costly to parse twice

_statuses: ContextVar[list[int] | None] = ContextVar("statuses", default=None)


class Refusal(Exception):
    """What an endpoint raises. `str` and `repr` are the sentence, and the traceback is not sent."""

    def __init__(self, error: FinetunerError) -> None:
        super().__init__(str(error), type(error).__name__)  # the gateway reads the class from here
        self.sentence = str(error)
        statuses = _statuses.get()
        if statuses is not None:
            statuses.append(error.status)

    @classmethod
    def undecodable(cls, error: Exception) -> "Refusal":
        """Wrap what Jina raised before it called an endpoint: it could not read the documents or the parameters."""
        if isinstance(error, ValidationError):
            first = error.errors(include_url=False)[0]
            return cls(BadDocument(f"A document is wrong at {'.'.join(map(str, first['loc']))[:200]}: {first['msg']}."))
        return cls(BadRequest(f"The request cannot be read ({type(error).__name__}): {str(error)[:200]!r}."))

    @classmethod
    def internal(cls, error: Exception) -> "Refusal":
        """Wrap an error that is our fault."""
        return cls(InternalError.of(error))

    def __str__(self) -> str:
        return self.sentence

    __repr__ = __str__

    @property
    def __traceback__(self) -> TracebackType | None:
        """Hide the traceback: Jina takes the one that it sends to clients from here. The service's log has it all."""
        return None

    @__traceback__.setter
    def __traceback__(self, traceback: TracebackType | None) -> None:
        """Ignore what `raise` records."""


class OwnStatus:
    """Replaces the status 500 of a response by that of the `Refusal` that was raised (ASGI middleware)."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        statuses: list[int] = []
        token = _statuses.set(statuses)

        async def send_with_status(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 500 and statuses:
                message["status"] = statuses[-1]
            await send(message)

        try:
            await self._app(scope, receive, send_with_status)
        finally:
            _statuses.reset(token)


class OptionalData:
    """Lets a body without documents leave out `data`, which Jina requires (ASGI middleware)."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            return await self._app(scope, receive, send)
        request = Request(scope, receive)
        chunked = "transfer-encoding" in request.headers
        if chunked or int(request.headers.get("content-length", 0)) > MAX_BYTES_WITHOUT_DOCUMENTS:
            return await self._app(scope, receive, send)
        sent = await request.body()
        body = with_data(sent)
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive_again() -> Message:
            return messages.pop() if messages else await receive()

        return await self._app(scope if body == sent else _with_json(scope, body), receive_again, send)


def _with_json(scope: Message, body: bytes) -> Message:
    """Say that the body is JSON: a call without documents may have no body, and then nobody has said what it is."""
    others = [(name, value) for name, value in scope["headers"] if name not in (b"content-type", b"content-length")]
    own = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    return {**scope, "headers": [*others, *own]}


def with_data(body: bytes) -> bytes:
    """Add an empty `data` to a JSON body that has none, or null. A body that is no JSON object stays as it is."""
    try:
        value = json.loads(body or b"{}")
    except (ValueError, RecursionError):  # it is refused later
        return body
    lacks = isinstance(value, dict) and value.get("data") is None
    return json.dumps(value | {"data": []}).encode() if lacks else body


class LastErrorFirst:
    """Keeps a websocket open for a moment after an error (ASGI middleware).

    Jina's client throws the error away, and returns what it has, if the connection has ended before it looks at it.
    """

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        last = b""

        async def noting(message: Message) -> None:
            nonlocal last
            last = message.get("bytes") or b""
            await send(message)

        await self._app(scope, receive, noting if scope["type"] == "websocket" else send)
        if says_error(last):
            await asyncio.sleep(LOOK_SECONDS)


class ReadableMessages:
    """Hangs up on a websocket whose message is no request of Jina's, and says why (ASGI middleware).

    Jina hangs up on it, too, but without a reason, and logs forty lines.
    """

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "websocket" or scope["path"] != "/":  # where Jina takes requests
            return await self._app(scope, receive, send)
        closed = False

        async def received() -> Message:
            nonlocal closed
            message = await receive()
            fault = _fault_of(message, scope) if message["type"] == "websocket.receive" else None
            if fault is None:
                return message
            default_logger.info(f"Refused: {fault}")
            closed = True
            await send({"type": "websocket.close", "code": UNREADABLE, "reason": fault})
            return {"type": "websocket.disconnect", "code": UNREADABLE}

        async def send_while_open(message: Message) -> None:
            if not closed:
                await send(message)

        await self._app(scope, received, send_while_open)


def _fault_of(message: Message, scope: Message) -> str | None:
    if scope["subprotocols"] != ["bytes"] or message.get("bytes") is None:
        return "This websocket is for Jina's client: the subprotocol is `bytes`, and messages are binary."
    return None if is_request(message["bytes"]) else "The message is no request of Jina's (a DataRequestProto)."


async def malformed(_: Request, error: Exception) -> Response:
    """Refuse a body of the wrong form in one sentence. FastAPI's own answer repeats the body, and fails for some."""
    first = error.errors()[0] if isinstance(error, RequestValidationError) else {"loc": (), "msg": str(error)}
    where = ".".join(map(str, first["loc"]))[:200]
    detail = json.dumps({"detail": f"The request has the wrong form at {where}: {first['msg']}."})
    return Response(detail, BadDocument.status, media_type="application/json")


@functools.cache  # once is enough
def ease_gateways() -> None:
    """Let the gateways of this process, and of those that it forks from now on, be as easy to call as our doors.

    Over HTTP a call without documents needs no `data`; a websocket's error is not lost, nor the reason for its end.
    A Flow in Python forks its gateway from a process that may have imported us: see `executor/__init__.py`. One that
    `jina flow` starts with Jina's own gateway never imports us, and stays as Jina made it.
    """

    def eased(app: FastAPI) -> FastAPI:
        app.add_exception_handler(RequestValidationError, malformed)
        app.add_middleware(OptionalData)
        app.add_middleware(LastErrorFirst)
        if is_websocket_gateway(app):
            app.add_middleware(ReadableMessages)
            forget_websockets(app)
        return app

    add_to_http_app(eased)


def extended(app: FastAPI, token: str | None, max_request_bytes: int, origins: Collection[str]) -> FastAPI:
    """Return the application of the HTTP server that Jina starts for an executor, as `extend_servers` describes it."""
    app.add_exception_handler(RequestValidationError, malformed)
    app.add_middleware(OwnStatus)
    app.add_middleware(OptionalData)
    app.add_middleware(BodyLimit, max_request_bytes=max_request_bytes)
    if token is not None:
        app.add_middleware(TokenRequired, token=token)
    guard(app, origins)
    return app


def extend_servers(token: str | None, max_request_bytes: int, origins: Collection[str]) -> None:
    """Prepare the servers that Jina is about to start in this process.

    The HTTP server, if there is one, answers refusals with their own status, does not require `data`, and refuses pages
    of other sites than the origins. With a token, the HTTP and gRPC servers ask for it. A request that Jina cannot
    decode is refused in one sentence, without Jina's traceback; so is one that is too large, before it is in memory.
    """

    def interceptors(own: list[Any]) -> list[Any]:
        if token is None:
            return own
        return [*own, TokenRequiredByServer(token, free=DISCOVERY, refused_within=REFUSED_WITHIN)]

    def refusal(error: Exception) -> Exception:
        return error if isinstance(error, Refusal) else Refusal.undecodable(error)

    extend_http_app(lambda app: extended(app, token, max_request_bytes, origins))
    use_http_protocol(ImpatientProtocol)
    set_grpc_interceptors(interceptors, grpc_options(max_request_bytes))
    replace_exceptions(refusal)
