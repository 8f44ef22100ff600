"""Two versions on the same pictures: what one does better, where it does worse, and the decision which to serve."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from starlette.datastructures import FormData, QueryParams
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from ...errors import BadRequest, Conflict
from ...evaluation.intervals import said
from ...evaluation.metrics import DECIDING
from ...report.page import TITLES
from ..answers import understood
from . import words
from .page import Page, whole

SHOWN = 12  # queries of a list
PAGE = 60  # of a list by itself
PROGRESS_SECONDS = 0.5
WAYS = {  # what can be done with an index, the cheapest first, as in `index_plan` of a status
    "nothing": "Do nothing: leave the index and the queries as they are",
    "map queries": "Leave the index, and let the service translate each query into its space",
    "map index": "Translate the vectors in the index once, without the pictures",
    "embed anew": "Embed all pictures anew, and build the index from that",
}


@dataclass(frozen=True)
class Asked:
    """What a visitor wants to compare."""

    first: str
    second: str
    run: str = ""
    gallery: str = ""

    @classmethod
    def of(cls, given: QueryParams | FormData) -> "Asked":
        """Read it from an address or a form."""
        return cls(**{name: str(given.get(name) or "") for name in ("first", "second", "run", "gallery")})

    def parameters(self) -> dict[str, Any]:
        """Return them as parameters of `/compare`."""
        return {name: value or None for name, value in vars(self).items()}

    def address(self, path: str = "/compare", **more: Any) -> str:
        """Return the address of a page about this comparison."""
        return f"{path}?{urlencode({name: value for name, value in {**vars(self), **more}.items() if value != ''})}"


@dataclass(frozen=True)
class Row:
    """A metric: its name and meaning, and what the difference proves. Figures are texts: the mean and its interval."""

    title: str
    meaning: str
    first: tuple[str, str]
    second: tuple[str, str]
    difference: tuple[str, str]
    standing: tuple[str, str]


@dataclass(frozen=True)
class Way:
    """What can be done with an index. Attributes: value, interval: mAP@R, as text."""

    words: str
    value: str
    interval: str
    advised: bool


@dataclass(frozen=True)
class Choice:
    """The decision about a version that is not served.

    Attributes: ways: of its index plan, if it was made for what is served now. advice: what to do, in a sentence.
    """

    version: str
    ways: list[Way] = field(default_factory=list)
    advice: str = ""


def routes(page: Page) -> list[Route]:
    return [
        Route("/compare", _show(page), methods=["GET"]),
        Route("/compare", _measure(page), methods=["POST"]),
        Route("/compare/progress", _progress(page), methods=["GET"]),
        Route("/compare/query", _query(page), methods=["GET"]),
        Route("/compare/promote", _promote(page), methods=["POST"]),
    ]


def _show(page: Page) -> Any:
    async def show(request: Request) -> Response:
        return await _shown(page, request, Asked.of(request.query_params))

    return show


async def _shown(page: Page, request: Request, given: Asked, failed: Exception | None = None) -> Response:
    """Return the page. Args: failed: why what was asked for could not be begun."""
    statuses = await page.call("/status")
    served = statuses[0].model if statuses else "base"
    versions = ["base", *(status.run for status in statuses if status.state == "succeeded")]
    asked = Asked(given.first or served, given.second or _candidate(versions, served), given.run, given.gallery)
    found = None
    lists: list[dict[str, Any]] = []
    if given.second and failed is None:
        try:
            found = await _compare(page, asked, limit=0)
            if found.state == "done":
                lists = await _lists(page, request, asked, found)
        except Exception as error:  # whatever it is, a person sees it beside what was asked for
            failed = error
    trouble = None if failed is None else understood(failed)
    return await page.html(
        request,
        "compare.html.jinja",
        200 if trouble is None else trouble.status if trouble.status >= 500 else 400,
        asked=asked,
        given=bool(given.second),
        versions=versions,
        runs=[status.run for status in statuses if status.state == "succeeded"],
        served=served,
        found=found,
        trouble=trouble,
        lists=lists,
        rows=_rows(found),
        standing_words=_standing(found),
        choices=_choices(asked, served, statuses),
    )


def _candidate(versions: list[str], served: str) -> str:
    """The newest run that is not served; else `base`, if that is not."""
    others = [version for version in versions[1:] if version != served]
    return others[0] if others else ("base" if served != "base" else "")


async def _compare(page: Page, asked: Asked, **more: Any) -> Any:
    (found,) = await page.call("/compare", **{"start": False, "wait": 0, **asked.parameters(), **more})
    return found


async def _lists(page: Page, request: Request, asked: Asked, found: Any) -> list[dict[str, Any]]:
    """The queries that changed: the first of both lists, or a page of one."""
    wanted = request.query_params.get("which")
    if wanted not in ("worse", "better"):
        return [await _list(page, asked, found, which, 0, SHOWN) for which in ("worse", "better")]
    offset = whole(request.query_params.get("from", "0"))
    if offset is None:
        raise BadRequest("The number of the first picture in this address is none.")
    return [await _list(page, asked, found, wanted, offset, PAGE)]


async def _list(page: Page, asked: Asked, found: Any, which: str, offset: int, limit: int) -> dict[str, Any]:
    count = getattr(found, which)
    part = await _compare(page, asked, which=which, offset=offset, limit=limit, pictures=True) if count else found
    end = offset + len(part.queries)
    return {
        "which": which,
        "count": count,
        "queries": part.queries,
        "first": offset + 1,
        "last": end,
        "before": None if not offset else max(0, offset - limit),
        "after": end if end < count else None,
        "whole": limit == PAGE,
    }


def _rows(found: Any) -> list[Row]:
    if found is None or found.state != "done":
        return []
    return [
        Row(
            title=title,
            meaning=meaning,
            first=_figure(found.metrics[f"first/{name}"]),
            second=_figure(found.metrics[f"second/{name}"]),
            difference=_figure(found.metrics[f"difference/{name}"], signed=True),
            standing=_proven(found.metrics[f"difference/{name}"]),
        )
        for name, (title, meaning) in TITLES.items()
    ]


def _figure(figure: Sequence[float], *, signed: bool = False) -> tuple[str, str]:
    """Return a figure and its interval: 0.812, 0.744 to 0.871."""
    mean, low, high = figure
    shown = f"{mean:+.3f}" if signed else f"{mean:.3f}"
    return shown.replace("-", "−"), said(low, high, signed=signed).replace("-", "−")


def _proven(difference: Sequence[float]) -> tuple[str, str]:
    """Return what an interval of a difference proves, as (style, words)."""
    _, low, high = difference
    return ("good", "better") if low > 0 else ("bad", "worse") if high < 0 else ("open", "not proven")


def _standing(found: Any) -> tuple[str, str] | None:
    """Say who is better, as (style, words); None before it is measured."""
    if found is None or found.state != "done":
        return None
    style, _ = _proven(found.metrics[f"difference/{DECIDING}"])
    if style == "open":
        return style, "Neither is proven better"
    return style, f"{found.second} is proven {'better' if style == 'good' else 'worse'} than {found.first}"


def _choices(asked: Asked, served: str, statuses: Sequence[Any]) -> list[Choice]:
    """The decisions that can be taken: to serve one of the two that is not served."""
    plans = {status.run: status.index_plan for status in statuses}
    found = []
    for version in (asked.second, asked.first):
        plan = plans.get(version) or {}
        if plan.get("from") == served:
            advice = words.INDEX.get(plan["advice"], "").format(version=served)
            found.append(Choice(version, _ways(plan), advice))
        elif version and version != served:
            found.append(Choice(version))
    return found


def _ways(plan: dict[str, Any]) -> list[Way]:
    """Return what was measured of an index of the served version's vectors."""
    found = []
    for name, meaning in WAYS.items():
        value, interval = "not possible", "its vectors have another size"
        if figure := plan.get(name):
            value, interval = f"{figure[0]:.3f}", said(*figure[1:])
        found.append(Way(meaning, value, interval, plan.get("advice") == name))
    return found


def _measure(page: Page) -> Any:
    async def measure(request: Request) -> Response:
        asked = Asked.of(request.state.form)
        if asked.gallery:
            asked = Asked(asked.first, asked.second, "", asked.gallery)
        anew = request.state.form.get("anew") is not None
        with contextlib.suppress(Exception):  # one that failed unseen is not the answer to this press: begin again
            await _compare(page, asked, limit=0)
        try:
            await _compare(page, asked, start=True, anew=anew, wait=PROGRESS_SECONDS, limit=0)
        except Exception as error:
            return await _shown(page, request, asked, error)
        return page.to(request, asked.address())

    return measure


def _progress(page: Page) -> Any:
    """Tell by server-sent events how far a comparison is."""

    async def progress(request: Request) -> Response:
        asked = Asked.of(request.query_params)
        return StreamingResponse(_steps(page, asked), media_type="text/event-stream")

    return progress


async def _steps(page: Page, asked: Asked) -> AsyncIterator[bytes]:
    try:
        while (found := await _compare(page, asked, wait=PROGRESS_SECONDS, limit=0)).state == "measuring":
            yield _event("step", {"done": found.done, "total": found.total})
            await asyncio.sleep(0)
        yield _event("done", {})
    except Exception as error:
        yield _event("failed", {"why": str(understood(error))})


def _event(kind: str, value: dict[str, Any]) -> bytes:
    return f"event: {kind}\r\ndata: {json.dumps(value)}\r\n\r\n".encode()


def _query(page: Page) -> Any:
    async def show(request: Request) -> Response:
        asked = Asked.of(request.query_params)
        number = whole(request.query_params.get("number"))
        if number is None:
            raise BadRequest("The address of this page names no picture.")
        found = await _compare(page, asked, query=number, pictures=True)
        if found.state != "done":
            return page.to(request, asked.address())
        return await page.html(request, "compared_query.html.jinja", asked=asked, found=found, query=found.queries[0])

    return show


def _promote(page: Page) -> Any:
    async def promote(request: Request) -> Response:
        form = request.state.form
        asked, version = Asked.of(form), str(form.get("version") or "")
        served = (await page.room.readiness()).served
        if served != form.get("served"):
            raise Conflict(
                f"Meanwhile somebody has decided otherwise: {served!r} is served now. Nothing was changed by you; "
                "look at the page again."
            )
        await page.call("/promote", run=version)
        page.forget_standing()
        return page.to(request, asked.address() if asked.second else "/compare", "promoted")

    return promote


words.FILTERS["change"] = lambda value: f"{value:+.3f}".replace("-", "−")
