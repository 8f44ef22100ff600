"""Which documents to label next: those that stand for most of what is not labelled yet, the uncertain ones first.

The order is that of greedy facility location. Every document of the gallery is covered as well as the most similar one
that is labelled or suggested. Each suggestion is the one that adds most to the sum of all covers: however many are
taken, the sum is at least 1 - 1/e of the best possible one (Nemhauser et al. 1978). So a suggestion is typical, not an
outlier, and unlike those before it. Documents of which the model is unsure count more.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..documents import Label

UNSURE = 1.0  # the most unsure document counts 1 + so much, the surest one 1
MOST_CANDIDATES = 20_000  # a larger gallery is sampled
MOST_COVERED = 4_000
_ROWS = 256  # of the candidates that are compared with all at a time
AS_NEAR = 0.9  # if the nearest label is at least so far, against the next one, both are about as near


class Suggestion(NamedTuple):
    """Attributes: position: in the gallery. reason: why, in words."""

    position: int
    reason: str


def suggest(
    embeddings: np.ndarray,
    limit: int,
    *,
    known: np.ndarray | None = None,
    labels: Sequence[Label] = (),
    seed: int = 0,
) -> list[Suggestion]:
    """Return the documents whose labels would teach most, best first.

    Args:
        embeddings: (N, D) float32, of the gallery.
        limit: at most so many.
        known: (M, D) those of documents that are labelled already. labels: theirs.
    """
    random = np.random.default_rng(seed)
    unit = _unit(embeddings)
    candidates = _sample(len(unit), MOST_CANDIDATES, random)
    covered = _sample(len(unit), MOST_COVERED, random)
    similarity = unit[candidates] @ unit[covered].T  # (N, C)
    to_labels = _to_labels(unit[covered], known, labels)
    unsure = uncertainty(to_labels)
    weights = (1 + UNSURE * unsure).astype(np.float32)
    chosen = _greedy(similarity, weights, to_labels.max(1), limit)
    suggested = similarity[chosen]
    nearest = suggested.argmax(0)  # (C,): which suggestion stands for each document
    nearest[suggested.max(0) <= to_labels.max(1)] = -1  # a labelled one does
    between = are_between(to_labels)
    scale = len(unit) / len(covered)
    note = looked_at(len(candidates), len(unit))
    return [
        Suggestion(int(candidates[place]), _reason(between[nearest == number], scale) + note)
        for number, place in enumerate(chosen)
    ]


def looked_at(some: int, count: int) -> str:
    """Return what a reason ends with where only some of the documents were looked at."""
    return f" (of {some:,} that were looked at, of {count:,})" if some < count else ""


def _greedy(similarity: np.ndarray, weights: np.ndarray, cover: np.ndarray, limit: int) -> list[int]:
    """Return the candidates that raise the weighted sum of the covers most, each after those before it.

    What a candidate adds can only become less. So what it would have added before is computed again only for those
    that come first by it (Minoux 1978). Of equal ones the first is taken.

    Args: similarity: (N, C). weights, cover: (C,).
    """
    starts = range(0, len(similarity), _ROWS)
    gains = np.concatenate([_gains(similarity[start : start + _ROWS], weights, cover) for start in starts])
    known_at = np.zeros(len(gains), np.int64)  # how many were chosen when each was computed
    chosen: list[int] = []
    while len(chosen) < min(limit, len(gains)):
        best = int(gains.argmax())
        if known_at[best] < len(chosen):
            gains[best : best + 1] = _gains(similarity[best : best + 1], weights, cover)
            known_at[best] = len(chosen)
            continue
        gains[best] = -1
        chosen.append(best)
        cover = np.maximum(cover, similarity[best])
    return chosen


def _gains(similarity: np.ndarray, weights: np.ndarray, cover: np.ndarray) -> np.ndarray:
    """Return how much each candidate would add, (N,): the same for a candidate whichever others are asked about."""
    found = similarity - cover
    np.maximum(found, 0, out=found)
    found *= weights
    gains: np.ndarray = found.sum(1)  # unlike a product of matrices, whose order of summing depends on the others
    return gains


def uncertainty(to_labels: np.ndarray) -> np.ndarray:
    """Return how unsure the model is of each document, (C,) in [0, 1], as a rank among them; 0 without two labels.

    It is unsure of a document that is about as near to one label as to another.

    Args: to_labels: (C, L) the similarity of each document to the nearest of each label.
    """
    if to_labels.shape[1] < 2:
        return np.zeros(len(to_labels))
    nearest = np.partition(to_labels, -2, axis=1)
    margin = nearest[:, -1] - nearest[:, -2]
    return 1 - margin.argsort().argsort() / max(1, len(margin) - 1)


def are_between(to_labels: np.ndarray) -> np.ndarray:
    """Return which documents are about as near to one label as to another, (C,) bool, whatever the others are.

    Distances are compared and not cosines, which of some models are all near 1.

    Args: to_labels: as of `uncertainty`.
    """
    if to_labels.shape[1] < 2:
        return np.zeros(len(to_labels), bool)
    distance = np.sqrt(np.maximum(1 - np.partition(to_labels, -2, axis=1)[:, -2:], 0))  # of unit vectors, / sqrt(2)
    found: np.ndarray = distance[:, 1] >= AS_NEAR * distance[:, 0]
    return found


def _to_labels(unit: np.ndarray, known: np.ndarray | None, labels: Sequence[Label]) -> np.ndarray:
    """The similarity of each document to the nearest of each label, (C, L); one column of -1 where none is known."""
    if known is None or not len(known):
        return np.full((len(unit), 1), -1.0, np.float32)
    numbers = {label: number for number, label in enumerate(dict.fromkeys(labels))}
    found = np.full((len(unit), len(numbers)), -1.0, np.float32)
    similarity = unit @ _unit(known).T
    for label, column in zip(labels, similarity.T, strict=True):
        np.maximum(found[:, numbers[label]], column, out=found[:, numbers[label]])
    return found


def _reason(between: np.ndarray, scale: float) -> str:
    """Say why. Args: between: of the documents that a suggestion stands for, whether they are between two labels.

    scale: how many there are for each covered one.
    """
    count = round(scale * len(between))
    pictures, them = ("1 picture", "it: it is") if count == 1 else (f"{count} pictures", "most of them: they are")
    words = f"is the nearest suggestion to about {pictures}, and no labelled one is nearer"
    if not count:
        return "stands for itself at most: what is labelled and the other suggestions are as near to every picture"
    if between.mean() > 1 / 2:
        return f"{words}; the model is unsure of {them} about as near to one label as to another"
    return words


def _sample(count: int, most: int, random: np.random.Generator) -> np.ndarray:
    return np.arange(count) if count <= most else np.sort(random.permutation(count)[:most])


def _unit(embeddings: np.ndarray) -> np.ndarray:
    found: np.ndarray = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
    return found.astype(np.float32)
