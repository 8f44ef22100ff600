"""The task of `benchmarks.photo_quality` for a peer: train this network on these photographs in so many steps.

It lies in a folder: `images.npz` (images (N, S, S, 3) uint8, labels (N,) int64), `settings.json` and the network
`model`. The trained network is handed back as `trained`. This module runs in the environments of the peers and in ours.
"""

import itertools
import json
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import albumentations
import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from executor.models.model import EmbeddingModel
from executor.models.saving import load_model, save_model
from executor.training.config import TrainConfig
from executor.training.norms import set_training
from executor.training.optimizer import parameter_groups, warmup_cosine


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to train.

    Attributes:
        augment: the augmentation, as albumentations serialises it.
        as_ours: with our optimizer, rate, schedule and fixed norm statistics, in place of what the library recommends.
        learning_rate, weight_decay, warmup: ours.
    """

    steps: int
    batch: int
    seed: int
    threads: int
    augment: dict[str, Any]
    as_ours: bool
    learning_rate: float
    weight_decay: float
    warmup: float


class PhotosTask:
    """What a peer's program is given, by the folder that its command line names."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.settings = Settings(**json.loads((folder / "settings.json").read_text()))
        data = np.load(folder / "images.npz")
        self.images: np.ndarray = data["images"]
        self.labels: np.ndarray = data["labels"]
        self._augment = albumentations.from_dict(self.settings.augment)

    @staticmethod
    def given() -> "PhotosTask":
        """Read the task, set torch's threads and seed all random numbers."""
        task = PhotosTask(Path(sys.argv[1]))
        torch.set_num_threads(task.settings.threads)
        random.seed(task.settings.seed)
        np.random.seed(task.settings.seed)
        torch.manual_seed(task.settings.seed)
        task._augment.set_random_seed(task.settings.seed)
        return task

    def network(self) -> EmbeddingModel:
        """Load the network: (B, 3, S, S) float32 -> (B, D) float32 of unit length."""
        network = load_model(self._folder / "model")
        self.set_training(network)
        return network

    def set_training(self, network: nn.Module) -> None:
        """Set training mode; batch norms follow the batches, as is the default of torch, or stay fixed as ours do."""
        set_training(network, fixed_norms=self.settings.as_ours)

    def inputs(self, network: EmbeddingModel, items: Sequence[int]) -> Tensor:
        """Return the augmented photographs, normalised for the network."""
        images = np.stack([self._augment(image=self.images[item])["image"] for item in items])
        return network.preprocessing.normalise(torch.from_numpy(images))

    def our_optimizer(self, network: EmbeddingModel) -> tuple[Optimizer, LambdaLR]:
        """Return our optimizer and schedule."""
        chosen = self.settings
        config = TrainConfig(learning_rate=chosen.learning_rate, weight_decay=chosen.weight_decay)
        optimizer = AdamW(parameter_groups(network, nn.Module(), config))
        return optimizer, LambdaLR(optimizer, warmup_cosine(chosen.steps, chosen.warmup))

    def hand_back(self, network: EmbeddingModel) -> None:
        """Save the trained network."""
        save_model(network.eval(), self._folder / "trained")


def hand_over(folder: Path, network: EmbeddingModel, images: np.ndarray, labels: np.ndarray, how: Settings) -> None:
    """Write a task into the folder."""
    np.savez(folder / "images.npz", images=images, labels=labels)
    (folder / "settings.json").write_text(json.dumps(asdict(how)))
    save_model(network, folder / "model")


def handed_back(folder: Path) -> EmbeddingModel:
    """Load the trained network of a task."""
    return load_model(folder / "trained")


def train_and_hand_back(
    task: PhotosTask,
    epoch: Iterable[Sequence[int]],
    loss: Callable[[Tensor, Tensor], Tensor],
    recommended: Callable[[EmbeddingModel], Optimizer],
) -> None:
    """Train by the loop in the guides of metric learning libraries.

    Args:
        epoch: the batches of an epoch, drawn anew each time.
        loss: of embeddings (B, D) and labels (B,).
        recommended: makes the optimizer that the library recommends, whose rate is constant.
    """
    network = task.network()
    schedule = None
    if task.settings.as_ours:
        optimizer, schedule = task.our_optimizer(network)
    else:
        optimizer = recommended(network)
    for items in batches(epoch, task.settings.steps):
        value = loss(network(task.inputs(network, items)), torch.from_numpy(task.labels[items]))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()
    task.hand_back(network)


def batches(epoch: Iterable[Sequence[int]], steps: int) -> Iterator[list[int]]:
    """Yield so many batches, of one epoch after the other."""
    without_end = itertools.chain.from_iterable(itertools.repeat(epoch))
    for items in itertools.islice(without_end, steps):
        yield [int(item) for item in items]
