"""How a document becomes the input of a model: the configured `preprocess_fn`, or the default image loading."""

import importlib
from collections.abc import Callable
from typing import Any

from ..errors import ConfigurationError
from ..models.model import EmbeddingModel
from ..parameters import ExecutorOptions
from .loader import ModelImages, fit_to_model


def make_preprocess(options: ExecutorOptions, model: EmbeddingModel) -> Callable[[Any], Any]:
    """Return the configured `preprocess_fn`, or the default image loading, with images fitted to the model."""
    if options.preprocess_fn is None:
        return ModelImages(model.preprocessing, options.image_policy())
    return fit_to_model(import_function(options.preprocess_fn), model.preprocessing)


def import_function(path: str) -> Callable[[Any], Any]:
    """Return the function at `package.module:function`. Raises: ConfigurationError: it cannot be imported."""
    module, _, name = path.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigurationError(
            f"preprocess_fn={path!r} cannot be imported ({error}); write package.module:function."
        ) from error
    if not callable(function):
        raise ConfigurationError(f"preprocess_fn={path!r} is not a function.")
    return function  # type: ignore[no-any-return]
