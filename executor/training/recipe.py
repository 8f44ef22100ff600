"""The recipe of a training. The service's trainer and `fit()` share it."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..compute.ranks import ALONE, Ranks
from ..errors import NotTrainable
from ..evaluation.eval_set import EvalSet, Measured
from ..loading.augmentation import Augmentation
from ..loading.cache import ImageCache
from ..loading.datasets import Dataset
from ..loading.samplers import ClassSampler
from ..models.batch_norms import batch_norms
from ..models.model import is_pretrained
from ..parameters import TrainingOptions
from .features import FILL_BATCH, choose_trainee
from .loop import NonFiniteLoss, train
from .losses import loss_name
from .micro_batch import MicroBatch
from .new_head import start_new_head
from .norms import has_free_norms
from .parts import (
    embedding_size,
    example_inputs,
    finish_model,
    fit_memory,
    make_config,
    make_loader,
    make_loss,
)
from .precision import choose_bf16, choose_bf16_once
from .state import TrainState
from .trials import ShortRuns, try_settings, with_settings
from .tried import Trials
from .watching import Watcher


@dataclass(frozen=True, kw_only=True)
class Task:
    """What to train on, and what to measure on.

    Attributes:
        items: (N,) the indices of `dataset` to train on.
        eval_set: proves the model, and chooses nothing. choose_set: chooses the best epoch.
        cache: holds the images of `dataset`; None if a document may have another content at each access.
        same_content: whether every document is known to have the same content at each access.
        augment: changes the content of a batch.
    """

    dataset: Dataset
    items: np.ndarray
    eval_set: EvalSet | None = None
    choose_set: EvalSet | None = None
    cache: ImageCache | None = None
    same_content: bool = False
    augment: Augmentation | None = None


@dataclass(frozen=True, kw_only=True)
class Keeping:
    """What a training needs to go on where it was stopped.

    Attributes:
        folder: where to keep what is chosen or computed once. done: how many steps were made before.
        resume: loads the state after these steps. save, stop: as `loop.train` takes them.
    """

    folder: Path | None = None
    done: int = 0
    resume: Callable[[], TrainState | None] = lambda: None
    save: Callable[[Callable[[], TrainState], bool], None] = lambda state, epoch_ended: None
    stop: Callable[[], bool] = lambda: False


NOTHING_KEPT = Keeping()


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a training did.

    Attributes:
        history: one list per value, one entry per epoch.
        before, after: what the base and the tuned model did on the eval set, if there is one.
        weights: which weights the tuned model has, in words, such as "of epoch 3 of 5".
        chosen_by: how many documents chose that epoch; 0: none, and it is the last epoch.
        used: what was used for the options that do not say so themselves, by name, and the `weights`; JSON values.
        trials: the settings that were tried before the run began.
    """

    history: dict[str, list[float]]
    before: Measured | None
    after: Measured | None
    weights: str
    chosen_by: int = 0
    used: dict[str, Any] = field(default_factory=dict)
    trials: Trials = field(default_factory=Trials)


def fine_tune(
    model: nn.Module,
    task: Task,
    options: TrainingOptions,
    *,
    device: torch.device,
    watcher: Watcher,
    micro_batch: MicroBatch,
    max_cache_bytes: int,
    base: Callable[[], nn.Module] | None = None,
    ranks: Ranks = ALONE,
    keeping: Keeping = NOTHING_KEPT,
) -> Outcome:
    """Train `model` in place. It is on `device` already, and is in evaluation mode afterwards.

    Args:
        model: as `parts.prepare_model` leaves it.
        base: makes the model that is measured before the training; by default this is `model` itself.
        max_cache_bytes: limit for the features of a frozen backbone.
    Raises: NotTrainable: the documents give nothing to learn or to measure, or the loss is no longer finite.
        Whatever `watcher` raises.
    """

    def at_a_time(items: int) -> int:
        return min(items, micro_batch.at(keeping.done) or items)

    loader = make_loader(task.dataset, task.items, options, cache=task.cache, augment=task.augment, ranks=ranks)
    for note in loader.sampler.notes:
        watcher.say(note)
    if options.patience and task.choose_set is None:
        watcher.say("patience has no effect: the documents are too few to keep some of them to choose by.")
    count = at_a_time(options.batch_size)
    inputs = example_inputs(model, task.dataset, int(task.items[0]), count, task.cache, device)
    if is_pretrained(model):  # the components of random features would say nothing
        start_new_head(model, task.dataset, task.items, task.cache, seed=options.seed, device=device)
    options = fit_memory(options, loader, watcher.say)
    loss = make_loss(task.dataset, options, embedding_size(model, inputs), device)

    def in_bf16() -> bool:
        if keeping.folder is None:
            return choose_bf16(options.precision, model, inputs, device)
        return choose_bf16_once(keeping.folder / "precision", options.precision, model, inputs, device)

    config = make_config(options, model, documents=len(task.items), bf16=ranks.agree(in_bf16))
    before = None
    if task.eval_set is not None:
        watcher.evaluating()
        before = _measured(task.eval_set, model if base is None else base().to(device))
    watcher.begin(before, config.epochs, loader.sampler.steps(config.epochs))
    trainee = choose_trainee(
        model,
        loader,
        config,
        options.feature_views if ranks.alone else 0,  # each rank would fill the same cache
        same_content=task.same_content,
        device=device,
        max_bytes=max_cache_bytes,
        folder=keeping.folder and keeping.folder / "features",
        at_once=at_a_time(FILL_BATCH),
        say=watcher.say,
        filled=watcher.filled,
    )

    watched = task.choose_set or task.eval_set

    def evaluate(measured: nn.Module) -> dict[str, float]:
        watcher.evaluating()
        assert watched is not None
        return watched.score(trainee.whole(measured)).mean()

    in_parts = micro_batch if trainee.backbone is None else None
    with closing(trainee):
        runs = ShortRuns(
            trainee=trainee,
            loss=loss,
            choose_set=task.choose_set,
            device=device,
            watcher=watcher,
            micro_batch=in_parts,
            ranks=ranks,
            stop=keeping.stop,
        )
        trials = try_settings(runs, options, keeping.folder and keeping.folder / "trials.json")
        if trials.tried:
            trainee = with_settings(trainee, trials.settings)
            watcher.begin(before, config.epochs, loader.sampler.steps(config.epochs))
        try:
            state = train(
                trainee.model,
                loss,
                trainee.loader,
                trainee.config,
                device=device,
                evaluate=None if watched is None else evaluate,
                choosing=task.choose_set is not None,
                report=watcher.stepped,
                micro_batch=in_parts,
                ranks=ranks,
                resume=keeping.resume(),
                save=keeping.save,
                stop=keeping.stop,
            )
        except NonFiniteLoss as error:
            raise _named(error, task.dataset, watcher) from error
    model.eval()
    finish_model(model, options)
    watcher.ended(state.history)
    after = None if task.eval_set is None else task.eval_set.measure(model)
    chosen_by = 0 if task.choose_set is None or state.best_score is None else task.choose_set.documents
    weights = _kept_weights(state, options, chosen=chosen_by > 0)
    used = {
        "loss": loss_name(options.loss, task.dataset.kind),
        "learning_rate": trainee.config.learning_rate,
        "trials": max(1, len(trials.tried)),
        "precision": "bf16" if config.bf16 else "fp32",
        "micro_batch": micro_batch.at(state.done) or "the whole batch",
        "feature_views": trainee.kept_views,
        "epochs": state.epoch,
        "weights": weights,
    }
    if batch_norms(model):
        free = has_free_norms(model) and not trainee.config.fixed_norms
        used["norm_statistics"] = "trained" if free else "fixed"
    if isinstance(loader.sampler, ClassSampler):
        used["num_items_per_class"] = loader.sampler.items
    return Outcome(
        history=state.history,
        before=before,
        after=after,
        weights=weights,
        chosen_by=chosen_by,
        used=used,
        trials=trials,
    )


def _kept_weights(state: TrainState, options: TrainingOptions, *, chosen: bool) -> str:
    """Say which weights the model has. Args: chosen: whether an epoch was chosen; else they are the last ones."""
    epoch = f"epoch {state.best_epoch + 1} of {state.epoch}" if chosen else "the last epoch"
    return f"averaged up to {epoch}" if options.ema else f"of {epoch}"


def _measured(eval_set: EvalSet, base: nn.Module) -> Measured:
    measured = eval_set.measure(base)
    if not measured.scores.queries:
        raise NotTrainable(
            f"None of the {measured.scores.skipped} eval documents can be a query: each needs another one that "
            "fits it. Send others, or leave them away."
        )
    return measured


def _named(error: NonFiniteLoss, dataset: Dataset, watcher: Watcher) -> NotTrainable:
    ids = list(dict.fromkeys(dataset.document(int(item)).id for item in error.items))
    watcher.lost(f"{error} Its documents: {', '.join(ids)}.")
    some = ", ".join(ids[:10]) + (f" and {len(ids) - 10} more" if len(ids) > 10 else "")
    return NotTrainable(f"{error} Its documents: {some}.")
