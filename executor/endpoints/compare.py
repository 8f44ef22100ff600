"""`/compare`: two versions on the same documents, and the queries that got better and worse."""

import asyncio
import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from docarray import DocList

from .. import documents
from ..documents import Document, DocumentArray
from ..errors import BadDocument, BadRequest, ConfigurationError
from ..images.thumbnails import SMALL, as_uri
from ..parameters import CompareParameters
from ..serving.comparisons import Comparison, Item, Measuring, Sides, document_of
from ..serving.gallery import MOST_PICTURES, check_gallery
from ..sources.folders import read_folder
from ..store.cache import NOBODY
from ..store.lineage import lineage_of
from ..store.proof_documents import proof_documents
from .service import Service


async def compare(service: Service, docs: Sequence[Document], wanted: CompareParameters) -> list[documents.Comparison]:
    """Compare two versions on the documents that prove a run, or on a folder; the figures are kept for who asks again.

    Raises: BadRequest: there is nothing to compare, or not on these documents. UnknownModel: there is no such version.
        Overloaded: too many comparisons are under way.
    """
    if len(docs):
        raise BadRequest("/compare takes no documents: name a run, or a folder with the parameter 'gallery'.")
    sides = await asyncio.to_thread(_sides, service, wanted)
    open_documents = functools.partial(_documents, service, sides)
    measuring = await service.comparisons.get(
        sides, open_documents, start=wanted.start, anew=wanted.anew, wait=wanted.wait
    )
    return [await asyncio.to_thread(_answer, service, sides, measuring, wanted)]


def _sides(service: Service, wanted: CompareParameters) -> Sides:
    first = wanted.first or service.served()
    if first == wanted.second:
        raise BadRequest(f"Both versions are {first!r}; name another one to compare it with.")
    if wanted.run is not None and wanted.gallery is not None:
        raise BadRequest("/compare got the parameters 'run' and 'gallery'; send one of them.")
    run, number = wanted.run, None
    if wanted.gallery is not None:
        check_gallery(wanted.gallery, service.policy)
    else:
        run = run or (wanted.second if wanted.second != "base" else first)
        number = service.store.get(run).number
    spaces = service.spaces.space_of(first), service.spaces.space_of(wanted.second)
    return Sides(first, wanted.second, spaces, run, number, wanted.gallery)


@contextlib.contextmanager
def _documents(service: Service, sides: Sides) -> Iterator[Sequence[Any]]:
    """Open the documents to compare on."""
    if sides.gallery is not None:
        yield _labelled(check_gallery(sides.gallery, service.policy))
    else:
        with proof_documents(service.store.workspace, sides.run or "") as docs:
            yield docs


def _labelled(folder: Path) -> DocumentArray:
    """Return the labelled pictures of a folder; of many, some."""
    if not folder.is_dir():
        raise BadRequest(f"gallery={str(folder)!r} has no labels; name a folder with a folder of pictures for each.")
    try:
        found = [row.document for row in read_folder(folder, labelled=True) if row.problem is None]
    except ConfigurationError as error:
        raise BadRequest(f"gallery: {error}") from error
    if len(found) > MOST_PICTURES:
        chosen = np.random.default_rng(0).permutation(len(found))[:MOST_PICTURES]
        found = [found[place] for place in np.sort(chosen).tolist()]
    return DocumentArray(found)


def _answer(
    service: Service, sides: Sides, measuring: Measuring | None, wanted: CompareParameters
) -> documents.Comparison:
    on = f"the documents that prove run {sides.run!r}" if sides.gallery is None else f"the folder {sides.gallery}"
    answer = documents.Comparison(first=sides.first, second=sides.second, on=on)
    if measuring is None:
        return answer
    answer.state, answer.done, answer.total = "measuring", measuring.done, measuring.total
    if (found := measuring.found) is None:
        return answer
    answer.state, answer.kind, answer.verdict, answer.skipped = "done", found.kind, found.verdict, found.skipped
    for name, change in found.metrics.items():
        for side, figure in (
            ("first", change.before),
            ("second", change.after),
            ("difference", found.differences[name]),
        ):
            answer.metrics[f"{side}/{name}"] = [figure.mean, figure.low, figure.high]
    outcomes = found.outcomes
    answer.better, answer.same, answer.worse = outcomes.better, outcomes.same, outcomes.worse
    if measuring.warnings is None:
        measuring.warnings = [*_flattered(service, sides, found), *filter(None, [found.caution])]
    answer.warnings = measuring.warnings
    chosen = _chosen(found, wanted)
    answer.matching = len(chosen)
    shown = chosen[wanted.offset : wanted.offset + wanted.limit].tolist()
    _show(answer, service, sides, found, shown, wanted)
    return answer


def _chosen(found: Comparison, wanted: CompareParameters) -> np.ndarray:
    """Return the places of the queries that are wanted, (M,): those that changed most first."""
    change = found.change
    if wanted.query is not None:
        places = np.flatnonzero(found.queries == wanted.query)
        if not len(places):
            raise BadRequest(f"There is no query with the number {wanted.query} in this comparison.")
        return places
    keep = {"worse": change < 0, "better": change > 0, "same": change == 0, "all": np.ones(len(change), bool)}
    places = np.flatnonzero(keep[wanted.which])
    order = np.argsort(-change[places] if wanted.which == "better" else change[places], kind="stable")
    return places[order]


def _show(
    answer: documents.Comparison,
    service: Service,
    sides: Sides,
    found: Comparison,
    places: list[int],
    wanted: CompareParameters,
) -> None:
    """Put the queries at some places into the answer, and what each version finds if a single one is wanted."""
    with contextlib.ExitStack() as opened:
        docs = None
        if wanted.pictures:
            docs = opened.enter_context(_documents(service, sides)) if found.docs is None else found.docs
        show = functools.partial(_item, service, sides, docs)
        for place in places:
            query = int(found.queries[place])
            first, second = found.values[:, place].tolist()
            shown = documents.ComparedQuery(number=query, first=first, second=second, **show(found.items[query]))
            answer.queries.append(shown)
            if wanted.query is not None:
                answer.found_first = _found(found, 0, place, show)
                answer.found_second = _found(found, 1, place, show)


def _found(
    found: Comparison, side: int, place: int, show: Callable[[Item], dict[str, str]]
) -> DocList[documents.FoundDocument]:
    """Return what a version finds for the query at a place."""
    items, fits = found.nearest[side, place].tolist(), found.fits[side, place].tolist()
    return DocList[documents.FoundDocument](
        documents.FoundDocument(fits=fit, **show(found.items[item]))
        for item, fit in zip(items, fits, strict=True)
        if item >= 0
    )


def _item(service: Service, sides: Sides, docs: Sequence[Any] | None, item: Item) -> dict[str, str]:
    picture = "" if docs is None else _picture(service, sides, docs, item)
    return {"name": item.name, "label": item.label, "picture": picture}


def _picture(service: Service, sides: Sides, docs: Sequence[Any], item: Item) -> str:
    """Return a small picture as a `data:` uri; empty where it cannot be read (any more)."""
    owner = NOBODY if sides.number is None else sides.number
    try:
        doc = document_of(docs[item.root], item)
        (kept,) = service.thumbnails.kept([doc], SMALL, owner)
        return as_uri(kept or service.thumbnails.begin(doc, SMALL, owner).result())
    except (BadDocument, LookupError):
        return ""


def _flattered(service: Service, sides: Sides, found: Comparison) -> Iterator[str]:
    """Say which version was trained on some of these documents: it looks better on them than it is."""
    roots = [item.content for item in found.items if item.match < 0]
    for version in (sides.first, sides.second):
        seen = lineage_of(service.store.workspace, version)
        taught = seen.trained_on(sessions=found.kind == "session")
        if known := sum(content in taught for content in roots):
            yield (
                f"{version!r} was trained on {known} of these {len(roots)} documents, so it looks better on them "
                "than it is."
            )
