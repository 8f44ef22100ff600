"""Choose the queries that a report shows, with their results before and after: a fair sample, not the best."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from .parts import Neighbour, Query

POOL = 1000  # queries in which we look for worse ones; all of a large eval set would take minutes
_ROWS = 256  # queries whose similarities are in memory at a time


class Choice(NamedTuple):
    """A query and its nearest neighbours, nearest first. All numbers are positions in the embeddings.

    Attributes: worst: true if chosen because it got worse; false if part of the random sample.
    """

    query: int
    before: list[int]
    after: list[int]
    worst: bool


def choose_queries(
    before: np.ndarray, after: np.ndarray, labels: np.ndarray, *, count: int = 12, neighbours: int = 6, seed: int = 0
) -> list[Choice]:
    """Choose queries of class data: `count` random ones, then up to a quarter as many that got worse.

    The random ones come from each class in turn. Those that got worse are the ones whose results lost most, among
    `POOL` random queries. A query is never chosen if its class has no other member.

    Args: before, after: (N, D) and (N, E) embeddings by the two models. labels: (N,) classes.
    """
    rng = np.random.default_rng(seed)
    pool = class_in_turn(labels, rng)[:POOL]
    if not len(pool):
        return []
    found = [np.concatenate(list(nearest(embeddings, pool, neighbours))) for embeddings in (before, after)]
    precision = [_precision(labels[items] == labels[pool, None]) for items in found]
    return _chosen(pool, [items.tolist() for items in found], precision[1] - precision[0], count)


def rank_sessions(
    before: np.ndarray, after: np.ndarray, labels: np.ndarray, *, count: int = 12, neighbours: int = 6, seed: int = 0
) -> list[Choice]:
    """Choose sessions as `choose_queries` does: the root is the query, its matches are ranked.

    A session is never chosen if it has no root, or no match of one of the two labels.

    Args: labels: (N, 2): the session, and 0 for its root, 1 or -1 for a match.
    """
    rng = np.random.default_rng(seed)
    sessions: dict[int, list[int]] = {}
    for item, session in enumerate(labels[:, 0].tolist()):
        sessions.setdefault(session, []).append(item)
    whole = [items for items in sessions.values() if {-1, 0, 1} <= set(labels[items, 1].tolist())]
    roots: list[int] = []
    found: list[list[list[int]]] = [[], []]
    precision: list[list[float]] = [[], []]
    for number in rng.permutation(len(whole))[:POOL]:
        items = np.array(whole[number])
        root, matches = items[labels[items, 1] == 0][0], items[labels[items, 1] != 0]
        roots.append(int(root))
        for side, embeddings in enumerate((before, after)):
            ranked = nearest_candidates(embeddings, int(root), matches)[:neighbours]
            found[side].append(ranked.tolist())
            precision[side].append(float(_precision(labels[ranked, 1][None] == 1)[0]))
    return _chosen(np.array(roots), found, np.subtract(precision[1], precision[0]), count)


def make_gallery(
    choices: list[Choice],
    *,
    image: Callable[[int], np.ndarray | None],
    caption: Callable[[int], str],
    fits: Callable[[int, int], bool | None],
    name: Callable[[int], str] = lambda item: "",
) -> list[Query]:
    """Return the gallery of a report.

    Args: image, caption, name: return those of an item. fits: says whether an item (its second argument) belongs to a
        query (its first).
    """

    def neighbours(query: int, items: list[int]) -> list[Neighbour]:
        return [
            Neighbour(image=image(item), caption=caption(item), fits=fits(query, item), name=name(item))
            for item in items
        ]

    return [
        Query(
            image=image(choice.query),
            caption=caption(choice.query),
            before=neighbours(choice.query, choice.before),
            after=neighbours(choice.query, choice.after),
            worst=choice.worst,
            name=name(choice.query),
        )
        for choice in choices
    ]


def _chosen(pool: np.ndarray, found: list[list[list[int]]], change: np.ndarray, count: int) -> list[Choice]:
    """Return the first `count` of the pool, then up to a quarter as many with the most negative `change`."""
    order = np.argsort(change, kind="stable")
    worst = [number for number in order.tolist() if change[number] < 0 and number >= count][: count // 4]
    return [
        Choice(int(pool[number]), found[0][number], found[1][number], number >= count)
        for number in [*range(min(count, len(pool))), *worst]
    ]


def class_in_turn(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return random positions, (Q,) int64, in rounds: each round has one position of every class that has any left."""
    _, numbers, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    shuffled = rng.permutation(len(labels))
    by_class = shuffled[np.argsort(numbers[shuffled], kind="stable")]
    turn = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    place = rng.permutation(len(sizes))[numbers[by_class]]  # the order of the classes in a round
    order = by_class[np.lexsort((place, turn))]
    return order[sizes[numbers[order]] > 1]


def nearest(embeddings: np.ndarray, queries: np.ndarray, neighbours: int) -> Iterator[np.ndarray]:
    """Yield the nearest items by cosine, nearest first, without the query itself: (rows, neighbours) int64."""
    unit = _unit(embeddings)
    depth = min(neighbours, len(unit) - 1)
    for start in range(0, len(queries), _ROWS):
        rows = queries[start : start + _ROWS]
        similarity = unit[rows] @ unit.T
        similarity[np.arange(len(rows)), rows] = -np.inf
        top = np.argpartition(-similarity, depth - 1, axis=1)[:, :depth]
        order = np.argsort(-np.take_along_axis(similarity, top, axis=1), axis=1, kind="stable")
        yield np.take_along_axis(top, order, axis=1)


def nearest_candidates(embeddings: np.ndarray, query: int, candidates: np.ndarray) -> np.ndarray:
    """Return the candidates of a query, (M,) positions, nearest first by cosine."""
    similarity = _unit(embeddings[candidates]) @ _unit(embeddings[[query]])[0]
    ranked: np.ndarray = candidates[np.argsort(-similarity, kind="stable")]
    return ranked


def _unit(embeddings: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    return embeddings / np.where(lengths > 0, lengths, 1)


def _precision(fits: np.ndarray) -> np.ndarray:
    """Return the sum of the precisions at each hit, (Q,), for `fits` (Q, neighbours). Larger is better."""
    hits = np.cumsum(fits, axis=1) / np.arange(1, fits.shape[1] + 1)
    total: np.ndarray = (hits * fits).sum(axis=1)
    return total
