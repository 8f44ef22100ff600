"""A gateway for a Flow, over any of Jina's protocols, that knows our refusals and our token.

Over HTTP it has the routes of our own door (see `web/`), over all executors of the Flow: a call is one call however
many documents it has, and a caller's mistake is the right 4xx instead of Jina's 500. If there is a token, in the
environment or in a `token_file`, it asks every client for it, over HTTP, websocket and gRPC, and sends it to the
executors of the Flow. In Python:

    Flow(protocol="http").config_gateway(uses=FinetunerGateway).add(uses="config.yml")

In YAML, name it by its dotted path. The gateway's process must be able to import the package: install it, or start the
Flow with `PYTHONPATH` naming the directory that holds the package (`PYTHONPATH=. jina flow --uses flow.yml`).

    jtype: Flow
    with: {protocol: [grpc, http], port: [54321, 8080], host: 127.0.0.1}
    gateway: {uses: executor.gateway.FinetunerGateway}
    executors:
      - uses: config.yml
"""

import math
import re
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

from fastapi import FastAPI, HTTPException

from . import errors
from .docarray_private import LARGEST_INTEGER
from .flow_room import FlowRoom
from .images.uris import is_unicode
from .parameters import DEFAULT_MAX_REQUEST_BYTES, ExecutorOptions, parse_executor_options
from .web.app import DoorFirst, make_app
from .wire.ending import answer_before_the_end
from .wire.jina_private import (
    BaseGateway,
    CompositeBaseServer,
    GRPCServer,
    HTTPServer,
    WebSocketServer,
    ask_one,
    order_answers_ourselves,
    refusal_in,
    settings_of_servers,
    use_http_protocol,
    wrap_streamer,
)
from .wire.limits import BodyLimit, ImpatientProtocol, grpc_options
from .wire.origins import OwnOrigin, guard
from .wire.quiet import quieten
from .wire.refusals import ease_gateways
from .wire.siblings import unless_one_ends
from .wire.token import App, TokenRequired, TokenRequiredByServer, presenting, read_token


class FinetunerGateway(CompositeBaseServer, BaseGateway):
    """Jina's gateway, with our token, and over HTTP with the routes and statuses of our own door.

    Args:
        token_file: a file that holds the token, if it is not in the environment.
        max_request_bytes: the largest request it takes, as the executor's option of this name.
        cors_origins, metrics_token: as the executor's options of these names.

    Raises: ConfigurationError: the token cannot be used, or an option is wrong.
    """

    def __init__(
        self,
        token_file: str | None = None,
        cors_origins: Sequence[str] | None = None,
        metrics_token: bool | None = None,
        max_request_bytes: int = DEFAULT_MAX_REQUEST_BYTES,
        **kwargs: Any,
    ) -> None:
        self._token = read_token(token_file)
        if type(max_request_bytes) is not int or max_request_bytes < 1:
            raise errors.ConfigurationError(
                f"max_request_bytes of the gateway is {max_request_bytes!r}; give a whole number of bytes, 1 or more."
            )
        door = {"cors_origins": cors_origins, "metrics_token": metrics_token, "max_request_bytes": max_request_bytes}
        options = parse_executor_options(door)  # None: the default
        answer_before_the_end()
        order_answers_ourselves()
        ease_gateways()
        quieten()
        use_http_protocol(ImpatientProtocol)
        super().__init__(**kwargs)
        self.servers = [
            _SERVERS[protocol](token=self._token, options=options, **settings)
            for protocol, settings in settings_of_servers(self)
        ]

    async def setup_server(self) -> None:
        """Prepare the servers. Raises: ExecutorEnded: an executor of this Flow could not start."""
        await unless_one_ends(super().setup_server(), told_to_end=self.is_cancel.is_set)

    def aio_tracing_client_interceptors(self) -> list[Any]:
        """The interceptors of the channels to the executors: Jina's own, and ours for the token."""
        return [*(super().aio_tracing_client_interceptors() or []), *(presenting(self._token) if self._token else [])]

    @property
    def _should_exit(self) -> bool:
        """Whether a server was told to end. Jina's own says so of every gateway that serves only gRPC."""
        return any(getattr(server, "should_exit", False) for server in self.servers)


class _Guarded:
    """What the servers have in common: the token, if there is one, and the limit of a request."""

    def __init__(self, token: str | None, options: ExecutorOptions, **kwargs: Any) -> None:
        self._token = token
        self._options = options
        super().__init__(**kwargs)


class _OverGrpc(_Guarded, GRPCServer):
    def __init__(
        self, options: ExecutorOptions, grpc_server_options: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        of_server = {**grpc_options(options.max_request_bytes), **(grpc_server_options or {})}
        super().__init__(options=options, grpc_server_options=of_server, **kwargs)

    def aio_tracing_server_interceptors(self) -> list[Any]:
        tracing = super().aio_tracing_server_interceptors() or []
        return [*tracing, *([TokenRequiredByServer(self._token)] if self._token else [])]


class _OverHttp(_Guarded, HTTPServer):
    @property
    def app(self) -> FastAPI:
        """Jina's app, with its streamer watched for refusals."""
        streamer = wrap_streamer(self, _Watched)
        app: FastAPI = super().app
        app.add_middleware(BodyLimit, max_request_bytes=self._options.max_request_bytes)
        if self._token is not None:
            app.add_middleware(TokenRequired, token=self._token)
        guard(app, self._options.cors_origins)  # Jina's own routes
        app.add_middleware(DoorFirst, door=make_app(FlowRoom(streamer), self._options, self._token))
        return app


class _OverWebsocket(_Guarded, WebSocketServer):
    @property
    def app(self) -> App:
        """The app that is served. Jina makes it, then sets it here."""
        return self._app

    @app.setter
    def app(self, app: App) -> None:
        guarded = app if self._token is None else TokenRequired(app, self._token)
        self._app = OwnOrigin(guarded, self._options.cors_origins)


_SERVERS = {"grpc": _OverGrpc, "http": _OverHttp, "websocket": _OverWebsocket}


# The limits of Jina's messages from a gateway to an executor. Anything beyond them breaks Jina's gateway: it answers
# 500, and waits for ever when it is told to end.
MAX_INTEGER = LARGEST_INTEGER  # docarray itself sends 32 bits only, see `docarray_private`
MAX_DEPTH = 16


class _Watched:
    """A gateway's streamer that raises each refusal with the HTTP status of its error."""

    def __init__(self, streamer: Any) -> None:
        self._streamer = streamer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._streamer, name)

    async def stream_docs(self, docs: Any, **kwargs: Any) -> AsyncIterator[Any]:
        """Like the streamer's own. Raises: HTTPException: an executor refused the request, or it cannot be sent."""
        if reason := unsendable(docs, kwargs.get("parameters"), kwargs.get("target_executor")):
            raise HTTPException(errors.BadRequest.status, reason)
        async for response in self._streamer.stream_docs(docs, **kwargs):
            yield _unrefused(response)

    async def ask_one(self, known_by: str, path: str, docs: Any, parameters: dict[str, Any]) -> Any:
        """As `jina_private.ask_one`. Raises: HTTPException, as above."""
        if reason := unsendable(docs, parameters, None):
            raise HTTPException(errors.BadRequest.status, reason)
        return _unrefused(await ask_one(self._streamer, known_by, path, docs, parameters))


def _unrefused(response: Any) -> Any:
    """Return a response. Raises: HTTPException: the executor refused the request."""
    if (refused := refusal_in(response)) is not None:
        arguments, sentence = refused
        raise HTTPException(errors.status_of(arguments), sentence)
    return response


def unsendable(docs: Iterable[Any], parameters: dict[str, Any] | None, target_executor: str | None) -> str | None:
    """Return why Jina cannot pass a request on to an executor; None if it can."""
    for doc in docs:
        for each in (doc, *(getattr(doc, "matches", None) or ())):
            texts = [getattr(each, name, None) for name in ("id", "uri", "text", "run")]
            reason = _unsendable(getattr(each, "tags", None), MAX_INTEGER, "tags")
            if reason := reason or _unsendable(texts, MAX_INTEGER, "a document"):
                return reason
    if reason := _unsendable(parameters, 10**300, "parameters"):
        return reason
    try:
        re.compile(target_executor or "")
    except re.error:
        return "target_executor must be a regular expression; leave it away."
    return None


def _unsendable(value: Any, largest: int, where: str, depth: int = 0) -> str | None:
    if depth > MAX_DEPTH:
        return f"{where} must not be nested deeper than {MAX_DEPTH} levels."
    if isinstance(value, int) and abs(value) > largest:
        return f"An integer in {where} is larger than {largest:.4g}; send it as text."
    if isinstance(value, float) and where == "parameters" and not math.isfinite(value):
        return f"A number in {where} is not finite; JSON has no such numbers."
    if isinstance(value, str) and not is_unicode(value):
        return f"A text in {where} has half a surrogate pair, which is no Unicode."
    inner = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return next((found for each in inner if (found := _unsendable(each, largest, where, depth + 1))), None)
