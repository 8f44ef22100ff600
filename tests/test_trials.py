"""The option `trials`: short runs of several settings, by successive halving, and a run with the best of them."""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from conftest import coloured
from executor import ClassDataset, Document, DocumentArray, fit
from executor.evaluation.eval_set import EvalSet
from executor.evaluation.hold_out import split_documents
from executor.loading.augmentation import STRENGTHS, Augmentation, default_augmentation, load_augmentation
from executor.models.building import build_model
from executor.models.model import ModelConfig
from executor.parameters import TrainingOptions
from executor.report.contents import read
from executor.report.report import load
from executor.store.run import RunState
from executor.store.workspace import Workspace
from executor.training.features import Filling, Trainee
from executor.training.loop import Interrupted
from executor.training.micro_batch import MicroBatch
from executor.training.parts import make_config, make_loader, prepare_model
from executor.training.recipe import Keeping, Outcome, Task, fine_tune
from executor.training.trials import search_space, short_runs, with_settings
from executor.training.watching import Watcher
from workshop import Workshop, kill

pytestmark = pytest.mark.compute

CPU = torch.device("cpu")
CLASSES = 6
torch.set_num_threads(1)  # the tensors are tiny


def vectors(count: int = 280) -> DocumentArray:
    """Documents whose classes overlap, so that no setting orders them perfectly."""
    random = np.random.default_rng(0)
    centres = np.random.default_rng(9).normal(size=(CLASSES, 8))
    return DocumentArray(
        Document(
            id=f"d{number}",
            blob=(centres[number % CLASSES] + 1.6 * random.normal(size=8)).astype(np.float32),
            tags={"finetuner_label": number % CLASSES},
        )
        for number in range(count)
    )


def pictures(count: int) -> DocumentArray:
    return DocumentArray(
        Document(id=f"d{number}", blob=coloured(number % 4, number, 16), tags={"finetuner_label": number % 4})
        for number in range(count)
    )


def grey_pictures(count: int = 240) -> DocumentArray:
    """Pictures of greys that differ by little, so that no setting orders them perfectly."""
    random = np.random.default_rng(0)
    return DocumentArray(
        Document(
            id=f"d{number}",
            blob=(100 + 3 * (number % CLASSES) + random.integers(-60, 60, (16, 16, 3))).astype(np.uint8),
            tags={"finetuner_label": number % CLASSES},
        )
        for number in range(count)
    )


def perceptron() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8))


class Told(Watcher):
    """Notes what a training tells; `at_trial` is called at each step of a trial, with the number of such steps."""

    def __init__(self, at_trial: Callable[[int], None] = lambda steps: None) -> None:
        self.warnings: list[str] = []
        self.sentences: list[str] = []
        self.steps: list[int] = []  # the trial of each step
        self.begun = 0
        self.fillings: list[Filling] = []
        self.at_trial = at_trial

    def say(self, sentence: str) -> None:
        self.warnings.append(sentence)

    def begin(self, *_: object) -> None:
        self.begun += 1

    def trying(self, number: int, count: int, images_per_second: float) -> None:
        self.steps.append(number)
        self.at_trial(len(self.steps))

    def tried(self, sentence: str) -> None:
        self.sentences.append(sentence)

    def filled(self, filling: Filling) -> None:
        self.fillings.append(filling)


class Run:
    """A training by the recipe, on part of the documents; the proof and the choice have parts of their own."""

    def __init__(
        self,
        docs: DocumentArray | None = None,
        model: nn.Module | None = None,
        *,
        augment: Augmentation | None = None,
        preprocess_fn: Callable[[Any], np.ndarray] | None = None,
        folder: Path | None = None,
        told: Told | None = None,
        stop: Callable[[], bool] = lambda: False,
        **options: Any,
    ) -> None:
        self.options = TrainingOptions(**{"epochs": 10, "batch_size": 32, "precision": "fp32", "trials": 5} | options)
        self.model = perceptron() if model is None else model
        prepare_model(self.model, self.options)
        dataset = ClassDataset(vectors() if docs is None else docs, preprocess_fn)
        parts = split_documents(dataset, np.arange(len(dataset)), "auto", seed=0)
        self.proof, self.choose, self.train = (
            {f"d{item}" for item in items} for items in (parts.proof, parts.choose, parts.train)
        )
        self.told = Told() if told is None else told
        self.task = Task(
            dataset=dataset,
            items=parts.train,
            eval_set=EvalSet(dataset, parts.proof, device=CPU),
            choose_set=EvalSet(dataset, parts.choose, device=CPU) if len(parts.choose) else None,
            same_content=True,
            augment=augment,
        )
        self._keeping = Keeping(folder=folder, stop=stop)

    def go(self) -> Outcome:
        self.outcome = fine_tune(
            self.model,
            self.task,
            self.options,
            device=CPU,
            watcher=self.told,
            micro_batch=MicroBatch(None),
            max_cache_bytes=2**30,
            keeping=self._keeping,
        )
        return self.outcome

    def trainee(self) -> Trainee:
        loader = make_loader(self.task.dataset, self.task.items, self.options, augment=self.task.augment)
        config = make_config(self.options, self.model, documents=len(self.task.items), bf16=False)
        return Trainee(self.model, loader, config)


def assert_same_weights(one: nn.Module, other: nn.Module) -> None:
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


@pytest.fixture(scope="module")
def searched() -> Run:
    run = Run()
    run.go()
    return run


# --- what is chosen --------------------------------------------------------------------------------------------------


def test_the_best_of_those_that_got_furthest_is_chosen(searched: Run) -> None:
    trials = searched.outcome.trials
    furthest = [trial.score for trial in trials.tried if trial.epochs == max(short_runs(10))]
    assert trials.chosen is not None
    assert trials.tried[trials.chosen].score == max(furthest)
    assert len(set(furthest)) > 1


def test_the_run_is_the_one_that_is_made_with_the_chosen_settings_and_no_trials(searched: Run) -> None:
    """Bit for bit: so the trials leave no trace, and the whole schedule belongs to the chosen settings."""
    trials = searched.outcome.trials
    assert trials.chosen, "the defaults would show less"
    plain = Run(trials=1, **trials.settings)
    outcome = plain.go()
    assert outcome.history == searched.outcome.history
    assert_same_weights(plain.model, searched.model)
    assert {name: searched.outcome.used[name] for name in trials.settings} == trials.settings


def test_a_run_with_a_chosen_augmentation_is_one_that_augments_so_throughout() -> None:
    def augmented(strength: float, trials: int) -> Run:
        model = build_model(ModelConfig(model="small", input_size=16))
        given = {"learning_rate": 1e-3, "norm_statistics": "trained", "epochs": 1, "trials": trials}
        run = Run(grey_pictures(), model, augment=default_augmentation("class", 16, strength), **given)
        run.go()
        return run

    run = augmented(1.0, trials=3)
    (chosen,) = run.outcome.trials.settings.values()
    assert chosen != "default", "it would show less"
    assert_same_weights(augmented(STRENGTHS[chosen], trials=1).model, run.model)


def test_the_defaults_are_tried_first_and_nothing_is_tried_twice(searched: Run) -> None:
    tried = [tuple(trial.settings.values()) for trial in searched.outcome.trials.tried]
    assert tried[0] == (1e-3, "trained")
    assert len(set(tried)) == len(tried) == searched.options.trials


def test_a_setting_that_is_not_among_the_best_is_stopped_after_its_first_short_run(searched: Run) -> None:
    first, last = short_runs(10)
    stopped = [trial for trial in searched.outcome.trials.tried if trial.epochs == first]
    went_on = [trial for trial in searched.outcome.trials.tried if trial.epochs == last]
    assert stopped
    assert went_on
    assert max(trial.scores[first] for trial in stopped) <= max(trial.scores[first] for trial in went_on)


@pytest.mark.parametrize(("epochs", "short"), [(1, [1]), (8, [1]), (9, [1, 3]), (10, [1, 3]), (30, [3, 9])])
def test_short_runs_take_a_ninth_and_a_third_of_the_epochs(epochs: int, short: list[int]) -> None:
    assert short_runs(epochs) == short


def test_without_trials_nothing_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)  # to import it is an error
    run = Run(trials=1, epochs=1, folder=tmp_path)
    assert run.go().trials.tried == []
    assert (run.told.steps, run.told.sentences, run.told.begun) == ([], [], 1)
    assert not (tmp_path / "trials.json").exists()


# --- what is tried ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "varied"),
    [
        ({}, {"learning_rate", "norm_statistics"}),
        ({"learning_rate": 2e-3}, {"norm_statistics"}),
        ({"norm_statistics": "fixed"}, {"learning_rate"}),
        ({"norm_statistics": "auto"}, {"learning_rate", "norm_statistics"}),
        ({"learning_rate": 2e-3, "norm_statistics": "trained"}, set()),
    ],
)
def test_an_option_that_is_given_is_not_varied(options: dict[str, Any], varied: set[str]) -> None:
    run = Run(**options)
    space = search_space(run.trainee(), run.options)
    assert space.keys() == varied
    assert all(len(set(values)) == len(values) > 1 for values in space.values())


def test_norm_statistics_are_not_varied_where_a_model_has_none_that_train() -> None:
    frozen = build_model(ModelConfig(model="small", input_size=16))
    run = Run(pictures(280), frozen, freeze=True)
    assert search_space(run.trainee(), run.options).keys() == {"learning_rate"}
    run = Run(model=nn.Linear(8, 4))
    assert search_space(run.trainee(), run.options).keys() == {"learning_rate"}


def test_only_the_default_augmentation_is_varied() -> None:
    given = load_augmentation(default_augmentation("class", 16).describe(), "class", 16)
    for augment, varied in ((default_augmentation("class", 16), True), (given, False), (None, False)):
        run = Run(augment=augment)
        assert ("augmentation" in search_space(run.trainee(), run.options)) is varied


@pytest.mark.parametrize("kind", ["class", "unlabeled"])
def test_a_stronger_augmentation_changes_images_more_and_a_weaker_one_less(kind: str) -> None:
    trainee = Run(augment=default_augmentation(kind, 32)).trainee()
    image = coloured(0, size=32)
    image[8:20, 4:14] = 255
    changes = []
    for strength in ("weaker", "default", "stronger"):
        augment = with_settings(trainee, {"augmentation": strength}).loader.augment
        assert augment is not None
        augment.seed(0)
        changes.append(np.mean([np.abs(augment(image).astype(float) - image).mean() for _ in range(200)]))
    assert changes == sorted(changes)
    assert changes[0] < 0.8 * changes[2]
    same = with_settings(trainee, {"augmentation": "default"}).loader.augment
    assert same is not None
    assert same.describe() == default_augmentation(kind, 32).describe()


def test_the_heads_of_a_frozen_backbone_are_tried_on_the_same_features() -> None:
    model = build_model(ModelConfig(model="small", input_size=16, embedding_dim=8))
    run = Run(pictures(280), model, freeze=True, trials=3, epochs=9, augment=default_augmentation("class", 16))
    outcome = run.go()
    assert [set(trial.settings) for trial in outcome.trials.tried] == [{"learning_rate"}] * 3
    views = outcome.used["feature_views"]
    assert sum(filling.done == filling.total for filling in run.told.fillings) <= 9  # of the epochs, not of the trials
    assert views > 0


def test_there_are_no_more_trials_than_settings() -> None:
    run = Run(learning_rate=1e-3, trials=50, epochs=2)
    outcome = run.go()
    assert [trial.settings for trial in outcome.trials.tried] == [
        {"norm_statistics": "trained"},
        {"norm_statistics": "fixed"},
    ]
    assert outcome.used["trials"] == 2
    assert run.told.sentences[0].startswith("trial 1 of 2: ")


# --- what they are judged by -----------------------------------------------------------------------------------------


def test_the_documents_of_the_proof_are_never_looked_at_by_trials() -> None:
    seen: set[str] = set()
    during: set[str] = set()

    def content(doc: Document) -> np.ndarray:
        seen.add(doc.id)
        return doc.blob

    class Looking(Told):
        def begin(self, *_: object) -> None:
            super().begin()
            if self.begun == 2:
                during.update(seen)
            seen.clear()

    run = Run(preprocess_fn=content, told=Looking(), trials=3, epochs=9)
    run.go()
    assert run.told.begun == 2
    assert during == run.train | run.choose
    assert not during & run.proof


@pytest.mark.parametrize("trials", [1, 4])
def test_with_too_few_documents_there_are_no_trials_and_a_warning_says_so(trials: int) -> None:
    run = Run(vectors(120), trials=trials, epochs=1)
    outcome = run.go()
    assert outcome.trials.tried == []
    assert outcome.used["trials"] == 1
    warning = "trials has no effect: the documents are too few to keep some of them to choose by."
    assert (warning in run.told.warnings) is (trials > 1)


def test_where_every_setting_is_given_there_are_no_trials_and_a_warning_says_so() -> None:
    run = Run(learning_rate=1e-3, norm_statistics="fixed", epochs=1)
    assert run.go().trials.tried == []
    assert "trials has no effect: every setting is given." in run.told.warnings


# --- what goes wrong -------------------------------------------------------------------------------------------------


class Fragile(nn.Module):
    """Its output is no number once a weight has moved by more than 0.02."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(8, 8)
        self.register_buffer("start", self.linear.weight.detach().clone())

    def forward(self, inputs: Tensor) -> Tensor:
        lost = (self.linear.weight - self.start).abs().max() > 0.02
        return self.linear(inputs) * (math.nan if lost else 1.0)


def test_a_setting_that_loses_its_loss_is_told_and_not_chosen(tmp_path: Path) -> None:
    run = Run(model=Fragile(), trials=7, epochs=1, folder=tmp_path)
    outcome = run.go()
    lost = [trial for trial in outcome.trials.tried if math.isnan(trial.score)]
    assert lost
    assert outcome.trials.chosen is not None
    assert outcome.trials.tried[outcome.trials.chosen] not in lost
    assert sum("the loss became no number" in sentence for sentence in run.told.sentences) == len(lost)
    again = Run(model=Fragile(), trials=7, epochs=1, folder=tmp_path)
    assert [trial.settings for trial in again.go().trials.tried if math.isnan(trial.score)] == [
        trial.settings for trial in lost
    ]


@pytest.mark.parametrize("step", [1, 9, 20, 26])
def test_a_run_that_is_interrupted_in_its_trials_goes_on_with_those_it_has_made(
    searched: Run, tmp_path: Path, step: int
) -> None:
    told = Told()
    broken = Run(folder=tmp_path, told=told, stop=lambda: len(told.steps) == step)
    with pytest.raises(Interrupted):
        broken.go()
    assert len(told.steps) == step  # it ends with the step
    file = tmp_path / "trials.json"
    kept = json.loads(file.read_text())["tried"] if file.exists() else []
    resumed = Run(folder=tmp_path)
    outcome = resumed.go()
    assert outcome.trials == searched.outcome.trials
    assert outcome.history == searched.outcome.history
    assert_same_weights(resumed.model, searched.model)
    assert told.sentences + resumed.told.sentences == searched.told.sentences
    of_a_short_run = -(-len(searched.train) // 32)
    done = sum(sum(map(int, trial["scores"])) for trial in kept) * of_a_short_run
    assert len(resumed.told.steps) == len(searched.told.steps) - done


def test_a_run_that_is_interrupted_after_its_trials_makes_none_again(
    searched: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(folder=tmp_path)
    run.go()
    monkeypatch.setitem(sys.modules, "optuna", None)  # not even the search
    again = Run(folder=tmp_path)
    assert again.go().trials == searched.outcome.trials
    assert (again.told.steps, again.told.sentences) == ([], [])
    assert_same_weights(again.model, searched.model)


def test_trials_that_are_kept_are_progress_of_a_run(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    workspace.run_folder("a").mkdir(parents=True)
    places = [workspace.progress("a")]
    workspace.trials_file("a").write_text("{}")
    places.append(workspace.progress("a"))
    workspace.trials_file("a").write_text('{"tried": []}')
    places.append(workspace.progress("a"))
    (workspace.checkpoint_folder("a") / "0000000003").mkdir(parents=True)
    places.append(workspace.progress("a"))
    assert places == sorted(set(places))


# --- what is told ----------------------------------------------------------------------------------------------------


def test_a_sentence_says_what_was_tried_and_another_what_is_chosen(searched: Run) -> None:
    trials, sentences = searched.outcome.trials, searched.told.sentences
    assert len(sentences) == len(trials.tried) + 1
    for number, (trial, sentence) in enumerate(zip(trials.tried, sentences, strict=False), start=1):
        rate, norms = trial.settings.values()
        assert sentence.startswith(f"trial {number} of 5: learning_rate {rate:g}, norm_statistics {norms}: mAP@R ")
        assert f" {trial.score:.3f} after {trial.epochs} epoch" in sentence
        assert sentence.endswith(", stopped") is (trial.epochs == 1)
    assert trials.chosen is not None
    assert sentences[-1].startswith(f"trial {trials.chosen + 1} is chosen: learning_rate ")
    assert f"; with the defaults mAP@R {trials.tried[0].score:.3f} after 3 epochs" in sentences[-1]


def test_fit_tries_settings_with_and_without_eval_data(capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"epochs": 2, "batch_size": 32, "precision": "fp32", "device": "cpu", "trials": 2}
    for eval_data in (None, vectors(40)):
        fit(perceptron(), vectors(220), eval_data, **settings)
        shown = " ".join(capsys.readouterr().err.split())
        assert "trial 2 of 2: learning_rate" in shown
        assert "is chosen" in shown


# --- runs of the service ---------------------------------------------------------------------------------------------

# One epoch: how short runs follow on each other is tested above, without processes.
OPTIONS = {"epochs": 1, "batch_size": 32, "trials": 3, "precision": "fp32"}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory):
    """A workspace in which the run `undisturbed` has ended."""
    made = Workshop(tmp_path_factory.mktemp("trials"), fit_defaults=OPTIONS, augment=None)
    made.receive("undisturbed", pictures(280))
    made.queue("undisturbed")
    with made.supervised():
        made.wait("undisturbed", seconds=300)
    yield made
    made.close()


def weights(workshop: Workshop, run: str) -> dict[str, Tensor]:
    return load_file(workshop.store.workspace.model_folder(run) / "weights.safetensors")


@pytest.mark.process
def test_the_events_and_the_report_of_a_run_say_what_was_tried(shared: Workshop) -> None:
    assert shared.store.get("undisturbed").state is RunState.SUCCEEDED, shared.log("undisturbed")
    events = shared.events("undisturbed", "trial")
    assert [event.split(":")[0] for event in events[:3]] == ["trial 1 of 3", "trial 2 of 3", "trial 3 of 3"]
    assert "augmentation default" in events[0]
    assert "is chosen" in events[3]
    report = load(shared.store.workspace.run_folder("undisturbed"))
    chosen = [trial for trial in report.tried if trial.chosen]
    assert (len(report.tried), len(chosen)) == (3, 1)
    assert report.used["learning_rate"] == chosen[0].settings["learning_rate"]
    assert report.used["norm_statistics"] == chosen[0].settings["norm_statistics"]
    assert "Settings tried" in read(shared.store, "undisturbed")


@pytest.mark.process
def test_a_run_whose_trainer_is_killed_in_its_trials_ends_as_one_that_was_not(shared: Workshop) -> None:
    shared.receive("disturbed", pictures(280))
    shared.queue("disturbed")
    with shared.supervised():
        pid = shared.wait("disturbed", lambda run: shared.events("disturbed", "trial")).pid
        assert pid is not None
        assert shared.store.progress("disturbed").step == 0
        kill(pid)
        run = shared.wait("disturbed")
    assert (run.state, run.attempts) == (RunState.SUCCEEDED, 2), shared.log("disturbed")
    assert shared.events("disturbed", "trial") == shared.events("undisturbed", "trial")
    same = weights(shared, "undisturbed")
    assert all(torch.equal(tensor, same[name]) for name, tensor in weights(shared, "disturbed").items())


@pytest.mark.process
def test_the_ranks_of_a_run_try_the_same_settings(tmp_path: Path) -> None:
    workshop = Workshop(tmp_path, devices=["cpu", "cpu"], fit_defaults=OPTIONS)
    workshop.receive("shared", pictures(280))
    workshop.queue("shared")
    with workshop.supervised():
        run = workshop.wait("shared")
    assert (run.state, run.attempts) == (RunState.SUCCEEDED, 1), workshop.log("shared")
    assert len(workshop.events("shared", "trial")) == 4
    workshop.close()
