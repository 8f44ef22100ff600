"""Train a head on a frozen backbone: compare features that are kept with features computed again for every batch.

    .venv/bin/python -m benchmarks.frozen [--quick]

Measured: the trainer of the service itself, with `freeze: true`, on the JPEG files of `benchmarks.train`, with the
default model, loss, augmentation and batch size. The first run has `feature_views: 0`, so that every image goes through
the backbone in every epoch. The second run keeps the default number of views. The runs take turns, and we compare their
later epochs: in the first run all but the first epoch, in the second those that compute no more views. The epochs that
compute views have their own row, and so have the first epochs, which also load the model and decode every image. The
limit is a bare loop over the same head, loss and batch size on features in memory; it runs after every epoch.

Quality: the default network learns the digits 0 to 4 and is frozen. Then it gets a new head for the digits 5 to 9,
trained in both ways on half of them. mAP@R is measured on the other half, which neither head has seen. Nothing else
differs between the two.
"""

import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import mean

import cv2
import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

from benchmarks.common import (
    median,
    options,
    print_headline,
    print_machine,
    print_table,
    seconds_of,
    spread,
    write_jpegs,
)
from benchmarks.train import BATCH, CLASSES, TimedTrainer, prepare_run
from executor import Document, DocumentArray, fit
from executor.evaluation.metrics import DECIDING, score_classes
from executor.images.reading import load_uri_to_image_blob
from executor.loading.forward import embed_batches
from executor.models.building import build_model
from executor.models.model import EmbeddingModel, ModelConfig
from executor.models.saving import load_model, save_model
from executor.training.config import TrainConfig
from executor.training.features import DEFAULT_VIEWS, head_of
from executor.training.losses import build_loss
from executor.training.optimizer import parameter_groups

DIGIT_SIZE = 32
HEAD_RATE = 1e-2  # for the heads of the digits: at the default rate they would hardly change in these few steps
WAYS = {"anew": 0, "kept": None}  # the option feature_views of each way


class HeadLimit:
    """Trains only the head, on one batch of features in memory."""

    def __init__(self, size: int, batches: int) -> None:
        self._head = head_of(build_model(ModelConfig(model="small", input_size=size))).train()
        self._loss = build_loss("auto", "class", num_classes=CLASSES, embedding_size=self._head.dim)
        self._optimizer = torch.optim.AdamW(parameter_groups(self._head, self._loss, TrainConfig()))
        self._batch = torch.randn(BATCH, self._head.features), torch.arange(BATCH) % CLASSES
        self._batches = batches

    def epoch(self) -> float:
        """Return the seconds of one epoch."""
        return seconds_of(self._run)

    def _run(self) -> None:
        features, labels = self._batch
        for _ in range(self._batches):
            value = self._loss(self._head(features), labels)
            self._optimizer.zero_grad(set_to_none=True)
            value.backward()
            self._optimizer.step()


def measure_speed(folder: Path, images: int, size: int, rounds: int, later: int) -> dict[str, list[float]]:
    """Return seconds per epoch: for the limit, for both ways, and for the epochs that compute features."""
    files = write_jpegs(folder / "images", images, CLASSES)
    limit = HeadLimit(size, images // BATCH)
    limit.epoch()
    seconds: dict[str, list[float]] = defaultdict(list)
    for number in range(rounds):
        for way, views in WAYS.items():
            run = f"{way}-{number}"
            before = DEFAULT_VIEWS if views is None else 1  # epochs until all features are computed
            store = prepare_run(
                folder, run, files, size, epochs=before + later, freeze=True, feature_views=views, precision="fp32"
            )
            trainer = TimedTrainer(store, run, lambda: seconds["limit"].append(limit.epoch()))
            trainer.run()
            seconds[f"first, {way}"].append(trainer.epochs[0])
            if views is None:
                seconds["computing a view"] += trainer.epochs[1:before]
            seconds[way] += trainer.epochs[before:]
    return seconds


def pretrained(images: np.ndarray, labels: np.ndarray, epochs: int) -> EmbeddingModel:
    """Return the default network, trained on these images."""
    docs = DocumentArray(
        Document(id=str(number), blob=image, tags={"finetuner_label": int(label)})
        for number, (image, label) in enumerate(zip(images, labels, strict=True))
    )
    model: nn.Module = build_model(ModelConfig(model="small", input_size=images.shape[1]))
    model = fit(model, docs, preprocess_fn=load_uri_to_image_blob, epochs=epochs, progress=False)
    assert isinstance(model, EmbeddingModel)
    return model


def measure_quality(folder: Path, seeds: int, epochs: int) -> dict[str, list[float]]:
    """Return the mAP@R by seed: of the frozen model with its old head, and with a new head trained in each way."""
    data = load_digits()
    images = np.stack([cv2.resize((each * 255 / 16).astype(np.uint8), (DIGIT_SIZE,) * 2) for each in data.images])
    images = np.repeat(images[..., None], 3, axis=3)
    known = data.target < 5
    base = pretrained(images[known], data.target[known], epochs)
    images, labels = images[~known], data.target[~known]
    places = []
    for number, image in enumerate(images):
        places.append(str(folder / f"digit-{number}.png"))
        Image.fromarray(image).save(places[-1])
    scores: dict[str, list[float]] = defaultdict(list)
    for seed in range(seeds):
        order = np.random.default_rng(seed).permutation(len(images))
        train_part, test_part = np.array_split(order, 2)
        files = [(places[item], int(labels[item])) for item in train_part]

        def score(model: EmbeddingModel, part: np.ndarray = test_part) -> float:
            batches = [torch.from_numpy(images[some]) for some in np.array_split(part, -(-len(part) // BATCH))]
            embeddings = embed_batches(model, batches, torch.device("cpu"))
            return score_classes(embeddings, labels[part].tolist()).mean()[DECIDING]

        scores["before"].append(score(base))
        for way, views in WAYS.items():
            run = f"digits-{way}-{seed}"
            training = {"epochs": epochs, "freeze": True, "feature_views": views, "seed": seed}
            store = prepare_run(folder, run, files, DIGIT_SIZE, learning_rate=HEAD_RATE, **training)
            save_model(base, store.workspace.base)
            TimedTrainer(store, run, lambda: None).run()
            scores[way].append(score(load_model(store.workspace.model_folder(run))))
    return scores


def main() -> None:
    """Measure and print."""
    parser = options(__doc__)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    images, rounds, size, later, seeds, epochs = arguments.images, arguments.rounds, 128, 6, 3, 10
    if arguments.quick:
        images, rounds, later, seeds, epochs = 128, 1, 3, 3, 6
    if arguments.tiny:
        images, size, seeds, epochs = 64, 16, 1, 1
    print_machine()
    with tempfile.TemporaryDirectory(prefix="finetuner-") as name:
        seconds = measure_speed(Path(name), images, size, rounds, later)
        scores = measure_quality(Path(name), seeds, epochs)
    print(f"{images} images to {size}×{size}, fp32, {DEFAULT_VIEWS} views, {rounds} rounds:\n")
    titles = {
        "limit": "limit: the head on features in memory",
        "kept": "features kept, later epochs",
        "computing a view": "features kept, an epoch that computes a view",
        "first, kept": "features kept, from nothing to the end of the first epoch",
        "anew": "every image anew, later epochs",
        "first, anew": "every image anew, from nothing to the end of the first epoch",
    }
    anew = median(seconds["anew"])
    rows = [
        (
            title,
            images / median(seconds[way]),
            spread([images / each for each in seconds[way]]),
            anew / median(seconds[way]),
        )
        for way, title in titles.items()
    ]
    print_table(("", "images/s", "range", "× every image anew"), rows)
    print(f"mAP@R of digits 5 to 9, {epochs} epochs, {seeds} seeds:\n")
    quality = {
        "before": "the frozen model as it was",
        "anew": "new head, every image anew",
        "kept": "new head, features kept",
    }
    rows = []
    for way, title in quality.items():
        differences = np.subtract(scores[way], scores["anew"]).tolist()
        rows.append((title, mean(scores[way]), spread(scores[way]), mean(differences), spread(differences)))
    print_table(("", "mean mAP@R", "range", "mean difference to anew", "range"), rows)
    print_headline("frozen_epoch_times_faster", anew / median(seconds["kept"]))


if __name__ == "__main__":
    main()
