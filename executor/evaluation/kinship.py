"""Finds documents that belong together: they rise and fall together in an interval.

In a run they stay on one side: all for training, or all for the proof.

The items of a session belong together, so do the documents of a group that the user named, and copies of a picture.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..documents import Label
from ..loading.datasets import ClassDataset, Dataset
from .copies import find_copies
from .fingerprints import THUMBNAIL, Fingerprint, fingerprint, share_nearly_seen
from .hold_out import document_numbers, together

MOST_LOOKED_AT = 50_000  # documents whose pictures are compared; among further ones only equal pictures are found
FLATTERING = (
    0.05  # of the held-out pictures; among pictures of one visit to a shop it was 20 to 23 %, of another visit 1 %
)
SMALLEST_LOOKED_AT = 64  # pixels a side; in smaller ones a copy looks like any similar picture
_NOTHING_TO_SEE = np.zeros((THUMBNAIL, THUMBNAIL), np.uint8)


@dataclass(frozen=True)
class Side:
    """The documents for training, or those for evaluation.

    Attributes:
        groups: the user's group of each document, or None. prints: its fingerprint; None: it cannot be used.
    """

    dataset: Dataset
    groups: list[str | None]
    prints: list[Fingerprint | None]


@dataclass(frozen=True)
class Kinship:
    """What belongs together.

    Attributes:
        train: (N,) int64, a number for each item of the train dataset. Items with equal numbers belong together.
        eval: (M,) the same for the eval dataset. related: (M,) bool, whether an eval item belongs to a train item.
        copies: how many documents of both sides are copies of another one.
        pairs: numbers of two documents, of which the second is a copy of the first. The numbers of the eval documents
            follow those of the train documents.
    """

    train: np.ndarray
    eval: np.ndarray
    related: np.ndarray
    copies: int
    pairs: list[tuple[int, int]] = field(default_factory=list)


def print_of(content: Any, number: int) -> Fingerprint:
    """Return the fingerprint of a document's content. Args: number: of the document in its split."""
    if not isinstance(content, np.ndarray):
        digest = hashlib.blake2b(content if isinstance(content, bytes) else repr(content).encode(), digest_size=16)
        return Fingerprint(digest.digest(), _NOTHING_TO_SEE)
    found = fingerprint(content)
    looked_at = number < MOST_LOOKED_AT and min(content.shape[:2]) >= SMALLEST_LOOKED_AT
    return found if looked_at else Fingerprint(found.digest, _NOTHING_TO_SEE)


def find_kinship(train: Side, eval: Side | None, image: Callable[[bool, int], np.ndarray]) -> Kinship:
    """Find what belongs together.

    Args: image: returns the image of a document, (H, W, 3) uint8. It gets whether the document is for training, and
            its number.
    """
    sides = [train] if eval is None else [train, eval]
    prints = [found for side in sides for found in side.prints]  # first all of one side, then all of the other
    looked_at = [number for number, found in enumerate(prints) if found is not None and found.thumbnail.any()]

    def at(place: int) -> np.ndarray:
        number = looked_at[place]
        trained = number < len(train.prints)
        return image(trained, number if trained else number - len(train.prints))

    alike = find_copies([found for found in prints if found is not None and found.thumbnail.any()], at)
    pairs = [(looked_at[one], looked_at[other]) for one, other in alike]
    # Equal content too, also of small images and beyond the limit.
    pairs += _equal(None if found is None else found.digest for found in prints)
    groups = [group for side in sides for group in side.groups]
    of_documents = together(np.arange(len(groups)), groups, pairs)
    mine = of_documents[document_numbers(train.dataset)]
    others = np.empty(0, np.int64)
    if eval is not None:
        others = of_documents[len(train.groups) + document_numbers(eval.dataset)]
    return Kinship(mine, others, np.isin(others, mine), len({second for _, second in pairs}), sorted(set(pairs)))


def clusters_of(
    dataset: Dataset, groups: list[str | None], contents: list[bytes], units: Sequence[int] | None = None
) -> np.ndarray:
    """Number the items of a dataset, (N,) int64, by what belongs together, without a look at the pictures.

    Args: groups: the group of each document, or None. contents: a digest of each as it was sent: equal ones are copies.
        units: a number for each document, if a run has looked at the pictures: those with equal ones belong together.
    """
    known = np.arange(len(groups)) if units is None else np.asarray(units, np.int64)
    found: np.ndarray = together(known, groups, list(_equal(contents)))[document_numbers(dataset)]
    return found


def _equal(digests: Iterable[bytes | None]) -> Iterator[tuple[int, int]]:
    """Yield pairs of places with equal digests: the first, and each further one."""
    first: dict[bytes, int] = {}
    for number, digest in enumerate(digests):
        if digest is not None and first.setdefault(digest, number) != number:
            yield first[digest], number


def flattery(train: Side, learned: np.ndarray, other: Side, proving: np.ndarray) -> str | None:
    """Warn if many pictures that prove a model nearly equal a picture of their label that it was trained on.

    Args: learned: (N,) items of `train`. proving: (M,) items of `other`, which may be the same side.
    """
    if not isinstance(train.dataset, ClassDataset) or not isinstance(other.dataset, ClassDataset):
        return None
    before = _labelled(train, train.dataset, learned)
    known = [*before, *_labelled(other, other.dataset, proving)]
    held_out = np.arange(len(known)) >= len(before)
    share = share_nearly_seen([found for found, _ in known], [label for _, label in known], held_out)
    if share <= FLATTERING:
        return None
    return (
        f"{share:.0%} of the pictures that prove the model are nearly the same as one of their label that it was "
        "trained on, as pictures of one moment are: the figures may flatter. Give pictures of one moment the same "
        "tags['finetuner_group'] (of a table, with --group-column), or send eval documents of other moments."
    )


def _labelled(side: Side, dataset: ClassDataset, items: np.ndarray) -> list[tuple[Fingerprint, Label]]:
    """The fingerprints and labels of those items whose pictures are compared."""
    found = [(side.prints[item], dataset.classes[dataset.labels[item]]) for item in items.tolist()]
    return [(known, label) for known, label in found if known is not None and known.thumbnail.any()]
