"""The optimizer's parameter groups, the learning rate schedule, and averages of weights."""

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from .config import TrainConfig

PROXY_LEARNING_RATE = 1e-2  # for the proxies of a loss, which start random (Kim et al. 2020, arXiv:2003.13911)


class PlainAdamW(AdamW):
    """AdamW that does not import torch's compiler, which takes a second and 66 MB at the first step.

    Torch wraps these methods to keep its compiler away from them, and the wrappers import it. Nothing is compiled here.
    """

    add_param_group = inspect.unwrap(AdamW.add_param_group)
    zero_grad = inspect.unwrap(AdamW.zero_grad)
    state_dict = inspect.unwrap(AdamW.state_dict)
    load_state_dict = inspect.unwrap(AdamW.load_state_dict)
    step = torch.no_grad()(inspect.unwrap(AdamW.step))


def moving_average(model: nn.Module, decay: float) -> AveragedModel | None:
    """Return a copy of `model` that averages its weights over time; None if `decay` is 0."""
    if not decay:
        return None
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)


def interpolated(base: dict[str, Tensor], tuned: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """Mix the base weights and the tuned ones (WiSE-FT: Wortsman et al. 2022, arXiv:2109.01903).

    Args: share: of the tuned weights; 1 returns them unchanged.
    """
    return {
        name: torch.lerp(base[name], tensor, share) if tensor.is_floating_point() else tensor
        for name, tensor in tuned.items()
    }


def parameter_groups(model: nn.Module, loss: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """Return AdamW's groups. Only matrices and kernels have weight decay; the loss's parameters have their own rate."""
    backbone = {id(parameter) for parameter in getattr(model, "backbone", nn.Module()).parameters()}
    groups = [{"params": trainable_parameters(loss), "lr": PROXY_LEARNING_RATE, "weight_decay": 0.0}]
    for within, rate in ((True, config.backbone_rate * config.learning_rate), (False, config.learning_rate)):
        part = [parameter for parameter in trainable_parameters(model) if (id(parameter) in backbone) is within]
        matrices = [parameter for parameter in part if parameter.ndim > 1]
        vectors = [parameter for parameter in part if parameter.ndim <= 1]
        groups.insert(0, {"params": matrices, "lr": rate, "weight_decay": config.weight_decay})
        groups.insert(1, {"params": vectors, "lr": rate, "weight_decay": 0.0})
    return [group for group in groups if group["params"]]


def trainable_parameters(module: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that are not frozen."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def warmup_cosine(total: int, warmup: float) -> Callable[[int], float]:
    """Return the factor of the learning rate by step: it rises linearly in the warm-up, then falls to 0 as a cosine."""
    rising = max(1, round(total * warmup))

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rising) / max(1, total - rising))))

    return factor
