"""Measures two versions on the same documents, in the background, and keeps what was found.

A comparison of thousands of pictures takes minutes. So whoever asks for one is told how far it is, and it goes on when
nobody waits. Its pictures wait their turn with those of `/embed`: it is one caller among the others, however large it
is. One is measured at a time.
"""

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..compute.threads import in_brief_thread
from ..documents import ERROR_TAG, group_of, same_picture
from ..errors import BadRequest, Overloaded
from ..loading.datasets import DATASETS, ONE_SORT, kind_of
from ..report.naming import label_of, name_of
from ..store.proof_documents import ProofDocuments
from ..store.spool_rows import content_digest
from .embedder import Embedder

if TYPE_CHECKING:
    from ..evaluation.pairing import Pair
    from ..report.parts import Change, Interval, Outcomes

CHUNK = 64  # documents embedded at a time
KEPT = 8  # comparisons
WAITING = 4  # comparisons that are not done, of which one is measured
NEIGHBOURS = 8  # kept of each query
PATIENCE_SECONDS = 1.0  # before another try, where too many pictures wait to be embedded

Open = Callable[[], AbstractContextManager[Sequence[Any]]]


@dataclass(frozen=True)
class Sides:
    """What is compared, and on which documents: equal ones have an equal answer.

    Attributes:
        spaces: of both versions; names are used again. run, gallery: where the documents are from. number: of the run.
    """

    first: str
    second: str
    spaces: tuple[str, str]
    run: str | None
    number: int | None
    gallery: str | None


@dataclass(frozen=True)
class Item:
    """A document, or a match of a session.

    Attributes: root: the number of the document. match: of it; -1: itself. content: the digest of its content.
    """

    root: int
    match: int
    content: bytes
    name: str
    label: str


@dataclass(frozen=True)
class Comparison:
    """What was found.

    Attributes:
        metrics, differences: by the names of the metrics; differences are second minus first, query by query.
        better, verdict: as of `proof.verdict`. caution: a warning, if there are few queries; or empty.
        items: all that were measured. queries: (Q,) int64, the items that were scored as queries.
        values: (2, Q) their mAP@R by both versions. nearest: (2, Q, K) int64, the items that each finds, nearest
            first; -1: there are no more.
        fits: (2, Q, K) bool, whether these belong to the query.
        skipped: items that could not be embedded, or not be scored as queries.
        docs: those of a folder, as it was when it was measured; None: they lie in a run.
    """

    kind: str
    metrics: "dict[str, Change]"
    differences: "dict[str, Interval]"
    outcomes: "Outcomes"
    better: bool
    verdict: str
    caution: str
    items: list[Item]
    queries: np.ndarray
    values: np.ndarray
    nearest: np.ndarray
    fits: np.ndarray
    skipped: int
    docs: Sequence[Any] | None

    @property
    def change(self) -> np.ndarray:
        """(Q,) how much better the second version is at each query; rounded as in the report."""
        found: np.ndarray = np.round(self.values[1] - self.values[0], 9)
        return found


@dataclass
class Measuring:
    """A comparison under way, or done.

    Attributes:
        done, total: pictures, each counted for both versions.
        told: whether a caller has got to know that it failed.
        warnings: what a person should know of the figures, for who shows them to keep; None: nobody has looked yet.
    """

    done: int = 0
    total: int = 0
    told: bool = False
    warnings: list[str] | None = None
    task: "asyncio.Task[Comparison] | None" = field(default=None, repr=False)

    @property
    def found(self) -> Comparison | None:
        """What was found; None: it is not done. Raises: what made it fail."""
        return self.task.result() if self.task is not None and self.task.done() else None


class Comparisons:
    """Makes and keeps comparisons. For one event loop."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._known: OrderedDict[Sides, Measuring] = OrderedDict()
        self._turn: asyncio.Lock | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def get(
        self, sides: Sides, open_documents: Open, *, start: bool, anew: bool, wait: float
    ) -> Measuring | None:
        """Return a comparison, which is begun if nobody has.

        Args:
            open_documents: opens those to compare on. start: whether to begin it; None is returned where it is needed
                and false. anew: whether to measure again what is done. wait: seconds to wait for its end.
        Raises: Overloaded: too many wait. Whatever made it fail: each caller is told who does not start it again, and
            who starts it only if nobody was told yet, so that one who asks again and again comes to an end.
        """
        measuring = self._known.get(sides)
        if measuring is None and not start:
            return None
        if measuring is None or (start and _over(measuring, anew)):
            measuring = self._begin(sides, open_documents)
        assert measuring.task is not None
        self._known.move_to_end(sides)
        if not measuring.task.done():
            await asyncio.wait([measuring.task], timeout=wait)
        if _failed(measuring):
            measuring.told = True
            if measuring.task.cancelled():
                raise BadRequest("The comparison was broken off; ask for it again.")
        return measuring

    def _begin(self, sides: Sides, open_documents: Open) -> Measuring:
        if sum(each.found is None for each in self._known.values() if not _failed(each)) >= WAITING:
            raise Overloaded(f"{WAITING} comparisons are being measured or wait for that; try again when one is done.")
        self._loop = asyncio.get_running_loop()
        self._turn = self._turn or asyncio.Lock()
        measuring = self._known[sides] = Measuring()
        measuring.task = self._loop.create_task(self._measure(sides, open_documents, measuring, self._turn))
        done = [other for other, each in self._known.items() if each.task is not None and each.task.done()]
        for other in done[: max(0, len(self._known) - KEPT)]:
            del self._known[other]
        return measuring

    def close(self) -> None:
        """Break off what is under way. Any thread may call it."""
        for measuring in list(self._known.values()):
            if self._loop is not None and measuring.task is not None:
                with contextlib.suppress(RuntimeError):  # the loop has ended, and all in it
                    self._loop.call_soon_threadsafe(measuring.task.cancel)

    async def _measure(
        self, sides: Sides, open_documents: Open, measuring: Measuring, turn: asyncio.Lock
    ) -> Comparison:
        async with turn, _opened(open_documents) as docs:
            kind, labels, items, groups = await asyncio.to_thread(_read, docs)
            measuring.total = 2 * len(items)
            found: list[list[np.ndarray | None]] = [[], []]
            for start in range(0, len(items), CHUNK):
                part = await asyncio.to_thread(_pictures, docs, items[start : start + CHUNK])
                for side, version in enumerate((sides.first, sides.second)):
                    found[side] += await self._embed(part, version, sides)
                    measuring.done += len(part)
            kept = docs if sides.gallery is not None else None
        result = await asyncio.to_thread(in_brief_thread, _compared, kind, labels, items, groups, found)
        return replace(result, docs=kept)

    async def _embed(self, docs: list[Any], version: str, caller: Sides) -> list[np.ndarray | None]:
        while True:
            copies = [same_picture(doc) for doc in docs]
            with contextlib.suppress(Overloaded):
                await self._embedder.embed(copies, model=version, exact=True, caller=caller)
                return [None if ERROR_TAG in doc.tags else doc.embedding for doc in copies]
            await asyncio.sleep(PATIENCE_SECONDS)


def _over(measuring: Measuring, anew: bool) -> bool:
    """Whether who starts a comparison gets another one. Args: anew: whether that is so of any that is done."""
    return measuring.task is not None and measuring.task.done() and (anew or measuring.told)


def _failed(measuring: Measuring) -> bool:
    task = measuring.task
    return task is not None and task.done() and (task.cancelled() or task.exception() is not None)


@contextlib.asynccontextmanager
async def _opened(open_documents: Open) -> Any:
    """Open documents without holding up the event loop."""
    opening = open_documents()
    docs = await asyncio.to_thread(opening.__enter__)
    try:
        yield docs
    finally:
        await asyncio.to_thread(opening.__exit__, None, None, None)


def _read(docs: Sequence[Any]) -> tuple[str, np.ndarray, list[Item], np.ndarray]:
    """Return the kind of the documents, the labels of the items, the items, and numbers of what belongs together."""
    from ..evaluation.kinship import clusters_of

    kind = kind_of(docs, ONE_SORT)
    if kind == "unlabeled":
        raise BadRequest(
            "These documents have no labels, so nothing says which version is better on them; name labelled ones."
        )
    dataset = DATASETS[kind](docs)
    items: list[Item] = []
    groups: list[str | None] = []
    for number, doc in enumerate(docs):
        for match, part in enumerate([doc, *(doc.matches if kind == "session" else ())], start=-1):
            label = "" if kind == "session" else label_of(part)
            items.append(Item(number, match, content_digest(part), name_of(part), label))
        groups.append(group_of(doc))
    contents = [item.content for item in items if item.match < 0]
    units = docs.units if isinstance(docs, ProofDocuments) else None
    return kind, dataset.labels, items, clusters_of(dataset, groups, contents, units)


def _pictures(docs: Sequence[Any], items: list[Item]) -> list[Any]:
    """Return the documents of items. The items of a document follow each other, and it is read once."""
    found: list[Any] = []
    number, doc = -1, None
    for item in items:
        if item.root != number:
            number, doc = item.root, docs[item.root]
        found.append(document_of(doc, item))
    return found


def document_of(doc: Any, item: Item) -> Any:
    """Return the document, or the match of it, that an item is."""
    return doc if item.match < 0 else doc.matches[item.match]


def _compared(
    kind: str, labels: np.ndarray, items: list[Item], groups: np.ndarray, found: list[list[np.ndarray | None]]
) -> Comparison:
    from ..evaluation.metrics import DECIDING, METRICS
    from ..evaluation.pairing import score_pair
    from ..evaluation.proof import caution, paired_difference, verdict
    from ..report.parts import Interval
    from ..report.report import compare

    pair = score_pair(kind, labels, groups, *found)
    if pair is None:
        raise BadRequest(
            f"None of the {len(items)} pictures can be scored: each query needs another picture of its label, and both "
            "versions must be able to embed them."
        )
    metrics, _, outcomes = compare(pair.first, pair.second)
    differences = {}
    for name in METRICS:
        mean, low, high = paired_difference(pair.first, pair.second, name)
        differences[name] = Interval(mean=mean, low=low, high=high)
    better, sentence = verdict(pair.first, pair.second)
    queries, nearest, fits = _neighbours(kind, labels[pair.kept], pair)
    return Comparison(
        kind=kind,
        metrics=metrics,
        differences=differences,
        outcomes=outcomes,
        better=better,
        verdict=sentence,
        caution=caution(pair.second),
        items=items,
        queries=pair.kept[queries],
        values=np.stack([each.per_query[DECIDING] for each in (pair.first, pair.second)]),
        nearest=np.where(nearest < 0, -1, pair.kept[nearest]),
        fits=fits,
        skipped=len(items) - len(pair.kept) + pair.second.skipped,
        docs=None,
    )


def _neighbours(kind: str, labels: np.ndarray, pair: "Pair") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the queries (Q,), what each version finds (2, Q, K), and whether that fits, as positions in the pair."""
    from ..report.gallery import nearest, nearest_candidates

    scored = pair.second.query_index
    if kind == "class":
        queries = scored
        found = np.stack([np.concatenate(list(nearest(each, queries, NEIGHBOURS))) for each in pair.embeddings])
        return queries, found, labels[found] == labels[queries][None, :, None]
    queries = np.flatnonzero(labels[:, 1] == 0)[scored]
    found = np.full((2, len(queries), NEIGHBOURS), -1)
    for place, root in enumerate(queries.tolist()):
        candidates = np.flatnonzero((labels[:, 0] == labels[root, 0]) & (labels[:, 1] != 0))
        for side, embeddings in enumerate(pair.embeddings):
            ranked = nearest_candidates(embeddings, root, candidates)[:NEIGHBOURS]
            found[side, place, : len(ranked)] = ranked
    return queries, found, (found >= 0) & (labels[found, 1] == 1)
