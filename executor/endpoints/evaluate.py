"""`/evaluate`: embed documents with a version and score them as queries."""

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..compute.threads import in_brief_thread
from ..documents import ERROR_TAG, DocumentArray, Evaluation
from ..errors import BadRequest
from ..loading.datasets import DATASETS, kind_of
from ..parameters import EvaluateParameters
from ..store.spool import DocumentArrayMemmap
from .service import Service

CHUNK = 256  # documents embedded at a time


async def evaluate(service: Service, docs: Sequence[Any], wanted: EvaluateParameters) -> list[Evaluation]:
    """Return the metrics of a version on `docs`, or on the eval documents of a run.

    `skipped` counts documents that cannot be embedded, and queries that no other document matches.

    Raises: BadRequest: there is nothing to evaluate on. NotTrainable: the documents are of several kinds.
    """
    if wanted.run is not None:
        if docs:
            raise BadRequest("/evaluate got documents and the parameter 'run'; send one of them.")
        await asyncio.to_thread(service.store.get, wanted.run)
        with DocumentArrayMemmap(service.store.workspace.spool_file(wanted.run), split="eval") as eval_docs:
            if not len(eval_docs):
                raise BadRequest(f"Run {wanted.run!r} has no eval documents; send labelled documents to /evaluate.")
            return [await _evaluate_on(service, eval_docs, wanted.model)]
    if not len(docs):
        raise BadRequest("/evaluate got no documents; send labelled ones, or name a run with the parameter 'run'.")
    return [await _evaluate_on(service, docs, wanted.model)]


async def _evaluate_on(service: Service, docs: Sequence[Any], version: str | None) -> Evaluation:
    """Slow work goes to threads, so that the event loop can answer `/embed` meanwhile."""
    kind = await asyncio.to_thread(kind_of, docs)
    if kind == "unlabeled":
        raise BadRequest("The documents have neither labels nor matches; /evaluate needs tags['finetuner_label'].")
    model = version or service.store.promoted()
    good = DocumentArray()
    failed = 0
    for start in range(0, len(docs), CHUNK):
        chunk = await asyncio.to_thread(docs.__getitem__, slice(start, start + CHUNK))
        await service.embedder.embed(chunk, model=model, matches=kind == "session", exact=True)
        for doc in chunk:
            doc.matches = [match for match in doc.matches if ERROR_TAG not in match.tags]
            if ERROR_TAG in doc.tags or (kind == "session" and not doc.matches):
                failed += 1
            else:
                good.append(_light(doc))
    if not good:
        raise BadRequest(f"None of the {failed} documents could be embedded; /embed says of each why.")
    return await asyncio.to_thread(in_brief_thread, _scored, model, kind, good, failed)


def _scored(model: str, kind: str, docs: DocumentArray, failed: int) -> Evaluation:
    from ..evaluation.eval_set import score_embeddings

    dataset = DATASETS[kind](docs)
    embeddings = np.stack([dataset.document(item).embedding for item in range(len(dataset))])
    scores = score_embeddings(kind, embeddings, dataset.labels)
    return Evaluation(model=model, metrics=scores.mean(), queries=scores.queries, skipped=scores.skipped + failed)


def _light(doc: Any) -> Any:
    """Drop the images: only labels and embeddings are needed from here on."""
    for part in (doc, *doc.matches):
        part.blob = part.buffer = part.uri = None
    return doc
