"""Measure how well wrong labels are found: how many of them, and how many of those found are wrong.

    .venv/bin/python -m benchmarks.label_errors [--quick] [--photos FOLDER]

A tenth of the labels of scikit-learn's digits get another value at random. `fit` trains the default network on all
labels, the wrong ones too, as a run would. Then the documents are checked as in a run, by the features of the network
before and after. Precision is the share of the found labels that are wrong. Recall is the share of the wrong labels
that are found. The method was chosen with other seeds than these.

On the same features we also measure the vote of one of the two sets alone, and confident learning (Northcutt et al.
2021, arXiv:1911.00068) with a 10-nearest-neighbour classifier on 10 folds of the untrained features.

With `--photos` the same is measured on a folder of photographs, which has one subfolder for each label.
"""

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import cross_val_predict
from sklearn.neighbors import KNeighborsClassifier

from benchmarks.common import options, print_headline, print_machine, print_table, spread
from executor import Document, DocumentArray, fit
from executor.evaluation.eval_set import EvalSet
from executor.evaluation.label_errors import find_label_errors
from executor.images.reading import load_uri_to_image_blob
from executor.loading.datasets import ClassDataset
from executor.models.building import build_model
from executor.models.model import ModelConfig
from executor.worker.label_check import features_of

WRONG = 0.1
FIRST_SEED = 5  # 0 to 4 were looked at while the method was chosen
DIGIT_SIZE, PHOTO_SIZE = 32, 64
Found = tuple[str, float, np.ndarray]  # what was said, the share of labels known, and the items suspected


def made_wrong(labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the labels (N,) with a tenth of them wrong, and which are wrong, (N,) bool."""
    random = np.random.default_rng(seed)
    wrong = np.zeros(len(labels), bool)
    wrong[random.permutation(len(labels))[: round(WRONG * len(labels))]] = True
    count = int(labels.max()) + 1
    return np.where(wrong, (labels + random.integers(1, count, len(labels))) % count, labels), wrong


def digits(count: int) -> tuple[list[np.ndarray], np.ndarray]:
    data = load_digits()
    images = [cv2.resize((each * 255 / 16).astype(np.uint8), (DIGIT_SIZE,) * 2) for each in data.images[:count]]
    return [np.repeat(image[..., None], 3, axis=2) for image in images], data.target[:count]


def photos(folder: Path) -> tuple[list[np.ndarray], np.ndarray]:
    files = sorted(file for file in folder.glob("*/*") if file.suffix.lower() in (".jpg", ".jpeg", ".png"))
    names = sorted({file.parent.name for file in files})
    preprocessing = build_model(ModelConfig(model="small", input_size=PHOTO_SIZE)).preprocessing
    images = [preprocessing.resize(load_uri_to_image_blob(Document(uri=str(file)))) for file in files]
    return images, np.array([names.index(file.parent.name) for file in files])


def features_by_training(images: list[np.ndarray], labels: np.ndarray, seed: int, epochs: int) -> list[np.ndarray]:
    """Return the features before and after a training on these labels, (N, D) float32 each."""
    docs = DocumentArray(
        Document(id=str(number), blob=image, tags={"finetuner_label": int(label)})
        for number, (image, label) in enumerate(zip(images, labels, strict=True))
    )
    model = build_model(ModelConfig(model="small", input_size=images[0].shape[0], seed=seed))
    items = EvalSet(ClassDataset(docs, load_uri_to_image_blob), np.arange(len(docs)), device=torch.device("cpu"))
    before = items.embed(features_of(model))
    fit(model, docs, preprocess_fn=load_uri_to_image_blob, epochs=epochs, seed=seed, val_split=0.15, progress=False)
    return [before, items.embed(features_of(model))]


def ways(untrained: np.ndarray, tuned: np.ndarray, given: np.ndarray) -> Iterator[tuple[str, Found]]:
    """Yield each way to find wrong labels, with what it found."""
    pairs = {
        "as a run does: both": (untrained, tuned),
        "untrained features alone": (untrained, untrained),
        "tuned features alone": (tuned, tuned),
    }
    for name, (one, other) in pairs.items():
        check = find_label_errors(one, other, given)
        assert check is not None
        yield name, (check.extent, check.accuracy, check.suspects)
    classifier = KNeighborsClassifier(10, metric="cosine")
    votes = cross_val_predict(classifier, untrained, given, cv=10, method="predict_proba")
    usual = np.array([votes[given == label, label].mean() for label in range(votes.shape[1])])
    confident = np.where(votes >= usual, votes, -1)
    found = (confident.max(axis=1) >= 0) & (confident.argmax(axis=1) != given)
    accuracy = float((votes.argmax(axis=1) == given).mean())
    yield "confident learning, untrained features", ("all", accuracy, np.flatnonzero(found))


def measure(images: list[np.ndarray], labels: np.ndarray, seeds: int, epochs: int) -> float:
    """Print precision and recall of each way, and return the mean F1 of the first."""
    figures: dict[str, list[tuple[str, float, int, float, float]]] = {}
    for seed in range(FIRST_SEED, FIRST_SEED + seeds):
        given, wrong = made_wrong(labels, seed)
        untrained, tuned = features_by_training(images, given, seed, epochs)
        for name, (extent, accuracy, found) in ways(untrained, tuned, given):
            precision = float(wrong[found].mean()) if len(found) else float("nan")
            recall = float(wrong[found].sum() / wrong.sum())
            figures.setdefault(name, []).append((extent, accuracy, len(found), precision, recall))
    rows = []
    for name, values in figures.items():
        extents, *columns = zip(*values, strict=True)
        shown = [text for column in columns for text in (float(np.mean(column)), spread(column))]
        rows.append((name, ", ".join(sorted(set(extents))), *shown))
    titles = ("share of labels known", "found", "precision", "recall")
    print_table(("", "extent", *[part for title in titles for part in (title, "range")]), rows)
    scores = [2 * p * r / (p + r) if p + r > 0 else 0.0 for _, _, _, p, r in next(iter(figures.values()))]
    return float(np.mean(scores))


def main() -> None:
    """Measure and print."""
    parser = options(__doc__)
    parser.add_argument("--photos", type=Path, help="a folder of photographs, one folder a label")
    arguments = parser.parse_args()
    count, seeds, epochs = 1797, 5, 10
    if arguments.quick:
        seeds, epochs = 1, 6
    if arguments.tiny:
        count, seeds, epochs = 600, 1, 1
    print_machine()
    print(f"{count} digits, {WRONG:.0%} of the labels wrong, {epochs} epochs, {seeds} seeds:\n")
    score = measure(*digits(count), seeds, epochs)
    if arguments.photos is not None:
        images, labels = photos(arguments.photos)
        seeds = min(seeds, 2)
        print(f"{len(images)} photographs of {labels.max() + 1} labels, {epochs} epochs, {seeds} seeds:\n")
        measure(images, labels, seeds, epochs)
    print_headline("label_errors_f1", score)


if __name__ == "__main__":
    main()
