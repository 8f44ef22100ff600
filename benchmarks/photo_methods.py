"""The photographs of `photo_quality.py`, what a seed draws from them, and the methods that are compared."""

import functools
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import albumentations
import numpy as np
import torch
from pytorch_metric_learning.losses import MultiSimilarityLoss
from pytorch_metric_learning.miners import MultiSimilarityMiner
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.peers.environments import problem_of, python_of
from benchmarks.peers.photos_metric_learning import balanced
from benchmarks.peers.photos_task import Settings, batches, hand_over, handed_back
from executor import Document, DocumentArray, load_uri_to_image_blob
from executor.evaluation.eval_set import EvalSet
from executor.evaluation.hold_out import split_documents
from executor.evaluation.metrics import score_classes
from executor.loading.augmentation import default_augmentation
from executor.loading.datasets import ClassDataset
from executor.loading.forward import embed_batches
from executor.models.building import build_model
from executor.models.model import EmbeddingModel, ModelConfig
from executor.parameters import TrainingOptions
from executor.training.micro_batch import MicroBatch
from executor.training.parts import PRETRAINED_LEARNING_RATE, default_epochs, make_sampler, prepare_model
from executor.training.recipe import Task, fine_tune
from executor.training.watching import Watcher

DEVICE = torch.device("cpu")
ROOT = Path(__file__).resolve().parent.parent
BATCH = 64
SEEN = 2 / 3  # of the classes, rounded up
HEAD_RATE = 1e-3
CACHE_BYTES = 2**31  # of the features of a frozen backbone
METRICS = {"mAP@R": "mean_average_precision_at_r", "recall@1": "recall_at_1"}
COLUMNS = [f"{metric}, {classes}" for metric in METRICS for classes in ("seen", "unseen")]
OURS = "ours, defaults"
OWN_RECIPE = "its own recipe"
PEERS = {  # by the name of the library: its program and its environment; None: ours
    "pytorch-metric-learning": ("photos_metric_learning", None),
    "open-metric-learning": ("photos_open_metric_learning", "open_metric_learning"),
    "sentence-transformers": ("photos_sentence_transformers", "sentence_transformers"),
}


@dataclass(frozen=True)
class Photographs:
    """All photographs of a folder.

    Attributes:
        images: (N, S, S, 3) uint8. labels: (N,) int64. training: (N,) bool, whether below train/.
    """

    images: np.ndarray
    labels: np.ndarray
    training: np.ndarray

    @functools.cached_property
    def features(self) -> np.ndarray:
        """(N, D) float32, of the untrained network."""
        return embed(network(self.images.shape[1]), self.images)


@dataclass(frozen=True)
class Split:
    """What a seed draws from the photographs. `items` are those to train on, `steps` and `epochs` those of ours."""

    photos: Photographs
    seed: int
    seen: np.ndarray
    items: np.ndarray
    epochs: int
    steps: int
    threads: int

    @property
    def labels(self) -> np.ndarray:
        """The labels of what is trained on, 0 … C-1."""
        return np.searchsorted(self.seen, self.photos.labels[self.items])

    def options(self, **others: Any) -> TrainingOptions:
        """Our defaults, in fp32, but for `others`."""
        return TrainingOptions(epochs=self.epochs, batch_size=BATCH, seed=self.seed, precision="fp32", **others)

    def score(self, embeddings: np.ndarray) -> list[float]:
        """Score embeddings (M, D) of the photographs below test/; return a value for each of `COLUMNS`."""
        labels = self.photos.labels[~self.photos.training]
        known = np.isin(labels, self.seen)
        means = [score_classes(embeddings[part], labels[part].tolist()).mean() for part in (known, ~known)]
        return [mean[metric] for metric in METRICS.values() for mean in means]


Method = Callable[[Split], np.ndarray]  # trains, and returns the embeddings of the photographs below test/


def network(size: int) -> EmbeddingModel:
    """Build the model that all methods start from."""
    return build_model(ModelConfig(input_size=size))


def embed(model: EmbeddingModel, images: np.ndarray) -> np.ndarray:
    """Return the embeddings (N, D) float32."""
    parts = np.array_split(images, -(-len(images) // BATCH))
    return embed_batches(model, (torch.from_numpy(part) for part in parts), DEVICE)


def read(folder: Path, size: int, *, classes: int | None, most: int | None) -> Photographs:
    """Read the photographs, at most so many classes, and so many of a class below train/ and test/.

    Raises: SystemExit: there are none, or classes below train/ and test/ differ.
    """
    names = sorted(place.name for place in folder.glob("train/*") if place.is_dir())[:classes]
    if not names:
        raise SystemExit(f"{folder} has no photographs as train/CLASS/NAME.jpg and test/CLASS/NAME.jpg.")
    preprocessing = network(size).preprocessing
    images, labels, training = [], [], []
    for visit in ("train", "test"):
        for label, name in enumerate(names):
            files = sorted((folder / visit / name).glob("*.jpg"))[:most]
            if len(files) < 2:
                raise SystemExit(f"{folder / visit / name} has {len(files)} photographs (*.jpg); 2 are the fewest.")
            for file in files:
                images.append(preprocessing.resize(load_uri_to_image_blob(Document(uri=str(file)))))
                labels.append(label)
                training.append(visit == "train")
    return Photographs(np.stack(images), np.array(labels), np.array(training))


def draw(photos: Photographs, seed: int, epochs: int | None, threads: int) -> Split:
    """Draw the seen classes of a seed."""
    classes = np.unique(photos.labels)
    seen = np.sort(np.random.default_rng(seed).permutation(classes)[: math.ceil(SEEN * len(classes))])
    items = np.flatnonzero(photos.training & np.isin(photos.labels, seen))
    epochs = epochs or default_epochs(len(items), pretrained=True)
    split = Split(photos, seed, seen, items, epochs, steps=0, threads=threads)
    dataset = documents(split)
    return replace(split, steps=make_sampler(dataset, np.arange(len(dataset)), split.options()).steps(epochs))


def raw_features(split: Split) -> np.ndarray:
    """Train nothing."""
    return split.photos.features[~split.photos.training]


def ours(split: Split, *, chosen: bool = False, **others: Any) -> np.ndarray:
    """Train by our recipe, with its defaults but for `others`.

    Args: chosen: keep a tenth of the photographs to choose the epoch by, and the settings if there are `trials`.
    """
    images = split.photos.images
    model, options, dataset = network(images.shape[1]), split.options(**others), documents(split)
    prepare_model(model, options)
    items, choose_set = np.arange(len(dataset)), None
    if chosen:
        parts = split_documents(dataset, items, 0.0, seed=split.seed)
        if len(parts.choose):  # not of a few documents
            items, choose_set = parts.train, EvalSet(dataset, parts.choose, device=DEVICE)
    task = Task(
        dataset=dataset,
        items=items,
        choose_set=choose_set,
        same_content=True,
        augment=default_augmentation("class", images.shape[1]),
    )
    fine_tune(
        model,
        task,
        options,
        device=DEVICE,
        watcher=Watcher(),
        micro_batch=MicroBatch(None),
        max_cache_bytes=CACHE_BYTES,
    )
    return embed(model, images[~split.photos.training])


def documents(split: Split) -> ClassDataset:
    """Return a document for each photograph to train on."""
    return ClassDataset(
        DocumentArray(
            Document(blob=split.photos.images[item], tags={"finetuner_label": str(label)})
            for item, label in zip(split.items, split.labels, strict=True)
        )
    )


def peer(split: Split, *, program: str, python: Path, as_ours: bool) -> np.ndarray:
    """Train by a peer's program in its environment."""
    images = split.photos.images
    options = TrainingOptions()
    settings = Settings(
        steps=split.steps,
        batch=BATCH,
        seed=split.seed,
        threads=split.threads,
        augment=albumentations.to_dict(default_augmentation("class", images.shape[1]).pipeline),
        as_ours=as_ours,
        learning_rate=PRETRAINED_LEARNING_RATE,
        weight_decay=options.weight_decay,
        warmup=options.warmup,
    )
    with tempfile.TemporaryDirectory(prefix="finetuner-") as name:
        hand_over(Path(name), network(images.shape[1]), images[split.items], split.labels, settings)
        command = [str(python), "-m", f"benchmarks.peers.{program}", name]
        environment = os.environ | {"OMP_NUM_THREADS": str(split.threads)}
        finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        if finished.returncode:
            raise RuntimeError(f"{program} failed:\n{finished.stderr[-4000:]}")
        return embed(handed_back(Path(name)), images[~split.photos.training])


def logistic_regression(split: Split) -> np.ndarray:
    """Let the scores of the seen classes, by logistic regression on the features, be the embeddings."""
    features = split.photos.features
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    probe.fit(features[split.items], split.labels)
    return probe.decision_function(features[~split.photos.training]).reshape(int((~split.photos.training).sum()), -1)


def metric_learning_head(split: Split) -> np.ndarray:
    """Train a linear head on the features with pytorch-metric-learning; it starts as ours, from a rotation."""
    torch.manual_seed(split.seed)
    np.random.seed(split.seed)
    features, labels = torch.from_numpy(split.photos.features), torch.from_numpy(split.labels)
    head = torch.nn.Linear(features.shape[1], features.shape[1], bias=False)
    torch.nn.init.orthogonal_(head.weight)
    miner, criterion = MultiSimilarityMiner(), MultiSimilarityLoss()
    optimizer = torch.optim.Adam(head.parameters(), lr=HEAD_RATE)
    for chosen in batches(balanced(split.labels, BATCH), split.steps):
        embeddings = head(features[split.items[chosen]])
        value = criterion(embeddings, labels[chosen], miner(embeddings, labels[chosen]))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    with torch.inference_mode():
        return head(features[torch.from_numpy(~split.photos.training)]).numpy()


def methods() -> tuple[dict[str, Method], dict[str, str]]:
    """Return the method of each row, and why peers are left out."""
    rows: dict[str, Method] = {
        OURS: ours,
        "raw features": raw_features,
        "ours, freeze: a linear head": functools.partial(ours, freeze=True),
        "ours, a tenth chooses the epoch": functools.partial(ours, chosen=True),
        "ours, a tenth chooses of 8 trials": functools.partial(ours, chosen=True, trials=8),
        "pytorch-metric-learning, a linear head": metric_learning_head,
        "scikit-learn, logistic regression": logistic_regression,
    }
    missing = {}
    for name, (program, environment) in PEERS.items():
        python = Path(sys.executable) if environment is None else python_of(environment)
        if python is None:
            missing[name] = problem_of(str(environment))
            continue
        for recipe, as_ours in ((OWN_RECIPE, False), ("our rate and norms", True)):
            rows[f"{name}, {recipe}"] = functools.partial(peer, program=program, python=python, as_ours=as_ours)
    return rows, missing
