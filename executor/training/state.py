"""The state of a run: all that its next steps depend on. A restored run goes on as if it had never stopped."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class TrainState:
    """The state of a run that is in epoch `epoch` and has done `step` of its batches."""

    epoch: int = 0
    step: int = 0
    done: int = 0  # steps in all epochs together
    loss_sum: float = 0.0
    history: dict[str, list[float]] = field(default_factory=dict)
    best_score: float | None = None
    best_epoch: int = 0
    tensors: dict[str, Any] = field(default_factory=dict)  # those of `snapshot`, best_model and average


def snapshot(
    model: nn.Module,
    loss: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    device: torch.device,
) -> dict[str, Any]:
    """Return copies of all tensors and numbers that the next step depends on."""
    states = {"model": model.state_dict(), "loss": loss.state_dict(), "optimizer": optimizer.state_dict()}
    # The schedule's function is code, not state.
    plain = {key: value for key, value in schedule.state_dict().items() if key != "lr_lambdas"}
    copied: dict[str, Any] = copy(states | {"schedule": plain, "random": random_state(device)})
    return copied


def restore(
    state: TrainState,
    model: nn.Module,
    loss: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    device: torch.device,
) -> None:
    """Restore everything that `snapshot` has copied, there or on another device."""
    model.load_state_dict(state.tensors["model"])
    loss.load_state_dict(state.tensors["loss"])
    optimizer.load_state_dict(state.tensors["optimizer"])
    schedule.load_state_dict(state.tensors["schedule"] | {"lr_lambdas": schedule.state_dict()["lr_lambdas"]})
    set_random_state(state.tensors["random"], device)


def random_state(device: torch.device) -> dict[str, Any]:
    """Return the state of the random generators of the CPU and, if it is a GPU, of `device`.

    No other GPU is asked: to ask one is to begin using it.
    """
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Put a state back, there or on another device."""
    torch.set_rng_state(state["cpu"])
    drawing = state.get("cuda")
    if drawing is not None and device.type == "cuda":
        # Older checkpoints have the states of all GPUs that the machine had then.
        torch.cuda.set_rng_state(drawing if isinstance(drawing, Tensor) else drawing[0], device)


def copy(value: Any) -> Any:
    """Return a copy of nested dicts and lists, with detached copies of their tensors."""
    if isinstance(value, dict):
        return {key: copy(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [copy(item) for item in value]
    return value.detach().clone() if isinstance(value, Tensor) else value


def note(history: dict[str, list[float]], name: str, value: float) -> None:
    """Append a value to one of the per-epoch lists."""
    history.setdefault(name, []).append(float(value))
