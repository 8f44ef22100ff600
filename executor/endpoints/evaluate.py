"""`/evaluate`: embed documents with a version and score them as queries."""

import asyncio
from collections.abc import Sequence, Set
from typing import Any, NamedTuple

import numpy as np
from docarray import DocList

from ..compute.threads import in_brief_thread
from ..documents import ERROR_TAG, Evaluation
from ..errors import BadRequest, Conflict, brief
from ..loading.datasets import DATASETS, ONE_SORT, kind_of
from ..parameters import EvaluateParameters
from ..store.proof_documents import proof_documents
from ..store.spool_rows import content_digest
from .reader import Reader
from .service import Service

CHUNK = 256  # documents embedded at a time
JINAS_REQUEST = 100  # documents; Jina cuts a longer call into requests of so many


class _Embedded(NamedTuple):
    """Documents with embeddings and without images.

    Attributes: failed: how many more could not be embedded, with all of their matches. sent: as of `_identities`.
    """

    docs: list[Any]
    failed: int
    sent: Set[tuple[str, bytes]] = frozenset()


async def evaluate(service: Service | Reader, docs: Sequence[Any], wanted: EvaluateParameters) -> list[Evaluation]:
    """Return the metrics of a version on `docs`, or on the eval documents of a run, held-out ones included.

    With `total`, all requests of a set wait for each other and get the same answer. `skipped` counts documents that
    cannot be embedded, or a match of which cannot, and queries that no other document matches.

    Raises: BadRequest: there is nothing to evaluate on, or it may be a part of a set. NotTrainable: the documents are
        of several kinds.
    """
    version = wanted.model or service.served()
    if wanted.run is not None:
        if docs:
            raise BadRequest("/evaluate got documents and the parameter 'run'; send one of them.")
        if isinstance(service, Reader):
            raise Conflict("A reader has no documents of runs: send documents, or ask the service that trains.")
        return [await _evaluate_run(service, wanted.run, version)]
    if not len(docs):
        raise BadRequest("/evaluate got no documents; send labelled ones, or name a run with the parameter 'run'.")
    if wanted.total is None:
        if len(docs) == JINAS_REQUEST and isinstance(docs, DocList):  # as they come through Jina
            raise BadRequest(
                f"/evaluate got {len(docs)} documents. Jina cuts longer calls into requests of that size, and figures "
                "of a part would mislead: say with the parameter 'total' how many documents there are."
            )
        _name(docs)
        return [await _evaluate_alone(service, docs, version)]
    sent = await asyncio.to_thread(_identities, docs)
    _name(docs)
    part = (await _embed(service, docs, version))._replace(sent=sent)
    return [
        await service.gatherings.join(
            (version, wanted.total), part, len(docs), wanted.total, lambda parts: _score_once(version, parts)
        )
    ]


async def _score_once(version: str, parts: list[_Embedded]) -> Evaluation:
    """Score a set. Raises: BadRequest: a part has come twice, and each of its documents would find itself."""
    seen = set[tuple[str, bytes]]()
    for part in parts:
        if twice := seen & part.sent:
            id, _ = min(twice)
            which = f"Document {brief(id)!r}" if id else "A document without an id"
            raise BadRequest(
                f"{which} came in two requests of this set: one was sent again, or two sets "
                "with the same 'total' were sent at once. Nothing is scored. Send all of them again, a set at a time."
            )
        seen |= part.sent
    return await _score(version, parts)


async def _evaluate_run(service: Service, run: str, version: str) -> Evaluation:
    await asyncio.to_thread(service.store.get, run)
    with proof_documents(service.store.workspace, run) as docs:
        return await _evaluate_alone(service, docs, version)


async def _evaluate_alone(service: Service | Reader, docs: Sequence[Any], version: str) -> Evaluation:
    await _kind_of(docs)  # before anything is computed
    return await _score(version, [await _embed(service, docs, version)])


async def _embed(service: Service | Reader, docs: Sequence[Any], version: str) -> _Embedded:
    good = list[Any]()
    failed = 0
    for start in range(0, len(docs), CHUNK):
        chunk = await asyncio.to_thread(docs.__getitem__, slice(start, start + CHUNK))
        await service.embedder.embed(chunk, model=version, matches=True, exact=True)
        for doc in chunk:
            # A session without some of its candidates is an easier one, above all without a hard negative.
            if any(ERROR_TAG in part.tags for part in (doc, *doc.matches)):
                failed += 1
            else:
                good.append(_light(doc))
    return _Embedded(good, failed)


def _identities(docs: Sequence[Any]) -> set[tuple[str, bytes]]:
    """Return the id, as far as it has one, and the content of each document."""
    return {(str(doc.id or ""), content_digest(doc)) for doc in docs}


def _name(docs: Sequence[Any]) -> None:
    """Give those that came without an id the name of their place, so that a refusal can say which it means."""
    for number, doc in enumerate(docs):
        doc.id = doc.id or f"data[{number}]"
        for place, match in enumerate(doc.matches):
            match.id = match.id or f"data[{number}].matches[{place}]"


async def _score(version: str, parts: list[_Embedded]) -> Evaluation:
    """What takes long goes to a thread: the event loop answers `/embed` meanwhile."""
    docs = [doc for part in parts for doc in part.docs]
    failed = sum(part.failed for part in parts)
    if not docs:
        raise BadRequest(f"None of the {failed} documents could be embedded; /embed says of each why.")
    return await asyncio.to_thread(in_brief_thread, _scored, version, await _kind_of(docs), docs, failed)


async def _kind_of(docs: Sequence[Any]) -> str:
    kind = await asyncio.to_thread(kind_of, docs, ONE_SORT)
    if kind == "unlabeled":
        raise BadRequest("The documents have neither labels nor matches; /evaluate needs tags['finetuner_label'].")
    return kind


def _scored(version: str, kind: str, docs: list[Any], failed: int) -> Evaluation:
    from ..evaluation.eval_set import score_embeddings

    dataset = DATASETS[kind](docs)
    embeddings = np.stack([dataset.document(item).embedding for item in range(len(dataset))])
    scores = score_embeddings(kind, embeddings, dataset.labels)
    return Evaluation(model=version, metrics=scores.mean(), queries=scores.queries, skipped=scores.skipped + failed)


def _light(doc: Any) -> Any:
    """Drop the images: only labels and embeddings are needed from here on."""
    for part in (doc, *doc.matches):
        part.blob = part.buffer = part.uri = None
    return doc
