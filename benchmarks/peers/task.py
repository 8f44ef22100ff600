"""The task that every training peer gets, and the result that it returns.

This module runs in the environments of the peers and in ours. Theirs have torch, numpy, Pillow, OpenCV and safetensors,
as the network of `executor.models` needs, but no other packages of ours.
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
        network: Folder of the untrained network.
        result: Folder for the trained network.
        size: Side of the square that the network sees, in pixels.
        items_per_class: Images of a class in each batch, if the sampler can be told.
        workers: Processes of the DataLoader.
        precision: `fp32` or `bf16`; peers train in fp32.
        limit_steps: Steps on a batch in memory, to measure the limit before and after the training.
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
        """Read the task from the command line; set torch's threads as it says, and seed torch's random generator."""
        task = Task(**json.loads(sys.argv[1]))
        torch.set_num_threads(task.threads)
        torch.manual_seed(0)
        return task

    @property
    def labels(self) -> list[int]:
        """The labels of the files."""
        return [label for _, label in self.files]

    def build_network(self) -> EmbeddingModel:
        """Load the untrained network, in training mode: (B, 3, size, size) float32 -> (B, D) float32 of unit length."""
        return load_model(Path(self.network)).to(memory_format=torch.contiguous_format).train()

    def limit(self, step: Callable[[Tensor, Tensor], object]) -> float:
        """Return images per second of a loop's step(images, labels) on one batch in memory."""
        images = torch.randn(self.batch, 3, self.size, self.size)
        labels = torch.arange(self.batch) // self.items_per_class
        step(images, labels)  # the first step allocates
        began = time.perf_counter()
        for _ in range(self.limit_steps):
            step(images, labels)
        return self.batch * self.limit_steps / (time.perf_counter() - began)


@dataclass
class Clock:
    """Counts the images and seconds of each epoch. It starts when it is created."""

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
    """The result of a program. `images` and `seconds` are per epoch, `limits` in images per second."""

    version: str
    steps: int
    images: list[int]
    seconds: list[float]
    limits: list[float]

    @staticmethod
    def of(version: str, clock: Clock, limits: list[float]) -> "Result":
        """Make a result from a clock."""
        return Result(version, clock.steps, clock.images, clock.seconds, limits)

    def hand_back(self) -> None:
        """Print the result for the driver, as the last line."""
        print(f"\n{RESULT}{json.dumps(asdict(self))}", flush=True)

    @staticmethod
    def read(output: str) -> "Result":
        """Read the result from a program's output."""
        return Result(**json.loads(output.rpartition(RESULT)[2]))


def train_and_hand_back(
    task: Task, version: str, step_of: Callable[[EmbeddingModel], Callable[[Tensor, Tensor], object]], train: "Trained"
) -> None:
    """Measure the limit, train, measure the limit again, save the network and print the result.

    Args:
        step_of: Returns the loop's step(images, labels) for a network.
        train: Trains a network, and tells the clock about each step and epoch.
    """
    trial = step_of(task.build_network())
    before = task.limit(trial)
    network, clock = task.build_network(), Clock()
    train(network, clock)
    save_model(network, Path(task.result))
    Result.of(version, clock, [before, task.limit(trial)]).hand_back()


Trained = Callable[[EmbeddingModel, Clock], None]
