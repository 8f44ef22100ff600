"""Low-rank updates (LoRA: Hu et al. 2021, arXiv:2106.09685) of a transformers backbone, by peft."""

from typing import Any

from ..errors import ConfigurationError
from .model import EmbeddingModel

ALPHA = 2  # lora_alpha / rank scales the updates; 2 is the usual choice


def add_lora(model: EmbeddingModel, rank: int) -> None:
    """Freeze the backbone and add trainable updates of `rank` to its linear layers. At first they change nothing.

    Raises: ConfigurationError: the backbone is not a transformers model, or has no linear layers.
    """
    from peft import LoraConfig, get_peft_model
    from transformers import PreTrainedModel

    if not isinstance(model.backbone, PreTrainedModel):
        raise ConfigurationError(
            f"lora_rank needs a transformers backbone; {model.config.model!r} is a {type(model.backbone).__name__}. "
            "Leave lora_rank out, or configure such a model."
        )
    config = LoraConfig(r=rank, lora_alpha=ALPHA * rank, target_modules="all-linear")
    try:
        model.backbone = get_peft_model(model.backbone, config)
    except ValueError as error:
        raise ConfigurationError(
            f"lora_rank: {type(model.backbone).__name__} has no linear layers to update ({error})"
        ) from error


def merge_lora(model: EmbeddingModel) -> None:
    """Add the updates to the weights, so that the model is a plain transformers model again."""
    adapted: Any = model.backbone
    model.backbone = adapted.merge_and_unload()
