"""Which pages may call: those of the service, and of the sites that the operator names. No Jina: our door uses it, too.

Browsers send some requests to any address before they ask whether they may: forms and plain texts, and they open
websockets. So a page of any site could do what its visitor may do.
"""

from collections.abc import Collection

from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse

from ..errors import ForeignOrigin
from .token import App, Message, Receive, Send

POLICY_VIOLATION = 1008  # the code with which a websocket is refused


class OwnOrigin:
    """Refuses pages of other sites than those named (ASGI middleware)."""

    def __init__(self, app: App, origins: Collection[str]) -> None:
        self._app = app
        self._origins = origins

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        origin = host = None
        for name, value in scope.get("headers", ()):
            if name == b"origin":
                origin = value.decode("latin-1")
            elif name == b"host":
                host = value.decode("latin-1")
        if origin is None or origin.partition("://")[2] == host or origin in self._origins:
            return await self._app(scope, receive, send)
        if scope["type"] == "websocket":  # it is not accepted yet, so the handshake fails
            return await send({"type": "websocket.close", "code": POLICY_VIOLATION})
        sentence = f"Pages of {origin[:100]} may not call this service; the operator can name them in cors_origins."
        await JSONResponse({"detail": sentence}, ForeignOrigin.status)(scope, receive, send)


def own_pages(app: App, origins: Collection[str]) -> App:
    """Return an application that only its own pages may call, and those of the origins, whose browsers it tells so."""
    app = OwnOrigin(app, origins)
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=("GET", "POST"),
        allow_headers=("Authorization", "Content-Type"),
        expose_headers=("Retry-After",),
    )


def guard(app: Starlette, origins: Collection[str]) -> None:
    """Let an application of Jina's be one, unless its operator lets all pages call, by Jina's own option `cors`."""
    lets_all = any(isinstance(each.cls, type) and issubclass(each.cls, CORSMiddleware) for each in app.user_middleware)
    if origins or not lets_all:
        app.add_middleware(own_pages, origins=origins)
