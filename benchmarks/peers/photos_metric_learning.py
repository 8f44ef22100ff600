"""Train on photographs with pytorch-metric-learning, as its examples do with a pretrained network.

Its `MetricLossOnly` example has an `MPerClassSampler` with 4 of a class, a `MultiSimilarityMiner` and, for the
pretrained trunk, Adam at 1e-5 with weight decay 1e-4. The loss of the same paper as the miner goes with it (Wang et al.
2019, arXiv:1904.06627), with the library's defaults.
"""

import numpy as np
import torch
from pytorch_metric_learning.losses import MultiSimilarityLoss
from pytorch_metric_learning.miners import MultiSimilarityMiner
from pytorch_metric_learning.samplers import MPerClassSampler
from torch import Tensor
from torch.utils.data import BatchSampler

from benchmarks.peers.photos_task import PhotosTask, train_and_hand_back

ITEMS_PER_CLASS = 4


def balanced(labels: np.ndarray, batch: int) -> BatchSampler:
    """Return batches with as many photographs of each of some classes, in all about as many as labels (N,)."""
    items = ITEMS_PER_CLASS
    while items * len(np.unique(labels)) < batch:  # the sampler needs enough classes to fill a batch
        items *= 2
    length = max(len(labels), batch)
    sampler = MPerClassSampler(labels, m=items, batch_size=batch, length_before_new_iter=length)
    return BatchSampler(sampler, batch, drop_last=True)


def main() -> None:
    """Train the network of the task."""
    task = PhotosTask.given()
    miner, criterion = MultiSimilarityMiner(), MultiSimilarityLoss()

    def loss(embeddings: Tensor, labels: Tensor) -> Tensor:
        value: Tensor = criterion(embeddings, labels, miner(embeddings, labels))
        return value

    train_and_hand_back(
        task,
        balanced(task.labels, task.settings.batch),
        loss,
        lambda network: torch.optim.Adam(network.parameters(), lr=1e-5, weight_decay=1e-4),
    )


if __name__ == "__main__":
    main()
