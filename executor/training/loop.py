"""The training loop, top to bottom. It knows no files, no processes and no Jina.

Everything that a run's future depends on is in `TrainState`: put back, the run goes on as if it had never stopped,
bit for bit on a CPU.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..compute.memory import MicroBatch
from ..compute.ranks import ALONE, Ranks
from ..errors import FinetunerError
from ..evaluation.metrics import DECIDING
from ..loading.loader import Loader
from .gradients import Gradients

PROXY_LEARNING_RATE = 1e-2  # of the parameters of a loss, which start from nothing (Kim et al. 2020, arXiv:2003.13911)
GRADIENT_NORM = 5.0  # larger gradients are scaled down to it


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What the loop depends on besides its data. Rates are AdamW's."""

    epochs: int = 10
    learning_rate: float = 1e-3  # peak, after the warm-up
    backbone_rate: float = 1.0  # the backbone's rate as a share of that
    weight_decay: float = 0.01
    warmup: float = 0.1  # share of all steps
    patience: int = 0  # epochs without improvement; 0: never stop early
    micro_batch: int | None = None  # items in memory at a time; None: the whole batch
    ema: float = 0.0  # decay of the moving average of the weights; 0: none is kept
    wise_ft: float = 1.0  # share of the tuned weights in the final ones
    bf16: bool = False
    seed: int = 0


@dataclass
class TrainState:
    """Where a run is: `epoch` is under way and `step` of its batches are done."""

    epoch: int = 0
    step: int = 0
    done: int = 0  # steps of all epochs together
    loss_sum: float = 0.0
    history: dict[str, list[float]] = field(default_factory=dict)
    best_score: float | None = None
    best_epoch: int = 0
    tensors: dict[str, Any] = field(default_factory=dict)  # see `snapshot`; and best_model, average


@dataclass(frozen=True)
class Step:
    """One finished step, for whoever watches: `done` of `total` steps; `loss` of this step; its images."""

    epoch: int
    done: int
    total: int
    loss: float
    images: int
    history: dict[str, list[float]]


class NonFiniteLoss(FinetunerError):
    """The loss or its gradient became infinite or not a number; `items` are the dataset indices of the batch."""

    def __init__(self, step: int, value: float, norm: float, items: np.ndarray) -> None:
        what = f"The gradient became {norm:g}" if math.isfinite(value) else f"The loss became {value:g}"
        super().__init__(f"{what} at step {step}; lower the learning_rate, or look at the documents of the batch.")
        self.items = items


class Interrupted(Exception):
    """Training was asked to stop; the state was saved."""


def train(
    model: nn.Module,
    loss: nn.Module,
    loader: Loader,
    config: TrainConfig,
    *,
    device: torch.device,
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
    score: str = DECIDING,
    report: Callable[[Step], None] = lambda step: None,
    save: Callable[[Callable[[], TrainState], bool], None] = lambda state, epoch_ended: None,
    stop: Callable[[], bool] = lambda: False,
    resume: TrainState | None = None,
    micro_batch: MicroBatch | None = None,
    ranks: Ranks = ALONE,
) -> TrainState:
    """Train `model` in place and return the final state; with `evaluate`, the weights of its best epoch are kept.

    Args:
        evaluate: measures the model that it gets, higher is better; `score` names the value that decides.
        save: is offered the state after every step, as a function that makes it, and whether an epoch has ended.
        stop: asked after every step; true saves and raises Interrupted.
        resume: the state to go on from.
        micro_batch: items in memory at a time, of a run that may have been resumed; by default the configured number.
        ranks: the processes that train this together, each calling this with a loader of its own share.
    Raises: NonFiniteLoss. Interrupted. OutOfMemory: an accelerator does not hold even one item.
    """
    total_steps = loader.sampler.steps(config.epochs)
    optimizer = torch.optim.AdamW(parameter_groups(model, loss, config))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warmup_cosine(total_steps, config.warmup))
    base = copy(model.state_dict()) if config.wise_ft < 1 else {}
    average = moving_average(model, config.ema)
    state, best_model = TrainState(), {}
    torch.manual_seed(config.seed)
    if resume is not None:
        restore(resume, model, loss, optimizer, schedule)
        if average is not None:
            average.load_state_dict(resume.tensors["average"])
        best_model = resume.tensors["best_model"]
        state = replace(resume, history=copy(resume.history), tensors={})
    measured_model: nn.Module = model if average is None else average.module

    def current() -> TrainState:
        tensors = snapshot(model, loss, optimizer, schedule)
        tensors |= {"best_model": best_model, "average": copy(average.state_dict()) if average is not None else {}}
        return replace(state, history=copy(state.history), tensors=tensors)

    gradients = Gradients(
        model,
        loss,
        device=device,
        bf16=config.bf16,
        micro_batch=micro_batch or MicroBatch(config.micro_batch),
        ranks=ranks,
    )
    model.train()
    loss.train()
    while state.epoch < config.epochs and not out_of_patience(state, config):
        for batch in loader.epoch(state.epoch, first=state.step):
            ranks.seed(config.seed, state.done)
            optimizer.zero_grad(set_to_none=True)
            value = gradients(batch.inputs, batch.labels, step=state.done)
            norm = float(nn.utils.clip_grad_norm_(trained(model), GRADIENT_NORM))
            if not (math.isfinite(value) and math.isfinite(norm)):
                raise NonFiniteLoss(state.done + 1, value, norm, batch.items)
            optimizer.step()
            schedule.step()
            if average is not None:
                average.update_parameters(model)

            state.done += 1
            state.step += 1
            state.loss_sum += value
            report(Step(state.epoch, state.done, total_steps, value, len(batch.items), state.history))
            stopping = ranks.any(stop())  # asked before `save` is, which then knows of it too
            save(current, False)
            if stopping:
                raise Interrupted
        note(state.history, "loss", state.loss_sum / state.step)
        note(state.history, "learning_rate", optimizer.param_groups[0]["lr"])
        if evaluate is not None:
            measured = evaluate(measured_model)
            model.train()
            for name, number in measured.items():
                note(state.history, name, number)
            if state.best_score is None or measured[score] > state.best_score:
                state.best_score, state.best_epoch = measured[score], state.epoch
                best_model = copy(measured_model.state_dict())
        state.epoch, state.step, state.loss_sum = state.epoch + 1, 0, 0.0
        save(current, True)
    final = best_model or copy(measured_model.state_dict())
    model.load_state_dict(interpolated(base, final, config.wise_ft) if base else final)
    model.eval()
    return state


def rehearse() -> None:
    """Make a step that changes nothing: at the first one torch imports 800 modules more, which takes a second."""
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([parameter])
    parameter.sum().backward()
    optimizer.step()


def out_of_patience(state: TrainState, config: TrainConfig) -> bool:
    """Whether as many epochs as `patience` allows have gone by without a better score."""
    return (
        bool(config.patience) and state.best_score is not None and state.epoch - 1 - state.best_epoch >= config.patience
    )


def moving_average(model: nn.Module, decay: float) -> AveragedModel | None:
    """A copy of `model` whose weights follow the model's slowly; None without a decay."""
    if not decay:
        return None
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)


def interpolated(base: dict[str, Tensor], tuned: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """Weights between the base's and the tuned ones (WiSE-FT: Wortsman et al. 2022, arXiv:2109.01903)."""
    return {
        name: torch.lerp(base[name], tensor, share) if tensor.is_floating_point() else tensor
        for name, tensor in tuned.items()
    }


def parameter_groups(model: nn.Module, loss: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """AdamW's groups: decay on matrices and kernels only, not on biases and norms; a loss's own parameters apart."""
    backbone = {id(parameter) for parameter in getattr(model, "backbone", nn.Module()).parameters()}
    groups = [{"params": trained(loss), "lr": PROXY_LEARNING_RATE, "weight_decay": 0.0}]
    for within, rate in ((True, config.backbone_rate * config.learning_rate), (False, config.learning_rate)):
        part = [parameter for parameter in trained(model) if (id(parameter) in backbone) is within]
        matrices = [parameter for parameter in part if parameter.ndim > 1]
        vectors = [parameter for parameter in part if parameter.ndim <= 1]
        groups.insert(0, {"params": matrices, "lr": rate, "weight_decay": config.weight_decay})
        groups.insert(1, {"params": vectors, "lr": rate, "weight_decay": 0.0})
    return [group for group in groups if group["params"]]


def trained(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that are not frozen."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def warmup_cosine(total: int, warmup: float) -> Callable[[int], float]:
    """Factor of the learning rate at a step: linear up over the warm-up, then half a cosine down to 0."""
    rising = max(1, round(total * warmup))

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rising) / max(1, total - rising))))

    return factor


def snapshot(
    model: nn.Module, loss: nn.Module, optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LRScheduler
) -> dict[str, Any]:
    """Copies of all tensors and numbers that the next step depends on."""
    random: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        random["cuda"] = torch.cuda.get_rng_state_all()
    states = {"model": model.state_dict(), "loss": loss.state_dict(), "optimizer": optimizer.state_dict()}
    # The schedule's function is code, not state.
    plain = {key: value for key, value in schedule.state_dict().items() if key != "lr_lambdas"}
    copied: dict[str, Any] = copy(states | {"schedule": plain, "random": random})
    return copied


def restore(
    state: TrainState,
    model: nn.Module,
    loss: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> None:
    """Put everything back as `snapshot` found it."""
    model.load_state_dict(state.tensors["model"])
    loss.load_state_dict(state.tensors["loss"])
    optimizer.load_state_dict(state.tensors["optimizer"])
    schedule.load_state_dict(state.tensors["schedule"] | {"lr_lambdas": schedule.state_dict()["lr_lambdas"]})
    torch.set_rng_state(state.tensors["random"]["cpu"])
    if "cuda" in state.tensors["random"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state.tensors["random"]["cuda"])


def copy(value: Any) -> Any:
    """A copy of nested dicts and lists, with detached copies of their tensors."""
    if isinstance(value, dict):
        return {key: copy(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [copy(item) for item in value]
    return value.detach().clone() if isinstance(value, Tensor) else value


def note(history: dict[str, list[float]], name: str, value: float) -> None:
    """Append a value to one of the per-epoch lists."""
    history.setdefault(name, []).append(float(value))


class Meter:
    """Images a second and time left, over the steps seen so far; waiting time counts."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._first: int | None = None
        self._images = 0

    def update(self, step: Step) -> tuple[float, float]:
        """Return (images a second, seconds left)."""
        if self._first is None:
            self._first = step.done - 1
        self._images += step.images
        elapsed = max(1e-9, time.monotonic() - self._began)
        return self._images / elapsed, elapsed / (step.done - self._first) * (step.total - step.done)
