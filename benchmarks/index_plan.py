"""Compare what a run says of an index with what becomes true on other documents.

    .venv/bin/python -m benchmarks.index_plan [--photos FOLDER] [--seeds 3] [--quick]

Data: scikit-learn's digits and generated textured shapes (`shapes.py`) with the model `small`, and with `--photos` a
folder of photographs (train/CLASS/*.jpg, and test/CLASS/*.jpg of another visit) with the model `default`. A seed draws
two thirds of the classes as seen; all digits are seen. The model is tuned by the real recipe on the train images of the
seen classes, maps are learned from these as a run does (`worker/index_learning.py`), and the plan is measured on one
half of the test images of all classes, as on a run's eval documents. The other half is the index of a shop that carries
the advice out: `real` is what its queries find.

A case is one way to treat the index, on all classes or on the unseen ones. The last line is the share of cases in which
the prediction is within .02 of what became true. Before it: in how many the two differ by no more than two samples of
documents do, and how many would be within .02 if nothing else differed; how often the advice cost more than the
tolerance, and what mapping takes, with the map of the last data set: a million vectors, and one query.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy import stats

from benchmarks.common import options, print_headline, print_machine, print_table
from benchmarks.recipe import CPU, Photos, digits, read, shapes, split
from executor import ClassDataset
from executor.evaluation.eval_set import EvalSet
from executor.evaluation.hold_out import split_documents
from executor.evaluation.index_plan import ANEW, Figure, IndexPlan
from executor.loading.augmentation import default_augmentation
from executor.models.building import build_model
from executor.models.model import EmbeddingModel, ModelConfig
from executor.models.space_map import SpaceMap
from executor.parameters import TrainingOptions
from executor.training.micro_batch import MicroBatch
from executor.training.parts import prepare_model
from executor.training.recipe import Task, fine_tune
from executor.training.watching import Watcher
from executor.worker.index_learning import LearnedIndex, Served, learn_index, measure_index

CLOSE = 0.02
MILLION = 1_000_000


@dataclass(frozen=True)
class Data:
    """Images, the model to tune on them, and for how many epochs; None: as many as a run makes."""

    name: str
    photos: Photos
    model: str
    epochs: int | None


@dataclass(frozen=True)
class Case:
    """A way to treat the index: what the run predicted, and what became true."""

    data: str
    seed: int
    classes: str
    way: str
    predicted: Figure
    real: Figure


@dataclass(frozen=True)
class Trial:
    """A run: its cases, what was advised, and what carrying that out lost."""

    cases: list[Case]
    predicted: IndexPlan
    real: IndexPlan
    learned: LearnedIndex


def tuned(data: Data, dataset: ClassDataset, seed: int) -> tuple[EmbeddingModel, EvalSet, EvalSet | None]:
    """Tune a model as a run does. Return it, the items it was trained on, and those that chose the epoch."""
    size = data.photos.images.shape[1]
    options = TrainingOptions(seed=seed, epochs=data.epochs)
    model = build_model(ModelConfig(model=data.model, input_size=size, seed=seed))
    parts = split_documents(dataset, np.arange(len(dataset)), 0.0, seed=seed)
    choose = EvalSet(dataset, parts.choose, device=CPU) if len(parts.choose) else None
    prepare_model(model, options)
    fine_tune(
        model,
        Task(
            dataset=dataset,
            items=parts.train,
            choose_set=choose,
            same_content=True,
            augment=default_augmentation("class", size),
        ),
        options,
        device=CPU,
        watcher=Watcher(),
        micro_batch=MicroBatch(None, say=print),
        max_cache_bytes=2**33,
    )
    return model, EvalSet(dataset, parts.train, device=CPU), choose


def halves(data: Data, classes: list[str]) -> tuple[EvalSet, EvalSet]:
    """Divide the test images of all classes in two: every second of each class, the odd ones of classes by turns."""
    dataset = data.photos.dataset(classes, training=False)
    second = np.zeros(len(dataset), bool)
    first_of = 1
    for label in np.unique(dataset.labels):
        places = np.flatnonzero(dataset.labels == label)
        second[places[first_of::2]] = True
        first_of = 1 - first_of if len(places) % 2 else first_of
    return tuple(EvalSet(dataset, np.flatnonzero(half), device=CPU) for half in (~second, second))


def run(data: Data, seed: int) -> Trial:
    """Do one run."""
    every = sorted(set(data.photos.labels.tolist()))
    seen, unseen = (every, []) if data.name == "digits" else split(every, "all", seed)
    model, learn, choose = tuned(data, data.photos.dataset(seen, training=True), seed)
    size = data.photos.images.shape[1]
    base = build_model(ModelConfig(model=data.model, input_size=size, seed=seed)).eval()
    evaluated, fresh = halves(data, every)
    learned = learn_index(
        learn,
        choose,
        Served(version="base", space="", model=base, measured=None),
        model,
        prepared_for=lambda _, items: items,
        check=lambda: None,
        alone=True,
        first=True,
    )
    assert learned is not None, "there are too few documents"
    names = evaluated.dataset.classes
    held_out = tuple(names.index(name) for name in unseen)
    predicted, real = (
        measure_index(learned, half, half.measure(base), half.measure(model), tolerance=CLOSE, unseen=held_out).plan
        for half in (evaluated, fresh)
    )
    assert predicted is not None
    assert real is not None
    return Trial(list(cases(data.name, seed, predicted, real)), predicted, real, learned)


def cases(data: str, seed: int, predicted: IndexPlan, real: IndexPlan) -> Iterator[Case]:
    """Yield every way that is possible, on all classes and on the unseen ones."""
    for classes, one, other in (
        ("all", predicted.figures, real.figures),
        ("unseen", predicted.unseen_figures, real.unseen_figures),
    ):
        for way, figure in one.items():
            became = other[way]
            if figure is not None and became is not None:
                yield Case(data, seed, classes, way, figure, became)


def seconds_to_map(found: SpaceMap, count: int) -> tuple[float, float]:
    """Return the seconds for `count` vectors, and for one query: the best of three."""
    block = np.random.default_rng(0).normal(size=(min(count, 50_000), found.sizes[0])).astype(np.float32)
    query = block[:1].copy()
    many, one = [], []
    for _ in range(3):
        began = time.perf_counter()
        for _ in range(count // len(block)):
            found(block)
        many.append(time.perf_counter() - began)
        began = time.perf_counter()
        for _ in range(200):
            found(query)
        one.append((time.perf_counter() - began) / 200)
    return min(many), min(one)


def report(trials: list[Trial], count: int) -> None:
    """Print the tables and the headline."""
    every = [case for trial in trials for case in trial.cases]
    print_table(
        ["data", "seed", "classes", "way", "predicted", "real", "difference"],
        (
            [
                c.data,
                c.seed,
                c.classes,
                c.way,
                f"{c.predicted[0]:.3f}",
                f"{c.real[0]:.3f}",
                f"{c.predicted[0] - c.real[0]:+.3f}",
            ]
            for c in every
        ),
    )
    rows, costly = [], 0
    for trial in trials:
        advice = trial.predicted.advice
        loss = (0.0, 0.0, 0.0) if advice == ANEW else trial.real.losses[advice]
        assert loss is not None
        costly += loss[1] > CLOSE
        rows.append([trial.cases[0].data, trial.cases[0].seed, *trial.learned.kinds, advice, f"{loss[0]:.3f}"])
    print_table(["data", "seed", "map", "map of queries", "advice", "its real loss"], rows)
    print(f"The advice cost more than {CLOSE} beyond chance in {costly} of {len(trials)} runs.")
    found = trials[-1].learned.forward
    many, one = seconds_to_map(found, count)
    print(f"{count:,} vectors of {found.sizes[0]} values: {many:.2f} s; one query: {1e6 * one:.0f} µs\n")
    errors = np.array([np.hypot(_error(case.predicted), _error(case.real)) for case in every])
    apart = np.array([case.predicted[0] - case.real[0] for case in every])
    print(
        f"{np.mean(np.abs(apart) <= 1.96 * errors):.0%} of the differences are within chance, by the intervals of both."
    )
    perfect = np.mean(stats.norm.cdf(CLOSE / errors) - stats.norm.cdf(-CLOSE / errors))
    print(f"If nothing but chance made a difference, {perfect:.1%} would be within {CLOSE}.\n")
    within = float(np.mean([abs(case.predicted[0] - case.real[0]) <= CLOSE for case in every]))
    print_headline("predicted_within_0_02", within)


def _error(figure: Figure) -> float:
    """The standard error, by the width of the 95 % interval."""
    return (figure[2] - figure[1]) / (2 * 1.96)


def datasets(arguments: argparse.Namespace) -> Iterator[Data]:
    """Yield the data sets that are asked for."""
    side, epochs = (16, 1) if arguments.tiny else (32, 3) if arguments.quick else (32, None)
    yield Data("digits", digits(side), "small", epochs)
    if not arguments.tiny:
        yield Data("shapes", shapes(side, measured=40), "small", epochs)
    if arguments.photos is not None:
        side = 32 if arguments.tiny else 64 if arguments.quick else arguments.size
        yield Data("photographs", read(arguments.photos, side), "default", epochs)


def main() -> None:
    """Measure and print."""
    parser = options(__doc__)
    parser.add_argument("--photos", type=Path, help="a folder with train/ and test/, each of folders of classes")
    parser.add_argument("--size", type=int, default=96, help="side of the photographs, in pixels")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="of torch")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    print_machine()
    seeds = 1 if arguments.quick or arguments.tiny else arguments.seeds
    trials = []
    for data in datasets(arguments):
        for seed in range(seeds):
            began = time.perf_counter()
            trials.append(run(data, seed))
            print(f"{data.name}, seed {seed}: {time.perf_counter() - began:.0f} s", flush=True)
    report(trials, 10_000 if arguments.tiny else 100_000 if arguments.quick else MILLION)


if __name__ == "__main__":
    main()
