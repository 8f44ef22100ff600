"""Load vision models of transformers from a directory or the hub, or rebuild them from a saved description.

`transformers` takes about ten seconds to import, so we import it only when someone asks for such a model.
"""

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from ..errors import ConfigurationError
from .backbones import Backbone
from .preprocessing import IMAGENET_MEAN, IMAGENET_STD, USUAL_SIZE, Preprocessing


def transformers_backbone(name: str, input_size: int | None) -> Backbone:
    """Return a transformers vision model with its pretrained weights, from a directory or from the hub.

    If the model reads text and images, only its vision tower is loaded. Weights are read only from safetensors, and
    code that comes with a model is never run.

    Raises: ConfigurationError: the model is not there, the hub cannot be reached, it is not a vision model, or it has
        no usable weights.
    """
    config = _transformers_config(name)
    model_class = _vision_class(name, config)
    try:
        model, report = model_class.from_pretrained(
            name, use_safetensors=True, trust_remote_code=False, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        raise ConfigurationError(f"The weights of model={name!r} cannot be loaded: {_first_line(error)}") from error
    # Checkpoints of classifiers often have no pooler. A pooler with random weights would only blur the class token,
    # so we remove it.
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
    """Build the model of a `Backbone.description`, with random weights. This needs no network.

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
    # The position embeddings fit one image size; for any other they are interpolated.
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
    """Return the class of the model; for a model that also reads text, the class of its vision tower."""
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

    We read its file ourselves, because the image processors of transformers need torchvision.
    """
    published = _image_processor(name)
    size = published.get("size", getattr(config, "image_size", USUAL_SIZE))
    side = resized = _side(size, name)
    crop = bool(published.get("do_center_crop"))
    if crop:
        side = _side(published.get("crop_size", size), name)
    elif "crop_pct" in published and side < 384:  # ConvNeXt's way to cut off a margin
        crop, resized = True, int(side / (published["crop_pct"] or 0.875))
    if published.get("do_flip_channel_order"):
        raise ConfigurationError(f"model={name!r} reads BGR images, which is not supported; give another model.")
    mean, std = published.get("image_mean", IMAGENET_MEAN), published.get("image_std", IMAGENET_STD)
    if published and not published.get("do_normalize", "image_mean" in published):
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    scale = 255 * published.get("rescale_factor", 1 / 255)  # mean and std may be for another range than [0, 1]
    return Preprocessing(
        size=side,
        mean=(mean[0] / scale, mean[1] / scale, mean[2] / scale),
        std=(std[0] / scale, std[1] / scale, std[2] / scale),
        crop=crop,
        shorter_side=resized if crop else None,
    )


def _image_processor(name: str) -> dict[str, Any]:
    """Return the settings of the image processor published with a model; empty if there is none."""
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
    """Return the side of the square from an image size, in any form that configurations use."""
    if isinstance(size, Mapping):
        sides = {size[key] for key in ("shortest_edge", "height", "width") if size.get(key)}
    else:
        sides = set(size) if isinstance(size, (list, tuple)) else {size}
    if len(sides) != 1:
        raise ConfigurationError(f"model={name!r} has the image size {size!r}; only squares are supported.")
    return int(sides.pop())


def _first_line(error: Exception) -> str:
    """Return the first line of an error message, as a sentence."""
    return str(error).strip().partition("\n")[0].rstrip(" .") + "."
