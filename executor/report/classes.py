"""Looks at single classes for the report: which got better or worse, and which are confused."""

from collections import defaultdict
from collections.abc import Callable

import numpy as np

from ..evaluation.metrics import DECIDING, Scores
from .gallery import POOL, class_in_turn, nearest
from .parts import ClassChange, Confusion, Neighbour

PLACES = 5  # the first neighbours of a query, in which another class counts as confused; fewer if fewer fit it
PAIRS = 5  # of classes that are shown


def changes_by_class(before: Scores, after: Scores, labels: np.ndarray, names: list[str]) -> list[ClassChange]:
    """Return every class that has queries. The one that lost most comes first.

    Args: before, after: scores of the same queries. labels: (N,) the class of each item. names: of the classes.
    """
    of_query = labels[before.query_index]
    classes, numbers, counts = np.unique(of_query, return_inverse=True, return_counts=True)
    means = [np.bincount(numbers, weights=scores.per_query[DECIDING]) / counts for scores in (before, after)]
    order = np.argsort(np.round(means[1] - means[0], 9), kind="stable")
    return [
        ClassChange(
            label=names[classes[number]],
            queries=int(counts[number]),
            before=float(means[0][number]),
            after=float(means[1][number]),
        )
        for number in order.tolist()
    ]


def confusions(
    before: np.ndarray,
    after: np.ndarray,
    labels: np.ndarray,
    names: list[str],
    show: Callable[[int], Neighbour],
    *,
    seed: int = 0,
) -> tuple[list[Confusion], int]:
    """Return the pairs of classes that the tuned model confuses most, and how many queries were looked through.

    If R documents fit a query, its first R places are looked at, but no more than `PLACES`. A document of another class
    there counts as confused. Up to `POOL` queries are looked through, from each class in turn.

    Args: before, after: embeddings, (N, D) and (N, E). labels: (N,). show: returns the picture of an item.
    """
    pool = class_in_turn(labels, np.random.default_rng(seed))[:POOL]
    if not len(pool):
        return [], 0
    sizes = np.bincount(labels)
    depths = np.minimum(sizes[labels[pool]] - 1, PLACES)
    counts: list[dict[tuple[int, int], int]] = []
    examples: dict[tuple[int, int], tuple[int, int, int]] = {}  # of the tuned model: place, query, item found
    for embeddings in (before, after):
        found = np.concatenate(list(nearest(embeddings, pool, PLACES)))
        counted: dict[tuple[int, int], int] = defaultdict(int)
        examples = {}
        for query, items, depth in zip(pool.tolist(), found.tolist(), depths.tolist(), strict=True):
            own = int(labels[query])
            wrong: dict[int, tuple[int, int, int]] = {}  # the first item of each other class
            for place, item in enumerate(items[:depth]):
                wrong.setdefault(int(labels[item]), (place, query, item))
            wrong.pop(own, None)
            for other, example in wrong.items():
                pair = (min(own, other), max(own, other))
                counted[pair] += 1
                examples[pair] = min(examples.get(pair, example), example)
        counts.append(counted)
    most = sorted(counts[1], key=lambda pair: (-counts[1][pair], pair))[:PAIRS]
    return [_confusion(pair, counts, examples[pair], labels, names, show) for pair in most], len(pool)


def _confusion(
    pair: tuple[int, int],
    counts: list[dict[tuple[int, int], int]],
    example: tuple[int, int, int],
    labels: np.ndarray,
    names: list[str],
    show: Callable[[int], Neighbour],
) -> Confusion:
    _, query, found = example
    one, other = labels[query], labels[found]
    return Confusion(
        labels=(names[one], names[other]),
        before=counts[0].get(pair, 0),
        after=counts[1][pair],
        query=show(query),
        found=show(found),
    )
