"""The training loop gives the same result again, also if it is stopped at any step, and survives what goes wrong."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from executor import ClassDataset, Document, DocumentArray
from executor.evaluation.eval_set import EvalSet
from executor.loading.loader import Loader
from executor.loading.samplers import ClassSampler
from executor.training.config import TrainConfig
from executor.training.loop import Interrupted, NonFiniteLoss, Step, train
from executor.training.losses import build_loss
from executor.training.optimizer import warmup_cosine
from executor.training.state import TrainState
from executor.worker.checkpoints import load_checkpoint, save_checkpoint

pytestmark = pytest.mark.compute

CPU = torch.device("cpu")
CLASSES = 4
torch.set_num_threads(1)  # the tensors are tiny


def dataset(count: int = 24, seed: int = 0) -> ClassDataset:
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(CLASSES, 6))
    return ClassDataset(
        DocumentArray(
            Document(
                id=f"d{number}",
                blob=centres[number % CLASSES] + random.normal(size=6),
                tags={"finetuner_label": number % CLASSES},
            )
            for number in range(count)
        )
    )


def make_model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 8))


class Run:
    """One training: its pieces are made anew, as a new process makes them."""

    def __init__(self, *, loss: str = "proxy_anchor", model: nn.Module | None = None, memory: int = 0, **config: Any):
        self.config = TrainConfig(**{"epochs": 3, "learning_rate": 1e-2, "seed": 5} | config)
        self.model = make_model() if model is None else model
        torch.manual_seed(1)
        self.loss = build_loss(loss, "class", num_classes=CLASSES, embedding_size=8, memory_size=memory)
        data = dataset()
        sampler = ClassSampler(data.labels, batch_size=8, num_items_per_class=2, seed=self.config.seed)
        self.loader = Loader(data, sampler, seed=self.config.seed)
        held = dataset(16, seed=7)
        self.eval_set = EvalSet(held, np.arange(len(held)), device=CPU)
        self.losses: list[float] = []

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        return self.eval_set.score(model).mean()

    def go(
        self, *, evaluated: bool = True, report: Callable[[Step], None] = lambda step: None, **how: Any
    ) -> TrainState:
        def both(step: Step) -> None:
            self.losses.append(step.loss)
            report(step)

        if evaluated:
            how.setdefault("evaluate", self.evaluate)
        return train(self.model, self.loss, self.loader, self.config, device=CPU, report=both, **how)

    def weights(self) -> dict[str, torch.Tensor]:
        return {
            name: tensor.clone()
            for name, tensor in (self.model.state_dict() | self.loss.state_dict()).items()
            if isinstance(tensor, torch.Tensor)
        }


def assert_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def test_the_loss_falls_and_the_eval_documents_are_found_better():
    run = Run(epochs=8)
    before = run.evaluate(run.model)
    history = run.go().history
    assert history["loss"][-1] < 0.8 * history["loss"][0]
    assert max(history["mean_average_precision_at_r"]) > before["mean_average_precision_at_r"]


def test_two_runs_with_one_seed_have_the_same_losses_and_weights_to_the_last_bit():
    first, second = Run(), Run()
    histories = [first.go().history, second.go().history]
    assert histories[0] == histories[1]
    assert first.losses == second.losses
    assert_equal(first.weights(), second.weights())


def test_another_seed_is_another_run():
    first, second = Run(seed=1), Run(seed=2)
    first.go(evaluated=False)
    second.go(evaluated=False)
    assert first.losses != second.losses


def test_the_history_has_one_value_an_epoch():
    history = Run(epochs=4).go().history
    assert {len(values) for values in history.values()} == {4}
    assert {"loss", "learning_rate", "mean_average_precision_at_r"} <= history.keys()


# --- going on from a checkpoint -----------------------------------------------------------------------------------

VARIANTS = {
    "proxies, dropout, eval and patience": {"patience": 2, "epochs": 4},
    "no eval": {"evaluated": False},
    "a mined loss": {"loss": "multi_similarity"},
    "an average of the weights": {"ema": 0.9, "wise_ft": 0.5},
    "a memory of batches": {"loss": "triplet", "memory": 16, "micro_batch": 4},
}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=list(VARIANTS))
def test_a_run_resumed_at_any_step_ends_with_the_same_weights_and_history(variant, tmp_path):
    options = dict(variant)
    evaluated = options.pop("evaluated", True)
    places: list[Path] = []

    def keep(state: Callable[[], TrainState], epoch_ended: bool) -> None:
        places.append(tmp_path / str(len(places)))
        save_checkpoint(places[-1], state(), len(places))

    whole = Run(**options)
    final = whole.go(evaluated=evaluated, save=keep)
    assert len(places) == final.done + final.epoch > 10  # after every step, and once more after every epoch
    for place in places:
        state = load_checkpoint(place)
        assert state is not None
        torch.manual_seed(12345)  # a new process has another random state
        resumed = Run(**options)
        end = resumed.go(evaluated=evaluated, resume=state)
        assert end.history == final.history, place.name
        assert (end.done, end.epoch, end.best_epoch) == (final.done, final.epoch, final.best_epoch)
        assert resumed.losses == whole.losses[len(whole.losses) - len(resumed.losses) :]
        assert_equal(whole.weights(), resumed.weights())


def test_an_interrupted_run_has_saved_where_it_was(tmp_path):
    run = Run()
    saved: list[int] = []

    def save(state: Callable[[], TrainState], epoch_ended: bool) -> None:
        saved.append(state().done)

    with pytest.raises(Interrupted):
        run.go(save=save, stop=lambda: len(run.losses) == 4)
    assert len(run.losses) == 4
    assert saved[-1] == 4


def test_a_state_that_is_kept_does_not_change_when_the_run_goes_on():
    run = Run()
    states: list[TrainState] = []
    run.go(save=lambda state, epoch_ended: states.append(state()))
    first = states[0]
    assert (first.done, first.step, first.history) == (1, 1, {})
    assert not torch.equal(first.tensors["model"]["0.weight"], run.model.state_dict()["0.weight"])


# --- which weights ------------------------------------------------------------------------------------------------


def test_the_weights_of_the_best_epoch_are_kept():
    run = Run(epochs=4)
    seen: list[dict[str, torch.Tensor]] = []
    scores = [0.2, 0.9, 0.9, 0.1]

    def evaluate(model: nn.Module) -> dict[str, float]:
        seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return {"mean_average_precision_at_r": scores[len(seen) - 1]}

    state = run.go(evaluate=evaluate)
    assert state.best_epoch == 1
    assert_equal(run.model.state_dict(), seen[1])


@pytest.mark.parametrize(("patience", "epochs"), [(0, 6), (1, 2), (3, 4)])
def test_a_run_ends_after_so_many_epochs_without_a_better_score(patience, epochs):
    run = Run(epochs=6, patience=patience)
    state = run.go(evaluate=lambda model: {"mean_average_precision_at_r": 0.5})
    assert len(state.history["loss"]) == epochs


def test_a_better_score_begins_the_patience_anew():
    scores = iter([0.1, 0.1, 0.2, 0.2, 0.2, 0.9])
    state = Run(epochs=6, patience=2).go(evaluate=lambda model: {"mean_average_precision_at_r": next(scores)})
    assert len(state.history["loss"]) == 5


def test_the_model_trains_in_training_mode_and_is_returned_in_evaluation_mode():
    run = Run(epochs=2)
    modes: list[bool] = []
    run.go(report=lambda step: modes.append(run.model.training))
    assert all(modes)
    assert not run.model.training


def test_frozen_parameters_stay_as_they_were():
    model = make_model()
    model[0].requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    Run(model=model).go()
    assert torch.equal(model[0].weight, before["0.weight"])
    assert torch.equal(model[0].bias, before["0.bias"])
    assert not torch.equal(model[4].weight, before["4.weight"])


def test_the_proxies_of_the_loss_are_trained():
    run = Run(epochs=1)
    before = run.loss.state_dict()["loss.proxies"].clone()
    run.go(evaluated=False)
    assert not torch.equal(run.loss.state_dict()["loss.proxies"], before)


def test_the_gradient_of_small_parts_is_that_of_the_whole_batch():
    def model() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 8))

    whole, parts = Run(model=model()), Run(model=model(), micro_batch=3)
    whole.go(evaluated=False)
    parts.go(evaluated=False)
    assert parts.losses == pytest.approx(whole.losses, rel=1e-4)


# --- what goes wrong ----------------------------------------------------------------------------------------------


class Exploding(nn.Module):
    """Finite until its third batch of training."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 8)
        self.batches = 0
        self.factor = factor

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.batches += self.training
        return self.linear(inputs) * (self.factor if self.batches == 3 else 1.0)


class RootOfNothing(nn.Module):
    """Its output is finite, its gradient is not: the root of 0 has an infinite slope."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 8)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.linear(inputs) + torch.sqrt(self.linear(inputs) * 0)


@pytest.mark.parametrize("model", [lambda: Exploding(math.nan), RootOfNothing], ids=["loss", "gradient"])
def test_what_is_not_finite_ends_the_run_naming_the_batch_and_leaves_finite_weights(model):
    run = Run(model=model())
    done: list[Step] = []
    with pytest.raises(NonFiniteLoss, match=r"at step \d+; lower the learning_rate") as caught:
        run.go(evaluated=False, report=done.append)
    epoch, number = divmod(len(done), len(run.loader.sampler.batches(0)))
    np.testing.assert_array_equal(caught.value.items, run.loader.sampler.batches(epoch)[number])
    assert all(torch.isfinite(tensor).all() for tensor in run.weights().values())


def test_a_failing_document_ends_the_run_with_its_error():
    run = Run()
    run.loader.dataset.docs[3].blob = None
    with pytest.raises(ValueError, match="'d3' has no content"):
        run.go(evaluated=False)


# --- the learning rate --------------------------------------------------------------------------------------------


def test_the_rate_rises_linearly_and_falls_by_a_cosine_to_nothing():
    factor = warmup_cosine(100, 0.1)
    assert [factor(step) for step in range(10)] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert factor(10) == pytest.approx(1.0)
    assert factor(55) == pytest.approx(0.5)
    assert factor(100) == pytest.approx(0.0)
    falling = [factor(step) for step in range(10, 101)]
    assert falling == sorted(falling, reverse=True)


@pytest.mark.parametrize(("total", "warmup"), [(1, 0.1), (1, 0.0), (2, 0.9), (3, 0.99)])
def test_even_the_shortest_run_has_a_rate(total, warmup):
    assert all(0 < warmup_cosine(total, warmup)(step) <= 1 for step in range(total))


def test_the_last_step_of_a_run_has_nearly_no_rate_left():
    run = Run(epochs=3)
    history = run.go(evaluated=False).history
    assert history["learning_rate"][-1] == pytest.approx(0.0, abs=1e-9)
    assert history["learning_rate"] == sorted(history["learning_rate"], reverse=True)
