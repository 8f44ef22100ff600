"""From dataset items to batches of model inputs, made ahead of the training step in a thread of their own.

Images of the default pipeline are decoded and resized once, into an `ImageCache`; augmentation is drawn anew for
every batch, seeded by (seed, epoch, batch), so that a resumed run sees the same pixels. A custom `preprocess_fn` is
called anew for every batch, and nothing of it is kept.
"""

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import albumentations
import numpy as np
import torch
from torch import Tensor, nn

from ..compute.memory import is_out_of_memory
from ..compute.ranks import ALONE, Ranks
from ..errors import BadDocument, ConfigurationError, FinetunerError
from ..images.reading import ImagePolicy, image_of
from ..models.model import Preprocessing
from .cache import ImageCache
from .datasets import CollateFn, Dataset
from .samplers import Sampler

AHEAD = 4  # batches made before they are needed


@dataclass(frozen=True)
class Batch:
    """One batch: `inputs` (B, H, W, 3) uint8 images or whatever collation made, `labels`, and `items` (B,) indices.

    Of several ranks, each has its own share of the inputs and the labels and items of all.
    """

    inputs: Any
    labels: Tensor
    items: np.ndarray


class ModelImages:
    """The default `preprocess_fn`: a document's image as size × size × 3 uint8, alike for training and serving."""

    def __init__(self, preprocessing: Preprocessing, policy: ImagePolicy) -> None:
        self.preprocessing = preprocessing
        self.policy = policy

    def __call__(self, doc: Any) -> np.ndarray:
        """Raises: BadDocument: the document has no readable image."""
        return self.preprocessing.resize(image_of(doc, self.policy, min_size=self.preprocessing.size))


class Augmentation:
    """An albumentations pipeline that can be seeded; on uint8 images (H, W, 3), and on nothing else."""

    def __init__(self, pipeline: albumentations.Compose) -> None:
        self.pipeline = pipeline

    def seed(self, seed: int) -> None:
        """Let the next images depend on `seed` alone."""
        self.pipeline.set_random_seed(seed)

    def describe(self) -> dict[str, Any]:
        """The pipeline in albumentations' own form, which holds all that its results depend on besides the seed."""
        description: dict[str, Any] = self.pipeline.to_dict()
        return description

    def __call__(self, content: Any) -> Any:
        if is_image(content):
            return self.pipeline(image=content)["image"]
        return content


def default_augmentation(kind: str, size: int) -> Augmentation:
    """The pipeline used when none is configured. No flips for labelled data: a mirrored `b` is a `d`.

    Without labels the two views of an image must differ in what is to be ignored, hence the stronger one there.
    """
    if kind == "unlabeled":
        steps = [
            albumentations.RandomResizedCrop((size, size), scale=(0.5, 1.0), ratio=(0.8, 1.25)),
            albumentations.Affine(rotate=(-10, 10), p=0.5),
            albumentations.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3, hue=0.05, p=0.8),
            albumentations.ToGray(p=0.1),
            albumentations.GaussianBlur(blur_limit=(3, 5), p=0.2),
        ]
    else:
        steps = [
            albumentations.Affine(scale=(0.9, 1.1), translate_percent=(-0.06, 0.06), rotate=(-10, 10), p=0.8),
            albumentations.RandomBrightnessContrast(p=0.5),
        ]
    return Augmentation(albumentations.Compose(steps))


def load_augmentation(configured: str | dict[str, Any] | None, kind: str, size: int) -> Augmentation | None:
    """Return the configured pipeline: None is the default of the kind, `none` is off, else albumentations' own form.

    Raises: ConfigurationError: it is neither a serialised pipeline nor the path of one.
    """
    if configured is None:
        return default_augmentation(kind, size)
    if configured == "none":
        return None
    try:
        if isinstance(configured, dict):
            pipeline = albumentations.from_dict(configured)
        else:
            form = "json" if Path(configured).suffix == ".json" else "yaml"
            pipeline = albumentations.load(configured, data_format=form)
    except Exception as error:  # whatever albumentations and the parsers raise, the remedy is one
        reason = " ".join(str(error).split())  # a parser's has several lines
        raise ConfigurationError(
            f"augment is not a pipeline that albumentations can load ({reason}); give "
            "albumentations.to_dict(pipeline), the path of a file written by albumentations.save, or 'none'."
        ) from error
    return Augmentation(pipeline)


class Loader:
    """The batches of a dataset, epoch by epoch, in the order of a sampler.

    Args: cache: keeps the content of items, which must then be size × size × 3 uint8. augment: of the content.
        views: how often each item is in a batch, augmented anew each time. ranks: that share each batch.
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
        """The batches of one epoch from number `first` on, made ahead by a thread that ends with the iterator."""
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
    """Yield `items`, produced up to `depth` ahead by a thread; its exception is raised here."""
    made: queue.Queue[Any] = queue.Queue(depth)
    stop = threading.Event()
    end = object()

    def put(item: Any) -> None:
        while not stop.is_set():
            try:
                return made.put(item, timeout=0.1)
            except queue.Full:
                continue

    def produce() -> None:
        try:
            for item in items:
                put(item)
                if stop.is_set():
                    return
            put(end)
        except BaseException as error:  # handed over: it is raised in the consumer's thread
            put(error)

    producer = threading.Thread(target=produce, name="loader", daemon=True)
    producer.start()
    try:
        while (item := made.get()) is not end:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        producer.join()


def item_content(dataset: Dataset, item: int, cache: ImageCache | None) -> Any:
    """Return the content of one item, from the cache or made and kept there.

    Raises: BadDocument: the document cannot be loaded; the message names it.
    """
    content = None if cache is None else cache.get(item)
    if content is None:
        doc = dataset.document(item)
        try:
            content = dataset.content(doc)
        except FinetunerError as error:
            if repr(doc.id) in str(error):
                raise
            raise BadDocument(f"Document {doc.id!r}: {error}") from error
        except Exception as error:  # a custom preprocess_fn may raise anything
            if is_out_of_memory(error):
                raise  # which is not the document's fault
            raise BadDocument(f"Document {doc.id!r}: preprocess_fn raised {type(error).__name__}: {error}") from error
        if cache is not None:
            cache.put(item, content)
    return content


def is_image(content: Any) -> bool:
    """Whether `content` is a uint8 image of shape (H, W, 3)."""
    return isinstance(content, np.ndarray) and content.dtype == np.uint8 and content.ndim == 3 and content.shape[2] == 3


def collate(contents: list[Any], collate_fn: CollateFn | None = None) -> Any:
    """Return the contents of a batch as one model input, by `collate_fn` if there is one.

    uint8 images of one shape become (B, H, W, 3) uint8 (normalised later, as a whole batch); other arrays are stacked
    as float32.

    Raises: BadDocument: contents that are no arrays, or of different shapes.
    """
    if collate_fn is not None:
        return collate_fn(contents)
    if not all(isinstance(content, (np.ndarray, Tensor)) for content in contents):
        wrong = next(content for content in contents if not isinstance(content, (np.ndarray, Tensor)))
        raise BadDocument(
            f"A document's content is {type(wrong).__name__}, not an array; pass a preprocess_fn that returns an array "
            "(load_uri_to_image_blob for images), or a collate_fn."
        )
    shapes = {tuple(content.shape) for content in contents}
    if len(shapes) > 1:
        raise BadDocument(
            f"The contents of a batch have different shapes, such as {sorted(shapes)[0]} and {sorted(shapes)[-1]}; "
            "resize them in preprocess_fn, or pass a collate_fn."
        )
    if all(is_image(content) for content in contents):
        return torch.from_numpy(np.stack(contents))
    return torch.stack([torch.as_tensor(np.ascontiguousarray(content)).float() for content in contents])


def fit_to_model(preprocess: Callable[[Any], Any], preprocessing: Preprocessing) -> Callable[[Any], Any]:
    """Return `preprocess` with images resized to what the model wants; other content passes unchanged."""

    def resized(doc: Any) -> Any:
        content = preprocess(doc)
        return preprocessing.resize(content) if is_image(content) else content

    return resized


def model_inputs(model: nn.Module, inputs: Any, device: torch.device) -> Any:
    """Move a batch to `device` as what `model` takes: uint8 images (B, H, W, 3) become (B, 3, H, W) float32.

    They are normalised by the model's own `preprocessing`; a module without one gets them scaled to [0, 1].
    """
    if isinstance(inputs, np.ndarray):
        inputs = torch.from_numpy(inputs)
    if not isinstance(inputs, Tensor):
        return inputs
    inputs = inputs.to(device, non_blocking=True)
    if inputs.dtype != torch.uint8 or inputs.ndim != 4 or inputs.shape[3] != 3:
        return inputs
    preprocessing = getattr(model, "preprocessing", None)
    if isinstance(preprocessing, Preprocessing):
        return preprocessing.normalise(inputs)
    return inputs.permute(0, 3, 1, 2).float().div_(255)
