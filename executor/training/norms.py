"""Batch norms in training: whether they follow the batches, or keep the statistics that they have."""

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def set_training(model: nn.Module, *, fixed_norms: bool) -> None:
    """Set training mode.

    Args: fixed_norms: keep the batch norms in evaluation mode: their mean and variance stay, their weights train. The
        statistics of a pretrained network stand for millions of images; a batch of a few classes would spoil them.
    """
    model.train()
    for module in batch_norms(model) if fixed_norms else ():
        module.eval()


def has_seen_images(model: nn.Module) -> bool:
    """Whether the batch norms of `model` have other statistics than those that they begin with: it was trained."""
    means = [module.running_mean for module in batch_norms(model)]
    return any(isinstance(mean, Tensor) and bool(mean.any()) for mean in means)


def has_free_norms(model: nn.Module) -> bool:
    """Whether some batch norms of `model` would follow the batches in training: they are not frozen."""
    mode = model.training
    model.train()
    free = any(module.training for module in batch_norms(model))
    model.train(mode)
    return free


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """Return the batch norms of `model`."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]
