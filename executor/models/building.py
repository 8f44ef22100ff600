"""Build a model from its name: `default`, `small`, a transformers model, or one from a factory."""

import importlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import ConfigurationError
from .backbones import Backbone, embedding_of
from .efficientnet import efficientnet_backbone, pretrained_efficientnet
from .model import EmbeddingModel, ModelConfig
from .preprocessing import USUAL_SIZE, Preprocessing
from .pretrained import transformers_backbone
from .residual import small_backbone

SMALL_EMBEDDING_DIM = 128  # of the model `small`
FORMS = "`default`, `small`, a transformers vision model (a directory or a hub id), or `package.module:factory`"
FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def build_model(config: ModelConfig) -> EmbeddingModel:
    """Build the model, in evaluation mode and channels-last memory format.

    The same config gives the same weights. The state of torch's random generator does not change.

    Raises: ConfigurationError: there is no such model, or it cannot be used; the message says why.
    """
    with seeded(config.seed):
        backbone = build_backbone(config)
        model = EmbeddingModel(backbone, config, features=_count_features(backbone, config.model))
        embedding_dim = config.embedding_dim
        if embedding_dim is None and config.model == "small":
            embedding_dim = SMALL_EMBEDDING_DIM
        if embedding_dim not in (None, model.features):
            model.project(embedding_dim)
        model.freeze(config.freeze)
    return channels_last(model).eval()


def channels_last(model: EmbeddingModel) -> EmbeddingModel:
    """Store the kernels channels-last, so that images in that format need no reordering before a convolution."""
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return model


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's random generator inside the block, and restore its state afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def build_backbone(config: ModelConfig, *, pretrained: bool = True) -> Backbone:
    """Return the backbone. With `pretrained` false its weights may be random: a saved version is loaded into it."""
    name = config.model
    if name == "default":
        return (pretrained_efficientnet if pretrained else efficientnet_backbone)(config.input_size)
    if name == "small":
        return small_backbone(config.input_size)
    if FACTORY.fullmatch(name):
        return _factory_backbone(name, config.input_size)
    if Path(name).is_dir() or HUB_ID.fullmatch(name):
        return transformers_backbone(name, config.input_size)
    raise ConfigurationError(f"model={name!r} is not a directory, nor any other model; a model is {FORMS}.")


def _factory_backbone(path: str, input_size: int | None) -> Backbone:
    """Return the module that `package.module:factory` makes when called without arguments.

    The module may have an attribute `preprocessing`, a `Preprocessing` or a mapping of its fields; then it is used.

    Raises: ConfigurationError: the factory cannot be imported or called, or does not return a module.
    """
    module_name, _, attribute = path.partition(":")
    try:
        factory: Any = importlib.import_module(module_name)
        for name in attribute.split("."):
            factory = getattr(factory, name)
    except Exception as error:  # an import may raise anything
        raise ConfigurationError(f"model={path!r} cannot be imported: {type(error).__name__}: {error}.") from error
    if not callable(factory):
        raise ConfigurationError(f"model={path!r} is not callable but of type {type(factory).__name__}.")
    try:
        module = factory()
    except Exception as error:
        raise ConfigurationError(f"model={path!r} failed when called: {type(error).__name__}: {error}.") from error
    if not isinstance(module, nn.Module):
        raise ConfigurationError(
            f"model={path!r} returned {type(module).__name__}; a factory returns a torch.nn.Module."
        )
    return Backbone(module=module, preprocessing=_own_preprocessing(module, path).at(input_size))


def _own_preprocessing(module: nn.Module, path: str) -> Preprocessing:
    own = getattr(module, "preprocessing", None)
    if own is None:
        return Preprocessing(size=USUAL_SIZE)
    try:  # look at the fields, not the class: Jina loads this package a second time under another name
        return preprocessing_from(asdict(own) if is_dataclass(own) and not isinstance(own, type) else own)
    except TypeError as error:
        names = ", ".join(each.name for each in fields(Preprocessing))
        raise ConfigurationError(f"The preprocessing of model={path!r} must have the fields {names}.") from error


def preprocessing_from(settings: Mapping[str, Any]) -> Preprocessing:
    return Preprocessing(**{**settings, "mean": tuple(settings["mean"]), "std": tuple(settings["std"])})


def _count_features(backbone: Backbone, name: str) -> int:
    """Embed two black images and return the size of the backbone's embeddings."""
    size = backbone.preprocessing.size
    backbone.module.eval()
    try:
        with torch.inference_mode():
            features = embedding_of(backbone.module(torch.zeros(2, 3, size, size), **backbone.options))
    except ConfigurationError:
        raise
    except Exception as error:  # a model may raise anything
        raise ConfigurationError(
            f"model={name!r} does not embed float32 images of shape (2, 3, {size}, {size}): {error}"
        ) from error
    if features.shape[0] != 2:
        raise ConfigurationError(f"model={name!r} returned {features.shape[0]} embeddings for 2 images.")
    return int(features.shape[1])
