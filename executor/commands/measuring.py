"""Two versions, scored on the same documents."""

import argparse
import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from ..documents import ERROR_TAG, Document, DocumentArray, group_of, same_picture
from ..errors import BadRequest, FinetunerError
from ..sources import rows
from ..store.spool_rows import content_digest
from .calling import Place, batched, connect
from .reading import SHOWN, columns_of, say_what_is_left_out
from .sending import embed_by_service

if TYPE_CHECKING:
    from ..evaluation.metrics import Scores

Embed = Callable[[list[Document]], Awaitable[list[Document]]]


def measured(arguments: argparse.Namespace) -> "tuple[Scores, Scores, int]":
    """Return the scores of both versions on the same queries, and how many documents could not be embedded.

    Raises: BadRequest: no set is named, or nothing in it can be scored. UnknownRun.
    """
    from ..evaluation.kinship import clusters_of
    from ..evaluation.pairing import score_pair
    from ..loading.datasets import DATASETS, ONE_SORT, kind_of
    from ..store.proof_documents import ProofDocuments

    with _documents(arguments) as docs:
        kind = kind_of(docs, ONE_SORT)
        if kind == "unlabeled":
            raise BadRequest("The documents have no labels, so nothing can be scored; name the column of the labels.")
        dataset = DATASETS[kind](docs)
        items = [dataset.document(item) for item in range(len(dataset))]
        found = [_embeddings(arguments, version, items) for version in (arguments.first, arguments.second)]
        seen = [(group_of(doc), content_digest(doc)) for doc in docs]
        units = docs.units if isinstance(docs, ProofDocuments) else None
        groups = clusters_of(dataset, [group for group, _ in seen], [content for _, content in seen], units)
    pair = score_pair(kind, dataset.labels, groups, *found)
    if pair is None:
        raise BadRequest(
            f"None of the {len(items)} documents could be scored: each needs another one of its label, and both "
            "versions must be able to embed them; /embed says why one cannot."
        )
    return pair.first, pair.second, len(items) - len(pair.kept)


@contextmanager
def _documents(arguments: argparse.Namespace) -> Iterator[Sequence[Any]]:
    if arguments.source is not None:
        yield _from_source(arguments)
        return
    from ..store.proof_documents import proof_documents
    from ..store.runs import RunStore
    from ..store.workspace import find_workspace

    run = arguments.run or (arguments.second if arguments.second != "base" else arguments.first)
    if run == "base":
        raise BadRequest("Name the documents to measure on, with --on SOURCE or --run RUN.")
    workspace = find_workspace(arguments.workspace)
    with closing(RunStore(workspace)) as store:
        store.get(run)
    with proof_documents(workspace, run) as docs:
        yield docs


def _from_source(arguments: argparse.Namespace) -> DocumentArray:
    """Return the documents for evaluation, or all if none are marked so."""
    every = list(rows(arguments.source, columns_of(arguments)))
    problems = [row.problem for row in every if row.problem is not None]
    say_what_is_left_out(len(problems), problems[:SHOWN])
    usable = [row for row in every if row.problem is None]
    chosen = [row for row in usable if row.split == "eval"] or usable
    if not chosen:
        raise BadRequest(f"{arguments.source} has no document that can be used.")
    return DocumentArray(row.document for row in chosen)


def _embeddings(arguments: argparse.Namespace, version: str, items: list[Any]) -> list[np.ndarray | None]:
    """Return the embedding of each document by a version; None where it has none. The documents are not changed."""
    if arguments.service:
        place = connect(arguments.service)
        found: list[np.ndarray | None] = []
        for batch in batched(items):
            answers = _embedded(place, [same_picture(doc) for doc in batch], version)
            found += [doc.embedding for doc in answers]
        place.close()
        return found
    from ..bulk.embedding import VersionEmbedder
    from ..store.workspace import find_workspace
    from .local import kept_options

    workspace = find_workspace(arguments.workspace)
    embedder = VersionEmbedder(workspace.root, kept_options(workspace, {}), version, exact=True)
    try:
        return asyncio.run(_embed_all(embedder, items))
    finally:
        embedder.close()


def _embedded(place: Place, docs: list[Document], version: str) -> list[Document]:
    try:
        return embed_by_service(place, docs, version, pictures=True)
    except FinetunerError as error:  # which class it is, not every gateway says
        if "the role 'train'" not in str(error):
            raise
        raise BadRequest(
            f"{error} Without --on this one compares on the documents that prove a run; or measure in a workspace, "
            "with --workspace."
        ) from error


async def _embed_all(embed: Embed, items: list[Any]) -> list[np.ndarray | None]:
    found: list[np.ndarray | None] = []
    for batch in batched(items):
        done = await embed([same_picture(doc) for doc in batch])
        found += [None if ERROR_TAG in doc.tags else doc.embedding for doc in done]
    return found
