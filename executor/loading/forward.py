"""Compute the embeddings of a batch. Training, measuring and serving all do it here."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..compute.ranks import unwrapped
from ..errors import ConfigurationError
from ..models.backbones import embedding_of, reading_of
from .batches import model_inputs

BATCH_NORM_OF_ONE = "Expected more than 1 value per channel when training"  # in torch's message
TOO_FEW = (
    "A batch norm of the model needs two or more images at a time to train, and was given one: set micro_batch to 2 or "
    "more with an even batch_size, or leave micro_batch out; or freeze that layer."
)


def compute_embeddings(
    model: nn.Module,
    inputs: Any,
    device: torch.device,
    *,
    bf16: bool,
    through: Callable[[Any], Any] | None = None,
) -> Tensor:
    """Return the embeddings, (B, D) float32 on `device`, of a batch from the loader.

    Args: through: the part of the model to run; by default all of it.
    Raises: ConfigurationError: these are too few for a batch norm of a model in training; or see `embedding_of`.
    """
    images = model_inputs(unwrapped(model), inputs, device)
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        try:
            output = (through or model)(images)
        except ValueError as error:
            if BATCH_NORM_OF_ONE in str(error):
                raise ConfigurationError(TOO_FEW) from error
            raise
        return embedding_of(output, reading_of(unwrapped(model), output, images)).float()


@torch.inference_mode()
def embed_batches(model: nn.Module, batches: Iterable[Any], device: torch.device, *, bf16: bool = False) -> np.ndarray:
    """Put the model into evaluation mode and return the embeddings of all batches, (N, D) float32."""
    model.eval()
    parts = [compute_embeddings(model, inputs, device, bf16=bf16).cpu().numpy() for inputs in batches]
    return np.concatenate(parts)
