"""Which items make which batch. A sampler's batches are a pure function of (seed, epoch), so that a resumed run
continues in the middle of an epoch exactly where it was.

pytorch-metric-learning's `MPerClassSampler` draws from a global random state, asserts instead of adapting and may
leave items of large classes out of an epoch; it knows neither sessions nor instances. Hence these three.
"""

from collections.abc import Sequence

import numpy as np

from ..errors import NotTrainable


class _Sampler:
    """What the three share. `notes` says, a sentence each, what was asked and could not be had.

    Args: seed: of the order; every epoch has another one.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.notes: list[str] = []

    def batches(self, epoch: int) -> list[np.ndarray]:
        """The batches of one epoch, each the int64 indices of its items; never none, never an empty one."""
        raise NotImplementedError

    def steps(self, epochs: int) -> int:
        """Batches in the first `epochs` epochs together."""
        return epochs * len(self.batches(0))

    def _random(self, epoch: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, epoch])


class ClassSampler(_Sampler):
    """P labels × K documents a batch; every document is in every epoch at least once.

    Each label's documents are shuffled and cut into groups of K; a group that comes out short is filled with
    documents of the same label (repeated if the label has fewer than K). Groups are dealt out so that the groups of
    a batch have different labels as long as there are any. A batch in which only one label would be left gets a
    group of another label, so that every batch has negatives.

    Args: labels: (N,) int64. indices: (N,) the items that the labels belong to; by default 0 … N-1.
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

    def _cut(self, members: np.ndarray, random: np.random.Generator) -> list[np.ndarray]:
        shuffled = random.permutation(members)
        short = -len(shuffled) % self.items
        if short:
            extra = shuffled[: len(shuffled) - (self.items - short)]  # documents of earlier, full groups
            pool = extra if len(extra) >= short else shuffled
            shuffled = np.concatenate([shuffled, random.choice(pool, short, replace=len(pool) < short)])
        return list(shuffled.reshape(-1, self.items))

    def _deal(
        self, waiting: list[list[np.ndarray]], left: np.ndarray, size: int, random: np.random.Generator
    ) -> list[np.ndarray]:
        """Take `size` groups, of the labels with the most groups left first, one a label as long as that goes.

        Args: left: how many groups of each label are `waiting`.
        """
        batch: list[np.ndarray] = []
        labels: set[int] = set()
        while len(batch) < size:
            key = random.random(len(left)) - left  # ties in random order
            wanted = min(size - len(batch), len(left))
            first = np.argpartition(key, wanted - 1)[:wanted]  # sorting them all would take most of the time
            for label in first[np.argsort(key[first])]:
                if waiting[label]:
                    batch.append(waiting[label].pop())
                    left[label] -= 1
                    labels.add(int(label))
        if len(labels) == 1:  # a batch of one label has no negatives: lend it a group of another one
            other = random.choice([label for label in range(len(waiting)) if label not in labels])
            batch.append(random.permutation(self._members[other])[: self.items])
        return batch


class SessionSampler(_Sampler):
    """Whole sessions, packed into batches of about `batch_size` items; a larger session is a batch of its own.

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

    def steps(self, epochs: int) -> int:
        """How full the batches come out differs from epoch to epoch, so all are packed once to count them."""
        return sum(len(self.batches(epoch)) for epoch in range(epochs))


class InstanceSampler(_Sampler):
    """Every document once an epoch, in batches of nearly equal size, each of at least 2 documents.

    Args: count: documents, at least 2. batch_size: documents a batch. indices: the items; by default 0 … count-1.
    """

    def __init__(
        self, count: int, *, batch_size: int, seed: int = 0, indices: Sequence[int] | np.ndarray | None = None
    ) -> None:
        super().__init__(seed)
        if count < 2:
            raise NotTrainable(f"There is {count} document; training without labels needs at least 2.")
        self.indices = np.arange(count) if indices is None else np.asarray(indices)
        self.batch_size = max(2, batch_size)

    def batches(self, epoch: int) -> list[np.ndarray]:
        count = len(self.indices)
        parts = min(max(1, -(-count // self.batch_size)), count // 2)
        return [self.indices[part] for part in np.array_split(self._random(epoch).permutation(count), parts)]


Sampler = ClassSampler | SessionSampler | InstanceSampler
