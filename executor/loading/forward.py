"""Compute the embeddings of a batch. Training, measuring and serving all do it here."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..compute.ranks import unwrapped
from ..models.backbones import embedding_of, reading_of
from .batches import model_inputs


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
    """
    images = model_inputs(unwrapped(model), inputs, device)
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        output = (through or model)(images)
        return embedding_of(output, reading_of(unwrapped(model), output, images)).float()


@torch.inference_mode()
def embed_batches(model: nn.Module, batches: Iterable[Any], device: torch.device, *, bf16: bool = False) -> np.ndarray:
    """Put the model into evaluation mode and return the embeddings of all batches, (N, D) float32."""
    model.eval()
    parts = [compute_embeddings(model, inputs, device, bf16=bf16).cpu().numpy() for inputs in batches]
    return np.concatenate(parts)
