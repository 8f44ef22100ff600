"""Measure how good tuned embeddings are: mAP@R of our defaults, of each of our losses, and of peers.

    .venv/bin/python -m benchmarks.quality [--quick] [--seeds 3] [--epochs 6] [--sets digits,shapes,coloured]
    .venv/bin/python -m benchmarks.quality --photos FOLDER [--quick] [--seeds 3] [--keep FILE]

The data are scikit-learn's digits and generated textured shapes. The digits are measured on held-out images of seen
classes, and on unseen classes (trained on 0-4, measured on 5-9). The shapes (`shapes.py`) have 64 pixels, 25 seen and
25 unseen classes; one training is measured on both. There are two sets of them: in any colours, and with one hue per
class. Every method starts from the same untrained network and makes the same number of steps on the same augmented
images. A seed sets the split, the network, the order and the augmentation. If the processor computes in bf16, all rows
but one use it. Baselines are the untrained network and the raw pixels. Sessions are simulated clicks on the same data,
10 % of them wrong. Unlabeled runs see no labels at all.

One peer is pytorch-metric-learning with a loop by hand: its MPerClassSampler, miner and loss, AdamW with weight decay
0.01, a linear warm-up and a cosine, as in its examples and papers. The other is open-metric-learning's sampler and
triplet loss, if its environment is installed (`python -m benchmarks.peers.environments open_metric_learning`).

With `--photos` the data are photographs, and the networks pretrained: see `photo_quality.py`.
"""

import argparse
import functools
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import albumentations
import cv2
import numpy as np
import torch
from pytorch_metric_learning import losses as pml_losses
from pytorch_metric_learning import miners as pml_miners
from pytorch_metric_learning.samplers import MPerClassSampler
from sklearn.datasets import load_digits

from benchmarks import photo_quality
from benchmarks.common import options, print_headline, print_machine, print_table
from benchmarks.peers.environments import problem_of, python_of
from benchmarks.shapes import classes as shape_classes
from benchmarks.shapes import make as make_shapes
from executor import Document, DocumentArray
from executor.evaluation.metrics import score_classes
from executor.images.reading import load_uri_to_image_blob
from executor.loading.augmentation import default_augmentation
from executor.loading.datasets import make_dataset
from executor.loading.forward import embed_batches
from executor.models.building import build_model
from executor.models.model import EmbeddingModel, ModelConfig
from executor.models.saving import load_model, save_model
from executor.parameters import LOSS_NAMES, TrainingOptions
from executor.training.loop import train
from executor.training.losses import DEFAULT_LOSS
from executor.training.optimizer import warmup_cosine
from executor.training.parts import make_config, make_loader, make_loss
from executor.training.precision import computes_in_bf16

DEVICE = torch.device("cpu")
IN_BF16 = computes_in_bf16(DEVICE)
BATCH = 64
OML = "open_metric_learning"
WRONG_CLICKS = 0.1
EPOCHS = 6
LONGER = 4  # the shapes get this many times the epochs, because they are fewer and harder


@dataclass(frozen=True)
class Split:
    """Training images (N, S, S, 3) uint8 with labels (N,), and test sets by name."""

    images: np.ndarray
    labels: np.ndarray
    tests: dict[str, tuple[np.ndarray, np.ndarray]]
    epochs: int


def digits(seed: int, epochs: int) -> Iterator[Split]:
    """Yield the digits at 32 pixels: first a split with seen classes, then one with unseen classes."""
    data = load_digits()
    images = np.stack([cv2.resize((image * 255 / 16).astype(np.uint8), (32, 32)) for image in data.images])
    images = np.repeat(images[..., None], 3, axis=3)
    order = np.random.default_rng(seed).permutation(len(images))
    train_part, test_part = order[:1200], order[1200:]
    yield Split(
        images[train_part],
        data.target[train_part],
        {"digits, seen": (images[test_part], data.target[test_part])},
        epochs,
    )
    seen = data.target < 5
    yield Split(images[seen], data.target[seen], {"digits, unseen": (images[~seen], data.target[~seen])}, epochs)


def shapes(seed: int, epochs: int, name: str = "shapes") -> Iterator[Split]:
    """Yield textured shapes: one training, measured on seen and unseen classes. `coloured`: with one hue per class."""
    kinds = shape_classes(50, seed)
    hues = np.random.default_rng(seed).integers(0, 180, 50).tolist()
    seen, unseen = (hues[:25], hues[25:]) if name == "coloured" else (None, None)
    images, labels = make_shapes(kinds[:25], 24, seed * 10, hues=seen)
    yield Split(
        images,
        labels,
        {
            f"{name}, seen": make_shapes(kinds[:25], 10, seed * 10 + 1, hues=seen),
            f"{name}, unseen": make_shapes(kinds[25:], 10, seed * 10 + 2, hues=unseen),
        },
        epochs * LONGER,
    )


SETS: dict[str, Callable[[int, int], Iterator[Split]]] = {
    "digits": digits,
    "shapes": shapes,
    "coloured": functools.partial(shapes, name="coloured"),
}


# methods: each is called with (split, seed, model) and trains the model in place ----------------------------------


def ours(
    split: Split, seed: int, model: EmbeddingModel, *, kind: str = "class", loss: str = "auto", bf16: bool = IN_BF16
) -> None:
    """Train by our recipe, as the trainer process does, but without its files and processes."""
    chosen = TrainingOptions(epochs=split.epochs, batch_size=BATCH, seed=seed, loss=loss)
    makers = {"class": labelled, "session": sessions, "unlabeled": unlabelled}
    dataset = make_dataset(makers[kind](split, seed), kind, load_uri_to_image_blob)
    augment = default_augmentation(kind, split.images.shape[1])
    loader = make_loader(dataset, np.arange(len(dataset)), chosen, augment=augment)
    criterion = make_loss(dataset, chosen, model.dim, DEVICE)
    train(model, criterion, loader, make_config(chosen, model, documents=len(split.labels), bf16=bf16), device=DEVICE)


def labelled(split: Split, seed: int) -> DocumentArray:
    """Return one document per image, with its label."""
    return DocumentArray(
        Document(blob=image, tags={"finetuner_label": int(label)})
        for image, label in zip(split.images, split.labels, strict=True)
    )


def unlabelled(split: Split, seed: int) -> DocumentArray:
    """Return one document per image, without labels."""
    return DocumentArray(Document(blob=image) for image in split.images)


def sessions(split: Split, seed: int) -> DocumentArray:
    """Return simulated clicks: a query, 2 results that fit it and 5 that do not. 10 % have the wrong label."""
    random = np.random.default_rng([seed, 7])
    docs = DocumentArray()
    for query in random.permutation(len(split.images))[: len(split.images) // 4]:
        same = np.flatnonzero(split.labels == split.labels[query])
        other = np.flatnonzero(split.labels != split.labels[query])
        results = [(index, 1) for index in random.choice(same, 2)] + [(index, -1) for index in random.choice(other, 5)]
        doc = Document(blob=split.images[query])
        doc.matches = [
            Document(
                blob=split.images[index], tags={"finetuner_label": -fits if random.random() < WRONG_CLICKS else fits}
            )
            for index, fits in results
        ]
        docs.append(doc)
    return docs


def by_hand(
    split: Split,
    seed: int,
    model: EmbeddingModel,
    *,
    make: Callable[[int, int], tuple[torch.nn.Module, Callable[..., object] | None]],
) -> None:
    """Train with pytorch-metric-learning as its users do, with the same steps, images and network."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    criterion, miner = make(int(split.labels.max()) + 1, model.dim)
    each = 4
    while each * len(np.unique(split.labels)) < BATCH:  # the sampler needs enough labels to fill a batch
        each *= 2
    sampler = MPerClassSampler(split.labels, m=each, batch_size=BATCH, length_before_new_iter=len(split.labels))
    augment = default_augmentation("class", split.images.shape[1])
    augment.seed(seed)
    own = list(criterion.parameters())
    groups = [{"params": list(model.parameters()), "lr": 1e-3}] + ([{"params": own, "lr": 1e-2}] if own else [])
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
    steps = split.epochs * -(-len(split.labels) // BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warmup_cosine(steps, 0.1))
    model.train()
    done = 0
    while done < steps:
        order = list(sampler)
        for start in range(0, len(order), BATCH):
            part = order[start : start + BATCH]
            batch = torch.from_numpy(np.stack([augment(split.images[index]) for index in part]))
            labels = torch.from_numpy(split.labels[part])
            with torch.autocast("cpu", torch.bfloat16, enabled=IN_BF16):
                embeddings = model(model.preprocessing.normalise(batch))
            value = criterion(embeddings.float(), labels, miner(embeddings, labels) if miner else None)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            schedule.step()
            done += 1
            if done == steps:
                break
    model.eval()


def open_metric_learning(split: Split, seed: int, model: EmbeddingModel) -> None:
    """Train with open-metric-learning in its own environment, on the same network and images."""
    with tempfile.TemporaryDirectory(prefix="finetuner-") as name:
        folder = Path(name)
        np.savez(folder / "images.npz", images=split.images, labels=split.labels)
        augment = albumentations.to_dict(default_augmentation("class", split.images.shape[1]).pipeline)
        steps = split.epochs * -(-len(split.labels) // BATCH)
        settings = {"steps": steps, "batch": BATCH, "seed": seed, "augment": augment}
        (folder / "settings.json").write_text(json.dumps(settings))
        save_model(model, folder / "model")
        command = [str(python_of(OML)), "-m", "benchmarks.peers.open_metric_learning_quality", name]
        subprocess.run(command, cwd=Path(__file__).resolve().parent.parent, check=True, capture_output=True)
        model.load_state_dict(load_model(folder / "model").state_dict())
    model.eval()


PEERS = {
    "PML triplet, semihard": lambda classes, dim: (
        pml_losses.TripletMarginLoss(margin=0.2),
        pml_miners.TripletMarginMiner(margin=0.2, type_of_triplets="semihard"),
    ),
    "PML multi-similarity": lambda classes, dim: (pml_losses.MultiSimilarityLoss(), pml_miners.MultiSimilarityMiner()),
    "PML SupCon": lambda classes, dim: (pml_losses.SupConLoss(), None),
    "PML ProxyAnchor": lambda classes, dim: (pml_losses.ProxyAnchorLoss(classes, dim), None),
}


def methods() -> dict[str, Callable[[Split, int, EmbeddingModel], None] | None]:
    """Return the method for each row of the table; None: nothing is trained."""
    rows: dict[str, Callable[[Split, int, EmbeddingModel], None] | None] = {"raw pixels": None, "untrained": None}
    rows["ours: class, default"] = ours
    if IN_BF16:
        rows["ours: class, default, fp32"] = functools.partial(ours, bf16=False)
    for loss in LOSS_NAMES["class"][1:]:
        if loss != DEFAULT_LOSS["class"]:
            rows[f"ours: class, {loss}"] = lambda *a, loss=loss: ours(*a, loss=loss)
    for name, make in PEERS.items():
        rows[name] = lambda *a, make=make: by_hand(*a, make=make)
    if python_of(OML) is not None:
        rows["OML triplet, all"] = open_metric_learning
    for loss in LOSS_NAMES["session"][1:]:
        rows[f"ours: sessions, {loss}"] = lambda *a, loss=loss: ours(*a, kind="session", loss=loss)
    rows["ours: unlabeled, default"] = lambda *a: ours(*a, kind="unlabeled")
    return rows


def measure(
    rows: dict[str, Callable[[Split, int, EmbeddingModel], None] | None], sets: list[str], seeds: int, epochs: int
) -> dict[str, dict[str, list[float]]]:
    """Return mAP@R by row, test set and seed. All rows of a seed run before the next seed."""
    found: dict[str, dict[str, list[float]]] = {row: {} for row in rows}
    for seed in range(seeds):
        for split in (split for name in sets for split in SETS[name](seed, epochs)):
            for row, method in rows.items():
                began = time.perf_counter()
                model = build_model(ModelConfig(model="small", input_size=split.images.shape[1], seed=seed))
                if method is not None:
                    method(split, seed, model)
                for test, (images, labels) in split.tests.items():
                    if row == "raw pixels":
                        embeddings = images.reshape(len(images), -1).astype(np.float32)
                        embeddings -= embeddings.mean(axis=1, keepdims=True)
                    else:
                        batches = (torch.from_numpy(part) for part in np.array_split(images, -(-len(images) // 64)))
                        embeddings = embed_batches(model, batches, DEVICE)
                    value = score_classes(embeddings, labels.tolist()).mean()["mean_average_precision_at_r"]
                    found[row].setdefault(test, []).append(value)
                print(
                    f"  seed {seed}, {', '.join(split.tests)}, {row}: "
                    + ", ".join(f"{found[row][test][-1]:.3f}" for test in split.tests)
                    + f" ({time.perf_counter() - began:.0f} s)",
                    flush=True,
                )
    return found


def main() -> None:
    """Measure and print."""
    parser = options(__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--epochs",
        type=int,
        help=f"over the digits, by default {EPOCHS}, and over the shapes {LONGER} times as many; over photographs by "
        "default as many as our trainer's",
    )
    parser.add_argument("--sets", default=",".join(SETS), help="the image sets, with commas between them")
    parser.add_argument("--only", default="", help="only the rows whose name has this in it")
    photo_quality.add_options(parser)
    arguments: argparse.Namespace = parser.parse_args()
    print_machine()
    if arguments.photos is not None:
        photo_quality.run(arguments)
        return
    if python_of(OML) is None:
        print(f"open-metric-learning is left out: {problem_of(OML)}\n")
    rows = {row: method for row, method in methods().items() if arguments.only in row}
    if arguments.quick or arguments.tiny:
        keep = ("raw pixels", "untrained", "ours: class, default", "PML ProxyAnchor")
        rows = {row: method for row, method in rows.items() if row in keep}
    epochs = 1 if arguments.quick or arguments.tiny else arguments.epochs or EPOCHS
    found = measure(
        rows, arguments.sets.split(","), 1 if arguments.quick or arguments.tiny else arguments.seeds, epochs
    )
    tests = list(next(iter(found.values())))
    print(f"\nmAP@R, mean ± standard deviation of {len(next(iter(found.values()))[tests[0]])} seeds\n")
    print_table(["method", *tests], ([row, *(shown(values[test]) for test in tests)] for row, values in found.items()))
    peers = [row for row in found if row.startswith(("PML", "OML"))]
    if "ours: class, default" in found and peers:
        best = max(statistics.mean(found[row][tests[-1]]) for row in peers)
        ours_ = statistics.mean(found["ours: class, default"][tests[-1]])
        print_headline(f"ours / best peer, {tests[-1]}", ours_ / best)


def shown(values: list[float]) -> str:
    """Return the mean ± standard deviation as text."""
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values) if len(values) > 1 else 0:.3f}"


if __name__ == "__main__":
    main()
