"""The page that says what to label next, and takes the labels."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ...documents import LABEL_TAG, REASON_TAG
from .page import Page
from .pictures import Item, place

SHOWN = 24  # suggestions


def routes(page: Page) -> list[Route]:
    async def show(request: Request) -> Response:
        """The page at once; the suggestions come when they are found, which may take a while."""
        of = request.query_params.get("of") or ""
        galleries = await page.call("/galleries")
        named = [f"run:{each.id}" if each.tags["finetuner_sort"] == "run" else str(each.id) for each in galleries]
        found = await _found(of) if of and request.query_params.get("wait") else None
        return await page.html(request, "suggest.html.jinja", of=of, named=named, found=found, labels=await _labels())

    async def suggestions(request: Request) -> Response:
        found = await _found(request.query_params.get("of") or "")
        return await page.html(request, "suggest_pictures.html.jinja", found=found, service=None)

    async def _found(of: str) -> list[tuple[Item, str]]:
        docs = await page.call("/suggest", limit=SHOWN, **place(of))
        return [(_item(of, doc), str(doc.tags[REASON_TAG])) for doc in docs]

    async def _labels() -> list[str]:
        return [str(each.tags[LABEL_TAG]) for each in await page.call("/labels", limit=500)]

    return [
        Route("/suggest", show, methods=["GET"]),
        Route("/suggest/pictures", suggestions, methods=["GET"]),
    ]


def _item(of: str, doc: object) -> Item:
    from ...documents import POSITION_TAG

    uri, tags = getattr(doc, "uri", None), getattr(doc, "tags", {})
    at = None if uri or POSITION_TAG not in tags else int(tags[POSITION_TAG])
    return Item(of, str(getattr(doc, "id", "") or ""), uri, at)
