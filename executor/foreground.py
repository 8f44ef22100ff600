"""What `fit()` and `embed()` do: the same dataset, loader and loop as the trainer's, without files and processes."""

from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from torch import nn

from .compute.device import choose_device
from .compute.memory import MicroBatch
from .errors import BadRequest, InvalidParameter, NotTrainable
from .evaluation.eval_set import EvalSet
from .evaluation.metrics import DECIDING
from .images.arrays import looks_channels_first, warn_channels_first
from .images.reading import load_uri_to_image_blob
from .loading.augmentation import Augmentation, default_augmentation
from .loading.batches import collate, is_image
from .loading.content import fit_to_model, item_content
from .loading.datasets import Dataset, InstanceDataset, make_dataset
from .loading.forward import embed_batches
from .models.model import EmbeddingModel
from .parameters import ExecutorOptions, TrainingOptions
from .store.spool import DocumentArrayMemmap
from .training.features import Filling, choose_trainee
from .training.loop import Meter, Step, train
from .training.precision import choose_bf16
from .training.recipe import (
    embedding_size,
    example_inputs,
    finish_model,
    make_config,
    make_loader,
    make_loss,
    prepare_model,
    split_off,
)

PreprocessFn = Callable[[Any], Any]
CollateFn = Callable[[list[Any]], Any]
SERVICE_OPTIONS = {"base", "embedding_dim", "promote", "promote_by"}  # what they choose is given or done by the caller


def train_here(
    model: nn.Module,
    train_data: Any,
    eval_data: Any,
    options: TrainingOptions,
    *,
    preprocess_fn: PreprocessFn | None,
    collate_fn: CollateFn | None,
    device: str,
    progress: bool,
) -> nn.Module:
    """See `api.fit`."""
    for name in SERVICE_OPTIONS & options.model_fields_set:
        raise InvalidParameter(f"fit has no option {name!r}: it trains the model that it is given, as it is.")
    where = choose_device(ExecutorOptions(device=device))
    loading = preprocess_fn or getattr(train_data, "preprocess_fn", None)
    same_content = loading in (None, load_uri_to_image_blob)  # of others it is not known
    dataset = _dataset(model, train_data, options.kind, preprocess_fn, collate_fn)
    items = np.arange(len(dataset))
    prepare_model(model, options)
    model.to(where)
    eval_set = None
    if eval_data is not None:
        held = _dataset(model, eval_data, "auto", preprocess_fn, collate_fn)
        eval_set = EvalSet(held, np.arange(len(held)), device=where)
    elif options.val_split:
        items, held_items = split_off(dataset, items, options.val_split, options.seed)
        eval_set = EvalSet(dataset, held_items, device=where)
    loader = make_loader(dataset, items, options, augment=_augmentation(dataset))
    inputs = example_inputs(model, dataset, int(items[0]), options.batch_size, None, where)
    loss = make_loss(dataset, options, embedding_size(model, inputs), where)
    bf16 = choose_bf16(options.precision, model, inputs, where)
    config = make_config(options, scratch=not _is_pretrained(model), bf16=bf16)
    before = eval_set.score(model) if eval_set is not None else None
    if before is not None and not before.queries:
        raise NotTrainable(
            f"None of the {before.skipped} eval documents can be a query: each needs another one that fits it."
        )
    with ProgressBar(config.epochs, visible=progress) as bar:
        for note in loader.sampler.notes:
            bar.say(note)
        trained = choose_trainee(
            model,
            loader,
            config,
            options.feature_views,
            same_content=same_content,
            device=where,
            max_bytes=ExecutorOptions().max_cache_bytes,
            say=bar.say,
            filled=bar.fill,
        )
        with closing(trained):
            train(
                trained.model,
                loss,
                trained.loader,
                trained.config,
                device=where,
                evaluate=None if eval_set is None else lambda measured: eval_set.score(trained.whole(measured)).mean(),
                report=bar.update,
                micro_batch=MicroBatch(trained.config.micro_batch, say=bar.say),
            )
        model.eval()
        finish_model(model, options)
        if before is not None and eval_set is not None:
            after = eval_set.score(model).mean()[DECIDING]
            bar.say(f"mAP@R on the eval documents: {before.mean()[DECIDING]:.3f} before, {after:.3f} after.")
    return model


def embed_here(
    docs: Sequence[Any],
    model: nn.Module,
    preprocess_fn: PreprocessFn | None,
    *,
    collate_fn: CollateFn | None,
    batch_size: int,
    device: str,
) -> None:
    """See `api.embed`."""
    if not len(docs):
        return
    if isinstance(docs, DocumentArrayMemmap):
        raise BadRequest("A DocumentArrayMemmap cannot be filled in place; embed a part of it, such as docs[:1000].")
    where = choose_device(ExecutorOptions(device=device))
    dataset = InstanceDataset(docs, _fitted(model, preprocess_fn), collate_fn)
    model.to(where)
    for start in range(0, len(docs), batch_size):
        part = range(start, min(start + batch_size, len(docs)))
        inputs = collate([item_content(dataset, item, None) for item in part], collate_fn)
        embeddings = embed_batches(model, [inputs], where)
        if getattr(model, "normalise", True):
            embeddings /= np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
        for item, embedding in zip(part, embeddings, strict=True):
            docs[item].embedding = embedding


def _dataset(
    model: nn.Module, docs: Any, kind: str, preprocess_fn: PreprocessFn | None, collate_fn: CollateFn | None
) -> Dataset:
    dataset = make_dataset(docs, kind, preprocess_fn, collate_fn)
    dataset.preprocess_fn = _fitted(model, dataset.preprocess_fn)
    blob = getattr(dataset.document(0), "blob", None)
    if isinstance(blob, np.ndarray) and looks_channels_first(blob):
        warn_channels_first(blob.shape)
    return dataset


def _fitted(model: nn.Module, preprocess_fn: PreprocessFn | None) -> PreprocessFn | None:
    """A model that says its input size gets images of that size."""
    if preprocess_fn is None or not isinstance(model, EmbeddingModel):
        return preprocess_fn
    return fit_to_model(preprocess_fn, model.preprocessing)


def _augmentation(dataset: Dataset) -> Augmentation | None:
    """Your `preprocess_fn` augments; only the two views of an unlabeled image must differ in any case."""
    if dataset.kind != "unlabeled":
        return None
    content = dataset[0][0]
    return default_augmentation("unlabeled", content.shape[0]) if is_image(content) else None


def _is_pretrained(model: nn.Module) -> bool:
    if isinstance(model, EmbeddingModel):
        return model.config.model != "default"
    return hasattr(getattr(model, "config", None), "model_type")  # a transformers model


class ProgressBar:
    """Epoch, loss, images a second and time left, on the terminal."""

    def __init__(self, epochs: int, *, visible: bool) -> None:
        self._epochs = epochs
        self._meter = Meter()
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}/" + str(epochs)),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}  {task.fields[speed]} images/s  {task.fields[left]} left"),
            console=Console(stderr=True),
            disable=not visible,
        )
        self._task = self._bar.add_task("", total=None, epoch=0, loss="–", speed="–", left="–")

    def __enter__(self) -> "ProgressBar":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def say(self, sentence: str) -> None:
        """Print a sentence above the bar."""
        if not self._bar.disable:
            self._bar.console.print(sentence, highlight=False)

    def fill(self, filling: Filling) -> None:
        """Show how far the features of a frozen backbone are."""
        self._bar.update(self._task, total=filling.total, completed=filling.done)
        if filling.done == filling.total:
            self.say(str(filling))

    def update(self, step: Step) -> None:
        """Show a finished step."""
        speed, left = self._meter.update(step)
        self._bar.update(
            self._task,
            total=step.total,
            completed=step.done,
            epoch=step.epoch + 1,
            loss=f"{step.loss:.4f}",
            speed=f"{speed:.0f}",
            left=f"{int(left) // 60}:{int(left) % 60:02d}",
        )
