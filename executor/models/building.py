"""Build a model from its name: `default`, `small`, a transformers model, or one from a factory."""

import importlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigurationError
from .backbones import Backbone, embedding_of, reading_of
from .batch_norms import norms_of_vectors
from .efficientnet import efficientnet_backbone, pretrained_efficientnet
from .model import EmbeddingModel, ModelConfig
from .preprocessing import USUAL_SIZE, Preprocessing
from .pretrained import transformers_backbone
from .residual import small_backbone
from .stated import assumed, first_line, own_preprocessing

SMALL_EMBEDDING_DIM = 128  # of the model `small`
FORMS = "`default`, `small`, a transformers vision model (a directory or a hub id), or `package.module:factory`"
FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
MOST_DIFFERENCE = 1e-3  # between two embeddings of one image, as a share of their length: more than rounding
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def build_model(config: ModelConfig) -> EmbeddingModel:
    """Build the model, in evaluation mode and channels-last memory format.

    The same config gives the same weights. The state of torch's random generator does not change.

    Raises: ConfigurationError: there is no such model, or it cannot be used; the message says why.
    """
    with seeded(config.seed):
        backbone, features = _tried(build_backbone(config), config.model)
        model = EmbeddingModel(backbone, config, features=features)
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

    If the module has an attribute `preprocessing`, that is used; else what we assume is noted.

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
    stated = own_preprocessing(module, path)
    preprocessing = (stated or Preprocessing(size=USUAL_SIZE)).at(input_size)
    remedy = "If that is wrong, give the module an attribute `preprocessing`, as docs/training.md shows."
    notes = () if stated else (assumed(preprocessing, path, remedy),)
    return Backbone(module=module, preprocessing=preprocessing, notes=notes)


def _tried(backbone: Backbone, name: str) -> tuple[Backbone, int]:
    """Embed two images to find out what the backbone's output is, and whether it can be used.

    Returns: the backbone with its `reading` and `norms_of_vectors`, and the size of its embeddings.
    Raises: ConfigurationError: it cannot be run, or an embedding does not depend on the image alone.
    """
    size = backbone.preprocessing.size
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    backbone.module.eval()
    with norms_of_vectors(backbone.module) as norms:
        output = _output(backbone, images, name)
    reading = reading_of(backbone.module, output, images)
    features = embedding_of(output, reading)
    if features.shape[0] != 2:
        raise ConfigurationError(f"model={name!r} returned {features.shape[0]} embeddings for 2 images.")
    again = embedding_of(_output(backbone, images[[0, 0]], name), reading)
    _check_same(features[:1].float(), again.float(), name)
    return replace(backbone, reading=reading, norms_of_vectors=bool(norms)), int(features.shape[1])


def _output(backbone: Backbone, images: Tensor, name: str) -> Any:
    try:
        with torch.inference_mode():
            return backbone.module(images, **backbone.options)
    except Exception as error:  # a model may raise anything
        raise ConfigurationError(
            f"model={name!r} does not embed float32 images of shape {tuple(images.shape)}: {first_line(error)} "
            "If it needs squares of another size, set input_size."
        ) from error


def _check_same(once: Tensor, again: Tensor, name: str) -> None:
    """Check that an image has the same embedding, (1, D), as beside itself in another batch, (2, D)."""
    difference = float((again - once).norm(dim=1).max() / once.norm().clamp_min(1e-12))
    if not difference <= MOST_DIFFERENCE:  # this way NaN is refused too
        raise ConfigurationError(
            f"model={name!r} embeds the same image differently the second time (by {difference:.2g} of its length). It "
            "may mask images at random (for ViTMAE, set mask_ratio to 0 in config.json), return numbers that are not "
            "finite, or look at the whole batch; an embedding may depend on its image alone."
        )
