"""`/words` `/labels`: what has been said of documents so far."""

import asyncio
from collections.abc import Sequence
from typing import Any

from ..documents import (
    COUNT_TAG,
    LABEL_TAG,
    SAID_TAG,
    WITHDRAWN_TAG,
    WORD_TAG,
    Document,
)
from ..lifecycle.sizes import bytes_of
from ..parameters import LabelsParameters, WordsParameters
from ..store.feedback import Word, iso
from .service import Service

CONTENT_BYTES = 64 << 20  # of one answer


async def words(service: Service, docs: Sequence[Any], wanted: WordsParameters) -> list[Document]:
    """Return the latest word of each document sent that has one in feedback, or the latest words of all.

    Each has the number of the word, and when it was said, in its tags. A withdrawn one has
    `tags['finetuner_withdrawn']`.
    """
    return await asyncio.to_thread(_words, service, [str(doc.id) for doc in docs], wanted)


def _words(service: Service, ids: list[str], wanted: WordsParameters) -> list[Document]:
    kept = service.receiver.feedback
    found = kept.words(ids) if ids else kept.latest_words(wanted.before, wanted.limit)
    answer: list[Document] = []
    size = 0
    for word in found:
        answer.append(_told(word, content=wanted.content))
        size += bytes_of(answer[-1])
        if size > CONTENT_BYTES:
            break
    return answer


def _told(word: Word, *, content: bool) -> Document:
    doc = Document(tags={WITHDRAWN_TAG: True}) if word.document is None else word.document
    doc.id = word.id
    doc.tags = {**doc.tags, WORD_TAG: word.number, SAID_TAG: iso(word.at)}
    for part in () if content else (doc, *doc.matches):
        part.blob = part.buffer = None
        if part.uri and part.uri[:5].lower() == "data:":
            part.uri = None
    return doc


async def labels(service: Service, docs: Sequence[Any], wanted: LabelsParameters) -> list[Document]:
    """Return the labels that are in use, the most used first, each as a document with that label.

    They are those of the latest words of feedback, and of the documents of the promoted run about which none is.
    """
    counts = await asyncio.to_thread(service.labels_said.counts)
    return [
        Document(id=str(label), tags={LABEL_TAG: label, COUNT_TAG: count})
        for label, count in counts.most_common(wanted.limit)
    ]
