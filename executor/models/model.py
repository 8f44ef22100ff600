"""`EmbeddingModel`: a backbone, an optional projection head, and the preprocessing they were trained with."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import ConfigurationError
from .backbones import Backbone, embedding_of
from .batch_norms import has_seen_images

SMALLEST_INPUT = 16


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model to build.

    Attributes:
        model: `default`, `small`, a transformers vision model (a directory or a hub id), or `package.module:factory`.
        input_size: Side of the square that the model sees, in pixels; None: the model's own.
        embedding_dim: Size of the embedding; another size than the model's own adds a projection head. None: the
            model's own, or 128 for `small`.
        freeze: True freezes the whole backbone; names freeze the parts of the backbone with these names.
        seed: For all weights that are not pretrained.
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
        reading: How the embedding is found in the backbone's output.
        head: (B, features) -> (B, D), or None.
        normalise: Whether embeddings are scaled to unit L2 norm.
        dim: D, the size of an embedding.
        head_is_new: Whether the head was never trained.
        config: The settings it was built from.
        norms_of_vectors: See `Backbone`.
        notes: Sentences on what had to be assumed when it was built; they are not saved.
    """

    def __init__(self, backbone: Backbone, config: ModelConfig, *, features: int, normalise: bool = True) -> None:
        """Wrap `backbone`, whose own embeddings have `features` values."""
        super().__init__()
        self.config = config
        self.backbone = backbone.module
        self.head: nn.Linear | None = None
        self.head_is_new = False
        self.preprocessing = backbone.preprocessing
        self.normalise = normalise
        self.features = self.dim = features
        self.options = backbone.options
        self.description = backbone.description
        self.reading = backbone.reading
        self.norms_of_vectors = backbone.norms_of_vectors
        self.notes = backbone.notes
        self._frozen: list[nn.Module] = []

    def forward(self, images: Tensor) -> Tensor:
        """Return the embeddings of images (B, 3, H, W) float32: (B, D) float32, also under autocast."""
        embeddings = self.extract_features(images)
        if self.head is not None:
            embeddings = self.head(embeddings)
        embeddings = embeddings.float()
        return nn.functional.normalize(embeddings, dim=1) if self.normalise else embeddings

    def extract_features(self, images: Tensor) -> Tensor:
        """Return the backbone's features (B, features), the input of the head, for images (B, 3, H, W) float32."""
        return embedding_of(self.backbone(images, **self.options), self.reading)

    @property
    def is_backbone_frozen(self) -> bool:
        """Whether the whole backbone is frozen, so that the features of an image stay the same during training."""
        trains = any(parameter.requires_grad for parameter in self.backbone.parameters())
        return not trains and any(module is self.backbone for module in self._frozen)

    def project(self, dim: int) -> None:
        """Put a new linear head on the backbone, for embeddings of `dim` values.

        Its rows or columns start orthonormal, so that it changes the backbone's similarities as little as possible,
        and not at all if `dim` is at least the number of features. If it is that number, the head starts as the
        identity: then the embeddings themselves stay, and those in an index are still found after some training.
        """
        weight = next(self.backbone.parameters(), torch.empty(0))
        self.head = nn.Linear(self.features, dim, bias=False)
        if dim == self.features:
            nn.init.eye_(self.head.weight)
        else:
            nn.init.orthogonal_(self.head.weight)
        self.head.to(weight.device)
        self.head_is_new = True
        self.dim = dim

    def freeze(self, names: bool | tuple[str, ...]) -> None:
        """Freeze parts of the backbone: no gradients, fixed norm statistics, no dropout.

        If nothing is left to train, a projection head of the same dimension is added.

        Args: names: True for the whole backbone, or names of modules or parameters in it; a name includes
            everything below it.
        Raises: ConfigurationError: the backbone has nothing of that name.
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
    """A model with its normalisation in front: (B, S, S, 3) uint8 RGB -> (B, D) float32."""

    def __init__(self, model: EmbeddingModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Return the embeddings of images."""
        embeddings: Tensor = self.model(self.model.preprocessing.normalise(images))
        return embeddings


def is_pretrained(model: nn.Module) -> bool:
    """Whether the model was trained before: those of transformers were, and all whose batch norms have met images."""
    backbone = model.backbone if isinstance(model, EmbeddingModel) else model
    return hasattr(getattr(backbone, "config", None), "model_type") or has_seen_images(backbone)
