"""How many labels are needed in the order of `/suggest`, and how many in a random one, for an equally good model.

    .venv/bin/python -m benchmarks.suggest [--photos FOLDER] [--seeds 5] [--quick]

Data: scikit-learn's digits with the model `small`, and with `--photos` a folder of photographs (train/CLASS/*.jpg, and
test/CLASS/*.jpg of another visit) with the model `default`. A seed draws four fifths of the train images as a gallery.
It is labelled in rounds: in one order each round's documents are those that `serving.suggesting` names next, by the
embeddings of the untrained model and the labels so far; in the other they are drawn at random. After each round a model
is tuned on all labels so far by the real recipe, and mAP@R is measured on the test images of all classes.

The target was fixed before: what the random order reaches with two thirds of its labels. How many labels reach it is
read between the rounds on a straight line. The last line is the labels needed as a share of the random order's, a mean
of the seeds, for the data where it is lower.
"""

import argparse
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.common import options, print_headline, print_machine, print_table
from benchmarks.recipe import CPU, Photos, digits, measured, read, train_on, with_interval
from executor.evaluation.eval_set import EvalSet
from executor.loading.datasets import ClassDataset
from executor.models.building import build_model
from executor.models.model import EmbeddingModel, ModelConfig
from executor.serving.suggesting import suggest

ROUNDS = 6
TARGET = 4  # the round whose figure in the random order is the target
GALLERY = 0.8
ORDERS = ("random", "suggested")


class Data(NamedTuple):
    """Images, the model to tune on them, the labels of a round."""

    name: str
    photos: Photos
    model: str
    step: int
    setting: dict[str, int]


def datasets(arguments: argparse.Namespace) -> Iterator[Data]:
    """Yield the data sets that are asked for."""
    small = arguments.tiny or arguments.quick
    setting = {"epochs": 1} if arguments.tiny else {}
    yield Data("digits", digits(16 if arguments.tiny else 32), "small", 40, setting)
    if arguments.photos is not None:
        yield Data("photographs", read(arguments.photos, 64 if small else 96), "default", 60, setting)


def curve(data: Data, order: str, seed: int, rounds: int) -> list[float]:
    """Return mAP@R without labels and after each round."""
    classes = sorted(set(data.photos.labels.tolist()))
    every, test = (data.photos.dataset(classes, training=training) for training in (True, False))
    random = np.random.default_rng(seed)
    gallery = np.sort(random.permutation(len(every))[: round(GALLERY * len(every))])
    untrained = model_of(data, seed)
    vectors = EvalSet(every, gallery, device=CPU).embed(untrained.eval())
    found = [measured(untrained, test)[0]]
    taken = np.zeros(len(gallery), bool)
    for _ in range(rounds):
        left = np.flatnonzero(~taken)
        if order == "random":
            chosen = random.permutation(left)[: data.step]
        else:
            labels = [every.classes[every.labels[item]] for item in gallery[taken]]
            known = vectors[taken] if taken.any() else None
            chosen = left[[each.position for each in suggest(vectors[left], data.step, known=known, labels=labels)]]
        taken[chosen] = True
        model = model_of(data, seed)
        train_on(model, some(every, gallery[taken]), data.setting, data.photos.images.shape[1], seed)
        found.append(measured(model, test)[0])
    return found


def model_of(data: Data, seed: int) -> EmbeddingModel:
    return build_model(ModelConfig(model=data.model, input_size=data.photos.images.shape[1], seed=seed))


def some(dataset: ClassDataset, items: np.ndarray) -> ClassDataset:
    """A dataset of some of the documents."""
    return ClassDataset(type(dataset.docs)(dataset.docs[int(item)] for item in items))


def needed(found: list[float], target: float, step: int) -> float:
    """The labels with which a curve first reaches the target; if it does not: as if it went on as in its last round."""
    for number, (before, after) in enumerate(pairwise(found)):
        if after >= target:
            return step * (number + max(0.0, target - before) / max(after - before, 1e-9))
    return step * (len(found) - 1 + (target - found[-1]) / max(found[-1] - found[-2], 1e-3))


def compare(data: Data, seeds: int, rounds: int) -> float:
    """Print the curves, and return the mean share of labels that the suggested order needs."""
    curves: dict[str, list[list[float]]] = {order: [] for order in ORDERS}
    shares = []
    target_round = min(TARGET, rounds)
    for seed in range(seeds):
        for order in ORDERS:
            curves[order].append(curve(data, order, seed, rounds))
            print(f"{data.name}, seed {seed}, {order}: {np.round(curves[order][-1], 3).tolist()}", flush=True)
        target = curves["random"][-1][target_round]
        labels = [needed(curves[order][-1], target, data.step) for order in ORDERS]
        shares.append(labels[1] / labels[0])
        print(f"for {target:.3f}: {labels[0]:.0f} and {labels[1]:.0f} labels", flush=True)
    print(f"\n{data.name}, mAP@R by labels, {seeds} seeds, mean and 95 % interval\n")
    print_table(
        ("labels", *ORDERS),
        [
            (data.step * number, *(with_interval([each[number] for each in curves[order]]) for order in ORDERS))
            for number in range(rounds + 1)
        ],
    )
    print(f"labels needed, as a share of the random order's: {with_interval(shares)}\n")
    return float(np.mean(shares))


def main() -> None:
    """Measure and print."""
    parser = options(__doc__)
    parser.add_argument("--photos", type=Path, help="a folder with train/ and test/, each of folders of classes")
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    print_machine()
    small = arguments.tiny or arguments.quick
    seeds, rounds = (1, 2) if arguments.tiny else (1, ROUNDS) if arguments.quick else (arguments.seeds, ROUNDS)
    shares = [compare(data, seeds, rounds) for data in datasets(arguments)]
    if small:
        print("One seed proves nothing.\n")
    print_headline("share_of_labels", min(shares))


if __name__ == "__main__":
    main()
