"""The backbone of a model: takes images, returns features."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isqrt
from typing import Any

from torch import Tensor, nn

from ..errors import ConfigurationError
from .preprocessing import Preprocessing

LOOKED_FOR = ("pooler_output", "image_embeds", "last_hidden_state")
CLASS_TOKEN = re.compile(r"(.*\.)?(cls|class)_?(\w*_)?(token|emb|embed|embedding)s?")  # as models name the parameter


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a model's output is taken to be. It is found out when a model is built, and saved with it.

    The defaults are what was done before there was a choice: models that were saved then have nothing else.

    Attributes:
        class_token: The first token of a sequence (B, N, D) stands for the image. False: all tokens are averaged.
        channels_last: A feature map is (B, H, W, C). False: it is (B, C, H, W).
    """

    class_token: bool = True
    channels_last: bool = False


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A feature extractor, with all that is needed to call it and to rebuild it without its weights.

    Attributes:
        options: Keyword arguments for every forward call.
        description: For a transformers model its class, its configuration and our changes; empty for other models.
        reading: How the embedding is found in its output.
        notes: Sentences on what had to be assumed, for the operator.
        norms_of_vectors: Whether a batch norm gets one value of an image for each channel, so that it cannot be trained
            on one image alone.
    """

    module: nn.Module
    preprocessing: Preprocessing
    options: Mapping[str, Any] = field(default_factory=dict)
    description: Mapping[str, Any] = field(default_factory=dict)
    reading: Reading = Reading()
    notes: tuple[str, ...] = ()
    norms_of_vectors: bool = False


def embedding_of(output: Any, reading: Reading) -> Tensor:
    """Return the (B, D) embedding in a model's output.

    A feature map is averaged over its places. From a sequence the class token is taken; without one, all tokens are
    averaged.

    Raises: ConfigurationError: see `found_in`; or the tensor has another number of dimensions.
    """
    _, found = found_in(output)
    if found.ndim == 4:
        return found.mean(dim=(1, 2) if reading.channels_last else (2, 3))
    if found.ndim == 3:
        return found[:, 0] if reading.class_token else found.mean(dim=1)
    if found.ndim == 2:
        return found
    raise ConfigurationError(f"The model returned a tensor of shape {tuple(found.shape)}; expected (B, D).")


def found_in(output: Any) -> tuple[str, Tensor]:
    """Return the part of a model's output that has the embedding, and its name; the name of a plain tensor is empty.

    The output is a tensor, or a mapping, or has attributes as in transformers: then the first of `LOOKED_FOR` that is
    set is used.

    Raises: ConfigurationError: the output has none of these.
    """
    if isinstance(output, Tensor):
        return "", output
    for name in LOOKED_FOR:
        found = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
        if isinstance(found, Tensor):
            return name, found
    present = ", ".join(map(str, output) if isinstance(output, Mapping) else sorted(getattr(output, "__dict__", ())))
    raise ConfigurationError(
        f"The model returned {type(output).__name__}, which has none of {', '.join(LOOKED_FOR)} "
        f"(it has: {present or 'no attributes'}). Let it return those or a (B, D) tensor."
    )


def reading_of(module: nn.Module, output: Any, images: Any) -> Reading:
    """Find out what `output` is, which `module` has made of `images`, (B, 3, H, W) float32 or something else."""
    _, found = found_in(output)
    if found.ndim == 4:  # the images are squares, and so are their maps; torch's own order if both fit
        _, first, second, third = found.shape
        return Reading(channels_last=first == second != third)
    if found.ndim == 3:
        return Reading(class_token=_has_class_token(module, found.shape[1], images))
    return Reading()


def _has_class_token(module: nn.Module, tokens: int, images: Any) -> bool:
    """Whether a sequence of `tokens` begins with a class token.

    Models that have one keep it as a parameter of a usual name. Not all return it: then there are just as many tokens
    as patches. A model that names it otherwise has one token more than a square grid of patches.
    """
    size = images.shape[-1] if isinstance(images, Tensor) and images.ndim == 4 else 0
    if any(CLASS_TOKEN.fullmatch(name) for name, _ in module.named_parameters()):
        return not _fills_square(tokens, size)
    return _fills_square(tokens - 1, size)


def _fills_square(tokens: int, size: int) -> bool:
    """Whether there is one token for each patch of an image of `size` pixels: a margin may be too small for one."""
    side = isqrt(max(tokens, 0))
    return 1 < side <= size and side**2 == tokens and size // (size // side) == side
