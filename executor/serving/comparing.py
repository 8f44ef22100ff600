"""Compares two versions on documents that are at hand, such as feedback that came after one of them was trained."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from ..compute.threads import in_brief_thread
from ..documents import Document, DocumentArray, group_of
from ..loading.datasets import DATASETS, fault_of
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
    is_ended: Callable[[], bool] = lambda: False,
) -> str | None:
    """Return a sentence if version `after` is proven worse than `before` in mAP@R on documents; else None.

    Documents of one group, and copies of a picture, count as one in the interval, as in the proof of a run.

    Args:
        docs: of `kind`; others, and those that cannot be embedded, are left out. chance: of a false answer.
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
        usable = list(islice((doc for doc in docs if fault_of(doc, kind) is None), MOST))
        prepared = [(doc, found) for doc in watched(usable) if (found := _prints(doc, kind, versions)) is not None]
        if not prepared:
            return None
        usable = [doc for doc, _ in prepared]
        dataset = DATASETS[kind](DocumentArray(usable))
        known = Side(dataset, [group_of(doc) for doc in usable], [found[0] for _, found in prepared])
        together = find_kinship(known, None, lambda _, number: versions[0].preprocess(usable[number])).train
        parts = [dataset.document(item) for item in range(len(dataset))]
        old, new = (
            score_embeddings(kind, _embed(version, parts, watched), dataset.labels, groups=together)
            for version in versions
        )
        if not old.queries:
            return None
        worse, sentence = verdict(new, old, level=1 - 2 * chance)
        return f"From {after!r} to {before!r} on feedback that came later, {sentence}" if worse else None

    try:
        return in_brief_thread(compare)
    except _Ended:
        return None


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
