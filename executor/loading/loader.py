"""Make batches of model input from dataset items, in a thread that works ahead of the training step.

The default image loading decodes and resizes each image once and keeps it in an `ImageCache`. Every batch is augmented
again, with a seed made from (seed, epoch, batch), so that a resumed run sees the same pixels. A custom `preprocess_fn`
is called again for every batch, and its results are not kept.
"""

import _thread
import queue
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from ..compute.ranks import ALONE, Ranks
from .augmentation import Augmentation
from .batches import Batch, collate
from .cache import ImageCache
from .content import item_content
from .datasets import Dataset
from .samplers import Sampler

AHEAD = 4  # batches that are ready before they are needed
BEGIN_SECONDS = 60.0  # that a thread has to begin, on a machine however busy


class Loader:
    """The batches of a dataset, epoch by epoch, in the order of a sampler.

    Args: cache: keeps the content of items, which must then be size × size × 3 uint8. augment: applied to the content.
        views: how often each item is in a batch, each time augmented differently. ranks: share each batch.
    """

    def __init__(
        self,
        dataset: Dataset,
        sampler: Sampler,
        *,
        cache: ImageCache | None = None,
        augment: Augmentation | None = None,
        views: int = 1,
        seed: int = 0,
        ranks: Ranks = ALONE,
    ) -> None:
        self.dataset = dataset
        self.sampler = sampler
        self.cache = cache
        self.augment = augment
        self.views = views
        self.seed = seed
        self.ranks = ranks

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Return the batches of one epoch from number `first` on. A thread makes them; it ends with the iterator."""
        batches = self.sampler.batches(epoch)
        return ahead(self._batch(epoch, number, batches[number]) for number in range(first, len(batches)))

    def _batch(self, epoch: int, number: int, items: np.ndarray) -> Batch:
        if self.augment is not None:
            key = [self.seed, epoch, number] + ([] if self.ranks.alone else [self.ranks.rank])
            self.augment.seed(int(np.random.SeedSequence(key).generate_state(1)[0]))
        items = np.tile(items, self.views)
        contents = [item_content(self.dataset, int(item), self.cache) for item in self.ranks.items(items)]
        if self.augment is not None:
            contents = [self.augment(content) for content in contents]
        return Batch(collate(contents, self.dataset.collate_fn), torch.from_numpy(self.dataset.labels[items]), items)


def ahead(items: Iterator[Any], depth: int = AHEAD) -> Iterator[Any]:
    """Yield `items`. A thread produces up to `depth` of them ahead; if it raises, the exception is raised here.

    Raises: MemoryError: there was too little memory for the thread to begin.
    """
    made: queue.Queue[Any] = queue.Queue(depth)
    began, stop, ended = threading.Event(), threading.Event(), threading.Event()
    end = object()

    def put(item: Any) -> None:
        while not stop.is_set():
            try:
                return made.put(item, timeout=0.1)
            except queue.Full:
                continue

    def produce() -> None:
        began.set()
        try:
            for item in items:
                put(item)
                if stop.is_set():
                    return
            put(end)
        except BaseException as error:  # passed on, to be raised in the consumer's thread
            put(error)
        finally:
            ended.set()

    _thread.start_new_thread(
        produce, ()
    )  # the start of a `Thread` waits for ever if there is no memory for it to begin
    if not began.wait(BEGIN_SECONDS):
        raise MemoryError("The thread that makes batches could not begin.")
    try:
        while (item := made.get()) is not end:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        ended.wait()
