"""Finds documents that probably have a wrong label, because their neighbours have another one.

A document is judged by the labels of its nearest neighbours. Its own label has no vote, and neither have the documents
that belong together with it. With the tuned model alone this would not work: it has learned the wrong labels by heart,
and has moved the document to others of its wrong label. So two sets of features vote:

- the features of the model before any training on these labels: no label has moved them;
- the features of the tuned model: they tell the labels apart better.

Both are whitened. Training moves a document along the few directions that tell the labels apart. After whitening these
count no more than the other directions, along which the document has not moved.

The documents that are found then lose their votes, and all are judged a second time. We also measured confident
learning (Northcutt et al. 2021, arXiv:1911.00068), which asks for more votes than a label's documents have on average.
It finds fewer: benchmarks/README.md, "Label errors".
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.linalg import eigh

NEIGHBOURS = 10
DIMENSIONS = 128  # of the whitened features, if there are many documents
UNTRAINED_SHARE = 0.6  # of the votes
RIDGE = 0.1  # share of the mean variance that is added to each: directions with little variance are noise
PER_DIMENSION = 6  # documents a dimension, if there are few: with more dimensions noise would hide what is alike
LEAST_DOCUMENTS = 100
LEAST_OF_LABEL = 4  # documents; those of a label with fewer are not judged, as they can hardly outvote others
# Skill: how much the untrained features know of the labels. 0: always naming the most frequent one. 1: all are right.
RELIABLE = 0.75  # from this skill on, every document that is outvoted is named
LEAST_SKILL = 0.45  # from this skill on, those whose suggested label leads the given one by `SURE`; below, none
SURE = 0.5
_ROWS = 256  # documents whose similarities are in memory at a time


@dataclass(frozen=True, eq=False)
class LabelCheck:
    """What the neighbours say of the labels.

    Attributes:
        checked: documents that were judged.
        accuracy: share of them whose neighbours vote for the given label more than for any other. Only the untrained
            features vote here. Wrong labels lower the accuracy too.
        extent: which of the outvoted documents are suspects: `all`, the `surest`, or `none`, as the features know too
            little.
        suspects: (M,) int64, positions of the documents that probably have a wrong label, most certain first.
        suggested: (M,) int64, for each the label of its neighbours.
        margins: (M,) float64 in (0, 1], the share of the votes by which the suggested label leads the given one.
    """

    checked: int
    accuracy: float
    extent: Literal["all", "surest", "none"]
    suspects: np.ndarray
    suggested: np.ndarray
    margins: np.ndarray


def find_label_errors(
    untrained: np.ndarray, tuned: np.ndarray, labels: np.ndarray, units: np.ndarray | None = None
) -> LabelCheck | None:
    """Return what the neighbours of each document say of its label; None: there are too few documents.

    Args:
        untrained: (N, D) float32, features of a model that was not trained on these labels.
        tuned: (N, E) float32, features of the tuned model.
        labels: (N,) int64, the given labels.
        units: (N,) int64. Documents with the same number belong together, and do not vote on each other.
    """
    if len(labels) < LEAST_DOCUMENTS:
        return None
    units = np.arange(len(labels)) if units is None else units
    neighbours = [_nearest(_whitened(features), units) for features in (untrained, tuned)]
    judged = np.bincount(labels)[labels] >= LEAST_OF_LABEL
    if not judged.any():
        return None
    trusted = np.ones(len(labels))
    _, lead = _outvoted(neighbours[:1], [1.0], labels, trusted)
    accuracy = float((lead < 0)[judged].mean())
    for _ in range(2):
        rival, lead = _outvoted(neighbours, [UNTRAINED_SHARE, 1 - UNTRAINED_SHARE], labels, trusted)
        trusted = (lead <= 0).astype(float)
    frequent = np.bincount(labels[judged]).max() / judged.sum()
    skill = (accuracy - frequent) / max(1 - frequent, 1e-12)
    extent: Literal["all", "surest", "none"]
    extent = "all" if skill >= RELIABLE else "surest" if skill >= LEAST_SKILL else "none"
    found = judged & (lead > 0) & (lead >= {"all": 0, "surest": SURE, "none": np.inf}[extent])
    order = np.flatnonzero(found)[np.argsort(-lead[found], kind="stable")]
    return LabelCheck(int(judged.sum()), accuracy, extent, order, rival[order], lead[order])


def _whitened(features: np.ndarray) -> np.ndarray:
    """Return the features along their main directions, (N, d) float32: about equal variances, rows of unit length."""
    centred = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    size = features.shape[1]
    wanted = min(size, max(2, min(DIMENSIONS, len(features) // PER_DIMENSION)))
    variances, directions = eigh(centred.T @ centred / len(centred), subset_by_index=(size - wanted, size - 1))
    kept = np.flatnonzero(variances > 1e-10 * max(variances[-1], 1e-30))
    ridge = RIDGE * variances[kept].sum() / max(len(kept), 1)
    white = centred @ (directions[:, kept] / np.sqrt(variances[kept] + ridge))
    lengths = np.linalg.norm(white, axis=1, keepdims=True)
    scaled: np.ndarray = (white / np.where(lengths > 0, lengths, 1)).astype(np.float32)
    return scaled


def _nearest(unit: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Return each document's nearest others by cosine, (N, k) int64, none of its unit; -1 where there are fewer."""

    def rows() -> Iterator[np.ndarray]:
        depth = min(NEIGHBOURS, len(unit) - 1)
        for start in range(0, len(unit), _ROWS):
            part = slice(start, start + _ROWS)
            similarity = unit[part] @ unit.T
            similarity[units[part, None] == units[None]] = -np.inf
            top = np.argpartition(-similarity, depth - 1, axis=1)[:, :depth]
            yield np.where(np.isneginf(np.take_along_axis(similarity, top, axis=1)), -1, top)

    return np.concatenate(list(rows()))


def _outvoted(
    neighbours: list[np.ndarray], shares: list[float], labels: np.ndarray, trusted: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the other label with the most votes, (N,) int64, and by how much it leads the given one, (N,).

    Args:
        neighbours: (N, k) for each set of features. shares: of the votes, for each set. trusted: (N,), the weight of
            each document's vote.
    """
    weights = [np.where(items < 0, 0, trusted[items]) for items in neighbours]
    votes = [
        share * each / np.maximum(each.sum(axis=1, keepdims=True), 1e-12)
        for share, each in zip(shares, weights, strict=True)
    ]
    joined, voted = np.concatenate(votes, axis=1), labels[np.concatenate(neighbours, axis=1)]  # (N, K) each
    own = voted == labels[:, None]
    totals = ((voted[:, :, None] == voted[:, None, :]) * joined[:, None, :]).sum(axis=2)  # votes for its label
    totals[own] = -1
    first = totals.argmax(axis=1)
    rows = np.arange(len(labels))
    lead = np.maximum(totals[rows, first], 0) - (own * joined).sum(axis=1)
    lead[np.abs(lead) < 1e-9] = 0  # a tie, apart from rounding
    return voted[rows, first], lead
