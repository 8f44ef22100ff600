"""Embeds the items of a dataset and scores them as queries. This proves that a model is better."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from ..compute.ranks import ALONE, Ranks
from ..loading.augmentation import default_augmentation
from ..loading.batches import collate, is_image
from ..loading.cache import ImageCache
from ..loading.content import item_content
from ..loading.datasets import Dataset
from ..loading.forward import embed_batches
from ..loading.loader import ahead
from .metrics import Nearness, Scores, check_embeddings, score_classes, score_instances, score_sessions

BATCH = 64
AT_ONCE = 1000  # items embedded between two looks at whether to stop


@dataclass(frozen=True)
class Measured:
    """What a model did on an eval set: the scores, and the embeddings of the items, (N, D) float32.

    Attributes:
        second: (N, D) float32, of a second view of each item, where there are no labels: queries are compared with it.
    """

    scores: Scores
    embeddings: np.ndarray
    second: np.ndarray | None = None

    @property
    def stored(self) -> np.ndarray:
        """What an index of the items holds, and the queries, which are `embeddings`, are compared with: (N, D)."""
        return self.embeddings if self.second is None else self.second


class EvalSet:
    """A frozen set of items. One model after another is measured on it.

    Args: items: (N,) indices into `dataset`; of a session all items or none. cache: holds the content of the items.
        groups: (N,) integers, one for each item; the group of a session is that of its root. Items of one group, such
            as pictures of one visit, rise and fall together. Negative: in no group. None: no groups are known.
        batch: items embedded at a time. ranks: each embeds a share, and the first one scores.
    """

    def __init__(
        self,
        dataset: Dataset,
        items: np.ndarray,
        *,
        device: torch.device,
        cache: ImageCache | None = None,
        seed: int = 0,
        groups: np.ndarray | None = None,
        batch: int = BATCH,
        ranks: Ranks = ALONE,
    ) -> None:
        self.dataset = dataset
        self.items = np.asarray(items)
        self._device = device
        self._cache = cache
        self._seed = seed
        self._groups = groups
        self._batch = batch
        self._ranks = ranks

    def on(self, dataset: Dataset) -> "EvalSet":
        """Return the same items of another dataset, which has the same documents. It has no cache."""
        return EvalSet(
            dataset,
            self.items,
            device=self._device,
            seed=self._seed,
            groups=self._groups,
            batch=self._batch,
            ranks=self._ranks,
        )

    def part(self, positions: np.ndarray) -> "EvalSet":
        """Return an eval set of some items, by their positions (M,) in this one."""
        return EvalSet(
            self.dataset,
            self.items[positions],
            device=self._device,
            cache=self._cache,
            seed=self._seed,
            batch=self._batch,
            ranks=self._ranks,
        )

    @property
    def labels(self) -> np.ndarray:
        """The labels of the items, in the form of the dataset."""
        labels: np.ndarray = self.dataset.labels[self.items]
        return labels

    @property
    def documents(self) -> int:
        """How many documents the items come from. The matches of a session do not count."""
        return int((self.labels[:, 1] == 0).sum()) if self.dataset.kind == "session" else len(self.items)

    def image(self, position: int) -> np.ndarray | None:
        """The image of an item as the model sees it; None: its content is no uint8 image."""
        content = item_content(self.dataset, int(self.items[position]), self._cache)
        return content if is_image(content) else None

    def score(self, model: nn.Module) -> Scores:
        """Measure `model`. It is in evaluation mode afterwards."""
        return self.measure(model).scores

    def measure(self, model: nn.Module) -> Measured:
        """Measure `model`, and return its embeddings too."""
        if self.dataset.kind == "unlabeled":
            first = self._embed(model, view=1)
            second = self._embed(model, view=2)
            scores = self._ranks.agree(lambda: _grouped(score_instances(first, second), self._groups))
            return Measured(scores, first, second)
        embeddings = self._embed(model)
        scores = self._ranks.agree(
            lambda: score_embeddings(self.dataset.kind, embeddings, self.labels, groups=self._groups)
        )
        return Measured(scores, embeddings)

    def search(self, queries: np.ndarray, stored: np.ndarray) -> Scores:
        """Score vectors (N, D) of the items as queries against other vectors of theirs, which an index holds."""
        if self.dataset.kind == "unlabeled":
            return _grouped(score_instances(queries, stored), self._groups)
        return score_embeddings(self.dataset.kind, queries, self.labels, groups=self._groups, stored=stored)

    def score_by(self, nearness: Nearness) -> Scores:
        """Score the items of class data by another measure of nearness than the cosine of embeddings."""
        nothing = np.zeros((len(self.items), 1), np.float32)
        return _grouped(score_classes(nothing, self.labels.tolist(), nearness=nearness), self._groups)

    def embed(self, model: nn.Module) -> np.ndarray:
        """Return the embeddings of the items, (N, D) float32. `model` is in evaluation mode afterwards."""
        return self._embed(model)

    def _embed(self, model: nn.Module, view: int = 0) -> np.ndarray:
        """(N, D) float32. With a `view`, the images are augmented as in training, and alike for every model."""
        augment: Callable[[Any], Any] = lambda content: content  # noqa: E731
        if view and is_image(first := item_content(self.dataset, int(self.items[0]), self._cache)):
            pipeline = default_augmentation("unlabeled", first.shape[0])
            pipeline.seed(self._seed + view)
            augment = pipeline

        def batches() -> Any:
            mine = self._ranks.items(self.items)
            for start in range(0, len(mine), self._batch):
                part = mine[start : start + self._batch]
                contents = [augment(item_content(self.dataset, int(item), self._cache)) for item in part]
                yield collate(contents, self.dataset.collate_fn)

        mine = embed_batches(model, ahead(batches()), self._device)
        embeddings = self._ranks.gather(torch.from_numpy(mine), len(self.items)).numpy()
        check_embeddings(embeddings=embeddings)  # by all ranks: only the first one scores, and the others wait for it
        return embeddings


def embed_in_steps(model: nn.Module, items: EvalSet, check: Callable[[], None]) -> np.ndarray:
    """Return the embeddings of the items, (N, D) float32. Args: check: called now and then; it raises to stop."""
    found = []
    for start in range(0, len(items.items), AT_ONCE):
        check()
        found.append(items.part(np.arange(start, min(start + AT_ONCE, len(items.items)))).embed(model))
    return np.concatenate(found)


def score_embeddings(
    kind: str,
    embeddings: np.ndarray,
    labels: np.ndarray,
    *,
    groups: np.ndarray | None = None,
    stored: np.ndarray | None = None,
) -> Scores:
    """Score the embeddings (N, D) of items with the labels of a class or session dataset.

    Args: groups: as for an `EvalSet`. stored: (N, D), what the queries are compared with; by default `embeddings`.
    """
    stored = embeddings if stored is None else stored
    if kind == "class":
        return _grouped(score_classes(embeddings, labels.tolist(), candidates=stored), groups)
    root = labels[:, 1] == 0
    numbers = {session: number for number, session in enumerate(labels[root, 0].tolist())}
    sessions = [numbers[session] for session in labels[~root, 0].tolist()]
    scores = score_sessions(embeddings[root], stored[~root], sessions, labels[~root, 1].tolist())
    return _grouped(scores, None if groups is None else np.asarray(groups)[root])


def _grouped(scores: Scores, groups: np.ndarray | None) -> Scores:
    return scores if groups is None else scores.grouped(groups)
