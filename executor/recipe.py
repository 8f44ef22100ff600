"""From training options to sampler, loss, loader and configuration: what `fit()` and the trainer share."""

import numpy as np
import torch
from torch import nn

from .cache import ImageCache
from .datasets import ClassDataset, Dataset, SessionDataset, check_trainable
from .errors import NotTrainable
from .loading import Augmentation, Loader, collate, item_content, model_inputs
from .losses import build_loss
from .models import EmbeddingModel, embedding_of
from .parameters import TrainingOptions
from .samplers import ClassSampler, InstanceSampler, Sampler, SessionSampler
from .training import TrainConfig

SCRATCH_LEARNING_RATE = 1e-3
PRETRAINED_LEARNING_RATE = 1e-4
VIEWS = 2  # of each unlabeled document


def make_sampler(dataset: Dataset, items: np.ndarray, options: TrainingOptions) -> Sampler:
    """Return the sampler for the dataset's kind over `items`. Raises: NotTrainable: with the counts."""
    check_trainable(dataset, items)
    labels = dataset.labels[items]
    if isinstance(dataset, ClassDataset):
        return ClassSampler(
            labels,
            batch_size=options.batch_size,
            num_items_per_class=options.num_items_per_class,
            seed=options.seed,
            indices=items,
        )
    if isinstance(dataset, SessionDataset):
        return SessionSampler(labels[:, 0], batch_size=options.batch_size, seed=options.seed, indices=items)
    return InstanceSampler(len(items), batch_size=options.batch_size // VIEWS, seed=options.seed, indices=items)


def make_loader(
    dataset: Dataset,
    items: np.ndarray,
    options: TrainingOptions,
    *,
    cache: ImageCache | None = None,
    augment: Augmentation | None = None,
) -> Loader:
    """Return the loader of the training batches."""
    sampler = make_sampler(dataset, items, options)
    views = VIEWS if dataset.kind == "unlabeled" else 1
    return Loader(dataset, sampler, cache=cache, augment=augment, views=views, seed=options.seed)


def make_loss(dataset: Dataset, options: TrainingOptions, embedding_size: int, device: torch.device) -> nn.Module:
    """Return the loss, its own parameters drawn under the run's seed."""
    classes = len(dataset.classes) if isinstance(dataset, ClassDataset) else 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        loss = build_loss(
            options.loss, dataset.kind, num_classes=classes, embedding_size=embedding_size, options=options.loss_options
        )
    return loss.to(device)


def make_config(options: TrainingOptions, *, scratch: bool, device: torch.device) -> TrainConfig:
    """Return the loop's configuration. `scratch`: the weights start random rather than pretrained."""
    default = SCRATCH_LEARNING_RATE if scratch else PRETRAINED_LEARNING_RATE
    return TrainConfig(
        epochs=options.epochs,
        learning_rate=options.learning_rate or default,
        weight_decay=options.weight_decay,
        warmup=options.warmup,
        patience=options.patience,
        bf16=options.precision == "bf16" or (options.precision == "auto" and computes_in_bf16(device)),
        seed=options.seed,
    )


def computes_in_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 matrices in hardware, so that mixed precision is faster than fp32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


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


def embedding_size(model: nn.Module, dataset: Dataset, cache: ImageCache | None, device: torch.device) -> int:
    """Return D of the model's (B, D) output, by a forward pass of two items where the model does not say."""
    if isinstance(model, EmbeddingModel):
        return model.dim
    training = model.training
    model.eval()
    with torch.no_grad():
        inputs = collate([item_content(dataset, 0, cache)] * 2, dataset.collate_fn)
        size = embedding_of(model(model_inputs(model, inputs, device))).shape[1]
    model.train(training)
    return int(size)
