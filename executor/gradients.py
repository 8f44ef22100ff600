"""The gradient of a batch, all at once or in parts.

In parts it is that of the whole batch still, within rounding: first all embeddings without a graph, then the loss and
its gradient by embedding, then each part once more with its graph (gradient caching: Gao et al. 2021,
arXiv:2101.06983). Layers that look at the whole batch, such as batch norm in training, see the parts.
"""

from typing import Any

import torch
from torch import Tensor, nn

from .models import embedding_of


def compute_gradients(
    model: nn.Module,
    loss: nn.Module,
    inputs: Any,
    labels: Tensor,
    *,
    device: torch.device,
    bf16: bool,
    micro_batch: int | None = None,
) -> float:
    """Set the gradients of `model` and `loss` for one batch and return the value of the loss.

    Args: inputs: the model's, a tensor (B, …) where `micro_batch`, the items in memory at a time, is to take effect.
    """
    if micro_batch is None or not isinstance(inputs, Tensor) or len(inputs) <= micro_batch:
        value = loss(_embed(model, inputs, device, bf16), labels)
        value.backward()
        return float(value.detach())
    parts = inputs.split(micro_batch)
    buffers = [buffer.clone() for buffer in model.buffers()]
    states, embedded = [], []
    with torch.no_grad():
        for part in parts:
            states.append(_random_state(device))
            embedded.append(_embed(model, part, device, bf16))
        for buffer, before in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(before)  # the second pass counts, not this one
    embeddings = torch.cat(embedded).requires_grad_()
    value = loss(embeddings, labels)
    value.backward()
    assert embeddings.grad is not None
    after = _random_state(device)
    for part, state, gradient in zip(parts, states, embeddings.grad.split(micro_batch), strict=True):
        _set_random_state(state, device)  # the same dropout as in the first pass
        _embed(model, part, device, bf16).backward(gradient)
    _set_random_state(after, device)
    return float(value.detach())


def _embed(model: nn.Module, inputs: Any, device: torch.device, bf16: bool) -> Tensor:
    """(B, D) float32."""
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        return embedding_of(model(inputs)).float()


def _random_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _set_random_state(state: Tensor, device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)
