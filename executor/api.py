"""`fit` and `embed` for Python callers. `fit` uses the same recipe as the service's trainer, in the foreground."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from .compute.device import choose_device
from .errors import BadRequest, InvalidParameter, NotTrainable
from .evaluation.eval_set import EvalSet
from .evaluation.hold_out import split_documents
from .evaluation.metrics import DECIDING
from .images.arrays import looks_channels_first, warn_channels_first
from .images.reading import load_uri_to_image_blob
from .loading.augmentation import Augmentation, default_augmentation
from .loading.batches import collate, is_image
from .loading.content import fit_to_model, item_content
from .loading.datasets import (
    NO_DOCUMENTS,
    CollateFn,
    Dataset,
    InstanceDataset,
    PreprocessFn,
    SessionDataset,
    make_dataset,
)
from .loading.forward import embed_batches
from .loading.hard_negatives import HarderSessions, find_hard_negatives
from .models.model import EmbeddingModel
from .parameters import ExecutorOptions, TrainingOptions, parse
from .store.spool import DocumentArrayMemmap
from .training.micro_batch import MicroBatch
from .training.parts import prepare_model
from .training.progress_bar import ProgressBar
from .training.recipe import Task, fine_tune

# Callers of `fit` do these things themselves.
SERVICE_OPTIONS = {"base", "documents_from", "embedding_dim", "feedback", "promote", "promote_by"}


def fit(
    model: torch.nn.Module,
    train_data: Any,
    eval_data: Any = None,
    *,
    preprocess_fn: Callable[[Any], np.ndarray] | None = None,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    device: str = "auto",
    progress: bool = True,
    **options: Any,
) -> torch.nn.Module:
    """Fine-tune `model` in place on documents and return it in evaluation mode.

    Args:
        model: any module that turns a batch into embeddings (B, D), or into an output like those of transformers.
        train_data: documents (a `DocumentArray`, a `DocumentArrayMemmap` or any sequence), or a dataset of them.
        eval_data: the same. The model is measured on it before and after training, and nothing is chosen by it: with
            enough train documents a tenth of them chooses the best epoch, else the weights of the last epoch are kept.
            With `trials` a tenth chooses the settings and the epoch, with and without `eval_data`.
        preprocess_fn: turns a document into an array; called again for every batch. Without it, `document.content`
            is used. uint8 images (H, W, 3) become (B, 3, H, W) float32, normalised as the model's preprocessing says;
            without one they are scaled to [0, 1]. All other arrays are stacked as float32.
        collate_fn: turns the contents of a batch into the model's input.
        device: a torch device, where the model is afterwards; `auto` is CUDA if there is one.
        progress: show the epoch, the loss, images per second and the time left.
        options: the training options of `/fit`, such as `epochs=5` or `loss='triplet'`.
    Raises: InvalidParameter: an option is unknown or has the wrong type. NotTrainable: nothing can be learned from
        these documents. BadDocument: a document cannot be used; the message names it.
    """
    wanted = parse(TrainingOptions, options, where="fit")
    for name in SERVICE_OPTIONS & wanted.model_fields_set:
        raise InvalidParameter(f"fit has no option {name!r}: it trains the model that it is given, as it is.")
    where = choose_device(ExecutorOptions().model_copy(update={"device": device}))
    loading = preprocess_fn or getattr(train_data, "preprocess_fn", None)
    dataset = _dataset(model, train_data, wanted.kind, preprocess_fn, collate_fn)
    items, eval_set, choose_set = np.arange(len(dataset)), None, None
    prepare_model(model, wanted)
    model.to(where)
    if eval_data is not None:
        others = _dataset(model, eval_data, "auto", preprocess_fn, collate_fn)
        eval_set = EvalSet(others, np.arange(len(others)), device=where)
    # Whoever calls `fit` serves nothing by it: documents are held out only if that is asked for.
    share = 0.0 if eval_data is not None or wanted.val_split == "auto" else wanted.val_split
    parts = split_documents(dataset, items, share, seed=wanted.seed)
    if len(parts.proof):
        eval_set = EvalSet(dataset, parts.proof, device=where)
    if (eval_set is not None or wanted.trials > 1) and len(parts.choose):
        items, choose_set = parts.train, EvalSet(dataset, parts.choose, device=where)
    elif len(parts.proof):
        items = np.setdiff1d(items, parts.proof)
    if wanted.hard_negatives and isinstance(dataset, SessionDataset):
        embeddings = EvalSet(dataset, items, device=where).embed(model)
        harder = HarderSessions(dataset, *find_hard_negatives(dataset, items, embeddings, wanted.hard_negatives))
        items, dataset = np.concatenate([items, np.arange(len(dataset), len(harder))]), harder
    task = Task(
        dataset=dataset,
        items=items,
        eval_set=eval_set,
        choose_set=choose_set,
        same_content=loading in (None, load_uri_to_image_blob),  # not known of other functions
        augment=_augmentation(dataset),
    )
    with ProgressBar(visible=progress) as bar:
        outcome = fine_tune(
            model,
            task,
            wanted,
            device=where,
            watcher=bar,
            micro_batch=MicroBatch(wanted.micro_batch, say=bar.say),
            max_cache_bytes=ExecutorOptions().max_cache_bytes,
        )
        if progress and outcome.before is not None and outcome.after is not None:
            before, after = (measured.scores.mean()[DECIDING] for measured in (outcome.before, outcome.after))
            bar.say(f"mAP@R on the eval documents: {before:.3f} before, {after:.3f} after.")
    return model


def embed(
    docs: Sequence[Any],
    model: torch.nn.Module,
    preprocess_fn: Callable[[Any], np.ndarray] | None = None,
    *,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    batch_size: int = 64,
    device: str = "auto",
) -> None:
    """Set `embedding` of every document in place: (D,) float32, of unit length unless `model.normalise` is false.

    Raises: BadDocument: a document cannot be used; the message names it.
    """
    if not len(docs):
        return
    if isinstance(docs, DocumentArrayMemmap):
        raise BadRequest("A DocumentArrayMemmap cannot be filled in place; embed a part of it, such as docs[:1000].")
    where = choose_device(ExecutorOptions().model_copy(update={"device": device}))
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
    model: torch.nn.Module, docs: Any, kind: str, preprocess_fn: PreprocessFn | None, collate_fn: CollateFn | None
) -> Dataset:
    dataset = make_dataset(docs, kind, preprocess_fn, collate_fn)
    if not len(dataset):
        raise NotTrainable(NO_DOCUMENTS)
    dataset.preprocess_fn = _fitted(model, dataset.preprocess_fn)
    blob = getattr(dataset.document(0), "blob", None)
    if isinstance(blob, np.ndarray) and looks_channels_first(blob):
        warn_channels_first(blob.shape)
    return dataset


def _fitted(model: torch.nn.Module, preprocess_fn: PreprocessFn | None) -> PreprocessFn | None:
    """Wrap `preprocess_fn` to resize images for the model, if the model says its input size."""
    if preprocess_fn is None or not isinstance(model, EmbeddingModel):
        return preprocess_fn
    return fit_to_model(preprocess_fn, model.preprocessing)


def _augmentation(dataset: Dataset) -> Augmentation | None:
    """Return an augmentation only for unlabeled images: their two views must differ. Else `preprocess_fn` augments."""
    if dataset.kind != "unlabeled":
        return None
    content = dataset[0][0]
    return default_augmentation("unlabeled", content.shape[0]) if is_image(content) else None
