"""Scores two versions on the same items. An item that one of them cannot embed is left out for both."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .eval_set import score_embeddings
from .metrics import Scores


@dataclass(frozen=True)
class Pair:
    """Two versions on the same items.

    Attributes:
        first, second: their scores. The positions in these count the items that are left.
        kept: (M,) int64, the items that are left. embeddings: those of each version, (M, D) and (M, E) float32.
    """

    first: Scores
    second: Scores
    kept: np.ndarray
    embeddings: tuple[np.ndarray, np.ndarray]


def score_pair(
    kind: str,
    labels: np.ndarray,
    groups: np.ndarray,
    first: Sequence[np.ndarray | None],
    second: Sequence[np.ndarray | None],
) -> Pair | None:
    """Score the embeddings of both versions; None: no item is left that can be a query.

    Args:
        labels: of the items, in the form of a class or session dataset. groups: (N,) numbers of what
            belongs together.
        first, second: the embedding of each item; None: the version cannot embed it.
    """
    good = np.array([one is not None and other is not None for one, other in zip(first, second, strict=True)], bool)
    if kind == "session":  # one without its root, or with a part of its candidates, is another session
        broken = set(labels[~good, 0].tolist())
        good = np.array([session not in broken for session in labels[:, 0].tolist()], bool)
    if not good.any():
        return None
    stacked = _stacked(first, good), _stacked(second, good)
    scores = [score_embeddings(kind, each, labels[good], groups=groups[good]) for each in stacked]
    return Pair(scores[0], scores[1], np.flatnonzero(good), stacked) if scores[0].queries else None


def _stacked(embeddings: Sequence[np.ndarray | None], good: np.ndarray) -> np.ndarray:
    return np.stack([each for each, fits in zip(embeddings, good, strict=True) if each is not None and fits])
