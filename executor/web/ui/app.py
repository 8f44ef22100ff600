"""The application of the page: its routes, and what every one of them needs."""

from collections.abc import Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ...wire.token import App, Message, Receive, Send
from ..bounds import Bodies
from ..room import Room
from . import actions, compare, enter, label, run, runs, start, static, suggest, train
from .guard import HEADERS
from .page import Page

PAGES: tuple[Callable[[Page], list[Route]], ...] = (  # a page is added here
    runs.routes,
    compare.routes,
    run.routes,
    actions.routes,
    start.routes,
    label.routes,
    train.routes,
    suggest.routes,
    enter.routes,
)
FREE: tuple[Callable[[Page], list[Route]], ...] = (static.routes, enter.free_routes)


def make_page(room: Room, bodies: Bodies, token: str | None) -> App:
    """Return the application, which is to be mounted. Args: token: what it asks for, if anything."""
    page = Page(room, bodies, token)
    routes = [_wrapped(page, route, free=False) for make in PAGES for route in make(page)]
    routes += [_wrapped(page, route, free=True) for make in FREE for route in make(page)]

    async def nothing(request: Request, error: Exception) -> Response:
        """Answer 404 and 405, which Starlette raises; only who may be here learns what is not here."""

        async def refuse(_: Request) -> Response:
            raise error

        return await page.handled(refuse)(request)

    return Starlette(routes=routes, exception_handlers={HTTPException: nothing}, middleware=[Middleware(_Forbidding)])


def _wrapped(page: Page, route: Route, *, free: bool) -> Route:
    return Route(route.path, page.handled(route.endpoint, free=free), methods=list(route.methods or ()))


class _Forbidding:
    """Adds the headers by which a browser forbids what no page of ours does, unless the answer has its own."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        async def add(message: Message) -> None:
            if message["type"] == "http.response.start":
                there = {name.lower() for name, _ in message["headers"]}
                more = ((name.lower().encode(), value.encode()) for name, value in HEADERS.items())
                message["headers"] = [*message["headers"], *(each for each in more if each[0] not in there)]
            await send(message)

        await self._app(scope, receive, add)
