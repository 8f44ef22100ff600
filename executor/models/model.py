"""From a model's name to a module that embeds images, and to a folder and back.

A saved model is a folder: `weights.safetensors`, `model.json` (how to build it, its preprocessing) and, for a
transformers model, `backbone_config.json`. It loads without a network and without the original model; only a model
from a factory needs that factory importable.
"""

import importlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from ..errors import ConfigurationError, WorkspaceError
from ..store.files import publish_folder, unwritable
from .backbones import (
    USUAL_SIZE,
    Backbone,
    Preprocessing,
    default_backbone,
    embedding_of,
    rebuilt_transformers_backbone,
    transformers_backbone,
)

__all__ = [
    "EmbeddingModel",
    "ModelConfig",
    "Preprocessing",
    "build_model",
    "embedding_of",
    "load_model",
    "save_model",
]

DEFAULT_EMBEDDING_DIM = 128  # of the default model
SMALLEST_INPUT = 16
FORMAT = 1
FORMS = "`default`, a transformers vision model (a directory or a hub id), or `package.module:factory`"
FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model to build.

    Attributes:
        model: `default`, a transformers vision model (a directory or a hub id), or `package.module:factory`.
        input_size: Side of the square the model sees, in pixels; None is the model's own.
        embedding_dim: Size of the embedding, by a projection head where it is not the model's own; None is the
            model's own, and 128 for `default`.
        freeze: True freezes the whole backbone; names freeze the parts of the backbone so called.
        seed: Of all weights that are not pretrained.
    """

    model: str = "default"
    input_size: int | None = None
    embedding_dim: int | None = None
    freeze: bool | tuple[str, ...] = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.input_size is not None and self.input_size < SMALLEST_INPUT:
            raise ConfigurationError(f"input_size is {self.input_size}; the smallest is {SMALLEST_INPUT} pixels.")
        if self.embedding_dim is not None and self.embedding_dim < 1:
            raise ConfigurationError(f"embedding_dim is {self.embedding_dim}; it must be positive.")


class EmbeddingModel(nn.Module):
    """A backbone, an optional projection head, and the preprocessing they were trained with.

    Attributes:
        backbone: (B, 3, H, W) float32 -> anything that `embedding_of` reads.
        head: (B, features) -> (B, D), or None.
        normalise: Whether embeddings are scaled to unit L2 norm.
        dim: D, the size of an embedding.
        config: What it was built from.
    """

    def __init__(self, backbone: Backbone, config: ModelConfig, *, features: int, normalise: bool = True) -> None:
        """Wrap `backbone`, whose own embeddings have `features` values."""
        super().__init__()
        self.config = config
        self.backbone = backbone.module
        self.head: nn.Linear | None = None
        self.preprocessing = backbone.preprocessing
        self.normalise = normalise
        self.features = self.dim = features
        self.options = backbone.options
        self.description = backbone.description
        self._frozen: list[nn.Module] = []

    def forward(self, images: Tensor) -> Tensor:
        """Return the embeddings, (B, D) float32 also under autocast, of images (B, 3, H, W) float32."""
        embeddings = self.extract_features(images)
        if self.head is not None:
            embeddings = self.head(embeddings)
        embeddings = embeddings.float()
        return nn.functional.normalize(embeddings, dim=1) if self.normalise else embeddings

    def extract_features(self, images: Tensor) -> Tensor:
        """Return what the backbone makes of images (B, 3, H, W) float32, and the head gets: (B, features)."""
        return embedding_of(self.backbone(images, **self.options))

    @property
    def is_backbone_frozen(self) -> bool:
        """Whether an image has the same features all through a training: the backbone is frozen, all of it."""
        trains = any(parameter.requires_grad for parameter in self.backbone.parameters())
        return not trains and any(module is self.backbone for module in self._frozen)

    def project(self, dim: int) -> None:
        """Put a new linear head on the backbone, for embeddings of `dim` values.

        Its rows or columns begin orthonormal, so that it distorts the backbone's similarities as little as it can:
        not at all where `dim` is at least the number of features.
        """
        weight = next(self.backbone.parameters(), torch.empty(0))
        self.head = nn.Linear(self.features, dim, bias=False)
        nn.init.orthogonal_(self.head.weight)
        self.head.to(weight.device)
        self.dim = dim

    def freeze(self, names: bool | tuple[str, ...]) -> None:
        """Keep parts of the backbone as they are: no gradients, norm statistics fixed, dropout off.

        Where this leaves nothing to train, a projection head of the same dimension is added.

        Args: names: True for all of it; or names of modules or parameters within the backbone, each of which
            includes everything below it.
        Raises: ConfigurationError: a name matches nothing.
        """
        if not names:
            return
        for name in ("",) if isinstance(names, bool) else names:
            self._freeze_part(name)
        self.train(self.training)
        if self.head is None and not any(parameter.requires_grad for parameter in self.backbone.parameters()):
            self.project(self.dim)

    def _freeze_part(self, name: str) -> None:
        def within(part: str) -> bool:
            return not name or part == name or part.startswith(f"{name}.")

        modules = [module for part, module in self.backbone.named_modules() if within(part)]
        parameters = [parameter for part, parameter in self.backbone.named_parameters() if within(part)]
        if not modules and not parameters:
            known = ", ".join(part for part, _ in self.backbone.named_children())
            raise ConfigurationError(f"freeze names {name!r}, which the model does not have; it has {known}.")
        for parameter in parameters:
            parameter.requires_grad_(False)
        self._frozen += modules

    def train(self, mode: bool = True) -> "EmbeddingModel":
        """Set training mode on all but the frozen parts, which stay in evaluation mode."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self


class WithNormalisation(nn.Module):
    """What a model is from the outside: (B, S, S, 3) uint8 RGB -> (B, D) float32."""

    def __init__(self, model: EmbeddingModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Return the embeddings of images."""
        embeddings: Tensor = self.model(self.model.preprocessing.normalise(images))
        return embeddings


def build_model(config: ModelConfig) -> EmbeddingModel:
    """Build the model, in evaluation mode and channels-last memory format.

    The same config gives the same weights; torch's random generator is left as it was.

    Raises: ConfigurationError: there is no such model, or it cannot be used; the message says why.
    """
    with _seeded(config.seed):
        backbone = _backbone(config)
        model = EmbeddingModel(backbone, config, features=_count_features(backbone, config.model))
        embedding_dim = config.embedding_dim
        if embedding_dim is None and config.model == "default":
            embedding_dim = DEFAULT_EMBEDDING_DIM
        if embedding_dim not in (None, model.features):
            model.project(embedding_dim)
        model.freeze(config.freeze)
    return _channels_last(model).eval()


def save_model(model: EmbeddingModel, folder: Path) -> None:
    """Save the model into `folder`: complete or, whatever happens meanwhile, not there. An old one is replaced.

    Raises: WorkspaceError: the disk is full or cannot be written.
    """
    settings = {
        "format": FORMAT,
        "config": asdict(model.config),
        "preprocessing": asdict(model.preprocessing),
        "features": model.features,
        "dim": model.dim,
        "head": model.head is not None,
        "normalise": model.normalise,
    }

    def write(place: Path) -> None:
        safetensors.torch.save_model(model, str(place / "weights.safetensors"))
        _write_json(place / "model.json", settings)
        if model.description:
            _write_json(place / "backbone_config.json", model.description)

    try:
        publish_folder(folder, write)
    except (OSError, SafetensorError) as error:
        raise unwritable("the model", folder, error) from error


def load_model(
    folder: Path, *, freeze: bool | tuple[str, ...] | None = None, embedding_dim: int | None = None
) -> EmbeddingModel:
    """Load what `save_model` saved, in evaluation mode and channels-last memory format.

    Args:
        freeze: What to freeze instead of what the saved config says.
        embedding_dim: Another size than the saved one puts a new projection head on the backbone.
    Raises: WorkspaceError: a file is missing or damaged; it is named. ConfigurationError: the code that the model
        needs is not there, or `freeze` names what it does not have.
    """
    settings = _read_json(folder / "model.json")
    if settings.get("format") != FORMAT:
        raise WorkspaceError(
            f"{folder / 'model.json'} has format {settings.get('format')}; this version reads {FORMAT}."
        )
    saved = _config(settings["config"])
    config = replace(
        saved,
        freeze=saved.freeze if freeze is None else freeze,
        embedding_dim=saved.embedding_dim if embedding_dim is None else embedding_dim,
    )
    with _seeded(config.seed):
        model = EmbeddingModel(
            _rebuilt_backbone(folder, config, _preprocessing(settings["preprocessing"])),
            features=settings["features"],
            config=config,
            normalise=settings["normalise"],
        )
        if settings["head"]:
            model.project(settings["dim"])
        _load_weights(_channels_last(model), folder / "weights.safetensors")
        if embedding_dim not in (None, model.dim):
            model.project(embedding_dim)
        model.freeze(config.freeze)
    return model.eval()


def _config(saved: Mapping[str, Any]) -> ModelConfig:
    freeze = saved["freeze"]
    return ModelConfig(**{**saved, "freeze": tuple(freeze) if isinstance(freeze, list) else freeze})


def _channels_last(model: EmbeddingModel) -> EmbeddingModel:
    """Lay the kernels out so that the processor convolves channels-last images without reordering them."""
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return model


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draw random numbers from `seed`, and leave the caller's generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _backbone(config: ModelConfig) -> Backbone:
    name = config.model
    if name == "default":
        return default_backbone(config.input_size)
    if FACTORY.fullmatch(name):
        return _factory_backbone(name, config.input_size)
    if Path(name).is_dir() or HUB_ID.fullmatch(name):
        return transformers_backbone(name, config.input_size)
    raise ConfigurationError(f"model={name!r} is not a directory, nor any other model; a model is {FORMS}.")


def _factory_backbone(path: str, input_size: int | None) -> Backbone:
    """Return the module that `package.module:factory` makes when called without arguments.

    The module's own attribute `preprocessing` is honoured: a `Preprocessing`, or a mapping of its fields.

    Raises: ConfigurationError: the factory cannot be imported or called, or does not return a module.
    """
    module_name, _, attribute = path.partition(":")
    try:
        factory: Any = importlib.import_module(module_name)
        for name in attribute.split("."):
            factory = getattr(factory, name)
    except Exception as error:  # a module may raise anything while it is imported
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
    try:  # by its fields, not by its class: Jina loads this package a second time under another name
        return _preprocessing(asdict(own) if is_dataclass(own) and not isinstance(own, type) else own)
    except TypeError as error:
        names = ", ".join(each.name for each in fields(Preprocessing))
        raise ConfigurationError(f"The preprocessing of model={path!r} must have the fields {names}.") from error


def _preprocessing(settings: Mapping[str, Any]) -> Preprocessing:
    return Preprocessing(**{**settings, "mean": tuple(settings["mean"]), "std": tuple(settings["std"])})


def _count_features(backbone: Backbone, name: str) -> int:
    """Return the size of the backbone's embeddings, found by embedding two black images."""
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


def _rebuilt_backbone(folder: Path, config: ModelConfig, preprocessing: Preprocessing) -> Backbone:
    described = folder / "backbone_config.json"
    if described.exists():
        return rebuilt_transformers_backbone(_read_json(described), preprocessing)
    return replace(_backbone(config), preprocessing=preprocessing)


def _load_weights(model: EmbeddingModel, file: Path) -> None:
    try:
        safetensors.torch.load_model(model, file)
    except (OSError, SafetensorError) as error:
        raise WorkspaceError(f"{file} is missing or damaged ({error}); restore it, or train again.") from error
    except RuntimeError as error:
        raise WorkspaceError(f"{file} does not belong to the model beside it: {error}") from error


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WorkspaceError(f"{file} is missing or damaged ({error}); restore it, or train again.") from error
    if not isinstance(content, dict):
        raise WorkspaceError(f"{file} is damaged: it holds no object; restore it, or train again.")
    return content


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2), encoding="utf-8")
