"""Hard negatives for sessions: pictures that the model takes for similar, and that nobody has judged for the session.

Users judge what they are shown. The model's own mistakes are among what they were not shown. So for each session the
nearest pictures of other sessions are added as negatives. Some of them would fit, only nobody has said so. Two rules
keep these out:

- Whatever is linked to the session by clicks: a picture that fits one session fits the others that share a picture with
  it, and so on.
- Whatever is nearly as near to the session as its own positives: a negative's similarity to the nearest of root and
  positives is at most `NEARNESS` of the mean similarity of the root and its positives, all centred (after TopK-PercPos
  of Moreira et al. 2024, arXiv:2407.15831).
"""

from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from .datasets import SessionDataset

NEARNESS = 0.9  # of planted pictures that would fit, 1 to 3 % of the negatives were such; at 0.95 it was 6 to 11 %
_CHUNK = 256  # sessions compared at a time


class HarderSessions(SessionDataset):
    """A session dataset with further negatives, as items after its own. Each has the picture of another item.

    Args: dataset: the sessions. session, source: (E,) int64, for each further negative its session, and the item whose
        picture it has.
    """

    def __init__(self, dataset: SessionDataset, session: np.ndarray, source: np.ndarray) -> None:
        self.__dict__.update(dataset.__dict__)
        further = np.stack([session, np.full(len(session), -1)], axis=1)
        self._own = len(dataset)
        self._source = source
        self.labels = np.concatenate([dataset.labels, further])

    def place(self, index: int) -> int:
        """Return the item whose picture item `index` has."""
        return index if index < self._own else int(self._source[index - self._own])

    def document(self, index: int) -> Any:
        """Return the document of item `index`."""
        return super().document(self.place(index))


def find_hard_negatives(
    dataset: SessionDataset, items: np.ndarray, embeddings: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Find at most `count` negatives for each session.

    Args: items: (N,) indices of `dataset`, of whole sessions. embeddings: (N, D) float32, theirs.
    Returns: (session, source), each (E,) int64, as `HarderSessions` takes them.
    """
    centred = embeddings - embeddings.mean(0)  # an untrained network puts all into one corner, with cosines near 1
    unit = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    sessions, kinds = dataset.labels[items].T
    pictures = _pictures(dataset, items)
    linked = _linked(sessions, kinds, pictures)
    order = np.argsort(sessions, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(sessions[order])) + 1)
    found: list[tuple[int, int]] = []
    for mine in members:
        root, positives = mine[kinds[mine] == 0], mine[kinds[mine] == 1]
        if not len(root) or not len(positives):
            continue
        anchors = np.concatenate([root, positives])
        nearness = (unit @ unit[anchors].T).max(1)  # (N,) to the nearest anchor
        allowed = (
            (nearness <= NEARNESS * float((unit[positives] @ unit[root[0]]).mean()))
            & ~np.isin(linked, linked[anchors])
            & ~np.isin(pictures, pictures[mine])
        )
        ranked = np.flatnonzero(allowed)
        ranked = ranked[np.argsort(-(unit[ranked] @ unit[root[0]]), kind="stable")]
        _, first = np.unique(pictures[ranked], return_index=True)  # each picture once
        found += [(int(sessions[mine[0]]), int(items[place])) for place in ranked[np.sort(first)][:count]]
    pairs = np.array(found, np.int64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def _pictures(dataset: SessionDataset, items: np.ndarray) -> np.ndarray:
    """Number the pictures of items, (N,) int64; the same uri, or without one the same id, means the same picture."""
    numbers: dict[object, int] = {}
    names = ((doc.uri or doc.id) for doc in map(dataset.document, items.tolist()))
    return np.fromiter((numbers.setdefault(name, len(numbers)) for name in names), np.int64, len(items))


def _linked(sessions: np.ndarray, kinds: np.ndarray, pictures: np.ndarray) -> np.ndarray:
    """Return a number for each item, (N,): equal where root and positives of sessions that share pictures link them."""
    fits = kinds >= 0
    _, numbers = np.unique(sessions, return_inverse=True)
    count = int(numbers.max()) + 1
    nodes = count + int(pictures.max()) + 1  # the sessions, then the pictures
    edges = coo_array((np.ones(int(fits.sum())), (numbers[fits], count + pictures[fits])), shape=(nodes, nodes))
    components: np.ndarray = connected_components(edges, directed=False)[1]
    found: np.ndarray = components[count + pictures]
    return found
