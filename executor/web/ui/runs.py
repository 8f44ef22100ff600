"""What is served, what trains, what waits, and what has ended."""

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ...documents import RunStatus
from ...evaluation.metrics import DECIDING
from .live import Parts, Snapshot, stream
from .page import Page

SHOWN = 30  # runs that have ended; a click shows the others
PARTS = ("served", "training", "waiting", "ended")


def routes(page: Page) -> list[Route]:
    async def runs(request: Request) -> Response:
        service = await page.standing()
        waits = service.role == "serve" and not service.served  # for its first version
        found = [] if waits else await page.call("/status")
        return await page.html(request, "runs.html.jinja", **_values(request, Snapshot(list(found), service)))

    async def live(request: Request) -> Response:
        def parts(snapshot: Snapshot) -> Parts:
            values = _values(request, snapshot)
            return {name: page.render(request, f"runs_{name}.html.jinja", **values) for name in PARTS}

        return stream(request, page.live, parts)

    return [Route("/", runs, methods=["GET"]), Route("/live", live, methods=["GET"])]


def _values(request: Request, snapshot: Snapshot) -> dict[str, Any]:
    """What the templates of this page show."""
    ended = [run for run in snapshot.runs if run.ended_at is not None]
    shows_all = "all" in request.query_params
    return {
        "service": snapshot.service,
        "reads_only": snapshot.service is not None and snapshot.service.role == "serve",
        "training": _in(snapshot, "training"),
        "waiting": _in(snapshot, "queued") + _in(snapshot, "receiving"),
        "ended": ended if shows_all else ended[:SHOWN],
        "more": 0 if shows_all else max(0, len(ended) - SHOWN),
        "all": shows_all,
        "deciding": DECIDING,
    }


def _in(snapshot: Snapshot, state: str) -> list[RunStatus]:
    """The runs in a state, oldest first."""
    return [run for run in reversed(snapshot.runs) if run.state == state]
