"""Compute the gradient of a batch, whole or in parts, in one process or in several.

The result is always the gradient of the whole batch, except for rounding (gradient caching: Gao et al. 2021,
arXiv:2101.06983). First all embeddings are computed, then their loss and its gradient with respect to each embedding,
then from that the gradient of the model. A batch in parts is embedded twice, the first time without a graph. Layers
that look at the whole batch, such as batch norm in training, see only the parts.
"""

import contextlib
import gc
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..compute.ranks import ALONE, Ranks
from ..errors import OutOfMemory
from ..loading.forward import compute_embeddings
from .losses import MemoryLoss
from .micro_batch import MicroBatch
from .state import random_state, set_random_state


class Gradients:
    """Sets the gradients of `model` and `loss` for one batch after another.

    If a batch does not fit into the memory of an accelerator, it and all later batches are computed in halves. On a CPU
    the error goes to the caller: when memory runs out inside oneDNN, it may fail or crash later.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: nn.Module,
        *,
        device: torch.device,
        bf16: bool,
        micro_batch: MicroBatch,
        ranks: Ranks = ALONE,
    ) -> None:
        self._model = model
        self._loss = loss
        self._device = device
        self._bf16 = bf16
        self._micro_batch = micro_batch
        self._ranks = ranks
        self._forward = ranks.wrapped(model)

    def __call__(self, inputs: Any, labels: Tensor, *, step: int) -> float:
        """Set the gradients as `compute_gradients` does, and return the value of the loss.

        Args: inputs, labels: as for `compute_gradients`. step: the number of steps done before.
        Raises: OutOfMemory: the inputs cannot be split, or one item is too much.
        """
        before = _Before(self._model, self._loss, self._device)
        while True:
            items = self._micro_batch.at(step)
            try:
                value = compute_gradients(
                    self._forward,
                    self._loss,
                    inputs,
                    labels,
                    device=self._device,
                    bf16=self._bf16,
                    micro_batch=items,
                    ranks=self._ranks,
                )
                self._ranks.average(self._model.buffers())
                return value
            except torch.OutOfMemoryError:
                if not self._ranks.alone:
                    raise  # the other ranks wait for this one, so all must start again
            # Outside the except block: the error is freed, and with it the failed graph.
            if not isinstance(inputs, (Tensor, np.ndarray)):
                raise OutOfMemory("A batch does not fit into memory, and it cannot be split; lower batch_size.")
            self._micro_batch.halve(step, len(inputs) if items is None else min(items, len(inputs)))
            before.put_back()


def compute_gradients(
    model: nn.Module,
    loss: nn.Module,
    inputs: Any,
    labels: Tensor,
    *,
    device: torch.device,
    bf16: bool,
    micro_batch: int | None = None,
    ranks: Ranks = ALONE,
) -> float:
    """Set the gradients of `model` and `loss` for one batch and return the value of the loss.

    Args:
        inputs: this rank's share of the batch from the loader.
        labels: labels of the whole batch, (B,) or (B, 2) int64.
        micro_batch: items in memory at a time. It only takes effect if `inputs` is a tensor or an array (b, …).
    """
    if isinstance(inputs, np.ndarray):
        inputs = torch.from_numpy(inputs)
    count = 1 if micro_batch is None or not isinstance(inputs, Tensor) else -(-len(inputs) // micro_batch)
    parts = list(inputs.tensor_split(count)) if count > 1 else [inputs]
    states: list[dict[str, Any]] = []
    if count > 1:
        buffers = [buffer.clone() for buffer in model.buffers()]
        embedded = []
        with torch.no_grad():
            for part in parts:
                states.append(random_state(device))
                embedded.append(compute_embeddings(model, part, device, bf16=bf16))
            for buffer, saved in zip(model.buffers(), buffers, strict=True):
                buffer.copy_(saved)  # only the second pass may change the buffers
        mine = torch.cat(embedded)
    else:
        mine = compute_embeddings(model, inputs, device, bf16=bf16)
    embeddings = ranks.gather(mine.detach(), len(labels)).requires_grad_()
    value = loss(embeddings, labels.to(device))
    value.backward()
    assert embeddings.grad is not None
    gradient = ranks.share_of(embeddings.grad) * ranks.count  # later averaged over the ranks
    ranks.agree_on_gradients(loss)
    if count == 1:
        _backward(mine, gradient)
        return float(value.detach())
    after = random_state(device)
    for number, (part, state) in enumerate(zip(parts, states, strict=True), start=1):
        set_random_state(state, device)  # so that dropout is the same as in the first pass
        with contextlib.nullcontext() if number == count else ranks.no_sync(model):
            _backward(compute_embeddings(model, part, device, bf16=bf16), gradient[: len(part)])
        gradient = gradient[len(part) :]
    set_random_state(after, device)
    return float(value.detach())


def _backward(embeddings: Tensor, gradient: Tensor) -> None:
    """Pass the loss's gradient of `embeddings` (b, D) on to the model.

    It is what `embeddings.backward(gradient)` does, which imports sympy first: a tenth of the time of a trainer's
    imports.
    """
    (embeddings * gradient).sum().backward()


class _Before:
    """A copy of all that computing gradients changes, except the gradients, so that a step can be tried again."""

    def __init__(self, model: nn.Module, loss: nn.Module, device: torch.device) -> None:
        self._model = model
        self._loss = loss
        self._device = device
        self._random = random_state(device)
        self._buffers = [(buffer, buffer.clone()) for buffer in (*model.buffers(), *loss.buffers())]
        self._remembered = loss.get_extra_state() if isinstance(loss, MemoryLoss) else None

    def put_back(self) -> None:
        """Free what the failed attempt has left, and restore the state from before it."""
        self._model.zero_grad(set_to_none=True)
        self._loss.zero_grad(set_to_none=True)
        with torch.no_grad():
            for buffer, saved in self._buffers:
                buffer.copy_(saved)
        if isinstance(self._loss, MemoryLoss) and self._remembered is not None:
            self._loss.set_extra_state(self._remembered)
        set_random_state(self._random, self._device)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
