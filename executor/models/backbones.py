"""A backbone, whichever it is: an image in, features out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ..errors import ConfigurationError
from .preprocessing import Preprocessing


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
