"""Bounds on what a client may send at a time, and on how long it may take to send it.

A request that is too large is refused before it is in memory: over HTTP while it arrives, over gRPC by the library, by
the length that its message begins with. A websocket's messages are bounded by uvicorn, at 16 MiB. A connection over
HTTP that does not say what it wants, and a body that stops arriving, are ended; gRPC pings its clients.
"""

import asyncio
from typing import Any

from fastapi import HTTPException

from ..errors import LimitExceeded
from .jina_private import HttpProtocol
from .token import App, Message, Receive, Send

HEADER_SECONDS = 30.0  # for the head of an HTTP request, from its connection or its first byte on
BODY_SECONDS = 60.0  # for the next part of a body


def grpc_options(max_request_bytes: int) -> dict[str, int]:
    """Return the options of a gRPC server that takes no larger requests."""
    return {"grpc.max_receive_message_length": max_request_bytes}


class BodyLimit:
    """Answers 413 to a body that is too large and 408 to one that stops arriving (ASGI middleware)."""

    def __init__(self, app: App, max_request_bytes: int) -> None:
        self._app = app
        self._limit = max_request_bytes

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        body = _Body(receive, self._limit)
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        body.count(int(announced) if announced.isdigit() else 0)
        await self._app(scope, body.receive, send)


class _Body:
    """The body of one request, on its way to the app."""

    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive = receive
        self._limit = limit
        self._size = 0
        self._refusal: HTTPException | None = None
        self._ended = False

    def count(self, size: int) -> None:
        """Refuse the body if it has so many bytes."""
        if size > self._limit:
            sentence = (
                f"The request has {size} bytes or more and max_request_bytes is {self._limit}; send fewer documents at "
                "a time, or raise that option."
            )
            self._refusal = HTTPException(LimitExceeded.status, sentence, {"connection": "close"})

    async def receive(self) -> Message:
        """Return the next part. Raises: HTTPException: FastAPI answers with it."""
        if self._refusal is not None and not self._ended:
            self._ended = True
            raise self._refusal
        if self._ended:  # somebody waits for the client to go away
            return await self._receive()
        try:
            part = await asyncio.wait_for(self._receive(), BODY_SECONDS)
        except asyncio.TimeoutError:
            self._ended = True
            raise HTTPException(408, f"The body of the request stopped for {BODY_SECONDS:g} s.") from None
        self._size += len(part.get("body", b""))
        self._ended = not part.get("more_body", False)
        self.count(self._size)
        if self._refusal is not None:
            self._ended = True
            raise self._refusal
        return part


class ImpatientProtocol(HttpProtocol):
    """uvicorn's HTTP/1.1, which ends connections that are `HEADER_SECONDS` without a whole head of a request."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, error: Exception | None) -> None:
        self._rest()
        super().connection_lost(error)

    def _watch(self) -> None:
        """Let the time run while no request has begun."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._rest()
        elif self._timer is None:
            self._timer = self.loop.call_later(HEADER_SECONDS, self._give_up)

    def _rest(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        if self.transport.get_protocol() is self:  # else it has become a websocket
            self.transport.close()
