"""Which of the train documents are held out: to prove the tuned model on, and to choose its epoch by.

What belongs together stays on one side: a session, a group of the user's (`tags['finetuner_group']`), copies of one
picture. Else the proof would measure what the model has learned by heart.
"""

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ..errors import NotTrainable
from ..loading.datasets import ClassDataset, Dataset, SessionDataset

LEAST_DOCUMENTS = 40  # with fewer, none are held out by `auto`
USUAL_SHARE = 0.15
LEAST_QUERIES = 20  # more than the usual share is held out where that is fewer
LARGEST_SHARE = 1 / 3
MANY_CLASSES = 40  # from here on some classes are held out whole
WHOLE_CLASSES = 20  # one in so many
CHOOSING_SHARE = 0.1
LEAST_CHOOSING = 200  # documents left for training, for a part of them to choose by
MOST_CHOOSING = 2000  # documents in that part: more make an epoch longer and no choice better


@dataclass(frozen=True)
class Parts:
    """The items of a dataset by what they are for; no two parts have an item in common, or items that belong together.

    Attributes:
        train: (N,) to train on.
        proof: (N,) to prove the model on; may be empty.
        choose: (N,) to choose the epoch by; may be empty.
        whole_classes: the labels of classes that are in `proof` with all their items.
    """

    train: np.ndarray
    proof: np.ndarray
    choose: np.ndarray
    whole_classes: tuple[int, ...] = ()


def split_documents(
    dataset: Dataset, items: np.ndarray, share: float | str, *, seed: int, units: np.ndarray | None = None
) -> Parts:
    """Return the parts of `items`.

    A label keeps at least two documents for training, and gives at least two or none, so that they can find another.
    Of many classes some are held out whole: they tell how the model does on what it has never seen.

    Args:
        share: of the documents (or sessions) for the proof: a number, 0 for none, or `auto`.
        units: (N,) int64 for the items of `dataset`: equal ones stay together. By default each session, else each item.
    Raises: NotTrainable: a `share` that is a number holds out nothing.
    """
    units = own_units(dataset) if units is None else units
    random = np.random.default_rng([seed, 1])
    wanted = automatic_share(dataset, items) if share == "auto" else float(share)
    whole = _whole_classes(dataset, items, units, random) if share == "auto" and wanted else ()
    proof = np.zeros(len(items), bool)
    if wanted:
        if whole:
            proof = np.isin(units[items], units[items][np.isin(dataset.labels[items], whole)])
        rest = np.flatnonzero(~proof)
        proof[rest[_part(dataset, items[rest], units, wanted, random)]] = True
    if share != "auto" and wanted and not proof.any():
        raise NotTrainable(
            f"val_split={wanted:g} holds out none of the {len(items)} documents; send more, or a larger val_split."
        )
    left = items[~proof]
    count = documents(dataset, left)
    choose = np.zeros(len(left), bool)
    if count >= LEAST_CHOOSING:
        choose = _part(dataset, left, units, min(CHOOSING_SHARE, MOST_CHOOSING / count), random)
    return Parts(left[~choose], items[proof], left[choose], whole)


def automatic_share(dataset: Dataset, items: np.ndarray) -> float:
    """The share that `auto` holds out for the proof: 0 of few documents, or of such without labels."""
    count = documents(dataset, items)
    if dataset.kind == "unlabeled" or count < LEAST_DOCUMENTS:
        return 0.0
    return min(LARGEST_SHARE, max(USUAL_SHARE, LEAST_QUERIES / count))


def documents(dataset: Dataset, items: np.ndarray) -> int:
    """How many documents the items come from; the matches of a session are not counted."""
    return int((dataset.labels[items, 1] == 0).sum()) if isinstance(dataset, SessionDataset) else len(items)


def own_units(dataset: Dataset) -> np.ndarray:
    """What belongs together by itself, (N,) int64: the items of a session; every other item is alone."""
    sessions: np.ndarray = dataset.labels[:, 0] if isinstance(dataset, SessionDataset) else np.arange(len(dataset))
    return sessions


def document_numbers(dataset: Dataset) -> np.ndarray:
    """The number of the document, or of the session's root, that each item comes from: (N,) int64."""
    return own_units(dataset)


def together(units: np.ndarray, groups: list[str | None], pairs: list[tuple[int, int]] | None = None) -> np.ndarray:
    """Return units in which what shares a unit, a group or a pair is one: (N,) int64.

    Args: units: (N,) of the items. groups: of each item, or None. pairs: of items that belong together.
    """
    _, units = np.unique(units, return_inverse=True)
    names: dict[str, int] = {}
    first: list[int] = []  # a unit of each group
    edges: list[tuple[int, int]] = [(int(units[one]), int(units[other])) for one, other in pairs or ()]
    for unit, group in zip(units.tolist(), groups, strict=True):
        if group is not None:
            number = names.setdefault(group, len(names))
            if number == len(first):
                first.append(unit)
            edges.append((first[number], unit))
    if not edges:
        return units
    rows, columns = np.asarray(edges).T
    count = int(units.max()) + 1
    _, joined = connected_components(coo_array((np.ones(len(rows)), (rows, columns)), shape=(count, count)))
    found: np.ndarray = joined[units]
    return found


def _whole_classes(
    dataset: Dataset, items: np.ndarray, units: np.ndarray, random: np.random.Generator
) -> tuple[int, ...]:
    """Classes of two documents or more that share no unit with another class."""
    if not isinstance(dataset, ClassDataset):
        return ()
    labels, counts = np.unique(dataset.labels[items], return_counts=True)
    if len(labels) < MANY_CLASSES:
        return ()
    pairs = np.unique(np.stack([units[items], dataset.labels[items]], axis=1), axis=0)
    shared, times = np.unique(pairs[:, 0], return_counts=True)
    entangled = np.unique(pairs[np.isin(pairs[:, 0], shared[times > 1]), 1])
    free = labels[(counts > 1) & ~np.isin(labels, entangled)]
    chosen = random.permutation(free)[: len(labels) // WHOLE_CLASSES]
    return tuple(sorted(int(label) for label in chosen))


def _part(
    dataset: Dataset, items: np.ndarray, units: np.ndarray, share: float, random: np.random.Generator
) -> np.ndarray:
    """Return which of `items` make up a share of each label, or of the sessions or documents: (N,) bool."""
    own = units[items]
    if not isinstance(dataset, ClassDataset):
        found = random.permutation(np.unique(own))
        return np.isin(own, found[: round(share * len(found))])
    return _part_of_labels(dataset.labels[items], own, share, random)


def _part_of_labels(labels: np.ndarray, units: np.ndarray, share: float, random: np.random.Generator) -> np.ndarray:
    _, labels, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    order = np.argsort(units, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(units[order])) + 1)  # of each unit
    of_label: list[list[int]] = [[] for _ in sizes]  # the units in which a label is
    for number, unit in enumerate(members):
        for label in set(labels[unit].tolist()):
            of_label[label].append(number)
    wanted = np.maximum(2, np.round(share * sizes)).astype(int)
    taken = np.zeros(len(members), bool)
    given = np.zeros(len(sizes), int)
    for label in random.permutation(len(sizes)):
        for number in random.permutation(of_label[label]):
            here = np.bincount(labels[members[number]], minlength=len(sizes)) if len(members[number]) > 1 else None
            if taken[number] or given[label] >= wanted[label]:
                continue
            touched = np.flatnonzero(here) if here is not None else np.array([label])
            counts = here[touched] if here is not None else np.array([1])
            if (sizes[touched] - given[touched] - counts >= 2).all():
                taken[number] = True
                given[touched] += counts
    for alone in np.flatnonzero(given == 1).tolist():  # it would find no other
        for number in of_label[alone]:
            if taken[number] and len(members[number]) == 1:
                taken[number] = False
    held_out = np.zeros(len(labels), bool)
    for number in np.flatnonzero(taken).tolist():
        held_out[members[number]] = True
    return held_out
