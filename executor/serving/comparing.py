"""Compares two versions on documents that are at hand, such as feedback that came after one of them was trained."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from ..compute.threads import in_brief_thread
from ..documents import Document, DocumentArray, group_of
from ..loading.datasets import DATASETS, fault_of
from ..store.lineage import Digests, Lineage, keys_of_document
from ..store.spool_rows import content_digest
from .embedder import Embedder
from .pipeline import Version

if TYPE_CHECKING:
    from ..evaluation.fingerprints import Fingerprint

MOST = 2000  # documents compared on
BATCH = 16


class _Ended(Exception):
    """Nobody waits for the answer any more."""


def is_worse(
    embedder: Embedder,
    before: str,
    after: str,
    kind: str,
    docs: Iterator[Document],
    chance: float,
    *,
    lineage: Callable[[str], Lineage] = lambda version: Lineage(),
    is_ended: Callable[[], bool] = lambda: False,
) -> str | None:
    """Return a sentence if version `after` is proven worse than `before` in mAP@R on documents; else None.

    Documents of one group, and copies of a picture, count as one in the interval, as in the proof of a run. What one of
    the two was trained on proves nothing.

    Args:
        docs: newest first; of more than `MOST` the others are not looked at. Those that are not of `kind`, that cannot
            be embedded, or that a version was trained on are left out. chance: of a false answer.
        lineage: says what a version has seen; by default nothing.
        is_ended: whether nobody waits for the answer any more, which is then None.
    """

    def watched(parts: Iterable[Any]) -> Iterator[Any]:
        for part in parts:
            if is_ended():
                raise _Ended
            yield part

    def compare() -> str | None:
        from ..evaluation.eval_set import score_embeddings
        from ..evaluation.kinship import Side, find_kinship
        from ..evaluation.proof import verdict

        versions = [embedder.version(before), embedder.version(after)]
        old, new = (lineage(name).trained_on(sessions=kind == "session") for name in (before, after))
        proving = list(_proving(watched(docs), kind, versions, old | new))
        if not proving:
            return None
        usable = [doc for doc, _ in proving]
        dataset = DATASETS[kind](DocumentArray(usable))
        known = Side(dataset, [group_of(doc) for doc in usable], [found for _, found in proving])
        together = find_kinship(known, None, lambda _, number: versions[0].preprocess(usable[number])).train
        parts = [dataset.document(item) for item in range(len(dataset))]
        first, second = (
            score_embeddings(kind, _embed(version, parts, watched), dataset.labels, groups=together)
            for version in versions
        )
        if not first.queries:
            return None
        worse, sentence = verdict(second, first, level=1 - 2 * chance)
        return f"From {after!r} to {before!r} on feedback that came later, {sentence}" if worse else None

    try:
        return in_brief_thread(compare)
    except _Ended:
        return None


def _proving(
    docs: Iterator[Document], kind: str, versions: list[Version], taught: Digests
) -> "Iterator[tuple[Document, Fingerprint]]":
    """Yield those of the first `MOST` documents of a kind that prove something, each as the first version sees it.

    Args: taught: by what documents are known that prove nothing.
    """

    def may_prove(doc: Document) -> bool:
        return fault_of(doc, kind) is None and taught.isdisjoint(
            keys_of_document(content_digest(doc), None, group_of(doc))
        )

    for doc in islice(filter(may_prove, docs), MOST):
        prints = _prints(doc, kind, versions)
        if prints is not None and taught.isdisjoint(each.digest for each in prints):
            yield doc, prints[0]


def _prints(doc: Document, kind: str, versions: list[Version]) -> "list[Fingerprint] | None":
    """Return the fingerprint of a document as each version sees it; None: one of them cannot embed all of it."""
    from ..evaluation.kinship import print_of

    found = []
    try:
        for version in versions:
            found.append(print_of(version.preprocess(doc), 0))
            for match in doc.matches if kind == "session" else ():
                version.preprocess(match)
    except Exception:  # whatever it is, the document proves nothing
        return None
    return found


def _embed(version: Version, parts: list[Any], watched: Callable[[Iterable[Any]], Iterator[Any]]) -> np.ndarray:
    """(N, D) float32, in fp32."""
    from ..loading.batches import collate
    from ..loading.forward import embed_batches

    starts = range(0, len(parts), BATCH)
    batches = (
        collate([version.preprocess(part) for part in parts[start : start + BATCH]]) for start in watched(starts)
    )
    return embed_batches(version.model, batches, version.device)
