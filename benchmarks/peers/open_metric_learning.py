"""Train with open-metric-learning. The driver runs `python -m benchmarks.peers.open_metric_learning TASK`.

The loop is that of its README, with its dataset, transforms and balanced sampler in a DataLoader, and its triplet loss
over all triplets.
"""

from collections.abc import Iterator

# isort: off
import benchmarks.peers.torchvision_operators  # noqa: F401 - before oml, which imports torchvision

# isort: on
import oml
import pandas as pd
from oml.datasets.images import ImageLabeledDataset
from oml.losses.triplet import TripletLossWithMiner
from oml.miners.inbatch_all_tri import AllTripletsMiner
from oml.samplers.balance import BalanceSampler
from oml.transforms.images.torchvision import get_normalisation_resize_torch
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.peers.plain_loop import Step, make_step, run_epochs
from benchmarks.peers.task import Clock, Task, train_and_hand_back
from executor.models.model import EmbeddingModel


class Pairs:
    """The batches of a loader as (images, labels)."""

    def __init__(self, loader: DataLoader) -> None:
        self._loader = loader

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return ((batch["input_tensors"], batch["labels"]) for batch in self._loader)


def main() -> None:
    """Train and print."""
    task = Task.given()
    loss = TripletLossWithMiner(0.2, AllTripletsMiner())

    def step_of(network: EmbeddingModel) -> Step:
        return make_step(network, loss, task.learning_rate)

    def train(network: EmbeddingModel, clock: Clock) -> None:
        files = pd.DataFrame({"path": [path for path, _ in task.files], "label": task.labels, "split": "train"})
        dataset = ImageLabeledDataset(files, transform=get_normalisation_resize_torch(task.size))
        sampler = BalanceSampler(
            dataset.get_labels(), n_labels=task.batch // task.items_per_class, n_instances=task.items_per_class
        )
        loader = DataLoader(
            dataset, batch_sampler=sampler, num_workers=task.workers, persistent_workers=task.workers > 0
        )
        run_epochs(task, clock, step_of(network), Pairs(loader))

    train_and_hand_back(task, f"open-metric-learning {oml.__version__}", step_of, train)


if __name__ == "__main__":
    main()
