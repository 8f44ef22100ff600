"""`/suggest`: the documents whose labels would teach most, best first."""

import asyncio
import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..documents import (
    ERROR_TAG,
    MODEL_TAG,
    POSITION_TAG,
    REASON_TAG,
    SPACE_TAG,
    Document,
    Label,
    has_label,
    label_of,
    with_ids,
)
from ..errors import BadRequest
from ..lifecycle.sources import of_run, with_words
from ..parameters import SuggestParameters
from ..serving.galleries import Gallery, documents_at
from ..serving.gallery import MOST_PICTURES
from ..serving.suggesting import looked_at
from ..serving.suggesting import suggest as choose
from ..store.cache import NOBODY
from ..store.feedback import Withdrawn
from ..store.spool import DocumentArrayMemmap
from .service import Service

CHUNK = 256  # documents embedded at a time
FEW = 20  # documents of a run read at a time: an array may have megabytes
MOST_CANDIDATES = 20_000  # of a gallery, where so many are embedded already
MOST_KNOWN = 500  # labelled documents of feedback, and of the promoted run, that are looked at


class _Pool(NamedTuple):
    """Documents to choose from, their embeddings (N, D) float32, and what to say of how many there are."""

    docs: list[Any]
    vectors: np.ndarray
    note: str = ""


async def suggest(service: Service, docs: Sequence[Document], wanted: SuggestParameters) -> list[Document]:
    """Return at most `limit` of the documents sent, or of the gallery, each with an id and `tags['finetuner_reason']`.

    Documents with a label are taken as known, beside those of feedback and of the promoted run. What cannot be embedded
    is not suggested.

    Raises: BadRequest: there is nothing to choose from, or the gallery cannot be used.
    """
    is_named = wanted.gallery is not None or wanted.run is not None
    if bool(len(docs)) == is_named:
        raise BadRequest("/suggest takes documents, or the parameter 'gallery' or 'run'; send one of them.")
    version = service.store.promoted()
    with_ids(docs)
    pool = await _gallery(service, wanted, version) if is_named else await _embedded(service, docs, version)
    known = await _embedded(service, await asyncio.to_thread(_known, service, version), version)
    said = await asyncio.to_thread(service.labels_said.of, pool.docs)
    return await asyncio.to_thread(_chosen, pool, said, known, wanted.limit)


def _chosen(pool: _Pool, said: Sequence[Label | None], known: _Pool, limit: int) -> list[Document]:
    given = [label_of(doc) if has_label(doc) else label for doc, label in zip(pool.docs, said, strict=True)]
    has = np.array([label is not None for label in given], bool)
    unlabelled = np.flatnonzero(~has)
    if not len(unlabelled):
        raise BadRequest("None of these documents is without a label and can be embedded, so there is none to suggest.")
    labels = [*map(label_of, known.docs), *(label for label in given if label is not None)]
    vectors = [part for part in (known.vectors, pool.vectors[has]) if len(part)]
    found = choose(pool.vectors[unlabelled], limit, known=np.concatenate(vectors) if vectors else None, labels=labels)
    return [_suggested(pool.docs[unlabelled[number]], reason + pool.note) for number, reason in found]


async def _gallery(service: Service, wanted: SuggestParameters, version: str) -> _Pool:
    """Some pictures of a gallery. Its embeddings are kept, so the next question is answered at once."""
    opened = await asyncio.to_thread(service.galleries.open, wanted.gallery, wanted.run)
    embedded = await service.neighbours.of(opened, await asyncio.to_thread(service.embedder.version, version))
    await embedded.enough(MOST_PICTURES)
    numbers, vectors = await asyncio.to_thread(embedded.some, MOST_CANDIDATES)
    docs = await asyncio.to_thread(_without_content, service, opened, numbers.tolist())
    there = [place for place, doc in enumerate(docs) if doc is not None]
    return _Pool([docs[place] for place in there], vectors[there], looked_at(len(docs), opened.count))


def _without_content(service: Service, opened: Gallery, numbers: list[int]) -> list[Document | None]:
    """The pictures with these numbers, as an answer names them: of runs without the bytes that were sent.

    What was said of a run's document since counts: it has that label, and None is in its place if it was withdrawn.
    """
    found: list[Document | None] = []
    chunks = (documents_at(opened, numbers[start : start + FEW]) for start in range(0, len(numbers), FEW))
    docs = itertools.chain.from_iterable(chunks)
    of_a_run = opened.owner != NOBODY
    latest = with_words(docs, service.receiver.feedback, service.policy) if of_a_run else ((doc, None) for doc in docs)
    for (doc, word), number in zip(latest, numbers, strict=False):
        if isinstance(word, Withdrawn):
            found.append(None)
            continue
        if word is not None:
            doc.tags = word.tags
        if doc.uri and doc.uri[:5].lower() == "data:":
            doc.uri = None
        doc.blob = doc.buffer = None
        doc.tags = {**doc.tags, POSITION_TAG: number} if doc.uri is None else doc.tags
        found.append(doc)
    return found


async def _embedded(service: Service, docs: Sequence[Any], version: str) -> _Pool:
    """Return the documents that can be embedded."""
    good: list[Any] = []
    vectors = []
    for start in range(0, len(docs), CHUNK):
        chunk = docs[start : start + CHUNK]
        await service.embedder.embed(chunk, model=version)
        for doc in chunk:
            if ERROR_TAG not in doc.tags:
                good.append(doc)
                vectors.append(doc.embedding)
                doc.embedding = None
                for tag in (MODEL_TAG, SPACE_TAG):
                    doc.tags.pop(tag, None)
    return _Pool(good, np.stack(vectors) if vectors else np.empty((0, 0), np.float32))


def _known(service: Service, version: str) -> list[Document]:
    """Some of the labelled documents that the service has: the latest of feedback, and some of the promoted run."""
    found = list(deque(_of_feedback(service), MOST_KNOWN))
    if version != "base":
        with DocumentArrayMemmap(service.store.workspace.spool_file(version)) as docs:
            step = max(1, len(docs) // MOST_KNOWN)
            some = (docs[place] for place in range(0, len(docs), step))
            believed = of_run(some, service.receiver.feedback, service.policy)
            found += [doc for doc in believed if has_label(doc) and not doc.matches]
    return found


def _of_feedback(service: Service) -> Iterator[Document]:
    """The documents without matches among the latest words; the latest comes last."""
    kept = service.receiver.feedback
    last = kept.last()
    return (doc for doc in kept.documents(max(0, last - 2 * MOST_KNOWN), last) if not doc.matches)


def _suggested(doc: Document, reason: str) -> Document:
    doc.tags = {**doc.tags, REASON_TAG: reason}
    return doc
