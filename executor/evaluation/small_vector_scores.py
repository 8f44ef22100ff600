"""How well shortened and encoded vectors find what fits, on an eval set: an operator chooses by loss against bytes."""

from dataclasses import dataclass

import numpy as np

from ..models.small_vectors import Encoding, SmallVectors
from .eval_set import EvalSet, Measured
from .metrics import DECIDING, Scores
from .proof import paired_difference

SHORTER = (512, 256, 128, 64)
OVERSAMPLED = 4  # times as many documents as fit a query are looked up by bits, and then ordered by float vectors
_LITTLE = 1e-4  # of a vector's length; decides between equal numbers of bits by chance, and never between others


@dataclass(frozen=True, kw_only=True)
class SmallVectorScore:
    """One form of the vectors.

    Attributes:
        size: bytes of a vector in the index. value: mAP@R.
        difference, low, high: against plain vectors, query by query, with the 95 % interval.
        rescored: whether what the bits found is ordered by float vectors, which are kept elsewhere.
    """

    dimensions: int
    encoding: Encoding
    size: int
    value: float
    difference: float
    low: float
    high: float
    rescored: bool = False


def score_small_vectors(eval_set: EvalSet, measured: Measured, small: SmallVectors) -> list[SmallVectorScore]:
    """Score every form of the vectors of a version. Args: measured: what the version did with plain vectors."""
    whole, most = small.rotation.shape
    found = []
    for dimensions in [whole, *(shorter for shorter in SHORTER if shorter < whole and shorter <= most)]:
        for encoding in ("float", "int8", "binary"):
            if encoding == "int8" and small.scale is None:
                continue
            queries, stored = (
                _as_vectors(small(vectors, dimensions, encoding), dimensions, encoding, side)
                for side, vectors in enumerate((measured.embeddings, measured.stored))
            )
            size = dimensions * 4 if encoding == "float" else dimensions if encoding == "int8" else -(-dimensions // 8)
            found.append(_told(eval_set.search(queries, stored), measured.scores, dimensions, encoding, size))
            if encoding == "binary" and eval_set.dataset.kind == "class":
                rescored = eval_set.score_by(_Rescored(stored, measured.embeddings))
                found.append(_told(rescored, measured.scores, dimensions, encoding, size, rescored=True))
    return found


class _Rescored:
    """Looks up the nearest documents by bits, and orders these by plain vectors; the others stay behind them."""

    def __init__(self, bits: np.ndarray, plain: np.ndarray) -> None:
        exact = bits.astype(np.float64)
        self._bits = exact / np.linalg.norm(exact, axis=1, keepdims=True)
        self._plain = plain / np.maximum(np.linalg.norm(plain, axis=1, keepdims=True), 1e-12)

    def __call__(self, queries: np.ndarray, relevant: int) -> np.ndarray:
        by_bits: np.ndarray = self._bits[queries] @ self._bits.T  # (Q, N)
        count = min(OVERSAMPLED * relevant + 1, by_bits.shape[1])  # one of them is the query itself
        first = np.argpartition(-by_bits, count - 1, axis=1)[:, :count]
        again = np.einsum("qd,qkd->qk", self._plain[queries], self._plain[first])
        np.put_along_axis(by_bits, first, again + 3, axis=1)  # ahead of the others, whose cosines are at most 1
        return by_bits


def _as_vectors(encoded: np.ndarray, dimensions: int, encoding: Encoding, side: int) -> np.ndarray:
    """Vectors whose cosine orders as the distance of the encoded ones does. Of equal distances, chance decides."""
    if encoding != "binary":
        return encoded.astype(np.float32)
    signs = np.unpackbits(encoded, axis=1, count=dimensions) * 2.0 - 1.0
    chance = np.random.default_rng(0).uniform(-1, 1, len(signs)) if side else np.ones(len(signs))
    return np.column_stack([signs, chance * _LITTLE * dimensions**0.5]).astype(np.float32)


def _told(
    scores: Scores, plain: Scores, dimensions: int, encoding: Encoding, size: int, *, rescored: bool = False
) -> SmallVectorScore:
    difference, low, high = paired_difference(plain, scores)
    return SmallVectorScore(
        dimensions=dimensions,
        encoding=encoding,
        size=size,
        value=scores.mean()[DECIDING],
        difference=difference,
        low=low,
        high=high,
        rescored=rescored,
    )
