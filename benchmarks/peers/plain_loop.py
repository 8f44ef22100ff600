"""The training loop in the READMEs of metric learning libraries: a DataLoader, Adam and a loss."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from benchmarks.peers.task import Clock, Task

Step = Callable[[Tensor, Tensor], object]


def make_step(network: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], learning_rate: float) -> Step:
    """Return a function that makes one step in fp32 with Adam, on images (B, 3, H, W) and labels (B,)."""
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)

    def step(images: Tensor, labels: Tensor) -> None:
        value = loss(network(images), labels)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()

    return step


def run_epochs(task: Task, clock: Clock, step: Step, loader: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Run all epochs of the task."""
    for _ in range(task.epochs):
        for images, labels in loader:
            step(images, labels)
            clock.step(len(images))
        clock.end_epoch()
