"""The batch norms of a network: which they are, what they have seen, and whether one image is too little for them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """Return the batch norms of `model`."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


def has_seen_images(model: nn.Module) -> bool:
    """Whether the batch norms of `model` have other statistics than those that they begin with: it was trained."""
    means = [module.running_mean for module in batch_norms(model)]
    return any(isinstance(mean, Tensor) and bool(mean.any()) for mean in means)


@contextmanager
def norms_of_vectors(model: nn.Module) -> Iterator[list[nn.Module]]:
    """Collect, while `model` is called with two images, the batch norms that get one value of each for a channel.

    In training torch refuses to give these a single image: one value has no variance.
    """
    found: list[nn.Module] = []

    def look(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        values = inputs[0] if inputs else None
        if isinstance(values, Tensor) and values.ndim > 1 and values.numel() == 2 * values.shape[1]:
            found.append(module)

    hooks = [module.register_forward_pre_hook(look) for module in batch_norms(model)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
