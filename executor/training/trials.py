"""Try several settings on short runs, and choose the one to train with: the option `trials`.

A short run is a whole training, with a warm-up and a cosine of its own, of a ninth of the run's epochs. A setting that
is among the best third so far gets another one of three times as many (asynchronous successive halving: Li et al. 2020,
arXiv:1810.05934). Of those that got that far the best is chosen. So a trial takes about a quarter of a run. Which
setting comes next and which one goes on is for optuna to say; the defaults come first.

Every score is kept in a file. A resumed run goes through the same trials again with the kept scores, and so goes on
where it was: the search depends on nothing but the seed and the scores.
"""

import contextlib
import copy
import functools
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..compute.ranks import Ranks
from ..evaluation.eval_set import EvalSet
from ..evaluation.metrics import DECIDING, NotFinite
from ..loading.augmentation import STRENGTHS
from ..parameters import TrainingOptions
from .features import Trainee
from .loop import Meter, NonFiniteLoss, train
from .micro_batch import MicroBatch
from .norms import has_free_norms
from .tried import KeptTrials, Settings, Trials
from .watching import Watcher

if TYPE_CHECKING:
    import optuna

RATES = (1.0, 0.32, 0.56, 1.8, 3.2, 5.6, 10.0)  # learning rates that are tried, as multiples of the default
HALVING = 3  # one in so many goes on, to a short run of so many times the epochs


def search_space(trainee: Trainee, options: TrainingOptions) -> dict[str, list[Any]]:
    """Return the values of each setting that nobody has asked for, the default first."""
    space: dict[str, list[Any]] = {}
    if options.learning_rate is None:
        default = trainee.config.learning_rate
        space["learning_rate"] = [default, *(float(f"{default * factor:.2g}") for factor in RATES[1:])]
    if options.norm_statistics == "auto" and has_free_norms(trainee.model):
        space["norm_statistics"] = ["fixed", "trained"] if trainee.config.fixed_norms else ["trained", "fixed"]
    # Another augmentation would be other features, and computing them takes longer than the trials of a head.
    if trainee.backbone is None and trainee.loader.augment is not None and trainee.loader.augment.at is not None:
        space["augmentation"] = list(STRENGTHS)
    return space


def with_settings(trainee: Trainee, settings: Settings) -> Trainee:
    """Return the trainee with other settings. Nothing is copied."""
    config, loader, augment = trainee.config, trainee.loader, trainee.loader.augment
    if "learning_rate" in settings:
        config = replace(config, learning_rate=settings["learning_rate"])
    if "norm_statistics" in settings:
        config = replace(config, fixed_norms=settings["norm_statistics"] == "fixed")
    if "augmentation" in settings and augment is not None and augment.at is not None:
        loader = copy.copy(loader)
        loader.augment = augment.at(STRENGTHS[settings["augmentation"]])
    return replace(trainee, config=config, loader=loader)


def short_runs(epochs: int) -> list[int]:
    """Return the epochs of the short runs of a setting, in a run of so many epochs."""
    first = epochs // HALVING**2
    return [first, first * HALVING] if first else [1]


@dataclass(frozen=True, kw_only=True)
class ShortRuns:
    """Makes short runs of a training. Neither `trainee` nor `loss` is changed: copies are trained.

    Attributes:
        choose_set: train documents that the settings are judged by; None: there are too few for that.
        micro_batch, ranks, stop: as `loop.train` takes them.
    """

    trainee: Trainee
    loss: nn.Module
    choose_set: EvalSet | None
    device: torch.device
    watcher: Watcher
    micro_batch: MicroBatch | None
    ranks: Ranks
    stop: Callable[[], bool]

    def score(self, settings: Settings, epochs: int, report: Callable[[float], None]) -> float:
        """Return mAP@R after a short run; NaN if the loss, its gradient or the embeddings became no number.

        Args: report: called after each step with the images per second so far.
        Raises: Interrupted: `stop` returned true. Whatever `report` raises.
        """
        assert self.choose_set is not None
        meter = Meter()
        changed, model, loss = with_settings(self.trainee, settings), *copy.deepcopy((self.trainee.model, self.loss))
        try:
            train(
                model,
                loss,
                changed.loader,
                replace(changed.config, epochs=epochs, patience=0),
                device=self.device,
                report=lambda step: report(meter.update(step)[0]),
                stop=self.stop,
                micro_batch=self.micro_batch,
                ranks=self.ranks,
            )
            self.watcher.evaluating()
            return self.choose_set.score(changed.whole(model)).mean()[DECIDING]
        except (NonFiniteLoss, NotFinite):
            return math.nan


def try_settings(runs: ShortRuns, options: TrainingOptions, file: Path | None) -> Trials:
    """Return the trials of a run, with the one that is chosen; none where there is nothing to choose, or to choose by.

    Args: file: keeps the trials. Raises: as `ShortRuns.score`.
    """
    space = search_space(runs.trainee, options)
    if options.trials == 1 or runs.choose_set is None or not space:
        if options.trials > 1:
            few = "the documents are too few to keep some of them to choose by."
            runs.watcher.say(f"trials has no effect: {few if runs.choose_set is None else 'every setting is given.'}")
        return Trials()
    kept = KeptTrials(file, runs.ranks)
    if kept.now.chosen is None:
        search = Search(space, options.trials, short_runs(runs.trainee.config.epochs), runs, kept)
        kept.choose(search.best(options.seed))
    return kept.now


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep optuna from telling of each trial, which our own history does, and of its experimental parts."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)


class Search:
    """Goes through the trials.

    Args: space: the values of each setting, the default first. most: trials. epochs: of the short runs of a setting.
        kept: knows the scores of earlier attempts.
    """

    def __init__(
        self, space: dict[str, list[Any]], most: int, epochs: list[int], runs: ShortRuns, kept: KeptTrials
    ) -> None:
        self._space = space
        self._count = min(most, math.prod(map(len, space.values())))
        self._epochs = epochs
        self._runs = runs
        self._kept = kept

    def best(self, seed: int) -> int:
        """Make the trials and return the number of the best one: the defaults, 0, if no other is better."""
        import optuna

        with _quiet():
            sampler = optuna.samplers.BruteForceSampler(seed)  # the one that tries nothing twice
            pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=self._epochs[0], reduction_factor=HALVING)
            study = optuna.create_study(direction="maximize", sampler=sampler, pruner=pruner)
            study.enqueue_trial({name: values[0] for name, values in self._space.items()})
            study.optimize(self._try, n_trials=self._count)
        ended = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
        best = study.best_trial.number if ended else 0
        chosen, defaults = (self._kept.now.tried[number] for number in (best, 0))
        compared = f"; with the defaults {defaults.result}" if best else ""
        self._runs.watcher.tried(f"trial {best + 1} is chosen: {chosen}: {chosen.result}{compared}")
        return best

    def _try(self, suggesting: "optuna.trial.Trial") -> float:
        """Try one setting; optuna's objective."""
        import optuna

        settings = {name: suggesting.suggest_categorical(name, values) for name, values in self._space.items()}
        trial = self._kept.trial(suggesting.number, settings)
        for epochs in self._epochs:
            known = epochs in trial.scores
            if not known:
                trial.scores[epochs] = self._runs.score(settings, epochs, functools.partial(self._report, suggesting))
                self._kept.save()
            suggesting.report(trial.scores[epochs], epochs)
            stopped = epochs < self._epochs[-1] and suggesting.should_prune()
            if not known and (stopped or epochs == self._epochs[-1]):  # else an earlier attempt has told it
                end = f"{trial}: {trial.result}{', stopped' if stopped else ''}"
                self._runs.watcher.tried(f"trial {suggesting.number + 1} of {self._count}: {end}")
            if stopped:
                raise optuna.TrialPruned
        return trial.score

    def _report(self, trial: "optuna.trial.Trial", images_per_second: float) -> None:
        self._runs.watcher.trying(trial.number + 1, self._count, images_per_second)
