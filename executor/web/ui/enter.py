"""The token: one field asks for it, and one button forgets it."""

import asyncio

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ...errors import Unauthorized
from ...wire.token import REFUSAL_SECONDS
from .page import Page, field


def free_routes(page: Page) -> list[Route]:
    """The routes that nobody is asked for the token at."""

    async def enter(request: Request) -> Response:
        form = request.state.form
        to = _inside(field(form, "to"))
        try:
            session = page.guard.enter(request, field(form, "token") or "")
        except Unauthorized as error:
            await asyncio.sleep(REFUSAL_SECONDS)  # so that nobody tries many
            return await page.ask_for_token(request, str(error), to)
        response = page.to(request, to)
        page.guard.keep(request, response, session)
        return response

    return [Route("/enter", enter, methods=["POST"])]


def routes(page: Page) -> list[Route]:
    async def leave(request: Request) -> Response:
        response = page.to(request, "/")
        page.guard.leave(request, response)
        return response

    return [Route("/leave", leave, methods=["POST"])]


def _inside(path: str | None) -> str:
    """Return a path of this page, so that nobody is sent elsewhere."""
    return path if path and path.startswith("/") and path[1:2] not in ("/", "\\") else "/"
