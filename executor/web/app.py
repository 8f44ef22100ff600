"""The application: its routes, and who may use them."""

import asyncio
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route

from .. import tracing
from ..endpoints.table import ENDPOINTS
from ..errors import Unauthorized
from ..parameters import ExecutorOptions
from ..wire.origins import own_pages
from ..wire.token import REFUSED, App, Message, Receive, Send, TokenRequired
from . import answers, embeddings, routes
from .bounds import Bodies
from .openapi import description
from .room import Room
from .ui.app import make_page

HEALTH = ("/healthz", "/readyz", "/metrics")


PATHS = frozenset([*ENDPOINTS, "/watch", embeddings.PATH, *HEALTH, "/openapi.json"])
UI = "/ui"  # where the page is mounted


def make_app(room: Room, options: ExecutorOptions, token: str | None) -> App:
    """Return the application.

    Args: options: those of the executor, of which this door has a few. token: what every call must present, if any.
    """
    bodies = Bodies(options.max_request_bytes)
    pages = [
        Mount(UI, make_page(room, bodies, token)),
        Route("/", _to_page, methods=["GET"]),
        Route(UI, _to_page, methods=["GET"]),
    ]
    app: App = Starlette(routes=[*_routes(room, bodies), *pages], exception_handlers=_HANDLERS)
    if token is not None:
        app = _TokenRequired(app, token, () if options.metrics_token else HEALTH)
    return own_pages(app, options.cors_origins)


def traced(app: App) -> App:
    """Return the application with a span of each call, within the caller's; as it was where tracing is off."""
    if not tracing.is_on():
        return app
    from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
    from opentelemetry.util.http import ExcludeList

    def name(scope: Message) -> tuple[str, dict[str, Any]]:
        known = scope.get("path") in PATHS  # others would be as many names as somebody tries
        return (f"{scope.get('method', '')} {scope['path'] if known else ''}".strip(), {})

    return OpenTelemetryMiddleware(
        app,
        excluded_urls=ExcludeList([f"{path}$" for path in HEALTH]),
        default_span_details=name,
        tracer_provider=tracing.provider(),
        exclude_spans=["receive", "send"],
    )


def is_of_page(path: str) -> bool:
    """Whether a path is one of the page's."""
    return path == UI or path.startswith(f"{UI}/")


def _routes(room: Room, bodies: Bodies) -> list[BaseRoute]:
    return [
        *(Route(path, routes.endpoint(room, bodies, path), methods=["POST"]) for path in ENDPOINTS),
        Route("/watch", routes.watch(room), methods=["GET"]),
        Route(embeddings.PATH, embeddings.embeddings(room, bodies), methods=["POST"]),
        Route("/healthz", routes.healthz, methods=["GET"]),
        Route("/readyz", routes.readyz(room), methods=["GET"]),
        Route("/metrics", routes.metrics(room), methods=["GET"]),
        Route("/openapi.json", _openapi, methods=["GET"]),
    ]


async def _to_page(request: Request) -> Response:
    return RedirectResponse(f"{request.scope.get('root_path', '')}{UI}/")


async def _openapi(_: Request) -> Response:
    return answers.answer(await asyncio.to_thread(description))


async def _no_route(request: Request, error: Exception) -> Response:
    """Answer 404 and 405, which Starlette raises."""
    assert isinstance(error, HTTPException)
    what = "There is nothing here" if error.status_code == 404 else f"{request.method} is not for this path"
    detail = f"{what}: {request.url.path[:200]}. GET /openapi.json has all routes."
    return answers.answer({"detail": detail}, error.status_code, error.headers)


_HANDLERS = {HTTPException: _no_route}


class _TokenRequired(TokenRequired):
    """The token, refused at `/v1/embeddings` in the form of its callers. The page asks for it by itself."""

    def is_free(self, path: str) -> bool:
        return path == "/" or is_of_page(path) or super().is_free(path)

    def refusal(self, path: str) -> dict[str, object]:
        if path == embeddings.PATH:
            return {"error": embeddings.as_error(Unauthorized(REFUSED))}
        return super().refusal(path)


class DoorFirst:
    """Answers the paths of our door by it, and all others by another application (ASGI middleware)."""

    def __init__(self, app: App, door: App) -> None:
        self._app = app
        self._door = door

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        ours = scope["type"] == "http" and (scope["path"] in PATHS or is_of_page(scope["path"]))
        await (self._door if ours else self._app)(scope, receive, send)
