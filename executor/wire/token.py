"""The bearer token that guards every endpoint, if one is configured.

A client sends `Authorization: Bearer <token>`: as an HTTP header (of a websocket: with the handshake), or as gRPC
metadata. The door checks it before documents are read. Jina's gateway asks the executor's process for health and
endpoints without a token, so some calls must pass there. That is why each endpoint in that process checks again that
the call showed the token at the door. If Jina ever adds a door that we do not know, that door stays shut.
"""

import asyncio
import hmac
import json
import os
import re
from collections.abc import Awaitable, Callable, Collection, Iterable, MutableMapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from ..errors import ConfigurationError, Unauthorized
from ..parameters import TOKEN_VARIABLE

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

REFUSED = "This service wants a token, and there was none or a wrong one: send `Authorization: Bearer <token>`."
REFUSED_BY_EXECUTOR = (
    f"{REFUSED} Jina's own gateways do not pass it on: use executor.gateway.FinetunerGateway, with the same token."
)
HEALTH = "/grpc.health.v1.Health/"
# Jina's gateway calls these without metadata before it serves. They give away no document, no run and no setting.
DISCOVERY = (
    HEALTH,
    "/grpc.reflection.v1alpha.ServerReflection/",
    "/jina.JinaDiscoverEndpointsRPC/",
)
# Behind these, our endpoints refuse by themselves, in the form that Jina's gateway passes on to its client.
REFUSED_WITHIN = (
    "/jina.JinaSingleDataRequestRPC/",
    "/jina.JinaDataRequestRPC/",
    "/jina.JinaSingleDocumentRequestRPC/",
)
REFUSAL_SECONDS = 0.5

_passed: ContextVar[bool] = ContextVar("passed", default=False)


def read_token(token_file: str | None) -> str | None:
    """Return the token from the environment or from a file; None if neither is configured.

    Raises: ConfigurationError: the token is empty, unreadable or not printable ASCII, or the two differ.
    """
    found = {}
    if TOKEN_VARIABLE in os.environ:
        found[TOKEN_VARIABLE] = os.environ[TOKEN_VARIABLE].strip()
    if token_file is not None:
        found["token_file"] = _from_file(token_file)
    for name, token in found.items():
        if not re.fullmatch("[!-~]+", token):
            raise ConfigurationError(f"The token in {name} must be printable ASCII without spaces, and not empty.")
    if len(set(found.values())) > 1:
        raise ConfigurationError(f"{TOKEN_VARIABLE} and token_file name different tokens; set one of the two.")
    return next(iter(found.values()), None)


def _from_file(path: str) -> str:
    try:
        return Path(path).read_bytes().decode("ascii", "replace").strip()
    except OSError as error:
        raise ConfigurationError(f"token_file {path!r} cannot be read: {error.strerror}.") from None


def presents(token: str, headers: Iterable[tuple[Any, Any]]) -> bool:
    """Whether one of the headers (or metadata) is an `authorization` with the token, compared in constant time."""
    for name, value in headers:
        if _bytes(name).lower() == b"authorization":
            scheme, _, presented = _bytes(value).partition(b" ")
            if scheme.lower() == b"bearer" and hmac.compare_digest(presented.strip(), token.encode()):
                return True
    return False


def _bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode("utf-8", "surrogateescape")


def require(token: str | None) -> None:
    """Raise Unauthorized if there is a token and the present call did not show it at the door."""
    if token is not None and not _passed.get():
        raise Unauthorized(REFUSED_BY_EXECUTOR)


class TokenRequired:
    """Answers 401 to a request and 403 to a websocket without the token (ASGI middleware).

    Args: free: the paths that need no token: health.
    """

    def __init__(self, app: App, token: str, free: Collection[str] = ("/",)) -> None:
        self._app = app
        self._token = token
        self._free = free

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or (scope["type"] == "http" and self.is_free(scope["path"])):
            return await self._app(scope, receive, send)
        if presents(self._token, scope["headers"]):
            before = _passed.set(True)
            try:
                return await self._app(scope, receive, send)
            finally:
                _passed.reset(before)
        if scope["type"] == "websocket":  # it is not accepted yet, so the handshake fails
            return await send({"type": "websocket.close", "code": 1008})
        body = json.dumps(self.refusal(scope["path"])).encode()
        headers = [(b"content-type", b"application/json"), (b"www-authenticate", b"Bearer")]
        headers.append((b"content-length", str(len(body)).encode()))
        await send({"type": "http.response.start", "status": Unauthorized.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def is_free(self, path: str) -> bool:
        """Whether a path needs no token."""
        return path in self._free

    def refusal(self, path: str) -> dict[str, object]:
        """Return what the body of a 401 says."""
        return {"detail": REFUSED}


class TokenRequiredByServer(grpc.aio.ServerInterceptor):
    """Ends a gRPC call without the token as UNAUTHENTICATED, before anything is decoded.

    Args:
        free: prefixes of the methods that need no token.
        refused_within: prefixes of the methods that refuse by themselves.
    """

    def __init__(self, token: str, *, free: tuple[str, ...] = (HEALTH,), refused_within: tuple[str, ...] = ()) -> None:
        self._token = token
        self._free = free
        self._refused_within = refused_within

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        passed = presents(self._token, details.invocation_metadata)
        _passed.set(passed)
        if passed or details.method.startswith(self._free + self._refused_within):
            return await continuation(details)
        return grpc.stream_stream_rpc_method_handler(_unauthenticated)


async def _unauthenticated(_: Any, context: Any) -> None:
    """Refuse without reading: what is not read is not sent, beyond what the network holds, and fills no memory.

    A client that is refused while its first messages are on their way reports an internal error: wait a moment.
    """
    await asyncio.sleep(REFUSAL_SECONDS)
    await context.abort(grpc.StatusCode.UNAUTHENTICATED, REFUSED)


def presenting(token: str) -> list[grpc.aio.ClientInterceptor]:
    """Return interceptors for a channel: they send the token with each kind of call that Jina's gateway makes."""

    def with_token(details: Any) -> Any:
        metadata = grpc.aio.Metadata(*(details.metadata or ()))
        metadata.set_all("authorization", [f"Bearer {token}"])
        return details._replace(metadata=metadata)

    class UnaryUnary(grpc.aio.UnaryUnaryClientInterceptor):
        async def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
            return await continuation(with_token(details), request)

    class UnaryStream(grpc.aio.UnaryStreamClientInterceptor):
        async def intercept_unary_stream(self, continuation: Any, details: Any, request: Any) -> Any:
            return await continuation(with_token(details), request)

    return [UnaryUnary(), UnaryStream()]
