"""What is served, what trains, what waits, and what has ended."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from .page import Page


def routes(page: Page) -> list[Route]:
    async def runs(request: Request) -> Response:
        return await page.html(request, "runs.html.jinja", runs=await page.call("/status"))

    return [Route("/", runs, methods=["GET"])]
