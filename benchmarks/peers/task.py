"""The task that every training peer is given, and the figures that it hands back.

This module runs in the environments of the peers as well as in ours. They have torch, numpy, Pillow, OpenCV and
safetensors, which is what the network of `executor.models` needs, and nothing else of ours.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from executor.models.model import EmbeddingModel
from executor.models.saving import load_model, save_model

RESULT = "result: "


@dataclass(frozen=True, kw_only=True)
class Task:
    """Train the network on the files with a triplet loss.

    Attributes:
        files: (path, label) of each image.
        network: Folder of the network to begin with.
        result: Folder for the network at the end.
        size: Side of the square it sees, in pixels.
        items_per_class: How many images of a class each batch has, where a sampler can be told.
        workers: Processes of the DataLoader.
        precision: `fp32` or `bf16`; peers train in fp32.
        limit_steps: Steps of the loop on a batch in memory, before and again after the training.
    """

    files: list[tuple[str, int]]
    network: str
    result: str
    size: int
    batch: int
    items_per_class: int
    epochs: int
    learning_rate: float
    workers: int
    threads: int
    precision: str
    limit_steps: int

    @staticmethod
    def given() -> "Task":
        """The task on the command line, with torch's threads and random generator set as it says."""
        task = Task(**json.loads(sys.argv[1]))
        torch.set_num_threads(task.threads)
        torch.manual_seed(0)
        return task

    @property
    def labels(self) -> list[int]:
        """The labels of the files."""
        return [label for _, label in self.files]

    def build_network(self) -> EmbeddingModel:
        """The network to begin with, in training mode; (B, 3, size, size) float32 -> (B, D) float32 of unit length."""
        return load_model(Path(self.network)).to(memory_format=torch.contiguous_format).train()

    def limit(self, step: Callable[[Tensor, Tensor], object]) -> float:
        """Images a second of a loop's step (images, labels) on one batch that lies in memory."""
        images = torch.randn(self.batch, 3, self.size, self.size)
        labels = torch.arange(self.batch) // self.items_per_class
        step(images, labels)  # allocates
        began = time.perf_counter()
        for _ in range(self.limit_steps):
            step(images, labels)
        return self.batch * self.limit_steps / (time.perf_counter() - began)


@dataclass
class Clock:
    """Counts images and the seconds of each epoch, from its creation on."""

    images: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    steps: int = 0
    _began: float = field(default_factory=time.perf_counter)
    _images: int = 0

    def step(self, images: int) -> None:
        """A step has ended."""
        self.steps += 1
        self._images += images

    def end_epoch(self) -> None:
        """An epoch has ended."""
        now = time.perf_counter()
        self.images.append(self._images)
        self.seconds.append(now - self._began)
        self._began, self._images = now, 0


@dataclass(frozen=True)
class Result:
    """What a program measured. `images` and `seconds` are per epoch, `limits` images a second."""

    version: str
    steps: int
    images: list[int]
    seconds: list[float]
    limits: list[float]

    @staticmethod
    def of(version: str, clock: Clock, limits: list[float]) -> "Result":
        """What the clock saw."""
        return Result(version, clock.steps, clock.images, clock.seconds, limits)

    def hand_back(self) -> None:
        """Print it for the driver, as the last line."""
        print(f"\n{RESULT}{json.dumps(asdict(self))}", flush=True)

    @staticmethod
    def read(output: str) -> "Result":
        """The result in a program's output."""
        return Result(**json.loads(output.rpartition(RESULT)[2]))


def train_and_hand_back(
    task: Task, version: str, step_of: Callable[[EmbeddingModel], Callable[[Tensor, Tensor], object]], train: "Trained"
) -> None:
    """Measure the limit, train, measure the limit again, save the network and print the result.

    Args:
        step_of: Makes the loop's step, on (images, labels), for a network of its own.
        train: Trains a network and notes each step and each epoch.
    """
    trial = step_of(task.build_network())
    before = task.limit(trial)
    network, clock = task.build_network(), Clock()
    train(network, clock)
    save_model(network, Path(task.result))
    Result.of(version, clock, [before, task.limit(trial)]).hand_back()


Trained = Callable[[EmbeddingModel, Clock], None]
