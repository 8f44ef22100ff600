"""`/suggest`: the documents whose labels would teach most, best first."""

import asyncio
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from ..documents import ERROR_TAG, MODEL_TAG, REASON_TAG, SPACE_TAG, Document, has_label, label_of, with_ids
from ..errors import BadRequest
from ..parameters import SuggestParameters
from ..serving.gallery import check_gallery, pictures_of, rows_of
from ..serving.suggesting import suggest as choose
from ..store.spool import DocumentArrayMemmap
from .service import Service

CHUNK = 256  # documents embedded at a time
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
    if bool(len(docs)) == (wanted.gallery is not None):
        raise BadRequest("/suggest takes documents, or the parameter 'gallery'; send one of them.")
    version = service.store.promoted()
    with_ids(docs)
    if wanted.gallery is None:
        pool = await _embedded(service, docs, version)
    else:
        pool = await _gallery(service, wanted.gallery, version)
    known = await _embedded(service, await asyncio.to_thread(_known, service, version), version)
    return await asyncio.to_thread(_chosen, pool, known, wanted.limit)


def _chosen(pool: _Pool, known: _Pool, limit: int) -> list[Document]:
    has = np.array([has_label(doc) for doc in pool.docs], bool)
    unlabelled = np.flatnonzero(~has)
    if not len(unlabelled):
        raise BadRequest("None of these documents is without a label and can be embedded, so there is none to suggest.")
    labels = [label_of(doc) for doc in (*known.docs, *(doc for doc in pool.docs if has_label(doc)))]
    vectors = [part for part in (known.vectors, pool.vectors[has]) if len(part)]
    found = choose(pool.vectors[unlabelled], limit, known=np.concatenate(vectors) if vectors else None, labels=labels)
    return [_suggested(pool.docs[unlabelled[number]], reason + pool.note) for number, reason in found]


async def _gallery(service: Service, name: str, version: str) -> _Pool:
    path = check_gallery(name, service.policy)
    random = np.random.default_rng(0)
    if path.is_dir():
        docs, count = await asyncio.to_thread(pictures_of, path, random)
        pool = await _embedded(service, docs, version)
    else:
        space = (await asyncio.to_thread(service.embedder.version, version)).space
        docs, vectors, count = await asyncio.to_thread(rows_of, path, space, random)
        pool = _Pool(docs, vectors)
    note = f" (of {len(pool.docs)} that were looked at, of {count})" if count > len(pool.docs) else ""
    return pool._replace(note=note)


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
    found = list(islice(_of_feedback(service), MOST_KNOWN))
    if version != "base":
        with DocumentArrayMemmap(service.store.workspace.spool_file(version)) as docs:
            step = max(1, len(docs) // MOST_KNOWN)
            found += [doc for doc in (docs[place] for place in range(0, len(docs), step)) if has_label(doc)]
    return found


def _of_feedback(service: Service) -> Iterator[Document]:
    kept = service.receiver.feedback
    last = kept.last()
    return (doc for doc in kept.documents(max(0, last - 2 * MOST_KNOWN), last) if not doc.matches)


def _suggested(doc: Document, reason: str) -> Document:
    doc.tags = {**doc.tags, REASON_TAG: reason}
    return doc
