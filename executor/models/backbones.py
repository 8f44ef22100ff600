"""The backbone of a model: takes images, returns features."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ..errors import ConfigurationError
from .preprocessing import Preprocessing


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A feature extractor, with all that is needed to call it and to rebuild it without its weights.

    Attributes:
        options: Keyword arguments for every forward call.
        description: For a transformers model its class, its configuration and our changes; empty for other models.
    """

    module: nn.Module
    preprocessing: Preprocessing
    options: Mapping[str, Any] = field(default_factory=dict)
    description: Mapping[str, Any] = field(default_factory=dict)


def embedding_of(output: Any) -> Tensor:
    """Return the (B, D) embedding in a model's output.

    The output is a tensor, or has attributes as in transformers: then the first of `pooler_output`, `image_embeds` and
    `last_hidden_state` that is set is used. A feature map (B, C, H, W) is averaged over H and W. From a sequence
    (B, N, D) the first token is taken, which is the class token.

    Raises: ConfigurationError: the output has none of these, or the tensor has another number of dimensions.
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
