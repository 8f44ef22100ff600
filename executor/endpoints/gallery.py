"""`/galleries` `/gallery` `/thumbnails` `/neighbours`: pictures that people look at."""

import asyncio
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..documents import (
    COUNT_TAG,
    DONE_TAG,
    EMBEDDED_TAG,
    ERROR_TAG,
    LABEL_TAG,
    MODEL_TAG,
    POSITION_TAG,
    SIMILARITY_TAG,
    SORT_TAG,
    SPACE_TAG,
    Document,
    DocumentArray,
    Match,
)
from ..errors import BadRequest
from ..images.thumbnails import as_uri
from ..lifecycle.sizes import bytes_of
from ..parameters import GalleriesParameters, GalleryParameters, NeighboursParameters, ThumbnailsParameters
from ..serving.galleries import Gallery, documents_at
from ..serving.neighbours import Embedded, Near
from ..store.cache import NOBODY
from .outward import outward_documents
from .service import Service

WAIT_SECONDS = 2.0  # for a gallery that is being embedded, before the answer is made of a part
CHUNK = 20  # documents of a run in memory at a time: an array may have megabytes
CONTENT_BYTES = 64 << 20  # of one answer
RUNS_NAMED = 50  # the newest
_NAMED = (LABEL_TAG, "name")  # tags of a document that are shown with its picture


async def galleries(service: Service, docs: Sequence[Document], wanted: GalleriesParameters) -> list[Document]:
    """Return galleries that can be named: folders and files of `embed` below `allowed_roots`, and runs."""
    found = [Document(id=name, tags={SORT_TAG: "run"}) for name in await asyncio.to_thread(_runs, service)]
    places = await asyncio.to_thread(service.gallery_places.all)
    found += [Document(id=_short(place), tags={SORT_TAG: sort}) for place, sort in places]
    return found[: wanted.limit]


def _runs(service: Service) -> list[str]:
    """The newest runs that have documents."""
    workspace = service.store.workspace
    return [run.name for run in service.store.all()[:RUNS_NAMED] if workspace.spool_file(run.name).exists()]


def _short(place: Path) -> str:
    """A path as an operator would write it."""
    here = os.path.relpath(place)
    return str(place) if here.startswith("..") or here == "." else here


async def gallery(service: Service, docs: Sequence[Document], wanted: GalleryParameters) -> list[Document]:
    """Return a page of a gallery as one document: its matches are the pictures, its tags say how many there are.

    Raises: BadRequest: the gallery cannot be used. UnknownRun.
    """
    opened = await asyncio.to_thread(service.galleries.open, wanted.gallery, wanted.run)
    start, stop = wanted.offset, min(wanted.offset + wanted.limit, opened.count)
    shown = await asyncio.to_thread(_page, opened, range(start, stop), wanted.content)
    return [Document(id=opened.name, tags={COUNT_TAG: opened.count}, matches=shown)]


def _page(opened: Gallery, numbers: range, content: bool) -> list[Match]:
    """The pictures with these numbers; with their content at most `CONTENT_BYTES` of them, but one at least."""
    found: list[Match] = []
    size = 0
    for start in range(numbers.start, numbers.stop, CHUNK):
        for doc in opened.documents(start, min(start + CHUNK, numbers.stop)):
            size += bytes_of(doc) if content else 0
            if found and size > CONTENT_BYTES:
                return found
            found.append(_shown(doc, numbers.start + len(found), content=content))
    return found


def _shown(doc: Any, number: int, *, content: bool, **tags: Any) -> Match:
    """Return a picture of a gallery: all that was sent, or what it is known by."""
    if content:
        fields = {name: getattr(doc, name) for name in ("uri", "blob", "buffer", "text")}
        return Match(id=doc.id, **fields, tags={**doc.tags, POSITION_TAG: number, **tags})
    uri = doc.uri if doc.uri and doc.uri[:5].lower() != "data:" else None
    kept = {name: doc.tags[name] for name in _NAMED if name in doc.tags}
    return Match(id=doc.id, uri=uri, tags={**kept, POSITION_TAG: number, **tags})


# thumbnails ---------------------------------------------------------------------------------------------------------


async def thumbnails(service: Service, docs: Sequence[Any], wanted: ThumbnailsParameters) -> list[Document]:
    """Return a document for each one sent, or for each of a run's that was named; its `uri` is a small picture.

    That is a `data:` uri of a JPEG or PNG image. Where there is none, `tags['finetuner_error']` says why, unless it was
    not made in the time to wait.

    Raises: BadRequest: nothing is named, or both are. UnknownRun. Overloaded: too many wait.
    """
    answers: list[Document] = []
    until = None if wanted.wait is None else time.monotonic() + wanted.wait
    if wanted.run is None:
        answers = await _made(service, docs, wanted.side, NOBODY, until)
    elif docs:
        raise BadRequest("/thumbnails got documents and the parameter 'run'; send one of them.")
    else:
        opened = await asyncio.to_thread(service.galleries.open, None, wanted.run)
        for start in range(0, len(wanted.positions), CHUNK):
            some = await asyncio.to_thread(_at, opened, wanted.positions[start : start + CHUNK])
            answers += await _made(service, some, wanted.side, opened.owner, until)
    outward_documents(answers, service.places)
    return answers


async def _made(service: Service, docs: Sequence[Any], side: int, owner: int, until: float | None) -> list[Document]:
    """Args: until: when to wait no longer, by the monotonic clock; None: never."""
    kept = await asyncio.to_thread(service.thumbnails.kept, docs, side, owner)
    waiting: list[asyncio.Future[bytes] | None] = []
    try:
        for doc, picture in zip(docs, kept, strict=True):
            begun = None if picture is not None else service.thumbnails.begin(doc, side, owner)
            waiting.append(None if begun is None else asyncio.wrap_future(begun))
        if any(waiting):
            left = None if until is None else max(0.0, until - time.monotonic())
            await asyncio.wait([task for task in waiting if task is not None], timeout=left)
        return [_thumbnail(doc, picture, task) for doc, picture, task in zip(docs, kept, waiting, strict=True)]
    finally:
        for task in waiting:
            if task is not None:
                task.cancel()  # those that nobody waits for any more are not made


def _at(opened: Gallery, positions: Sequence[int]) -> list[Document]:
    found = documents_at(opened, positions)
    if len(found) < len(positions):
        raise BadRequest(f"Run {opened.name!r} has {opened.count} train documents, numbered from 0; name some of them.")
    return found


def _thumbnail(doc: Any, picture: bytes | None, task: "asyncio.Future[bytes] | None") -> Document:
    answer = Document(id=doc.id)
    if task is not None and not task.done():
        return answer
    try:
        picture = task.result() if task is not None else picture
    except Exception as error:  # one picture's fault, as in `/embed`
        answer.tags = {ERROR_TAG: str(error) or type(error).__name__}
    else:
        assert picture is not None
        answer.uri = as_uri(picture)
    return answer


# neighbours ---------------------------------------------------------------------------------------------------------


async def neighbours(service: Service, docs: Sequence[Any], wanted: NeighboursParameters) -> list[Document]:
    """Return a document for each one sent; its matches are the nearest pictures of a gallery, nearest first.

    The served version finds them. A gallery is embedded once, in the background; until then the answer is made of what
    is embedded so far, and its tags say how many pictures that are. The picture itself is not among its neighbours.

    Raises: BadRequest: nothing was sent, or the gallery cannot be used. UnknownRun.
    """
    if not len(docs):
        raise BadRequest("/neighbours got no documents; send the pictures whose neighbours you want.")
    opened = await asyncio.to_thread(service.galleries.open, wanted.gallery, wanted.run)
    version = await asyncio.to_thread(service.embedder.version, service.served())
    embedded = await service.neighbours.of(opened, version)
    asked = DocumentArray(_asked(doc) for doc in docs)
    await service.embedder.embed(asked, model=version.name)
    await _wait(embedded)
    found = [await asyncio.to_thread(_near, embedded, doc, wanted.limit) for doc in asked]
    outward_documents(found, service.places)
    return found


def _asked(doc: Any) -> Document:
    return Document(id=doc.id, uri=doc.uri, blob=doc.blob, buffer=doc.buffer, text=doc.text)


async def _wait(embedded: Embedded) -> None:
    """Wait a little for the rest. Raises: FinetunerError: it cannot be embedded."""
    try:
        await asyncio.wait_for(embedded.done.wait(), WAIT_SECONDS)
    except asyncio.TimeoutError:
        return
    if embedded.trouble is not None:
        raise embedded.trouble


def _near(embedded: Embedded, query: Document, limit: int) -> Document:
    tags: dict[str, Any] = {
        COUNT_TAG: embedded.gallery.count,
        EMBEDDED_TAG: embedded.looked,
        DONE_TAG: embedded.done.is_set(),
    }
    if ERROR_TAG in query.tags:
        return Document(id=query.id, tags={**tags, ERROR_TAG: query.tags[ERROR_TAG]})
    tags |= {MODEL_TAG: query.tags[MODEL_TAG], SPACE_TAG: query.tags[SPACE_TAG]}
    near = embedded.nearest(np.asarray(query.embedding, np.float32), limit + 1)
    matches = [_neighbour(embedded.gallery, each) for each in near]
    others = [match for match in matches if not _is_same(match, query)]
    return Document(id=query.id, tags=tags, matches=others[:limit])


def _neighbour(opened: Gallery, near: Near) -> Match:
    (doc,) = opened.documents(near.number, near.number + 1)
    return _shown(doc, near.number, content=False, **{SIMILARITY_TAG: near.similarity})


def _is_same(match: Match, query: Document) -> bool:
    return match.id == query.id if match.uri is None or query.uri is None else match.uri == query.uri
