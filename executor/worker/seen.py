"""Which documents of a run were seen by the version that it starts from, or by the version served; see `lineage.py`."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain

import numpy as np

from ..loading.datasets import ClassDataset, Dataset
from ..store.lineage import Digests, Keys, Lineage, keys_of_document, keys_of_labels
from .decoding import Decoded


@dataclass(frozen=True, kw_only=True)
class Seen:
    """The documents of a split that were seen before. Each is in one of the masks, (D,) bool, at most.

    Attributes:
        taught: those that the base version was trained on. taught_served: those that only the version served was.
        proved: others, which proved one of the two.
    """

    taught: np.ndarray
    taught_served: np.ndarray
    proved: np.ndarray


def keys_of(split: Decoded) -> list[Keys]:
    """By what each document of a split is known again: what was sent, its picture, its group."""
    seen = split.inspection
    return [
        keys_of_document(content, None if picture is None else picture.digest, group)
        for content, picture, group in zip(split.docs.contents(), seen.prints, seen.groups, strict=True)
    ]


def seen_before(keys: list[Keys], base: Lineage, served: Lineage, *, sessions: bool) -> Seen:
    """Find the documents that are known. Args: keys: of each document. sessions: whether these are sessions."""
    taught, taught_served = (each.trained_on(sessions=sessions) for each in (base, served))
    proved = base.proved | served.proved
    masks = np.zeros((3, len(keys)), bool)
    for number, own in enumerate(keys):
        for mask, known in zip(masks, (taught, taught_served, proved), strict=True):
            if not known.isdisjoint(own):
                mask[number] = True
                break
    return Seen(taught=masks[0], taught_served=masks[1], proved=masks[2])


def known_labels(dataset: Dataset, base: Lineage, served: Lineage) -> np.ndarray:
    """The labels of a dataset, (L,) int64, that the base version or the version served was trained on."""
    if not isinstance(dataset, ClassDataset):
        return np.empty(0, np.int64)
    known = base.labels | served.labels
    return np.asarray([number for number, label in enumerate(dataset.classes) if keys_of_labels([label]) & known])


def lineage_of_run(
    dataset: Dataset, split: Decoded, trained: np.ndarray, *, taught: Iterable[Keys], proved: Iterable[Keys]
) -> Lineage:
    """What a run's model will have seen beyond its base.

    Args: dataset, split: the train documents. trained: (T,) int64, the numbers of those that are trained on, or choose
        the epoch. taught: the keys of these and of what is like them. proved: of the documents that prove the model.
    """
    labels: Digests = frozenset()
    if isinstance(dataset, ClassDataset):
        labels = keys_of_labels(dataset.classes[label] for label in np.unique(dataset.labels[trained]).tolist())
    matches = chain.from_iterable(split.inspection.matches[number] for number in trained.tolist())
    return Lineage(
        taught=frozenset(chain.from_iterable(taught)),
        matches=frozenset(matches),
        labels=labels,
        proved=frozenset(chain.from_iterable(proved)),
    )
