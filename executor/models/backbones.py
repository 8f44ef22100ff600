"""What turns images into features, and the preprocessing each was made for.

`transformers` takes about ten seconds to import, so it is imported only where a model of it is asked for.
"""

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from ..errors import ConfigurationError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
USUAL_SIZE = 224  # what nearly every published image model was trained at
DEFAULT_SIZE = 64


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What is done to an image before the model sees it; training, evaluation and serving do the same.

    Attributes:
        size: Side of the square the model sees, in pixels.
        mean: Per channel, RGB in [0, 1].
        std: Per channel, RGB in [0, 1].
        crop: False squashes the whole image into the square, so that nothing at its borders is lost to a search.
            True keeps the aspect ratio and takes the middle.
        shorter_side: With `crop`: what the shorter side would be scaled to before the middle `size` pixels are
            taken; None means `size`.
    """

    size: int = DEFAULT_SIZE
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    crop: bool = False
    shorter_side: int | None = None

    def resize(self, image: np.ndarray) -> np.ndarray:
        """Return the image, H×W×3 uint8, as size×size×3 uint8; the same input always gives the same bytes."""
        if self.crop:
            image = self._middle(image)
        height, width = image.shape[:2]
        # Areas are averaged where there are pixels to spare and interpolated where there are too few: OpenCV's
        # area mode does not average an axis while the other one grows, hence two steps.
        shrunk = min(width, self.size), min(height, self.size)
        if shrunk != (width, height):
            image = cv2.resize(image, shrunk, interpolation=cv2.INTER_AREA)
        if shrunk != (self.size, self.size):
            image = cv2.resize(image, (self.size, self.size), interpolation=cv2.INTER_CUBIC)
        return np.ascontiguousarray(image)

    def normalise(self, images: Tensor) -> Tensor:
        """Return (B, H, W, 3) uint8 as (B, 3, H, W) float32 on the same device, in channels-last memory format."""
        mean = torch.tensor(self.mean, device=images.device).view(1, 3, 1, 1)
        std = torch.tensor(self.std, device=images.device).view(1, 3, 1, 1)
        return images.permute(0, 3, 1, 2).to(torch.float32).sub_(mean * 255).div_(std * 255)

    def at(self, size: int | None) -> "Preprocessing":
        """Return the same preprocessing for squares of another size; None keeps the size."""
        if size is None:
            return self
        shorter_side = self.shorter_side and round(self.shorter_side * size / self.size)
        return replace(self, size=size, shorter_side=shorter_side)

    def _middle(self, image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        shorter = min(height, width)
        side = max(1, round(shorter * self.size / max(self.shorter_side or self.size, self.size)))
        top, left = (height - side) // 2, (width - side) // 2
        return image[top : top + side, left : left + side]


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A feature extractor and what has to be known to call it, and to build it again without its weights.

    Attributes:
        options: Keyword arguments of each forward call.
        description: For a transformers model, its class, configuration and changes; empty for the others.
    """

    module: nn.Module
    preprocessing: Preprocessing
    options: Mapping[str, Any] = field(default_factory=dict)
    description: Mapping[str, Any] = field(default_factory=dict)


def embedding_of(output: Any) -> Tensor:
    """Return the (B, D) embedding in a model's output.

    A tensor is taken as it is; of a transformers-like output the first of `pooler_output`, `image_embeds` and
    `last_hidden_state` that is set. A feature map (B, C, H, W) is averaged over H and W; of a sequence (B, N, D)
    the first token is taken, which is the class token.

    Raises: ConfigurationError: there is none of these.
    """
    looked_for = ("pooler_output", "image_embeds", "last_hidden_state")
    found = output if isinstance(output, Tensor) else None
    for name in looked_for:
        found = getattr(output, name, None) if found is None else found
    if not isinstance(found, Tensor):
        present = ", ".join(output if isinstance(output, Mapping) else sorted(getattr(output, "__dict__", ())))
        raise ConfigurationError(
            f"The model returned {type(output).__name__}, which has none of {', '.join(looked_for)} "
            f"(it has: {present or 'no attributes'}). Let it return those or a (B, D) tensor."
        )
    if found.ndim == 4:
        return found.mean(dim=(2, 3))
    if found.ndim == 3:
        return found[:, 0]
    if found.ndim == 2:
        return found
    raise ConfigurationError(f"The model returned a tensor of shape {tuple(found.shape)}; expected (B, D).")


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut (He et al. 2016, arXiv:1512.03385, figure 2)."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.last_norm = nn.BatchNorm2d(channels)
        self.residual = nn.Sequential(
            nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, 1, 1, bias=False),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.relu(self.shortcut(images) + self.last_norm(self.residual(images)), inplace=True)


class ResidualNetwork(nn.Sequential):
    """The default backbone: (B, 3, H, W) float32, H and W at least 16 -> (B, 256) float32.

    A ResNet-18 of half the width, 2.8 million parameters, whose first kernel is 3×3 because its images are small. The
    smaller they are, the less it shrinks them at its beginning, so that at least 2×2 positions remain at its end: in
    bf16 on a CPU, torch 2.13 gives garbage as the gradient of a convolution of stride 2 over a single position.
    Each block begins with its residual at half weight. At zero, as is usual, the untrained network would see little
    and learn more slowly; at one, images of unseen classes are told apart worse after training (0.23 instead of 0.32
    mAP@R on generated textures of 64 pixels).

    Args: size: of the images that it is for, in pixels.
    """

    def __init__(self, size: int) -> None:
        widths = (32, 64, 128, 256)
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, widths[0], 3, 2 if size >= 32 else 1, 1, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, 1) if size >= 64 else nn.Identity(),
        )
        for index, (before, width) in enumerate(zip(widths[:1] + widths, widths, strict=False)):
            stage = nn.Sequential(ResidualBlock(before, width, 2 if index else 1), ResidualBlock(width, width, 1))
            self.add_module(f"stage{index + 1}", stage)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if isinstance(module, ResidualBlock):
                nn.init.constant_(module.last_norm.weight, 0.5)


def default_backbone(input_size: int | None) -> Backbone:
    """Return the default network with random weights, drawn from torch's generator."""
    preprocessing = Preprocessing().at(input_size)
    return Backbone(module=ResidualNetwork(preprocessing.size), preprocessing=preprocessing)


def transformers_backbone(name: str, input_size: int | None) -> Backbone:
    """Return a transformers vision model with its pretrained weights, from a directory or from the hub.

    Of a text and vision model only the vision tower is loaded. Weights are read from safetensors only, and no
    code that comes with a model is run.

    Raises: ConfigurationError: not there, not reachable, not a vision model, or without usable weights.
    """
    config = _transformers_config(name)
    model_class = _vision_class(name, config)
    try:
        model, report = model_class.from_pretrained(
            name, use_safetensors=True, trust_remote_code=False, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        raise ConfigurationError(f"The weights of model={name!r} cannot be loaded: {_first_line(error)}") from error
    # Checkpoints of classifiers often lack the pooler of the bare model. One with random weights would only blur
    # the class token, so the model goes without.
    missing = {key for key in report["missing_keys"] if not key.startswith("pooler.")}
    if missing:
        raise ConfigurationError(
            f"The weights of model={name!r} lack {len(missing)} tensors of {model_class.__name__}, "
            f"{min(missing)} for one; give a complete model."
        )
    without_pooler = bool(report["missing_keys"])
    description = {"class": model_class.__name__, "config": model.config.to_dict(), "without_pooler": without_pooler}
    return _described(model, description, _published_preprocessing(name, model.config).at(input_size))


def rebuilt_transformers_backbone(description: Mapping[str, Any], preprocessing: Preprocessing) -> Backbone:
    """Return the model that a `Backbone.description` describes, with random weights; needs no network.

    Raises: ConfigurationError: the installed transformers has no such model class.
    """
    import transformers

    named = getattr(transformers, description["class"], None)
    if not (inspect.isclass(named) and issubclass(named, transformers.PreTrainedModel)):
        raise ConfigurationError(
            f"transformers {transformers.__version__} has no model class {description['class']!r}; "
            "install the version that the model was saved with."
        )
    model_class: Any = named
    config = model_class.config_class.from_dict(dict(description["config"]))
    return _described(model_class._from_config(config, dtype=torch.float32), description, preprocessing)


def _described(model: Any, description: Mapping[str, Any], preprocessing: Preprocessing) -> Backbone:
    if description["without_pooler"]:
        model.pooler = None
    # Position embeddings learnt for one image size are interpolated for another.
    resizes = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
    other_size = preprocessing.size != getattr(model.config, "image_size", preprocessing.size)
    options = {"interpolate_pos_encoding": True} if resizes and other_size else {}
    return Backbone(module=model, preprocessing=preprocessing, options=options, description=description)


def _transformers_config(name: str) -> Any:
    from transformers import AutoConfig

    folder = Path(name)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ConfigurationError(f"model={name!r} is a directory without config.json; give a transformers model.")
    if folder.is_dir() and not any(folder.glob("*.safetensors")):
        raise ConfigurationError(
            f"model={name!r} has no *.safetensors; pickled weights are never loaded, so convert them first."
        )
    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        if folder.is_dir():
            raise ConfigurationError(f"config.json of model={name!r} is not usable: {_first_line(error)}") from error
        raise ConfigurationError(
            f"model={name!r} could not be had from the Hugging Face hub: {_first_line(error)} "
            "Check the name, or download the model and give its directory."
        ) from error


def _vision_class(name: str, config: Any) -> Any:
    """Return the class of the model, or of the vision tower of one that reads text too."""
    import transformers

    kind = type(config).__name__.removesuffix("Config")
    if hasattr(config, "vision_config"):
        for tower in (f"{kind}VisionModelWithProjection", f"{kind}VisionModel"):
            if hasattr(transformers, tower):
                return getattr(transformers, tower)
        raise ConfigurationError(f"model={name!r} is a {kind}, whose vision tower cannot be loaded by itself.")
    model_class = transformers.MODEL_MAPPING.get(type(config), None)
    wanted = getattr(model_class, "main_input_name", "no images")
    if wanted != "pixel_values":
        raise ConfigurationError(
            f"model={name!r} is a {kind}, which reads {wanted}, not pixel_values; give a vision model."
        )
    return model_class


def _published_preprocessing(name: str, config: Any) -> Preprocessing:
    """Read the published image processor; without one, assume ImageNet's mean and std and the model's image size.

    Its file is read as it is, because the image processors of transformers need torchvision.
    """
    published = _image_processor(name)
    size = published.get("size", getattr(config, "image_size", USUAL_SIZE))
    side = resized = _side(size, name)
    crop = bool(published.get("do_center_crop"))
    if crop:
        side = _side(published.get("crop_size", size), name)
    elif "crop_pct" in published and side < 384:  # how ConvNeXt's processor asks for a margin to be cut off
        crop, resized = True, int(side / (published["crop_pct"] or 0.875))
    if published.get("do_flip_channel_order"):
        raise ConfigurationError(f"model={name!r} reads BGR images, which is not supported; give another model.")
    mean, std = published.get("image_mean", IMAGENET_MEAN), published.get("image_std", IMAGENET_STD)
    if published and not published.get("do_normalize", "image_mean" in published):
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    scale = 255 * published.get("rescale_factor", 1 / 255)  # mean and std may refer to another range than [0, 1]
    return Preprocessing(
        size=side,
        mean=(mean[0] / scale, mean[1] / scale, mean[2] / scale),
        std=(std[0] / scale, std[1] / scale, std[2] / scale),
        crop=crop,
        shorter_side=resized if crop else None,
    )


def _image_processor(name: str) -> dict[str, Any]:
    """Return the settings of the image processor that is published with a model, empty if there is none."""
    from transformers.utils import cached_file

    try:
        for file_name in ("preprocessor_config.json", "processor_config.json"):
            file = cached_file(name, file_name, _raise_exceptions_for_missing_entries=False)
            published: dict[str, Any] = json.loads(Path(file).read_text(encoding="utf-8")) if file else {}
            published = published.get("image_processor", published)
            if isinstance(published, dict) and "size" in published:
                return published
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{file_name} of model={name!r} cannot be read: {_first_line(error)}") from error
    return {}


def _side(size: Any, name: str) -> int:
    """Return the side of the square in any of the forms in which configurations give an image size."""
    if isinstance(size, Mapping):
        sides = {size[key] for key in ("shortest_edge", "height", "width") if size.get(key)}
    else:
        sides = set(size) if isinstance(size, (list, tuple)) else {size}
    if len(sides) != 1:
        raise ConfigurationError(f"model={name!r} has the image size {size!r}; only squares are supported.")
    return int(sides.pop())


def _first_line(error: Exception) -> str:
    """Return the beginning of what a library said, as a sentence."""
    return str(error).strip().partition("\n")[0].rstrip(" .") + "."
