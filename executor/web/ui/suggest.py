"""The page that says what to label next, and takes the labels."""

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ...documents import POSITION_TAG, REASON_TAG
from .page import Page
from .pictures import Item, galleries_of, labels_of, place

SHOWN = 24  # suggestions


def routes(page: Page) -> list[Route]:
    async def show(request: Request) -> Response:
        """The page at once; the suggestions come when they are found, which may take a while."""
        of = request.query_params.get("of") or ""
        (kept,) = await page.call("/feedback")
        found = await _found(of) if of and request.query_params.get("wait") else None
        shown: dict[str, Any] = {
            "of": of,
            "found": found,
            "galleries": await galleries_of(page),
            "labels": await labels_of(page),
            "kept": kept,
        }
        return await page.html(request, "suggest.html.jinja", **shown)

    async def suggestions(request: Request) -> Response:
        found = await _found(request.query_params.get("of") or "")
        return await page.html(request, "suggest_pictures.html.jinja", found=found, service=None)

    async def _found(of: str) -> list[tuple[Item, str]]:
        docs = await page.call("/suggest", limit=SHOWN, **place(of))
        return [(_item(of, doc), str(doc.tags[REASON_TAG])) for doc in docs]

    return [
        Route("/suggest", show, methods=["GET"]),
        Route("/suggest/pictures", suggestions, methods=["GET"]),
    ]


def _item(of: str, doc: Any) -> Item:
    return Item(of, str(doc.id or ""), doc.uri, None if doc.uri else int(doc.tags[POSITION_TAG]))
