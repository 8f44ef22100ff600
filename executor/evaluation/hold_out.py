"""Which of the train documents are held out to measure on."""

import numpy as np

from ..errors import NotTrainable
from ..loading.datasets import ClassDataset, Dataset, SessionDataset


def split_off(dataset: Dataset, items: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split `items` into (train, eval): `share` of each label, or of the sessions, or of the documents.

    A label keeps at least two documents for training, and gives at least two or none, so that they can find another.
    """
    random = np.random.default_rng([seed, 1])
    labels = dataset.labels[items]
    if isinstance(dataset, SessionDataset):
        sessions = np.unique(labels[:, 0])
        held = np.isin(labels[:, 0], random.permutation(sessions)[: round(share * len(sessions))])
    elif isinstance(dataset, ClassDataset):
        held = np.zeros(len(items), bool)
        for label in np.unique(labels):
            members = random.permutation(np.flatnonzero(labels == label))
            count = min(max(2, round(share * len(members))), len(members) - 2)
            held[members[: count if count >= 2 else 0]] = True
    else:
        held = np.zeros(len(items), bool)
        held[random.permutation(len(items))[: round(share * len(items))]] = True
    if not held.any():
        raise NotTrainable(
            f"val_split={share:g} holds out none of the {len(items)} documents; send more, or a larger val_split."
        )
    return items[~held], items[held]
