"""Which documents probably have a wrong label: their neighbours say another one.

Every document is judged by the labels of its nearest neighbours and never by its own, nor by those of documents that
belong together with it. That alone is not enough where a model was trained on the labels: it has learned the wrong ones
by heart and moved such a document in among those of its wrong label. So two sets of features vote:

- those of the model before any training on these labels, which no label can have moved;
- those of the tuned model, which knows more of what tells the labels apart.

Both are whitened. Training moves a document along the few directions that tell the labels apart; whitened, these count
no more than any other direction, and along the others the document lies where it lay.

Then the documents that were found lose their votes, and all are judged once more. Confident learning (Northcutt et al.
2021, arXiv:1911.00068), which asks for more votes than a label's documents have on average, was measured beside it and
finds fewer: benchmarks/README.md, "Label errors".
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

NEIGHBOURS = 10
DIMENSIONS = 128  # of the whitened features, of many documents
UNTRAINED_SHARE = 0.6  # of the votes
RIDGE = 0.1  # of the mean variance, added to each: directions of hardly any variance are noise
PER_DIMENSION = 6  # documents for each dimension, of few: whitened noise hides what is alike
LEAST_DOCUMENTS = 100
LEAST_OF_LABEL = 4  # documents; a label with fewer can hardly outvote others
# How much the untrained features must know of the labels: 0 is always naming the most frequent one, 1 is all right.
RELIABLE = 0.75  # from here on every document that is outvoted is named
LEAST_SKILL = 0.45  # from here on those are whose suggested label leads the given one by `SURE`; below, none
SURE = 0.5
_ROWS = 256  # documents whose similarities are in memory at a time


@dataclass(frozen=True, eq=False)
class LabelCheck:
    """What the neighbours say of the labels.

    Attributes:
        checked: documents that were judged.
        accuracy: share of them whose neighbours, by the features that saw no label, vote for the given label more than
            for any other. Wrong labels lower it too.
        extent: `all` that are outvoted are suspects; `surest`: only those; `none`: the features know too little.
        suspects: (M,) int64, positions of the documents that probably have a wrong label, most certain first.
        suggested: (M,) int64, the label that their neighbours have.
        margins: (M,) float64 in (0, 1], the share of the votes by which it leads the given label.
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
    """Return what the neighbours of each document say of its label; None: there are too few documents to say.

    Args:
        untrained: (N, D) float32, features of a model that was not trained on these labels.
        tuned: (N, E) float32, features of the tuned model.
        labels: (N,) int64, the given labels.
        units: (N,) int64; documents of one unit belong together and do not vote on each other.
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
    """Return the features along their main directions, of about equal variance, rows of unit length: (N, d) float32."""
    centred = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    variances, directions = np.linalg.eigh(centred.T @ centred / len(centred))
    wanted = max(2, min(DIMENSIONS, len(features) // PER_DIMENSION))
    kept = np.flatnonzero(variances > 1e-10 * max(variances[-1], 1e-30))[-wanted:]
    ridge = RIDGE * variances[kept].sum() / max(len(kept), 1)
    white = centred @ (directions[:, kept] / np.sqrt(variances[kept] + ridge))
    lengths = np.linalg.norm(white, axis=1, keepdims=True)
    scaled: np.ndarray = (white / np.where(lengths > 0, lengths, 1)).astype(np.float32)
    return scaled


def _nearest(unit: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Return each document's nearest others of another unit by cosine: (N, k) int64; -1 where there are fewer."""

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
    """Return the label besides the given one that has most votes, (N,) int64, and by how much it leads it, (N,).

    Args:
        neighbours: (N, k) by each set of features, with its share of the votes. trusted: (N,), the weight of each
            document's vote.
    """
    weights = [np.where(items < 0, 0, trusted[items]) for items in neighbours]
    votes = [
        share * each / np.maximum(each.sum(axis=1, keepdims=True), 1e-12)
        for share, each in zip(shares, weights, strict=True)
    ]
    joined, voted = np.concatenate(votes, axis=1), labels[np.concatenate(neighbours, axis=1)]  # (N, K) each
    own = voted == labels[:, None]
    totals = ((voted[:, :, None] == voted[:, None, :]) * joined[:, None, :]).sum(axis=2)  # of each neighbour's label
    totals[own] = -1
    first = totals.argmax(axis=1)
    rows = np.arange(len(labels))
    lead = np.maximum(totals[rows, first], 0) - (own * joined).sum(axis=1)
    lead[np.abs(lead) < 1e-9] = 0  # a tie, but for rounding
    return voted[rows, first], lead
