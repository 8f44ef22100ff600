"""A run: how it is getting on, what it learned, what it left out, and what may be wrong with its labels."""

import asyncio
import re
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from ...documents import ERROR_TAG, LABEL_TAG, WITHDRAWN_TAG, RunStatus
from ...errors import BadDocument, BadRequest, NotFound, UnknownRun
from ...report.page import charts_of, values_of
from ...report.report import from_json
from ..pictures import Picture
from . import words
from .live import Parts, Snapshot, stream
from .page import Page, field, whole

QUARANTINED = 24  # documents left out that are shown at a time
EVENTS = 100  # entries of the history, the latest first
REPORT_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; sandbox allow-popups"
)


def routes(page: Page) -> list[Route]:
    async def run(request: Request) -> Response:
        name = request.path_params["run"]
        (status,) = await page.call("/status", run=name)
        service = await page.standing()
        values = {"run": status, "service": service, "reads_only": service.role == "serve"}
        if not values["reads_only"]:
            values |= await _history(page, status)
            values |= await _report(page, status)
            values["left_out"] = await page.call("/quarantined", run=name, limit=QUARANTINED) if status.skipped else []
        else:
            values |= {"events": [], "earlier": 0, "left_out": [], "found": False, "said_since": {}}
        return await page.html(request, "run.html.jinja", **_shown(status) | values)

    async def live(request: Request) -> Response:
        name = request.path_params["run"]
        await page.call("/status", run=name)  # before the answer begins: an unknown run is a 404

        def parts(snapshot: Snapshot) -> Parts:
            status = snapshot.run(name)
            if status is None:
                raise UnknownRun(f"The run {name!r} is not there any more: it was deleted.")
            if status.ended_at is not None:
                return {"ended-now": status.ended_at}
            return {"standing": page.render(request, "run_standing.html.jinja", run=status, **_shown(status))}

        return stream(request, page.live, parts)

    async def report(request: Request) -> Response:
        (found,) = await page.call("/report", run=request.path_params["run"])
        headers = {"Content-Security-Policy": REPORT_POLICY}
        if "save" in request.query_params:
            headers["Content-Disposition"] = f'attachment; filename="{request.path_params["run"]}.html"'
        return HTMLResponse(found.text or "", headers=headers)

    async def left_out(request: Request) -> Response:
        name, after = request.path_params["run"], whole(request.query_params.get("after"))
        (status,) = await page.call("/status", run=name)
        found = await page.call("/quarantined", run=name, after=after, limit=QUARANTINED)
        values = {"run": status, "left_out": found, "most": QUARANTINED, "error_tag": ERROR_TAG}
        return await page.html(request, "left_out.html.jinja", **values)

    async def events(request: Request) -> Response:
        name, after = request.path_params["run"], whole(request.query_params.get("after"))
        (status,) = await page.call("/status", run=name)
        found = await page.call("/events", run=name, after=after, limit=EVENTS)
        return await page.html(request, "events.html.jinja", run=status, events=found)

    async def say(request: Request) -> Response:
        name, form = request.path_params["run"], request.state.form
        id, what = field(form, "id") or "", field(form, "what") or ""
        if what not in _SAID:
            raise BadRequest(f"This form says {what[:60]!r} of a document; it may say {', '.join(_SAID)}.")
        await _say(page, name, id, what, field(form, "label") or "", field(form, "given"))
        if request.headers.get("x-csrf") is None:
            return page.to(request, f"/runs/{name}#labels", _SAID[what])
        (status,) = await page.call("/status", run=name)
        return await page.html(request, "run_labels.html.jinja", run=status, **await _report(page, status))

    return [
        Route("/runs/{run}", run, methods=["GET"]),
        Route("/runs/{run}/live", live, methods=["GET"]),
        Route("/runs/{run}/report", report, methods=["GET"]),
        Route("/runs/{run}/left-out", left_out, methods=["GET"]),
        Route("/runs/{run}/events", events, methods=["GET"]),
        Route("/runs/{run}/label", say, methods=["POST"]),
    ]


_SAID = {"label": "corrected", "right": "corrected", "drop": "dropped", "undo": "undone"}


def _shown(status: RunStatus) -> dict[str, Any]:
    """What every part of the page about a run shows."""
    return {
        "charts": charts_of(status.history, "documents kept aside"),
        "index_words": words.INDEX,
        "error_tag": ERROR_TAG,
    }


async def _history(page: Page, status: RunStatus) -> dict[str, Any]:
    """The latest events, newest first, and how many there are before them."""
    earlier = max(0, status.events - EVENTS)
    found = await page.call("/events", run=status.run, after=earlier, limit=EVENTS)
    return {"events": list(reversed(found)), "earlier": earlier}


async def _report(page: Page, status: RunStatus) -> dict[str, Any]:
    """What the report of a run shows. `found`: whether it has one. `said_since`: of its documents, by their ids."""
    try:
        (answer,) = await page.call("/report", run=status.run, format="json")
    except NotFound:
        return {"found": False, "said_since": {}}
    said = {word["id"]: word for word in answer.tags.get("said") or ()}
    return {**await asyncio.to_thread(_values, answer.text or ""), "found": True, "said_since": said}


def _values(text: str) -> dict[str, Any]:
    return values_of(from_json(text))


async def _say(page: Page, run: str, id: str, what: str, label: str, given: str | None) -> None:
    """Store what was said of a train document of a run. Raises: BadDocument: it cannot be stored."""
    tags: dict[str, Any]
    if what in ("drop", "undo"):
        tags = {WITHDRAWN_TAG: True}
    elif not label:
        raise BadDocument("A label is missing: type one, or leave the document out.")
    else:
        tags = {LABEL_TAG: _as_given(label, given)}
    (answer,) = await page.call("/feedback", [Picture(id=id, tags=tags)], run=None if what == "undo" else run)
    for problem in answer.problems:
        raise BadDocument(f"Nothing was stored of {problem.id}: {problem.reason}.")


def _as_given(label: str, given: str | None) -> int | str:
    """Return a label as it is written in the data: a whole number where the given one is a number.

    Raises: BadDocument: Python reads a number in it, but a person might mean another label.
    """
    try:
        number = int(label) if given == "number" else None
    except ValueError:
        return label
    if number is None:
        return label
    if not re.fullmatch(r"[+-]?\d+", label.strip(), re.ASCII):
        raise BadDocument(f"{label[:60]!r} is not plainly a number; type the digits alone, such as {str(number)[:60]}.")
    return number
