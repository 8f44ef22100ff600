"""What a person says of pictures, and how it is kept: clicks on neighbours, and labels.

Each is a word of `/feedback` under an id of its own, so a later one replaces it. The neighbours of one picture that
were judged are one session: it is read, changed in one place and stored again, so that two tabs with the same picture
lose nothing of each other.
"""

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

from ...documents import LABEL_TAG, WITHDRAWN_TAG, WORD_TAG, Label
from ...errors import BadDocument
from ...store.spool_rows import content_digest
from ..pictures import Picture
from . import words
from .page import Page
from .pictures import RUN, Item, Pictures, clicks_on, copied

FITS, NOT, UNDO = "fits", "not", "undo"
SIGNS = {FITS: 1, NOT: -1}
KEY_TAG = "picture"  # in a match: which neighbour it is; see `Item.key`
NAME_TAG = "name"  # what a person knows a picture by
_OURS = (WORD_TAG, "finetuner_said_at", "finetuner_position", "finetuner_similarity", "finetuner_source")


class Clicks(NamedTuple):
    """What is kept of a picture's neighbours. Attributes: word: its number; 0: nothing was said yet.

    said: `fits` or `not`, by the keys of the neighbours.
    """

    word: int
    said: dict[str, str]


class Named(NamedTuple):
    """The label of a picture. Attributes: word: its number; 0: nothing was said. id: under which it is kept."""

    word: int
    id: str
    label: Label | None


class Stored(NamedTuple):
    """What came of a word. Attributes: clicks or label: as it is kept now. told: what another tab had said."""

    kept: Any
    told: str = ""


class Sayings:
    """Keeps what is said, by `/feedback`."""

    def __init__(self, page: Page, pictures: Pictures) -> None:
        self._page = page
        self._pictures = pictures
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def _lock(self, id: str) -> asyncio.Lock:
        return self._locks.setdefault(id, asyncio.Lock())

    # clicks ---------------------------------------------------------------------------------------------------------

    async def clicks(self, doc: Picture) -> Clicks:
        """Return what is kept of the neighbours of a picture."""
        return _clicks(await self._word(clicks_id(doc)))

    async def click(self, doc: Picture, item: Item, neighbour: Item, said: str, shown: str) -> Stored:
        """Keep that a neighbour fits a picture, or does not, or that nothing is said of it any more.

        Args: item: the picture `doc`. shown: what the tab has shown of the neighbour: `fits`, `not` or nothing.
        Raises: BadDocument: it cannot be kept.
        """
        id = clicks_id(doc)
        async with self._lock(id):
            word = await self._word(id, content=True)
            before = _clicks(word)
            matches = {} if word is None else {str(match.tags.get(KEY_TAG)): _again(match) for match in word.matches}
            matches.pop(neighbour.key, None)
            if said in SIGNS:
                matches[neighbour.key] = await self._match(neighbour, SIGNS[said])
            if matches:
                await self._keep(_session(id, doc, item, list(matches.values())))
            elif before.word:
                await self._keep(Picture(id, tags={WITHDRAWN_TAG: True}))
            after = await self.clicks(doc)
        was = before.said.get(neighbour.key, "")
        return Stored(after, _told(was, said) if was not in (shown, said if said in SIGNS else "") else "")

    async def _match(self, neighbour: Item, sign: int) -> Picture:
        match = await self._pictures.document(neighbour)
        match.id = neighbour.id or neighbour.key
        match.tags = {LABEL_TAG: sign, KEY_TAG: neighbour.key, NAME_TAG: neighbour.name}
        return match

    # labels ---------------------------------------------------------------------------------------------------------

    async def label(self, doc: Picture, item: Item) -> Named:
        """Return the label that is kept of a picture."""
        ids = [each for each in dict.fromkeys((str(doc.id or ""), item.uri)) if each]
        found = {str(word.id): word for word in await self._page.call("/words", [Picture(each) for each in ids])}
        for id in ids:
            word = found.get(id)
            if word is None:
                return Named(0, id, None)
            if word.uri is None or item.uri is None or word.uri == item.uri:  # else it is another picture's
                return Named(int(word.tags[WORD_TAG]), id, word.tags.get(LABEL_TAG))
        return Named(0, ids[-1], None)

    async def name(self, doc: Picture, item: Item, label: str, known: int) -> Stored:
        """Keep the label of a picture; an empty one takes back what was said.

        Args: known: the number of the word that the tab has shown.
        Raises: BadDocument: it cannot be kept.
        """
        async with self._lock(f"label {doc.id}"):
            before = await self.label(doc, item)
            if not label:
                await self._keep(Picture(before.id, tags={WITHDRAWN_TAG: True}))
            else:
                await self._keep(*await self._labelled(doc, item, before.id, label))
            after = await self.label(doc, item)
        changed = before.word > known and before.label not in (None, after.label)
        told = f"Meanwhile another tab had labelled it {words.quoted(before.label)}; your word, the later one, counts."
        return Stored(after, told if changed else "")

    async def _labelled(self, doc: Picture, item: Item, id: str, label: str) -> tuple[Picture, str | None]:
        """Return the word, and of which run's document it speaks, if that has its picture."""
        run = item.of.removeprefix(RUN) if item.of and item.of.startswith(RUN) and item.at is not None else None
        said = Picture(id, tags={LABEL_TAG: await self._as_known(label)})
        if run is None:
            said = copied(doc)
            said.id = id
            said.tags = {LABEL_TAG: await self._as_known(label), NAME_TAG: item.name}
        return said, run

    async def _as_known(self, label: str) -> Label:
        """Return the label in use that is written so: numbers and texts are different labels."""
        for known in await self._page.call("/labels"):
            value: Label = known.tags[LABEL_TAG]
            if str(value) == label:
                return value
        return label

    # ----------------------------------------------------------------------------------------------------------------

    async def withdraw(self, id: str) -> None:
        """Take back what was said under an id."""
        async with self._lock(id):
            await self._keep(Picture(id, tags={WITHDRAWN_TAG: True}))

    async def _word(self, id: str, *, content: bool = False) -> Any:
        found = await self._page.call("/words", [Picture(id)], content=content)
        return found[0] if found else None

    async def _keep(self, doc: Picture, run: str | None = None) -> None:
        """Store a word durably. Raises: BadDocument: it cannot be used."""
        (status,) = await self._page.call("/feedback", [doc], run=run)
        if status.skipped:
            raise BadDocument(f"This cannot be kept: {status.problems[0].reason}.")


def clicks_id(doc: Picture) -> str:
    """The id under which is kept which neighbours of a picture fit: that of its content."""
    id = str(doc.id or "")
    return clicks_on(id.removeprefix("dropped-") if id.startswith("dropped-") else content_digest(doc).hex()[:24])


def _clicks(word: Any) -> Clicks:
    if word is None:
        return Clicks(0, {})
    names = {sign: said for said, sign in SIGNS.items()}
    said = {str(match.tags.get(KEY_TAG)): names.get(int(match.tags.get(LABEL_TAG) or 0), "") for match in word.matches}
    return Clicks(int(word.tags[WORD_TAG]), said)


def _session(id: str, doc: Picture, item: Item, matches: Sequence[Picture]) -> Picture:
    session = copied(doc)
    session.id, session.matches = id, list(matches)
    session.tags = {NAME_TAG: item.name}
    return session


def _again(match: Any) -> Picture:
    found = copied(match)
    found.tags = {name: value for name, value in found.tags.items() if name not in _OURS}
    return found


def _told(was: str, said: str) -> str:
    words = {FITS: "fits", NOT: "does not fit"}
    if was not in words:
        return "Meanwhile another tab had taken back what was said of it; your word, the later one, counts."
    return f"Meanwhile another tab had said that it {words[was]}; your word, the later one, counts."
