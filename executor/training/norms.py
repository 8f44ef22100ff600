"""Batch norms in training: whether they follow the batches, or keep the statistics that they have."""

from torch import nn

from ..models.batch_norms import batch_norms


def set_training(model: nn.Module, *, fixed_norms: bool) -> None:
    """Set training mode.

    Args: fixed_norms: keep the batch norms in evaluation mode: their mean and variance stay, their weights train. The
        statistics of a pretrained network stand for millions of images; a batch of a few classes would spoil them.
    """
    model.train()
    for module in batch_norms(model) if fixed_norms else ():
        module.eval()


def has_free_norms(model: nn.Module) -> bool:
    """Whether some batch norms of `model` would follow the batches in training: they are not frozen."""
    mode = model.training
    model.train()
    free = any(module.training for module in batch_norms(model))
    model.train(mode)
    return free
