"""Make the parts of a training from its options: the sampler, loss, loader and configuration."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from ..compute.ranks import ALONE, Ranks
from ..errors import ConfigurationError
from ..loading.augmentation import Augmentation
from ..loading.batches import collate, model_inputs
from ..loading.cache import ImageCache
from ..loading.content import item_content
from ..loading.datasets import ClassDataset, Dataset, SessionDataset, check_trainable
from ..loading.loader import Loader
from ..loading.samplers import ClassSampler, InstanceSampler, Sampler, SessionSampler
from ..models.backbones import embedding_of, reading_of
from ..models.lora import add_lora, merge_lora
from ..models.model import EmbeddingModel, is_pretrained
from ..parameters import TrainingOptions
from .config import TrainConfig
from .losses import build_loss

NEW_LEARNING_RATE = 1e-3  # of weights that start random: a whole network, a head, low-rank updates
PRETRAINED_LEARNING_RATE = 1e-4
VIEWS = 2  # of each unlabeled document in a batch


def prepare_model(model: nn.Module, options: TrainingOptions) -> None:
    """Freeze parts and add low-rank updates, as the options say. A module that is not ours is trained whole.

    Raises: ConfigurationError: `freeze` or `lora_rank` does not fit the model.
    """
    if isinstance(model, EmbeddingModel):
        model.freeze(options.freeze)
        if options.lora_rank:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(options.seed)
                add_lora(model, options.lora_rank)
    elif options.freeze or options.lora_rank:
        raise ConfigurationError(
            f"freeze and lora_rank need a model of this package, not {type(model).__name__}; "
            "set requires_grad of its parameters yourself."
        )


def finish_model(model: nn.Module, options: TrainingOptions) -> None:
    """Merge the low-rank updates of a trained model into its weights, if it has any; its head is no longer new."""
    if isinstance(model, EmbeddingModel):
        model.head_is_new = False
        if options.lora_rank:
            merge_lora(model)


def make_sampler(dataset: Dataset, items: np.ndarray, options: TrainingOptions) -> Sampler:
    """Return the sampler for the dataset's kind over `items`. Raises: NotTrainable: the message gives the counts."""
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
    ranks: Ranks = ALONE,
) -> Loader:
    """Return the loader of the training batches."""
    sampler = make_sampler(dataset, items, options)
    views = VIEWS if dataset.kind == "unlabeled" else 1
    return Loader(dataset, sampler, cache=cache, augment=augment, views=views, seed=options.seed, ranks=ranks)


def fit_memory(options: TrainingOptions, loader: Loader, say: Callable[[str], None]) -> TrainingOptions:
    """Return the options with a memory, if they have one, that holds a batch, which may exceed `batch_size`."""
    largest = loader.sampler.largest() * loader.views
    if not options.memory_size or largest <= options.memory_size:
        return options
    say(f"memory_size is {largest} instead of {options.memory_size}: a batch may have so many images.")
    return options.model_copy(update={"memory_size": largest})


def make_loss(dataset: Dataset, options: TrainingOptions, embedding_size: int, device: torch.device) -> nn.Module:
    """Return the loss; its own parameters are drawn with the run's seed."""
    classes = len(dataset.classes) if isinstance(dataset, ClassDataset) else 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        loss = build_loss(
            options.loss,
            dataset.kind,
            num_classes=classes,
            embedding_size=embedding_size,
            options=options.loss_options,
            memory_size=options.memory_size,
        )
    return loss.to(device)


def make_config(options: TrainingOptions, model: nn.Module, *, documents: int, bf16: bool) -> TrainConfig:
    """Return the loop's configuration for `model` on so many train documents."""
    pretrained = is_pretrained(model)
    return TrainConfig(
        epochs=options.epochs or default_epochs(documents, pretrained=pretrained),
        learning_rate=options.learning_rate or default_rate(model, options),
        backbone_rate=options.backbone_rate,
        weight_decay=options.weight_decay,
        warmup=options.warmup,
        patience=options.patience,
        micro_batch=options.micro_batch,
        ema=options.ema,
        wise_ft=options.wise_ft,
        fixed_norms=pretrained if options.norm_statistics == "auto" else options.norm_statistics == "fixed",
        bf16=bf16,
        seed=options.seed,
    )


def default_rate(model: nn.Module, options: TrainingOptions) -> float:
    """Return the learning rate by what is trained: a whole pretrained network, or new weights only."""
    only_new = isinstance(model, EmbeddingModel) and (model.is_backbone_frozen or bool(options.lora_rank))
    return PRETRAINED_LEARNING_RATE if is_pretrained(model) and not only_new else NEW_LEARNING_RATE


def default_epochs(documents: int, *, pretrained: bool) -> int:
    """Return how many epochs to train for: the steps grow with the square root of the number of documents."""
    wanted = round(10 * math.sqrt(1000 / documents))
    return min(max(wanted, 3 if pretrained else 10), 30)


def example_inputs(
    model: nn.Module, dataset: Dataset, item: int, count: int, cache: ImageCache | None, device: torch.device
) -> Any:
    """Return model input for a batch with `count` copies of one item, to find out shapes and speeds."""
    content = item_content(dataset, item, cache)
    return model_inputs(model, collate([content] * count, dataset.collate_fn), device)


def embedding_size(model: nn.Module, inputs: Any) -> int:
    """Return D of the model's (B, D) output; if the model does not say it, run it once."""
    if isinstance(model, EmbeddingModel):
        return model.dim
    training = model.training
    model.eval()
    with torch.no_grad():
        output = model(inputs)
    model.train(training)
    return int(embedding_of(output, reading_of(model, output, inputs)).shape[1])
