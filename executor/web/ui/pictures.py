"""Pictures on the page: how an address names one, its thumbnail, and the document behind it."""

import base64
import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple
from urllib.parse import urlencode

from starlette.datastructures import FormData, QueryParams
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ...documents import COUNT_TAG, ERROR_TAG, LABEL_TAG, POSITION_TAG, SORT_TAG
from ...errors import BadDocument, BadRequest, FinetunerError, NotFound
from ...images.policy import DEFAULT_POLICY
from ...images.thumbnails import SMALL
from ..pictures import Picture
from .page import Page, whole

LARGE = 640  # pixels a side; beside `SMALL` no others, so that nobody fills the store of thumbnails with sizes
SOON_SECONDS = 0.15  # that a page waits for its thumbnails
KEPT_SECONDS = 300  # that a browser shows a thumbnail without asking whether it is still right
DROPPED_BYTES = 96 << 20  # of dropped pictures that wait for their first word: three of the largest
MOST_LABELS = 500  # that are offered
LARGEST_DROP = DEFAULT_POLICY.max_image_bytes
RUN = "run:"  # how the name of a gallery begins that is a run
_PARTS = ("of", "id", "uri", "at", "drop", "word")


class Item(NamedTuple):
    """A picture, as the addresses and forms of the page name it.

    Attributes:
        of: its gallery. id: its id there.
        uri: where it is; else it is known by its number `at` in the gallery, by the digest of what was `drop`ped, or
            by the id of the `word` that was said of it.
    """

    of: str | None = None
    id: str = ""
    uri: str | None = None
    at: int | None = None
    drop: str | None = None
    word: str | None = None

    @property
    def fields(self) -> dict[str, str]:
        """What names it, as the fields of a form."""
        return {name: str(value) for name in _PARTS if (value := getattr(self, name)) not in (None, "")}

    @property
    def query(self) -> str:
        """The same as the query of an address."""
        return urlencode(self.fields)

    @property
    def key(self) -> str:
        """What tells it from the other pictures of its session."""
        return self.uri or self.drop or f"{self.of}#{self.at}"

    @property
    def name(self) -> str:
        """What a person knows it by."""
        return self.id or (self.uri or "").rpartition("/")[2] or "a picture"

    def thumbnail(self, side: int = SMALL) -> str:
        """The address of its thumbnail, below the page."""
        fields = {name: value for name, value in self.fields.items() if name != "id"}
        if self.uri:
            fields.pop("of", None)
        return f"/thumbnail?{urlencode({**fields, 'side': side})}"

    @property
    def large(self) -> str:
        return self.thumbnail(LARGE)


def item_of(given: QueryParams | FormData, prefix: str = "") -> Item | None:
    """Return the picture that an address or a form names; None: it names none. Raises: BadRequest: it is wrong."""
    found = {name: value for name in _PARTS if isinstance(value := given.get(prefix + name), str) and value}
    found.setdefault("of", str(given.get("of") or ""))
    said = found.pop("at", None)
    at = whole(said)
    if said is not None and at is None:
        raise BadRequest("The number of a picture must be a whole number.")
    item = Item(**found, at=at)
    return None if item.uri is None and item.at is None and item.drop is None and item.word is None else item


def place(of: str) -> dict[str, str]:
    """Return the parameters by which endpoints know a gallery."""
    return {"run": of.removeprefix(RUN)} if of.startswith(RUN) else {"gallery": of}


def items_of(of: str, matches: Sequence[Any]) -> list[Item]:
    """Return the pictures of a page of a gallery, or the neighbours in it."""
    return [
        Item(of, str(match.id or ""), match.uri, None if match.uri else int(match.tags[POSITION_TAG]))
        for match in matches
    ]


async def galleries_of(page: Page) -> list[dict[str, str]]:
    """Return the galleries that can be named, each with what names it, `of`, and a `title`."""
    titles = {"run": "the pictures of run", "folder": "the folder", "parquet": "the file"}
    found = []
    for each in await page.call("/galleries"):
        sort = str(each.tags[SORT_TAG])
        of = f"{RUN}{each.id}" if sort == "run" else str(each.id)
        found.append({"of": of, "title": f"{titles.get(sort, sort)} {each.id}"})
    return found


async def labels_of(page: Page) -> list[str]:
    """Return the labels in use, as they are written."""
    return [str(each.tags[LABEL_TAG]) for each in await page.call("/labels", limit=MOST_LABELS)]


class Shown(NamedTuple):
    """A page of a gallery.

    Attributes: total: how many pictures all of it has. thumbnails: of the items, as `data:` uris; None: one has an
        address of its own, from which the browser fetches it.
    """

    of: str
    offset: int
    items: list[Item]
    total: int
    thumbnails: list[str | None]

    @property
    def following(self) -> int | None:
        """The number of the first picture of the next page, if there is one."""
        after = self.offset + len(self.items)
        return after if self.items and after < self.total else None


async def gallery_page(page: Page, of: str, offset: int, limit: int) -> Shown:
    """Return a page of a gallery. Raises: FinetunerError: there is no such gallery."""
    (found,) = await page.call("/gallery", offset=offset, limit=limit, **place(of))
    items = items_of(of, found.matches)
    return Shown(of, offset, items, int(found.tags[COUNT_TAG]), await _made_soon(page, of, offset, items))


async def _made_soon(page: Page, of: str, offset: int, items: list[Item]) -> list[str | None]:
    """Return the thumbnails that are there, or can be made before anybody notices; None for the others.

    A browser takes longer to fetch a small picture than we to make it.
    """
    docs: list[Picture] = []
    named: dict[str, Any] = {}
    if of.startswith(RUN):
        named = {**place(of), "positions": list(range(offset, offset + len(items)))}
    else:
        docs = [Picture(item.id, item.uri) for item in items]
    try:
        made = await page.call("/thumbnails", docs, side=SMALL, wait=SOON_SECONDS, **named)
    except FinetunerError:  # too much waits; each picture says so itself
        return [None] * len(items)
    return [each.uri for each in made]


class Drops:
    """Pictures that were dropped on the page and of which nothing was said yet: the latest, in memory.

    Once something is said of one, it is kept with that word.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[str, bytes] = OrderedDict()

    def keep(self, content: bytes) -> str:
        """Keep a file, and return the digest by which it is found."""
        digest = hashlib.sha256(content).hexdigest()[:24]
        self._kept[digest] = content
        self._kept.move_to_end(digest)
        while len(self._kept) > 1 and sum(map(len, self._kept.values())) > DROPPED_BYTES:
            self._kept.popitem(last=False)
        return digest

    def find(self, digest: str) -> bytes | None:
        """Return a file; None: it is not here any more."""
        return self._kept.get(digest)


class Pictures:
    """Finds the documents and thumbnails of pictures. Attributes: drops: what was dropped."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self.drops = Drops()

    async def document(self, item: Item) -> Picture:
        """Return the document with its content, such that it can be stored and loaded later.

        Raises: NotFound: it is gone. BadDocument: it has no picture.
        """
        if item.uri:
            return Picture(item.id or item.uri, item.uri)
        if item.drop is not None:
            return await self._dropped(item.drop)
        if item.word is not None:
            return await self._of_word(item.word)
        (found,) = await self._page.call("/gallery", offset=item.at, limit=1, content=True, **place(item.of or ""))
        if not found.matches:
            raise NotFound("This picture is not in the gallery any more; go back to the gallery.")
        return copied(found.matches[0])

    async def _dropped(self, digest: str) -> Picture:
        content = self.drops.find(digest)
        if content is not None:
            return Picture(f"dropped-{digest}", buffer=content)
        for id in (clicks_on(digest), f"dropped-{digest}"):  # something was said of it before the service was restarted
            with_word = await self._page.call("/words", [Picture(id)], content=True)
            if with_word and with_word[0].buffer:
                return Picture(f"dropped-{digest}", buffer=with_word[0].buffer)
        raise NotFound("This picture was dropped too long ago, or before the service was restarted; drop it again.")

    async def _of_word(self, id: str) -> Picture:
        found = await self._page.call("/words", [Picture(id)], content=True)
        if not found:
            raise NotFound("What was said of this picture is not kept any more.")
        return copied(found[0])

    async def thumbnail(self, item: Item, side: int) -> bytes:
        """Return the file of a thumbnail. Raises: BadDocument: there is none."""
        of = item.of or ""
        if item.at is not None and of.startswith(RUN):
            (found,) = await self._page.call("/thumbnails", run=of.removeprefix(RUN), positions=[item.at], side=side)
        else:
            (found,) = await self._page.call("/thumbnails", [await self.document(item)], side=side)
        if found.uri is None:
            raise BadDocument(str(found.tags.get(ERROR_TAG) or "There is no picture."))
        return base64.b64decode(found.uri.partition(",")[2])


def clicks_on(digest: str) -> str:
    """The id under which is kept which neighbours of a picture fit. Args: digest: of the picture."""
    return f"clicks-{digest}"


def copied(doc: Any) -> Picture:
    """Return a document of any class, with its content and tags and without its matches."""
    found = Picture(doc.id, doc.uri, doc.buffer, dict(doc.tags))
    found.blob, found.text = doc.blob, doc.text
    return found


def routes_of(page: Page, pictures: Pictures) -> list[Route]:
    """Return the route of thumbnails."""

    async def thumbnail(request: Request) -> Response:
        item = item_of(request.query_params)
        side = LARGE if request.query_params.get("side") == str(LARGE) else SMALL
        if item is None:
            raise BadRequest("This address names no picture.")
        try:
            content = await pictures.thumbnail(item, side)
        except (BadDocument, NotFound) as error:
            return Response(_no_picture(str(error)), error.status, {"Cache-Control": "no-store"}, "image/svg+xml")
        return _kept(request, content)

    return [Route("/thumbnail", thumbnail, methods=["GET"])]


def _kept(request: Request, content: bytes) -> Response:
    """Return a file that the browser keeps for a while, and then asks whether it is still right."""
    etag = f'"{hashlib.sha256(content).hexdigest()[:24]}"'
    headers = {"Cache-Control": f"private, max-age={KEPT_SECONDS}", "ETag": etag}
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers=headers)
    kind = "image/png" if content.startswith(b"\x89PNG") else "image/jpeg"
    return Response(content, headers=headers, media_type=kind)


def _no_picture(reason: str) -> str:
    """A drawing in place of a picture that cannot be shown."""
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 96 96" width="96" height="96"><title>'
        f"{escape(reason)}</title>"
        '<path d="M18 26h60v44H18zM18 70l60-44" fill="none" stroke="#8893a0" stroke-width="3"/></svg>'
    )
