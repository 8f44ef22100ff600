"""Learns the maps between the spaces of two versions, from documents that both have embedded.

Several sorts of map are fitted to one part of the documents, and the best on another part is chosen:

ridge       ridge regression (Hoerl & Kennard 1970) of the new vectors on the old ones
residual    the same of their difference, where both have as many values: strong regularisation leaves a vector as it is
low rank    either of them, cut to a rank as reduced-rank regression does (Izenman 1975); it takes less time and room
orthogonal  the rotation nearest to the new vectors (orthogonal Procrustes, Schönemann 1966)

Orthogonal, and low-rank affine with a residual, are those that the Drift-Adapter compares (EMNLP 2025), there trained
by gradient descent; here each is solved in closed form.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..models.space_map import SpaceMap

STRENGTHS = (1e-3, 1e-2, 0.1, 1.0, 10.0)  # of the regularisation, in mean squared singular values
RANKS = (32, 128)
WORTH = 0.005  # a map that takes less time is taken if it does no worse than that
LARGEST_ROTATION = 2048  # values; a singular value decomposition of more takes minutes

Goodness = Callable[[np.ndarray], float]  # of mapped vectors of the documents to choose by


@dataclass(frozen=True, eq=False)
class Fitted:
    """A map, what sort it is, and how good it was on the documents to choose by."""

    map: SpaceMap
    kind: str
    goodness: float


def learn_map(
    old: np.ndarray, new: np.ndarray, to_choose: np.ndarray, goodness: Goodness, *, unit: bool = True
) -> Fitted:
    """Return the best map from the space of `old` to that of `new`.

    Args:
        old: (N, A) float32. new: (N, B) float32, of the same documents.
        to_choose: (M, A) float32, old vectors of other documents. goodness: how good these are, once mapped.
        unit: whether the vectors of the new space are of unit length.
    """
    fits = _Fits(old, new, unit)

    def tried(candidates: Iterator[tuple[str, SpaceMap]]) -> list[Fitted]:
        return [Fitted(found, kind, goodness(found(to_choose))) for kind, found in candidates]

    whole = tried(fits.whole())
    best = max(whole, key=lambda fitted: fitted.goodness)
    smaller = tried(fits.low_rank(max((fit for fit in whole if fit.kind != "orthogonal"), key=lambda f: f.goodness)))
    best = max([best, *smaller], key=lambda fitted: fitted.goodness)
    return next((fitted for fitted in smaller if fitted.goodness >= best.goodness - WORTH), best)


class _Fits:
    """All maps that are tried. Computes in float64, by torch, whose threads do not wait for each other for ever."""

    def __init__(self, old: np.ndarray, new: np.ndarray, unit: bool) -> None:
        x, y = (torch.from_numpy(vectors).double() for vectors in (old, new))
        self._mean_x, self._mean_y = x.mean(0), y.mean(0)
        self._x, self._y = x - self._mean_x, y - self._mean_y
        self._unit = unit
        self._squares, self._basis = _spectrum(self._x)
        self._solved: dict[str, tuple[float, float, Tensor]] = {}  # by kind: skip, regularisation, Qᵀ Xᵀ target

    def whole(self) -> Iterator[tuple[str, SpaceMap]]:
        """Every map of full rank, each with its kind."""
        alike = self._x.shape[1] == self._y.shape[1]
        mean = float(self._squares.mean())
        for skip in (0.0, 1.0) if alike else (0.0,):
            products = self._basis.T @ (self._x.T @ (self._y - skip * self._x if skip else self._y))
            for strength in STRENGTHS:
                kind = f"{'residual' if skip else 'ridge'} {strength:g}"
                self._solved[kind] = (skip, strength * mean, products)
                yield kind, self._made(self._basis @ (products / (self._squares + strength * mean)[:, None]), skip)
        if max(self._x.shape[1], self._y.shape[1]) <= LARGEST_ROTATION:
            left, _, right = torch.linalg.svd(self._x.T @ self._y, full_matrices=False)
            yield "orthogonal", self._made(left @ right, 0.0)

    def low_rank(self, fitted: Fitted) -> Iterator[tuple[str, SpaceMap]]:
        """A map of full rank cut to lower ranks, the lowest first."""
        skip, regularisation, products = self._solved[fitted.kind]
        damped = products / torch.sqrt(self._squares + regularisation)[:, None]
        _, directions = torch.linalg.eigh(damped.T @ damped)  # (B, B), ascending
        dense = self._basis @ (products / (self._squares + regularisation)[:, None])
        for rank in RANKS:
            if rank < min(dense.shape) // 2:
                up = directions[:, -rank:].T
                yield f"{fitted.kind}, rank {rank}", self._made(dense, skip, up)

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


def _single(tensor: Tensor) -> np.ndarray:
    single: np.ndarray = tensor.float().numpy()
    return single
