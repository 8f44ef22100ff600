"""Retrieval metrics: how well embeddings rank what belongs together before what does not.

Every metric is a function of the ranks of a query's relevant items, so the ranks are computed once. A query has R
relevant items. In the ranking of all candidates but the query, their ranks, counted from 1, are r_1 < … < r_R:

recall_at_1, recall_at_5
    1 if any relevant item is among the first k, else 0; not the fraction of the relevant items that was found
    (Jégou et al. 2011, "Product quantization for nearest neighbor search", as adopted for metric learning by
    Oh Song et al. 2016, arXiv:1511.06452).
precision_at_1
    1 if the first item is relevant, else 0; equal to recall_at_1 by definition (Musgrave et al. 2020,
    arXiv:2003.08505).
mean_average_precision_at_r
    1/R · Σ_j j / r_j over the j with r_j ≤ R: the precision at each hit within the first R (same paper, eq. 3).
ndcg_at_10
    Σ_j 1 / log2(1 + r_j) over r_j ≤ 10, divided by the same sum for the ideal ranks 1 … min(10, R): gains are
    binary (Järvelin & Kekäläinen 2002, "Cumulated gain-based evaluation of IR techniques"; the discount
    log2(1 + rank) is the form in common use).
mrr
    1 / r_1 over the whole ranking, without a cut-off (Voorhees 1999, TREC-8 question answering track).

Similarity is the cosine; a zero vector has similarity 0 to everything. At equal similarity, items that are not relevant
rank first. So a model that embeds everything alike cannot look good by the order of the documents.

Similarities are float64. An untrained network is nearly collapsed: in float32 many of its cosines would be equal, and
it would be measured worse than it is. In float64 the measurement also does not depend on autocast, nor on torch's
float32 matmul precision, which training may have lowered.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .intervals import bootstrap_interval, cluster_interval, joined

if TYPE_CHECKING:
    import torch


METRICS = (
    "recall_at_1",
    "recall_at_5",
    "precision_at_1",
    "mean_average_precision_at_r",
    "ndcg_at_10",
    "mrr",
)
DECIDING = "mean_average_precision_at_r"  # decides whether a model is better

# How near every document is to some of them: (their positions (Q,), relevant documents of each) -> (Q, N) float64.
Nearness = Callable[[np.ndarray, int], np.ndarray]

_NDCG_DEPTH = 10
_TIE = 1e-12  # cosines closer than this count as equal; products of the same vectors differ by about 1e-16
_CHUNK_BYTES = 64 * 2**20  # of similarities, and of what is computed from them, at a time


@dataclass(frozen=True, eq=False)  # arrays have no single truth value for == to return
class Scores:
    """Metrics of every scored query.

    Attributes:
        per_query: For each name in `METRICS`, (Q,) float64 in [0, 1], in the order of the input.
        skipped: Queries that could not be scored.
        query_index: (Q,) int64, ascending: the position of each scored query in the input.
        clusters: (Q,) integers. Queries with the same number rise and fall together. None: each is alone.
        unit: What a cluster is: 'class', 'session', 'group' or 'query'.
    """

    per_query: dict[str, np.ndarray]
    skipped: int
    query_index: np.ndarray
    clusters: np.ndarray | None = None
    unit: str = "query"

    @property
    def queries(self) -> int:
        """How many queries were scored."""
        return len(self.query_index)

    @property
    def units(self) -> int:
        """How many clusters the queries are in."""
        return self.queries if self.clusters is None else len(np.unique(self.clusters))

    def grouped(self, groups: np.ndarray) -> "Scores":
        """Return these scores with the queries of a group in one cluster. Clusters that share a group are joined.

        Args: groups: (N,) integers, one for each document of the input; negative: in no group.
        """
        alone = np.arange(self.queries) if self.clusters is None else self.clusters
        if not self.queries:
            return self
        clusters = joined(alone, np.asarray(groups)[self.query_index])
        merged = len(np.unique(clusters)) < self.units
        return replace(self, clusters=clusters, unit="group") if merged else self

    def mean(self) -> dict[str, float]:
        """Return the mean of each metric over the queries; empty if none was scored."""
        if not self.queries:
            return {}
        return {name: float(values.mean()) for name, values in self.per_query.items()}

    def of(self, kept: np.ndarray) -> "Scores":
        """Return the scores of some queries. Args: kept: a bool for each position in the input."""
        mine = kept[self.query_index]
        return replace(
            self,
            per_query={name: values[mine] for name, values in self.per_query.items()},
            skipped=0,
            query_index=self.query_index[mine],
            clusters=None if self.clusters is None else self.clusters[mine],
        )

    def interval(self, name: str, *, level: float = 0.95, resamples: int = 1000, seed: int = 0) -> tuple[float, float]:
        """Return the confidence interval (low, high) of a metric's mean, within [0, 1].

        If the queries are in clusters, `cluster_interval` computes it, without resamples. Otherwise it is a percentile
        bootstrap.

        Raises: ValueError: no query was scored.
        """
        if self.clusters is None:
            return bootstrap_interval(self.per_query[name], level, resamples, seed)
        low, high = cluster_interval(self.per_query[name], self.clusters, level=level)
        return max(low, 0.0), min(high, 1.0)


def score_classes(
    embeddings: np.ndarray,
    labels: Sequence[int | str],
    *,
    candidates: np.ndarray | None = None,
    nearness: Nearness | None = None,
) -> Scores:
    """Score every document as a query against all others. Those with its label are relevant.

    If a document is the only one with its label, it is no query and is counted in `skipped`. It remains a candidate.

    Args:
        embeddings: (N, D) float32.
        labels: N labels; `1` and `'1'` are different ones.
        candidates: (N, D) float32, the vectors of the same documents that the queries are compared with; by default
            these are `embeddings`, too.
        nearness: in place of the cosine.

    Raises: ValueError: embeddings are not finite, or their shape does not fit the labels.
    """
    import torch

    stored = embeddings if candidates is None else candidates
    check_embeddings(embeddings=embeddings, candidates=stored)
    _check_length("labels", labels, len(embeddings))
    _check_length("candidates", stored, len(embeddings))
    codes = _numbered(labels)
    sizes = np.bincount(codes)[codes]  # (N,) documents in each document's class
    # Sorted by class size, then class: the queries of a chunk have equally many relevant items, in adjacent columns.
    order = np.lexsort((codes, sizes))
    positions = np.arange(len(order))
    class_starts = np.maximum.accumulate(np.where(np.diff(codes[order], prepend=-1) != 0, positions, 0))
    unit = torch.from_numpy(_unit(embeddings[order]))  # (N, D)
    others = unit if candidates is None else torch.from_numpy(_unit(candidates[order]))

    table = np.empty((len(METRICS), len(order)))
    sorted_sizes = sizes[order]
    for size in np.unique(sizes[sizes > 1]):
        first, last = np.searchsorted(sorted_sizes, [size, size + 1])
        for rows in _chunks(first, last, candidates=len(order), relevant=size - 1):
            queries = positions[rows, None]  # (Q, 1)
            starts = class_starts[rows, None]
            relevant = starts + (queries - starts + np.arange(1, size)) % size  # (Q, R): its class but for itself
            if nearness is None:
                similarity = unit[rows] @ others.T  # (Q, N)
            else:
                similarity = torch.from_numpy(nearness(order[rows], int(size) - 1)[:, order])
            similarity.scatter_(1, torch.from_numpy(queries), -torch.inf)
            table[:, order[rows]] = _score(similarity, torch.from_numpy(relevant))
    return _scores(table, scored=sizes > 1, clusters=codes, unit="class")


def score_sessions(roots: np.ndarray, matches: np.ndarray, sessions: Sequence[int], labels: Sequence[int]) -> Scores:
    """Score every session's root as a query against its own matches. Those labelled 1 are relevant.

    A session without a positive has nothing to find, and a session without a negative cannot be ranked wrongly. So they
    are no queries, and are counted in `skipped`.

    Args:
        roots: (S, D) float32.
        matches: (M, D) float32, of all sessions, in any order.
        sessions: for each match the position of its root in `roots`.
        labels: for each match 1 (positive) or -1 (negative).

    Raises: ValueError: embeddings are not finite, shapes do not fit, or a label or session is of another value.
    """
    import torch

    check_embeddings(roots=roots, matches=matches)
    _check_length("sessions", sessions, len(matches))
    _check_length("labels", labels, len(matches))
    owners = np.asarray(sessions, dtype=np.int64)
    positive = np.asarray(labels) == 1
    if not np.isin(labels, (1, -1)).all():
        raise ValueError("A match has a label other than 1 and -1.")
    if not ((owners >= 0) & (owners < len(roots))).all():
        raise ValueError(f"A match names a session outside 0 to {len(roots) - 1}.")

    positives = np.bincount(owners[positive], minlength=len(roots))  # (S,)
    negatives = np.bincount(owners[~positive], minlength=len(roots))
    starts = np.cumsum(positives + negatives) - positives - negatives
    scored = (positives > 0) & (negatives > 0)
    grouped = np.lexsort((~positive, owners))  # each session's matches together, positives first
    unit_roots = _unit(roots)
    flat = np.empty(len(matches))  # each match's similarity to its root
    for rows in _chunks(0, len(matches), candidates=2 * roots.shape[1], relevant=0):
        flat[rows] = np.einsum("md,md->m", unit_roots[owners[grouped[rows]]], _unit(matches[grouped[rows]]))

    table = np.empty((len(METRICS), len(roots)))
    for wanted, unwanted in np.unique(np.stack((positives, negatives), axis=1)[scored], axis=0):
        alike = np.flatnonzero((positives == wanted) & (negatives == unwanted))  # scored together
        for rows in _chunks(0, len(alike), candidates=2 * (wanted + unwanted), relevant=wanted):
            similarity = flat[starts[alike[rows], None] + np.arange(wanted + unwanted)]  # (Q, matches)
            relevant = torch.arange(int(wanted)).expand(len(similarity), -1)
            table[:, alike[rows]] = _score(torch.from_numpy(similarity), relevant)
    return _scores(table, scored=scored, unit="session")


def score_instances(first: np.ndarray, second: np.ndarray) -> Scores:
    """Score the first view of every document as a query against the second views of all. Its own is relevant.

    Args:
        first: (N, D) float32.
        second: (N, D) float32, another view of the same documents in the same order.

    Raises: ValueError: embeddings are not finite, or there are not as many of both.
    """
    import torch

    check_embeddings(first=first, second=second)
    _check_length("second views", second, len(first))
    queries, candidates = torch.from_numpy(_unit(first)), torch.from_numpy(_unit(second))
    own = torch.arange(len(first))[:, None]  # (N, 1)

    table = np.empty((len(METRICS), len(first)))
    for rows in _chunks(0, len(first), candidates=len(first), relevant=1):
        table[:, rows] = _score(queries[rows] @ candidates.T, own[rows])
    return _scores(table, scored=np.ones(len(first), dtype=bool))


def _score(similarity: "torch.Tensor", relevant: "torch.Tensor") -> np.ndarray:
    """Return the metrics of a chunk of queries, (M, Q) float64, in the order of `METRICS`.

    Args:
        similarity: (Q, N) float64, -inf for an item that is no candidate. It is overwritten.
        relevant: (Q, R) int64, the columns of each query's relevant items, R ≥ 1.
    """
    import torch

    wanted = relevant.shape[1]
    nearest = similarity.gather(1, relevant).sort(dim=1, descending=True).values - _TIE  # (Q, R)
    rivals = similarity.scatter_(1, relevant, -torch.inf)  # items that are not relevant
    # No metric but MRR looks deeper than R or 10, so no more than that many rivals can matter.
    depth = min(max(wanted, _NDCG_DEPTH), rivals.shape[1])
    top = rivals.topk(depth, dim=1).values
    ahead = torch.searchsorted(-top, -nearest, right=True)  # (Q, R): rivals at least as similar, `depth` at most
    deep = ahead[:, 0] == depth
    ahead[deep, 0] = (rivals[deep] >= nearest[deep, :1]).sum(dim=1)

    order = torch.arange(1, wanted + 1, dtype=torch.float64)
    ranks = ahead + order  # (Q, R)
    discounts = 1 / torch.log2(1 + ranks)
    first = ranks[:, 0]
    recall_at_1 = (first <= 1).double()
    recall_at_5 = (first <= 5).double()
    precision_at_1 = recall_at_1
    average_precision = (order / ranks * (ranks <= wanted)).sum(dim=1) / wanted
    ideal = (1 / torch.log2(1 + order[:_NDCG_DEPTH])).sum()
    ndcg = (discounts * (ranks <= _NDCG_DEPTH)).sum(dim=1) / ideal
    in_order = (
        recall_at_1,
        recall_at_5,
        precision_at_1,
        average_precision,
        ndcg,
        1 / first,
    )
    return torch.stack(in_order).numpy()


def _scores(table: np.ndarray, scored: np.ndarray, clusters: np.ndarray | None = None, unit: str = "query") -> Scores:
    """Keep the scored columns of the (M, N) table; `scored` is (N,) bool, `clusters` (N,) int64."""
    return Scores(
        per_query=dict(zip(METRICS, table[:, scored], strict=True)),
        skipped=int(np.count_nonzero(~scored)),
        query_index=np.flatnonzero(scored),
        clusters=None if clusters is None else clusters[scored],
        unit=unit,
    )


def _chunks(first: int, last: int, *, candidates: int, relevant: int) -> Iterator[slice]:
    """Cut the rows from `first` to `last` into slices that need no more memory than `_CHUNK_BYTES`."""
    row_bytes = 8 * (candidates + 12 * relevant)  # `_score` holds up to 12 numbers of 8 bytes per relevant item
    step = max(1, _CHUNK_BYTES // row_bytes)
    for start in range(first, last, step):
        yield slice(start, min(start + step, last))


def _numbered(labels: Sequence[Any]) -> np.ndarray:
    """Number the labels in order of first appearance, (N,) int64. For numpy `1` and `'1'` would be the same."""
    numbers: dict[Any, int] = {}
    return np.array([numbers.setdefault(label, len(numbers)) for label in labels], dtype=np.int64)


def _unit(embeddings: np.ndarray) -> np.ndarray:
    """Return the embeddings as float64, each divided by its length; a zero vector stays zero."""
    unit = embeddings.astype(np.float64)
    lengths = np.linalg.norm(unit, axis=1, keepdims=True)
    unit /= np.where(lengths > 0, lengths, 1)
    return unit


class NotFinite(ValueError):
    """Some embeddings are infinite or not a number: the model is broken."""


def check_embeddings(**arrays: np.ndarray) -> None:
    """Raise ValueError unless each array is (N, D), of one D, and finite: NotFinite in the last case."""
    for name, array in arrays.items():
        if array.ndim != 2:
            raise ValueError(f"{name} has shape {array.shape}; it must be (N, D).")
        broken = len(array) - int(np.count_nonzero(np.isfinite(array).all(axis=1)))
        if broken:
            raise NotFinite(f"{broken} of {len(array)} embeddings in {name} are not finite; the model is broken.")
    widths = {array.shape[1] for array in arrays.values()}
    if len(widths) > 1:
        raise ValueError(f"{' and '.join(arrays)} have different dimensions: {sorted(widths)}.")


def _check_length(name: str, items: Sequence[Any] | np.ndarray, expected: int) -> None:
    if len(items) != expected:
        raise ValueError(f"There are {len(items)} {name} for {expected} embeddings.")
