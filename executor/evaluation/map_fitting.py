"""Learns the maps between the spaces of two versions, from documents that both have embedded.

Several sorts of map are fitted to one part of the documents, and the best on another part is chosen:

ridge       ridge regression (Hoerl & Kennard 1970) of the vectors wanted on those there are
residual    the same of their difference, where both have as many values: strong regularisation leaves a vector as it is
low rank    either of them, cut to a rank as reduced-rank regression does (Izenman 1975); it takes less time and room
orthogonal  the rotation nearest to the vectors wanted (orthogonal Procrustes, Schönemann 1966)

The way back is such a map turned round. Since q · M s = Mᵀ q · s, a query q of the new version finds almost what it
would find among mapped vectors s, while the stored ones stay as they are. For the shift b a direction u is added whose
product with every stored vector is near to 1: q · (M s + b) ≈ (Mᵀ q + (q · b) u) · s. Regressing the old vectors on the
new ones was worse than that in all that we measured: it has to learn what the old version cannot tell apart.

Orthogonal, and low-rank affine with a residual, are those that the Drift-Adapter compares (EMNLP 2025), there trained
by gradient descent; here each is solved in closed form.

A map is good if a search by it finds what a search finds after all is embedded anew. That needs no labels: it is the
correlation of the similarities of each query. How near a vector comes to the one wanted says less: where all vectors of
a space are alike, their mean comes near to every one of them, and finds nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..models.space_map import SpaceMap

STRENGTHS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # of the regularisation, in mean squared singular values
ONES_STRENGTH = 0.1  # the same for the direction in which all vectors have one value
RANKS = (32, 64, 128)
WORTH = 0.002  # a map that takes less time is taken if it does no worse than that
LARGEST_WHOLE = 512 * 512  # numbers in a map of full rank; a query would have to wait for a larger one
LARGEST = 4096  # values; larger vectors get no map: it would take gigabytes
LARGEST_ROTATION = 2048  # values; that of larger vectors takes minutes

Embeddings = tuple[np.ndarray, np.ndarray]  # of the same documents by the old and the new version, (N, A) and (N, B)


@dataclass(frozen=True, eq=False)
class Fitted:
    """A map, what sort it is, and how good it was on the documents to choose by."""

    map: SpaceMap
    kind: str
    goodness: float


def learn_maps(
    lessons: Embeddings, choices: Embeddings, *, unit: tuple[bool, bool] = (True, True)
) -> tuple[Fitted, Fitted]:
    """Return the map of stored vectors from the old space to the new one, and that of queries back.

    Args:
        lessons: to learn from. choices: of other documents, to choose by; float32.
        unit: whether the vectors of the old and of the new space are of unit length.
    """
    (old, new), (old_choices, new_choices) = lessons, choices
    wanted = _standard(new_choices @ new_choices.T)
    fits = _Fits(old, new, unit[1])

    def both(kind: str, found: SpaceMap) -> tuple[Fitted, Fitted]:
        turned = _adjoint(found, fits.ones, unit[0])
        there = _agreement(new_choices @ found(old_choices).T, wanted)
        back = _agreement(turned(new_choices) @ old_choices.T, wanted)
        return Fitted(found, kind, there), Fitted(turned, f"adjoint of {kind}", back)

    forward, backward, regression = _NONE, _NONE, _NONE
    for kind, found in fits.whole():  # one at a time: each may take hundreds of megabytes
        there, back = both(kind, found)
        forward, backward = max(forward, there, key=_goodness), max(backward, back, key=_goodness)
        if kind in fits.solved:
            regression = max(regression, there, key=_goodness)
    smaller = [both(kind, found) for kind, found in fits.low_rank(regression.kind)]
    return _cheapest([one for one, _ in smaller], forward), _cheapest([one for _, one in smaller], backward)


def _cheapest(smaller: list[Fitted], whole: Fitted) -> Fitted:
    """Return the first of low rank that is as good as the best of all but for `WORTH`, else the best."""
    sizes = whole.map.sizes
    affordable = [whole, *smaller] if sizes[0] * sizes[1] <= LARGEST_WHOLE or not smaller else smaller
    best = max(affordable, key=_goodness)
    return next((fitted for fitted in smaller if fitted.goodness >= best.goodness - WORTH), best)


def _goodness(fitted: Fitted) -> float:
    return fitted.goodness


def _standard(similarities: np.ndarray) -> np.ndarray:
    """Each row (N, N - 1) without the document itself, of mean 0 and length 1."""
    count = len(similarities)
    rows = similarities[~np.eye(count, dtype=bool)].reshape(count, count - 1).astype(np.float64)
    rows -= rows.mean(axis=1, keepdims=True)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return rows


def _agreement(similarities: np.ndarray, wanted: np.ndarray) -> float:
    """The mean correlation of each query's similarities with those wanted."""
    return float((_standard(similarities) * wanted).sum(axis=1).mean())


def _adjoint(found: SpaceMap, ones: np.ndarray, unit: bool) -> SpaceMap:
    """Turn a map round. Args: ones: (A,), whose product with a vector of the old space is near to 1."""
    shift, dense, down, up = np.zeros(found.sizes[0], np.float32), None, None, None
    if found.dense is not None:
        dense = found.dense.T + np.outer(found.shift, ones)
    if found.down is not None and found.up is not None:
        down, up = np.column_stack([found.up.T, found.shift]), np.vstack([found.down.T, ones])
    return SpaceMap(shift=shift, dense=dense, down=down, up=up, skip=found.skip, unit=unit)


_NONE = Fitted(SpaceMap(shift=np.zeros(0, np.float32)), "", -np.inf)


class _Fits:
    """All maps that are tried. Computes in float64, by torch, whose threads do not wait for each other for ever.

    Attributes:
        solved: by the kind of a regression: skip, regularisation, and Qᵀ Xᵀ target.
        ones: (A,) float32, whose product with an old vector is near to 1.
    """

    def __init__(self, old: np.ndarray, new: np.ndarray, unit: bool) -> None:
        x, y = (torch.from_numpy(vectors).double() for vectors in (old, new))
        self._mean_x, self._mean_y = x.mean(0), y.mean(0)
        self._x, self._y = x - self._mean_x, y - self._mean_y
        self._unit = unit
        self._squares, self._basis = _spectrum(self._x)
        self.solved: dict[str, tuple[float, float, Tensor]] = {}
        self.ones = _single(_near_one(self._mean_x, self._squares, self._basis, len(x)))

    def whole(self) -> Iterator[tuple[str, SpaceMap]]:
        """Every map of full rank, each with its kind."""
        alike = self._x.shape[1] == self._y.shape[1]
        mean = float(self._squares.mean())
        for skip in (0.0, 1.0) if alike else (0.0,):
            products = self._basis.T @ (self._x.T @ (self._y - skip * self._x if skip else self._y))
            for strength in STRENGTHS:
                kind = f"{'residual' if skip else 'ridge'} {strength:g}"
                self.solved[kind] = (skip, strength * mean, products)
                yield kind, self._made(self._basis @ (products / (self._squares + strength * mean)[:, None]), skip)
        if max(self._x.shape[1], self._y.shape[1]) <= LARGEST_ROTATION:
            yield "orthogonal", self._made(_rotation(self._x.T @ self._y), 0.0)

    def low_rank(self, kind: str) -> Iterator[tuple[str, SpaceMap]]:
        """A regression cut to lower ranks, the lowest first."""
        skip, regularisation, products = self.solved[kind]
        damped = products / torch.sqrt(self._squares + regularisation)[:, None]
        _, directions = torch.linalg.eigh(damped.T @ damped)  # (B, B), ascending
        dense = self._basis @ (products / (self._squares + regularisation)[:, None])
        for rank in RANKS:
            if rank < min(dense.shape) // 2:
                up = directions[:, -rank:].T
                yield f"{kind}, rank {rank}", self._made(dense, skip, up)

    def _made(self, dense: Tensor, skip: float, up: Tensor | None = None) -> SpaceMap:
        whole = dense if up is None else dense @ up.T @ up
        shift = self._mean_y - self._mean_x @ whole - (skip * self._mean_x if skip else 0)
        found = SpaceMap(shift=_single(shift), skip=skip, unit=self._unit)
        if up is None:
            return replace(found, dense=_single(dense))
        return replace(found, down=_single(dense @ up.T), up=_single(up))


def _spectrum(centred: Tensor) -> tuple[Tensor, Tensor]:
    """Return the squared singular values (K,) that are not zero and the right singular vectors (D, K)."""
    count, size = centred.shape
    squares, found = torch.linalg.eigh(centred.T @ centred if size <= count else centred @ centred.T)
    kept = squares > 1e-10 * squares[-1].clamp(min=1e-12)
    squares, found = squares[kept], found[:, kept]
    return squares, found if size <= count else centred.T @ found / torch.sqrt(squares)


def _near_one(mean: Tensor, squares: Tensor, basis: Tensor, count: int) -> Tensor:
    """The direction u (D,) with the least mean square of 1 - u · x, a little regularised.

    By Sherman and Morrison it is C⁻¹ m / (1 + m · C⁻¹ m) for the mean m and the covariance C, which is taken to be the
    regularisation where the vectors do not vary.
    """
    floor = ONES_STRENGTH * float(squares.mean() / count) if len(squares) else 1.0
    along = basis.T @ mean
    solved = mean / floor + basis @ (along / (squares / count + floor) - along / floor)
    return solved / (1 + mean @ solved)


def _rotation(products: Tensor) -> Tensor:
    """U Vᵀ of the products U S Vᵀ (A, B), without the directions in which there is nothing."""
    squares, found = torch.linalg.eigh(products.T @ products)
    kept = squares > 1e-10 * squares[-1].clamp(min=1e-12)
    found = found[:, kept]
    rotation: Tensor = products @ found / torch.sqrt(squares[kept]) @ found.T
    return rotation


def _single(tensor: Tensor) -> np.ndarray:
    single: np.ndarray = tensor.float().contiguous().numpy()
    return single
