"""The page to label: which neighbours of a picture fit, and what a picture shows."""

from typing import Any
from urllib.parse import urlencode

from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ...documents import COUNT_TAG, DONE_TAG, EMBEDDED_TAG, ERROR_TAG
from ...errors import BadDocument, BadRequest, FinetunerError
from ...images.thumbnails import SMALL
from ..pictures import Picture
from . import words
from .page import Page, field, whole
from .pictures import (
    LARGEST_DROP,
    Item,
    Pictures,
    galleries_of,
    gallery_page,
    item_of,
    items_of,
    labels_of,
    place,
    routes_of,
)
from .sayings import FITS, NOT, UNDO, Clicks, Sayings

NEIGHBOURS = 30  # shown of a picture
ON_A_PAGE = 60  # pictures of a gallery
SKIP = "skip"


class Label:
    """The routes of the page to label. Attributes: pictures, sayings: for the other pages, too."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.pictures = Pictures(page)
        self.sayings = Sayings(page, self.pictures)

    def routes(self) -> list[Route]:
        return [
            Route("/label", self.show, methods=["GET"]),
            Route("/label/pictures", self.more, methods=["GET"]),
            Route("/label/neighbours", self.neighbours, methods=["GET"]),
            Route("/label/news", self.news, methods=["GET"]),
            Route("/label/say", self.say, methods=["POST"]),
            Route("/label/name", self.name, methods=["POST"]),
            Route("/label/drop", self.drop, methods=["POST"]),
            *routes_of(self.page, self.pictures),
        ]

    # what is seen ---------------------------------------------------------------------------------------------------

    async def show(self, request: Request) -> Response:
        of = request.query_params.get("of") or ""
        item = item_of(request.query_params)
        (kept,) = await self.page.call("/feedback")
        shared = {
            "of": of,
            "kept": kept,
            "largest": LARGEST_DROP,
            "galleries": [] if of else await galleries_of(self.page),
        }
        if item is None:
            offset = _whole(request.query_params.get("offset"))
            try:
                shown = await gallery_page(self.page, of, offset, ON_A_PAGE) if of else None
            except FinetunerError as error:
                if error.status >= 500:
                    raise
                return await self._choose_again(request, str(error), error.status, shared)
            return await self.page.html(request, "label.html.jinja", item=None, shown=shown, refused="", **shared)
        doc = await self.pictures.document(item)
        near = await self._near(of, doc) if of else None
        named = await self.sayings.label(doc, item)
        return await self.page.html(
            request,
            "label.html.jinja",
            item=item,
            shown=None,
            refused="",
            named=named,
            labels=await labels_of(self.page),
            near=near,
            number=_whole(request.query_params.get("n"), _first_unsaid(near)),
            **shared,
        )

    async def _choose_again(self, request: Request, why: str, status: int, shared: dict[str, Any]) -> Response:
        """Say why a gallery cannot be shown where another one can be named."""
        shared = shared | {"galleries": await galleries_of(self.page)}
        return await self.page.html(request, "label.html.jinja", status, item=None, shown=None, refused=why, **shared)

    async def _near(self, of: str, doc: Picture) -> dict[str, Any]:
        """The neighbours of a picture, what was said of them, and how far the gallery was looked at."""
        asked = Picture(doc.id, doc.uri, doc.buffer)
        asked.blob, asked.text = doc.blob, doc.text
        (found,) = await self.page.call("/neighbours", [asked], limit=NEIGHBOURS, **place(of))
        return {
            "items": items_of(of, found.matches),
            "clicks": await self.sayings.clicks(doc),
            "error": found.tags.get(ERROR_TAG),
            "count": int(found.tags[COUNT_TAG]),
            "embedded": int(found.tags[EMBEDDED_TAG]),
            "done": bool(found.tags[DONE_TAG]),
        }

    async def more(self, request: Request) -> Response:
        """A further page of the gallery, for the script that shows it when somebody scrolls there."""
        of, offset = request.query_params.get("of") or "", _whole(request.query_params.get("offset"))
        shown = await gallery_page(self.page, of, offset, ON_A_PAGE)
        return await self.page.html(request, "label_pictures.html.jinja", shown=shown, service=None)

    async def neighbours(self, request: Request) -> Response:
        """The neighbours anew, for the script that waits until the gallery was looked at."""
        item, of = item_of(request.query_params), request.query_params.get("of") or ""
        if item is None:
            raise BadRequest("This address names no picture.")
        near = await self._near(of, await self.pictures.document(item))
        response = await self.page.html(
            request, "label_neighbours.html.jinja", item=item, near=near, of=of, service=None
        )
        so_far = f"{words.count(near['embedded'], 'picture')} of {near['count']:,} were looked at so far."
        response.headers["X-Looked-At"] = "done" if near["done"] else so_far
        return response

    async def news(self, request: Request) -> Response:
        """What is kept of a picture now, for a tab that shows it."""
        item = item_of(request.query_params)
        if item is None:
            raise BadRequest("This address names no picture.")
        doc = await self.pictures.document(item)
        named = await self.sayings.label(doc, item)
        return JSONResponse(_as_json(await self.sayings.clicks(doc)) | {"label_word": named.word, "label": named.label})

    # what is said ---------------------------------------------------------------------------------------------------

    async def say(self, request: Request) -> Response:
        """A neighbour fits, or does not, or nothing shall be said of it. It is kept when this is answered."""
        form = request.state.form
        item, neighbour, said = item_of(form), item_of(form, "n_"), field(form, "say")
        if item is None or neighbour is None or said not in (FITS, NOT, UNDO, SKIP):
            raise BadRequest("The form is not complete; load the page again.")
        stored = None
        if said != SKIP:
            doc = await self.pictures.document(item)
            stored = await self.sayings.click(doc, item, neighbour, said, field(form, "shown") or "")
        if not _by_script(request):
            step = 0 if said == UNDO else 1
            fields = item.fields | {"of": str(form.get("of") or ""), "n": str(_whole(field(form, "n")) + step)}
            return self.page.to(request, f"/label?{urlencode(fields)}")
        (kept,) = await self.page.call("/feedback")
        found = {} if stored is None else _as_json(stored.kept) | {"told": stored.told}
        return JSONResponse(found | {"kept": words.count(kept.sessions, "picture")})

    async def name(self, request: Request) -> Response:
        """A picture shows something: its label."""
        form = request.state.form
        item, label = item_of(form), (field(form, "label") or "").strip()
        if item is None:
            raise BadRequest("The form is not complete; load the page again.")
        if label:
            await self._check_shown(item)
        doc = await self.pictures.document(item)
        stored = await self.sayings.name(doc, item, label, _whole(field(form, "known")))
        if not _by_script(request):
            return self.page.to(request, field(form, "to") or f"/label?{item.query}", "kept" if label else "undone")
        (kept,) = await self.page.call("/feedback")
        said = f"It is labelled {words.quoted(stored.kept.label)}." if label else "Its label was taken back."
        named = {"label": stored.kept.label, "label_word": stored.kept.word}
        labels = words.count(kept.labelled, "label")
        return JSONResponse(named | {"said": said, "told": stored.told, "labels": labels})

    async def _check_shown(self, item: Item) -> None:
        """Raises: BadDocument: there is no picture to be seen, so nothing can be learned from its label."""
        try:
            await self.pictures.thumbnail(item, SMALL)
        except BadDocument as error:
            raise BadDocument(f"Nothing was stored: this is no picture that can be used. {error}") from None

    # what is dropped ------------------------------------------------------------------------------------------------

    async def drop(self, request: Request) -> Response:
        """A picture of the visitor's own: it is looked at, and shown with its neighbours."""
        form = request.state.form
        file, of = form.get("picture"), field(form, "of") or ""
        content = await file.read() if isinstance(file, UploadFile) else b""
        if not content:
            chosen = isinstance(file, UploadFile) and file.filename
            raise BadRequest("This file is empty." if chosen else "No picture was chosen.")
        if len(content) > LARGEST_DROP:
            raise BadDocument(
                f"The picture has {words.size(len(content))}; at most {words.size(LARGEST_DROP)} are taken."
            )
        assert isinstance(file, UploadFile)
        item = Item(of, (file.filename or "")[:200], drop=self.pictures.drops.keep(content))
        try:
            await self.pictures.thumbnail(item, 640)
        except BadDocument as error:
            raise BadDocument(f"This file is no picture that can be used. {str(error).rstrip('.')}.") from None
        where = f"/label?{item.query}"
        if _by_script(request):
            return JSONResponse({"to": f"{request.scope['root_path']}{where}"})
        return self.page.to(request, where)


def routes(page: Page) -> list[Route]:
    return Label(page).routes()


def _as_json(clicks: Clicks) -> dict[str, Any]:
    return {"word": clicks.word, "clicks": clicks.said}


def _first_unsaid(near: dict[str, Any] | None) -> int:
    """The number of the first neighbour of which nothing was said."""
    if near is None:
        return 0
    said = near["clicks"].said
    return next((number for number, item in enumerate(near["items"]) if not said.get(item.key)), 0)


def _whole(text: str | None, otherwise: int = 0) -> int:
    number = whole(text)
    return otherwise if number is None else number


def _by_script(request: Request) -> bool:
    """Whether a script sends this, and reads the answer; else it is the browser's own form."""
    return request.headers.get("x-csrf") is not None
