"""The training loop, from top to bottom. It does not know about files, processes or Jina.

`TrainState` holds everything that the rest of a run depends on. A restored run goes on as if it had never stopped; on a
CPU the result is the same bit for bit.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from ..compute.ranks import ALONE, Ranks
from ..errors import FinetunerError
from ..evaluation.metrics import DECIDING
from ..loading.loader import Loader
from .config import TrainConfig
from .gradients import Gradients
from .micro_batch import MicroBatch
from .norms import set_training
from .optimizer import PlainAdamW, interpolated, moving_average, parameter_groups, trainable_parameters, warmup_cosine
from .state import TrainState, copy, note, restore, snapshot

GRADIENT_NORM = 5.0  # larger gradients are scaled down to this norm


@dataclass(frozen=True)
class Step:
    """Report of one finished step: `done` of `total` steps, and the `loss` and number of `images` of this step."""

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
    """Training was told to stop; the state is saved."""


def train(
    model: nn.Module,
    loss: nn.Module,
    loader: Loader,
    config: TrainConfig,
    *,
    device: torch.device,
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
    choosing: bool = True,
    score: str = DECIDING,
    report: Callable[[Step], None] = lambda step: None,
    save: Callable[[Callable[[], TrainState], bool], None] = lambda state, epoch_ended: None,
    stop: Callable[[], bool] = lambda: False,
    resume: TrainState | None = None,
    micro_batch: MicroBatch | None = None,
    ranks: Ranks = ALONE,
) -> TrainState:
    """Train `model` in place and return the final state.

    Args:
        evaluate: measures the model after each epoch, for the history; nothing where there is nothing to find.
        choosing: whether the weights of the best epoch are kept, by the value that `score` names (higher is better);
            else those of the last. False where the same documents prove the model: what proves must choose nothing.
        save: called after every step with a function that makes the state, and whether an epoch has ended.
        stop: called after every step, by all ranks at once, to whom it returns the same; if that is true, the loop
            saves and raises Interrupted.
        resume: the state to go on from.
        micro_batch: items in memory at a time, with the halvings of a resumed run; by default the configured number.
        ranks: the processes that train together; each calls this with a loader for its own share.
    Raises: NonFiniteLoss: the loss or its gradient is not finite. Interrupted: `stop` returned true. OutOfMemory: not
        even one item fits into the memory of an accelerator.
    """
    total_steps = loader.sampler.steps(config.epochs)
    optimizer = PlainAdamW(parameter_groups(model, loss, config))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warmup_cosine(total_steps, config.warmup))
    base = copy(model.state_dict()) if config.wise_ft < 1 else {}
    average = moving_average(model, config.ema)
    state, best_model = TrainState(), {}
    torch.manual_seed(config.seed)
    if resume is not None:
        restore(resume, model, loss, optimizer, schedule, device)
        if average is not None:
            average.load_state_dict(resume.tensors["average"])
        best_model = resume.tensors["best_model"]
        state = replace(resume, history=copy(resume.history), tensors={})
    measured_model: nn.Module = model if average is None else average.module

    def current() -> TrainState:
        tensors = snapshot(model, loss, optimizer, schedule, device)
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
    set_training(model, fixed_norms=config.fixed_norms)
    loss.train()
    while state.epoch < config.epochs and not out_of_patience(state, config):
        for batch in loader.epoch(state.epoch, first=state.step):
            ranks.seed(config.seed, state.done)
            optimizer.zero_grad(set_to_none=True)
            value = gradients(batch.inputs, batch.labels, step=state.done)
            norm = float(nn.utils.clip_grad_norm_(trainable_parameters(model), GRADIENT_NORM))
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
            stopping = stop()  # before `save`, which must know the answer too
            save(current, False)
            if stopping:
                raise Interrupted
        note(state.history, "loss", state.loss_sum / state.step)
        note(state.history, "learning_rate", optimizer.param_groups[0]["lr"])
        if evaluate is not None:
            measured = evaluate(measured_model)
            set_training(model, fixed_norms=config.fixed_norms)
            for name, number in measured.items():
                note(state.history, name, number)
            better = score in measured and (state.best_score is None or measured[score] > state.best_score)
            if choosing and better:
                state.best_score, state.best_epoch = measured[score], state.epoch
                best_model = copy(measured_model.state_dict())
        state.epoch, state.step, state.loss_sum = state.epoch + 1, 0, 0.0
        save(current, True)
    final = best_model or copy(measured_model.state_dict())
    model.load_state_dict(interpolated(base, final, config.wise_ft) if base else final)
    model.eval()
    return state


def out_of_patience(state: TrainState, config: TrainConfig) -> bool:
    """Whether the last `patience` epochs have brought no better score."""
    return (
        bool(config.patience) and state.best_score is not None and state.epoch - 1 - state.best_epoch >= config.patience
    )


class Meter:
    """Computes images per second and the time left from the steps so far; waiting time counts."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._first: int | None = None
        self._images = 0

    def update(self, step: Step) -> tuple[float, float]:
        """Count a step and return (images per second, seconds left)."""
        if self._first is None:
            self._first = step.done - 1
        self._images += step.images
        elapsed = max(1e-9, time.monotonic() - self._began)
        return self._images / elapsed, elapsed / (step.done - self._first) * (step.total - step.done)
