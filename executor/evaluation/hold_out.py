"""Chooses the train documents that are held out: some prove the tuned model, others choose its epoch.

Documents that belong together stay in one part: a session, a group that the user named (`tags['finetuner_group']`),
copies of a picture. Otherwise the proof would measure what the model has learned by heart.
"""

import functools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ..errors import NotTrainable
from ..loading.datasets import ClassDataset, Dataset, SessionDataset, ranking_sessions
from .proof import LEAST_QUERIES

LEAST_DOCUMENTS = 40  # with fewer, `auto` holds out none
USUAL_SHARE = 0.15
LARGEST_SHARE = 1 / 3
MANY_CLASSES = 40  # from so many on, some classes are held out whole
WHOLE_CLASSES = 20  # one class in so many,
WHOLE_SHARE = 0.5  # and at most so much of what is held out
CHOOSING_SHARE = 0.1
FIRST, NEW, NEVER = 0, 1, 2  # ranks of items: those that proved a version, new ones, those that are not held out
LEAST_CHOOSING = 200  # train documents; if fewer are left, none of them choose the epoch
_ROUNDING = 1e-9
_ONE = np.ones(1, int)
MOST_CHOOSING = 2000  # documents that choose the epoch; more take time, and choose no better


@dataclass(frozen=True)
class Parts:
    """The items of a dataset, in parts. Items that belong together are in the same part.

    Attributes:
        train: (N,) items to train on.
        proof: (N,) items that prove the model; may be empty.
        choose: (N,) items that choose the epoch; may be empty.
        whole_classes: the labels of the classes of which all items are in `proof`.
    """

    train: np.ndarray
    proof: np.ndarray
    choose: np.ndarray
    whole_classes: tuple[int, ...] = ()


def split_documents(
    dataset: Dataset,
    items: np.ndarray,
    share: float | str,
    *,
    seed: int,
    units: np.ndarray | None = None,
    taught: np.ndarray | None = None,
    taught_served: np.ndarray | None = None,
    proved: np.ndarray | None = None,
    known_labels: np.ndarray | None = None,
) -> Parts:
    """Divide `items` into parts.

    At least two documents of a label are trained on. None or at least two are held out, so that each finds another.
    If there are many classes, some are held out whole: they show how the model does on classes it has never seen. A
    session whose matches are all alike is trained on, because it proves nothing.

    Args:
        share: of the documents (or sessions) for the proof: a number, 0 for none, or `auto`.
        units: (N,) int64, a number for each item of `dataset`. Items with equal numbers stay together. By default these
            are the items of a session; other items are alone.
        taught: (N,) bool, the items of `dataset` that the model was trained on before: they prove nothing.
        taught_served: (N,) bool, those that the version served was trained on, which the model has to beat: they prove
            something only if there are too few others.
        proved: (N,) bool, those that proved one of the two: they are the first to prove the model now. Of the new ones
            at most a third are held out, or as many as make 20. None of all three: there is no model from before.
        known_labels: labels that one of the two was trained on: they are not held out whole.
    Raises: NotTrainable: `share` is a number, but nothing could be held out though nothing taught the model before.
    """
    nothing = np.zeros(len(dataset), bool)
    taught, taught_served, proved = (nothing if known is None else known for known in (taught, taught_served, proved))
    known_labels = np.empty(0, np.int64) if known_labels is None else known_labels
    units = own_units(dataset) if units is None else units
    split = functools.partial(_split, dataset, items, share, seed, units, known_labels, proved)
    lenient = split(taught)
    if not taught_served.any():
        return lenient
    strict = split(taught | taught_served)
    return strict if suffices(dataset, strict.proof, lenient.proof) else lenient


def suffices(dataset: Dataset, items: np.ndarray, of: np.ndarray) -> bool:
    """Whether items prove about as much as more of them would: enough queries, of half of the labels or more."""
    enough = queries(dataset, items) >= min(LEAST_QUERIES, queries(dataset, of))
    if not enough or not isinstance(dataset, ClassDataset):
        return enough
    return 2 * len(np.unique(dataset.labels[items])) >= len(np.unique(dataset.labels[of]))


def queries(dataset: Dataset, items: np.ndarray) -> int:
    """How many of the items can be queries: another document has their label, or the session ranks something."""
    if isinstance(dataset, ClassDataset):
        _, counts = np.unique(dataset.labels[items], return_counts=True)
        return int(counts[counts > 1].sum())
    return documents(dataset, items[_in_queries(dataset, items)])


def _split(
    dataset: Dataset,
    items: np.ndarray,
    share: float | str,
    seed: int,
    units: np.ndarray,
    known_labels: np.ndarray,
    proved: np.ndarray,
    taught: np.ndarray,
) -> Parts:
    random = np.random.default_rng([seed, 1])
    wanted = automatic_share(dataset, items) if share == "auto" else float(share)
    stale = np.isin(units, units[taught])
    ranks = _ranks(units, stale, proved)
    if isinstance(dataset, ClassDataset):
        known_labels = np.union1d(known_labels, dataset.labels[items][stale[items]])
    most = WHOLE_SHARE * wanted * len(items) if share == "auto" else 0.0
    whole = _whole_classes(dataset, items, units, ranks, known_labels, most, random)
    proof = np.zeros(len(items), bool)
    able = np.isin(units[items], units[items][_in_queries(dataset, items)])
    if wanted:
        of_rest = wanted
        if whole:
            proof = np.isin(units[items], units[items][np.isin(dataset.labels[items], whole)])
            of_rest = (wanted * len(items) - proof.sum()) / (~proof).sum()
        rest = np.flatnonzero(~proof & able)
        proof[rest[_part(dataset, items[rest], units, of_rest, random, ranks)]] = True
    if share != "auto" and wanted and not proof.any() and not stale[items].any():
        raise NotTrainable(
            f"val_split={wanted:g} holds out none of the {len(items)} documents; send more, or a larger val_split."
        )
    left = items[~proof]
    count = documents(dataset, left)
    choose = np.zeros(len(left), bool)
    if count >= LEAST_CHOOSING:
        anything = np.zeros(len(dataset), np.int64)
        rest = np.flatnonzero(able[~proof])
        choose[rest] = _part(dataset, left[rest], units, min(CHOOSING_SHARE, MOST_CHOOSING / count), random, anything)
    return Parts(left[~choose], items[proof], left[choose], whole)


def automatic_share(dataset: Dataset, items: np.ndarray) -> float:
    """The share that `auto` holds out for the proof. It is 0 for few documents, and for documents without labels."""
    if dataset.kind == "unlabeled":
        return 0.0
    return usual_share(documents(dataset, items), documents(dataset, items[_in_queries(dataset, items)]))


def usual_share(count: int, queries: int) -> float:
    """The share of so many labelled documents or sessions that `auto` holds out; 0: they are too few.

    Args: queries: how many of them can be queries, so that they prove something; it is a share of these.
    """
    if count < LEAST_DOCUMENTS:
        return 0.0
    return min(LARGEST_SHARE, max(USUAL_SHARE, LEAST_QUERIES / max(1, queries)))


def _in_queries(dataset: Dataset, items: np.ndarray) -> np.ndarray:
    """Whether items prove something, (N,) bool. A session whose matches are all alike does not: nothing is ranked."""
    if not isinstance(dataset, SessionDataset):
        return np.ones(len(items), bool)
    labels = dataset.labels[items]
    return np.isin(labels[:, 0], ranking_sessions(labels))


def documents(dataset: Dataset, items: np.ndarray) -> int:
    """How many documents the items come from. The matches of a session do not count."""
    return int((dataset.labels[items, 1] == 0).sum()) if isinstance(dataset, SessionDataset) else len(items)


def own_units(dataset: Dataset) -> np.ndarray:
    """Return a number for each item, (N,) int64: the same for all items of a session, else one of its own."""
    sessions: np.ndarray = dataset.labels[:, 0] if isinstance(dataset, SessionDataset) else np.arange(len(dataset))
    return sessions


def document_numbers(dataset: Dataset) -> np.ndarray:
    """Return the number of the document, or of the session's root, that each item comes from: (N,) int64."""
    return own_units(dataset)


def together(units: np.ndarray, groups: list[str | None], pairs: list[tuple[int, int]] | None = None) -> np.ndarray:
    """Return new units, (N,) int64: items that share a unit, a group or a pair are in one.

    Args: units: (N,), one for each item. groups: one for each item, or None. pairs: two items that belong together.
    """
    _, units = np.unique(units, return_inverse=True)
    names: dict[str, int] = {}
    first: list[int] = []  # for each group one of its units
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


def _ranks(units: np.ndarray, stale: np.ndarray, proved: np.ndarray) -> np.ndarray:
    """Say of each item, (N,) int64, how soon it is held out: `FIRST`, then `NEW`, and `NEVER`.

    Args: stale: (N,) bool, the items that are never held out. proved: (N,) bool.
    """
    if not (stale.any() or proved.any()):
        return np.full(len(units), FIRST)
    first = np.isin(units, units[proved]) & ~stale
    return np.where(stale, NEVER, np.where(first, FIRST, NEW))


def _most_new(rank_of: np.ndarray) -> int:
    """How many of the new units may be held out at most. Args: rank_of: the rank of each unit."""
    return max(int(LARGEST_SHARE * (rank_of == NEW).sum()), LEAST_QUERIES - int((rank_of == FIRST).sum()))


def _whole_classes(
    dataset: Dataset,
    items: np.ndarray,
    units: np.ndarray,
    ranks: np.ndarray,
    known_labels: np.ndarray,
    most: float,
    random: np.random.Generator,
) -> tuple[int, ...]:
    """Choose classes to hold out whole, those first of which all items proved a version before.

    They have two documents or more, are not known, and share no unit with another class.

    Args: most: how many items they may have together.
    """
    if not isinstance(dataset, ClassDataset):
        return ()
    labels, counts = np.unique(dataset.labels[items], return_counts=True)
    if len(labels) < MANY_CLASSES:
        return ()
    pairs = np.unique(np.stack([units[items], dataset.labels[items]], axis=1), axis=0)
    shared, times = np.unique(pairs[:, 0], return_counts=True)
    entangled = np.unique(pairs[np.isin(pairs[:, 0], shared[times > 1]), 1])
    free = random.permutation(labels[(counts > 1) & ~np.isin(labels, np.union1d(entangled, known_labels))])
    unproved = np.isin(free, dataset.labels[items][ranks[items] > FIRST])
    size, chosen, together = dict(zip(labels.tolist(), counts.tolist(), strict=True)), list[int](), 0
    for label in free[np.argsort(unproved, kind="stable")].tolist():
        if len(chosen) < len(labels) // WHOLE_CLASSES and together + size[label] <= most:
            chosen.append(label)
            together += size[label]
    return tuple(sorted(chosen))


def _part(
    dataset: Dataset,
    items: np.ndarray,
    units: np.ndarray,
    share: float,
    random: np.random.Generator,
    ranks: np.ndarray,
) -> np.ndarray:
    """Choose a share of `items`, (N,) bool: of each label if there are labels, else of the sessions or documents.

    Args: ranks: as `_ranks` says, for each item of `dataset`.
    """
    own = units[items]
    names, first, numbers = np.unique(own, return_index=True, return_inverse=True)
    rank_of = ranks[items][first]  # all items of a unit have the same
    if isinstance(dataset, ClassDataset):
        return _part_of_labels(dataset.labels[items], own, share, random, rank_of)
    counted = dataset.labels[items, 1] == 0 if isinstance(dataset, SessionDataset) else np.ones(len(items), bool)
    sizes = np.bincount(numbers[counted], minlength=len(names))  # documents of each unit
    order = random.permutation(len(names))
    order = order[np.argsort(rank_of[order], kind="stable")]
    held_out, given, wanted = np.zeros(len(names), bool), 0, share * sizes.sum()
    new, most_new = 0, _most_new(rank_of)
    for number in order:
        if rank_of[number] == NEVER or (rank_of[number] == NEW and new >= most_new):
            break
        if _is_nearer(given, sizes[number], wanted):
            held_out[number] = True
            given += sizes[number]
            new += int(rank_of[number] == NEW)
    return held_out[numbers]


def _is_nearer(given: float, more: float, wanted: float) -> bool:
    """Whether with `more` documents as many are held out as are wanted, or nearly, rather than without them."""
    return bool(given < wanted and given + more - wanted <= wanted - given + _ROUNDING)


class _Labels:
    """What labels give to a part. Units may have several labels: all that a unit has goes with it.

    Args: labels: (N,) int, of items, from 0 on. units: (N,) of the same items. rank_of: see `_part_of_labels`.
    """

    def __init__(self, labels: np.ndarray, units: np.ndarray, rank_of: np.ndarray) -> None:
        self.sizes = np.bincount(labels)
        order = np.argsort(units, kind="stable")
        self.members = np.split(order, np.flatnonzero(np.diff(units[order])) + 1)  # the items of each unit
        self.of_label: list[list[int]] = [[] for _ in self.sizes]  # for each label the units that have it
        for number, unit in enumerate(self.members):
            for label in set(labels[unit].tolist()):
                self.of_label[label].append(number)
        self.given = np.zeros(len(self.sizes), int)
        self.taken = np.zeros(len(self.members), bool)
        self._labels = labels
        self._rank_of = rank_of
        self._after_another = bool((rank_of != FIRST).any())
        self._new, self._most_new = 0, _most_new(rank_of)

    def counts(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the labels of a unit, and how many items it has of each."""
        here = self._labels[self.members[number]]
        return (here, _ONE) if len(here) == 1 else np.unique(here, return_counts=True)

    def can_give(self, number: int) -> bool:
        """Whether a unit may be taken, and two items of each of its labels stay if it is."""
        rank = self._rank_of[number]
        if self.taken[number] or rank == NEVER or (rank == NEW and self._new >= self._most_new):
            return False
        labels, counts = self.counts(number)
        return bool((self.sizes[labels] - self.given[labels] - counts >= 2).all())

    def take(self, number: int, sign: int = 1) -> None:
        """Take a unit, or give it back."""
        labels, counts = self.counts(number)
        self.given[labels] += sign * counts
        self.taken[number] = sign > 0
        self._new += sign * int(self._rank_of[number] == NEW)

    def give(self, label: int, wanted: np.ndarray, random: np.random.Generator) -> None:
        """Take units of a label until it gives as many as are wanted of each label, (L,), or nearly."""
        waiting = random.permutation(self.of_label[label])
        for number in waiting[np.argsort(self._rank_of[waiting], kind="stable")]:
            if self.given[label] >= wanted[label]:
                return
            if self.can_give(number) and (self._fits(number, wanted) or self._proves_again(number)):
                self.take(number)

    def _fits(self, number: int, wanted: np.ndarray) -> bool:
        labels, counts = self.counts(number)
        given = self.given[labels]
        return all(map(_is_nearer, given, counts, np.maximum(wanted[labels], given + 1)))

    def _proves_again(self, number: int) -> bool:
        return self._after_another and bool(self._rank_of[number] == FIRST)  # whatever its size

    def give_two(self, label: int, random: np.random.Generator) -> list[int]:
        """Take the smallest units of a label that give two of its items. Return their numbers; none: there are none."""
        waiting = np.array(self.of_label[label])
        sizes = [len(self.members[number]) for number in waiting]
        took: list[int] = []
        for number in waiting[np.lexsort([random.random(len(waiting)), sizes, self._rank_of[waiting]])]:
            if self.given[label] < 2 and self.can_give(number):
                self.take(number)
                took.append(number)
        if self.given[label] >= 2:
            return took
        self.give_back(took)
        return []

    def give_back(self, numbers: Iterable[int]) -> None:
        """Take units no more."""
        for number in numbers:
            self.take(number, -1)


def _part_of_labels(
    labels: np.ndarray, units: np.ndarray, share: float, random: np.random.Generator, rank_of: np.ndarray
) -> np.ndarray:
    """Choose a share of each label, (N,) bool, or none if two documents are more than twice its share.

    Of the labels that would give none some give all the same, so that together they give their share: each of thousands
    of labels with six documents would otherwise give two.

    Args: rank_of: the rank of each unit, in the order of the units' numbers.
    """
    _, labels = np.unique(labels, return_inverse=True)
    found = _Labels(labels, units, rank_of)
    due = share * found.sizes
    wanted = np.maximum(2, np.round(due))
    order = random.permutation(len(due))
    soonest = np.array([rank_of[numbers].min() for numbers in found.of_label])
    order = order[np.argsort(soonest[order], kind="stable")]
    for label in order[due[order] >= 1]:
        found.give(label, wanted, random)
    empty = order[found.given[order] == 0]
    lacking, given = due[empty].sum(), 0
    for label in empty:
        took = [] if found.given[label] else found.give_two(label, random)
        more = sum(len(found.members[number]) for number in took)
        if _is_nearer(given, more, lacking):
            given += more
        else:
            found.give_back(took)
    while len(alone := np.flatnonzero(found.given == 1)):  # a single document would find no other
        found.give_back({each for label in alone.tolist() for each in found.of_label[label] if found.taken[each]})
    held_out = np.zeros(len(labels), bool)
    for number in np.flatnonzero(found.taken).tolist():
        held_out[found.members[number]] = True
    return held_out
