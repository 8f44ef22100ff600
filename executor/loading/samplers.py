"""Choose the items of each batch. The batches depend only on (seed, epoch), so a resumed run can continue in the
middle of an epoch, exactly where it stopped.

We do not use pytorch-metric-learning's `MPerClassSampler`: it uses a global random state, asserts instead of adapting,
may leave items of large classes out of an epoch, and has nothing for sessions or unlabeled documents.
"""

from collections.abc import Sequence

import numpy as np

from ..errors import NotTrainable


class _Sampler:
    """The base of the three samplers. `notes` has a sentence for each setting that it could not follow.

    Args: seed: for the order, which differs from epoch to epoch.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.notes: list[str] = []

    def batches(self, epoch: int) -> list[np.ndarray]:
        """Return the batches of one epoch, each as int64 item indices. There is at least one, and none is empty."""
        raise NotImplementedError

    def steps(self, epochs: int) -> int:
        """Return the number of batches in the first `epochs` epochs."""
        return epochs * len(self.batches(0))

    def largest(self) -> int:
        """Return the number of items that a batch has at most."""
        raise NotImplementedError

    def _random(self, epoch: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, epoch])


class ClassSampler(_Sampler):
    """P labels × K documents per batch. Every epoch has every document at least once.

    The documents of each label are shuffled and cut into groups of K. A group that is too small is filled up with
    documents of the same label (repeated if the label has fewer than K). The groups of a batch have different labels
    as long as there are enough labels. If only one label is left for a batch, it also gets a group of another label,
    so that every batch has negatives.

    Args: labels: (N,) int64. indices: (N,) the items with these labels; by default 0 … N-1.
    """

    def __init__(
        self,
        labels: np.ndarray,
        *,
        batch_size: int,
        num_items_per_class: int,
        seed: int = 0,
        indices: np.ndarray | None = None,
    ) -> None:
        super().__init__(seed)
        self.indices = np.arange(len(labels)) if indices is None else np.asarray(indices)
        order = np.argsort(labels, kind="stable")
        self._members = np.split(order, np.flatnonzero(np.diff(np.asarray(labels)[order])) + 1)
        if len(self._members) < 2:
            raise NotTrainable(f"There are {len(self._members)} labels; a batch needs at least 2.")
        largest = max(len(members) for members in self._members)
        self.items = max(1, min(num_items_per_class, largest, batch_size // 2))
        self.classes = min(batch_size // self.items, len(self._members))
        self.groups = max(2, batch_size // self.items)
        self._note(batch_size, num_items_per_class)

    def _note(self, batch_size: int, asked: int) -> None:
        small = sum(len(members) < self.items for members in self._members)
        if self.items < asked:
            self.notes.append(f"num_items_per_class is {self.items} instead of {asked}: no more fit.")
        if small:
            self.notes.append(f"{small} labels have fewer than {self.items} documents; theirs are repeated in a batch.")
        if self.classes < batch_size // self.items:
            self.notes.append(
                f"A batch wants {batch_size // self.items} labels and there are {self.classes}; "
                "it gets several groups of a label."
            )

    def batches(self, epoch: int) -> list[np.ndarray]:
        random = self._random(epoch)
        waiting = [self._cut(members, random) for members in self._members]
        left = np.asarray([len(groups) for groups in waiting])
        total = int(left.sum())
        sizes = [len(part) for part in np.array_split(np.arange(total), max(1, -(-total // self.groups)))]
        return [self.indices[np.concatenate(self._deal(waiting, left, size, random))] for size in sizes]

    def largest(self) -> int:
        groups = sum(-(-len(members) // self.items) for members in self._members)
        batches = max(1, -(-groups // self.groups))
        return (-(-groups // batches) + 1) * self.items  # with a group of another label, if it is needed

    def _cut(self, members: np.ndarray, random: np.random.Generator) -> list[np.ndarray]:
        shuffled = random.permutation(members)
        short = -len(shuffled) % self.items
        if short:
            extra = shuffled[: len(shuffled) - (self.items - short)]  # the documents of the full groups
            pool = extra if len(extra) >= short else shuffled
            shuffled = np.concatenate([shuffled, random.choice(pool, short, replace=len(pool) < short)])
        return list(shuffled.reshape(-1, self.items))

    def _deal(
        self, waiting: list[list[np.ndarray]], left: np.ndarray, size: int, random: np.random.Generator
    ) -> list[np.ndarray]:
        """Take `size` groups, first from the labels with the most groups left, and one per label as long as possible.

        Args: left: the number of groups of each label in `waiting`.
        """
        batch: list[np.ndarray] = []
        labels: set[int] = set()
        while len(batch) < size:
            key = random.random(len(left)) - left  # a random part below 1 breaks ties
            wanted = min(size - len(batch), len(left))
            first = np.argpartition(key, wanted - 1)[:wanted]  # sorting all labels would take most of the time
            for label in first[np.argsort(key[first])]:
                if waiting[label]:
                    batch.append(waiting[label].pop())
                    left[label] -= 1
                    labels.add(int(label))
        if len(labels) == 1:  # a batch with one label has no negatives: add a group of another label
            other = random.choice([label for label in range(len(waiting)) if label not in labels])
            batch.append(random.permutation(self._members[other])[: self.items])
        return batch


class SessionSampler(_Sampler):
    """Whole sessions, packed into batches of up to `batch_size` items; a larger session is a batch of its own.

    Args: sessions: (N,) int64, the session of each item. indices: (N,) the items; by default 0 … N-1.
    """

    def __init__(
        self, sessions: np.ndarray, *, batch_size: int, seed: int = 0, indices: np.ndarray | None = None
    ) -> None:
        super().__init__(seed)
        items = np.arange(len(sessions)) if indices is None else np.asarray(indices)
        order = np.argsort(sessions, kind="stable")
        starts = np.flatnonzero(np.diff(np.asarray(sessions)[order], prepend=-1))
        self._sessions: list[np.ndarray] = np.split(items[order], starts[1:])
        self.batch_size = batch_size
        large = sum(len(session) > batch_size for session in self._sessions)
        if large:
            self.notes.append(
                f"{large} sessions have more than batch_size={batch_size} documents; each is a larger batch of its own."
            )

    def batches(self, epoch: int) -> list[np.ndarray]:
        batches: list[list[np.ndarray]] = [[]]
        room = self.batch_size
        for number in self._random(epoch).permutation(len(self._sessions)):
            session = self._sessions[number]
            if batches[-1] and len(session) > room:
                batches.append([])
                room = self.batch_size
            batches[-1].append(session)
            room -= len(session)
        return [np.concatenate(batch) for batch in batches]

    def largest(self) -> int:
        return max(self.batch_size, *map(len, self._sessions))

    def steps(self, epochs: int) -> int:
        """Pack the batches of every epoch and count them, because their number differs from epoch to epoch."""
        return sum(len(self.batches(epoch)) for epoch in range(epochs))


class InstanceSampler(_Sampler):
    """Every document once per epoch, in batches of nearly equal size with at least 2 documents each.

    Args: count: documents, at least 2. batch_size: documents per batch. indices: the items; by default 0 … count-1.
    """

    def __init__(
        self, count: int, *, batch_size: int, seed: int = 0, indices: Sequence[int] | np.ndarray | None = None
    ) -> None:
        super().__init__(seed)
        if count < 2:
            raise NotTrainable(f"There is {count} document; training without labels needs at least 2.")
        self.indices = np.arange(count) if indices is None else np.asarray(indices)
        self.batch_size = max(2, batch_size)
        self._parts = min(max(1, -(-count // self.batch_size)), count // 2)

    def batches(self, epoch: int) -> list[np.ndarray]:
        shuffled = self._random(epoch).permutation(len(self.indices))
        return [self.indices[part] for part in np.array_split(shuffled, self._parts)]

    def largest(self) -> int:
        return -(-len(self.indices) // self._parts)


Sampler = ClassSampler | SessionSampler | InstanceSampler
