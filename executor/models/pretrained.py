"""Load vision models of transformers from a directory or the hub, or rebuild them from a saved description.

`transformers` takes about ten seconds to import, so we import it only when someone asks for such a model.
"""

import inspect
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..errors import ConfigurationError
from .backbones import Backbone
from .preprocessing import Preprocessing
from .stated import assumed, first_line, published_preprocessing


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
    except Exception as error:  # beside unusable weights: a model's code may raise anything at odd settings
        raise ConfigurationError(f"The weights of model={name!r} cannot be loaded: {first_line(error)}") from error
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
    preprocessing, is_stated = published_preprocessing(name, model.config)
    backbone = _described(model, description, preprocessing.at(input_size))
    remedy = "If that is wrong, put its preprocessor_config.json beside its weights."
    return backbone if is_stated else replace(backbone, notes=(assumed(backbone.preprocessing, name, remedy),))


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
    except Exception as error:  # beside a missing file: the class of a configuration may raise anything
        if folder.is_dir():
            raise ConfigurationError(f"config.json of model={name!r} is not usable: {first_line(error)}") from error
        raise ConfigurationError(
            f"model={name!r} could not be had from the Hugging Face hub: {first_line(error)} "
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
