"""Train with pytorch-metric-learning. The driver runs `python -m benchmarks.peers.metric_learning TASK`.

The loop is that of its README, with its sampler for a number of images per class, and its triplet loss on the triplets
that its miner finds semihard. In the DataLoader Pillow decodes and resizes the images.
"""

import numpy as np
import pytorch_metric_learning
import torch
from PIL import Image
from pytorch_metric_learning import losses, miners, samplers
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.peers.plain_loop import Step, make_step, run_epochs
from benchmarks.peers.task import Clock, Task, train_and_hand_back
from executor.models.model import EmbeddingModel
from executor.models.preprocessing import Preprocessing


class ImageFiles(Dataset):
    """Image files as normalised (3, size, size) float32, with their labels."""

    def __init__(self, files: list[tuple[str, int]], preprocessing: Preprocessing) -> None:
        self._files = files
        self._size = preprocessing.size, preprocessing.size
        self._mean = torch.tensor(preprocessing.mean).view(3, 1, 1)
        self._std = torch.tensor(preprocessing.std).view(3, 1, 1)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self._files[index]
        image = Image.open(path).convert("RGB").resize(self._size, Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        return (pixels - self._mean) / self._std, label


def main() -> None:
    """Train and print."""
    task = Task.given()
    miner = miners.TripletMarginMiner(margin=0.2, type_of_triplets="semihard")
    loss = losses.TripletMarginLoss(margin=0.2)

    def mined_loss(embeddings: Tensor, labels: Tensor) -> Tensor:
        return loss(embeddings, labels, miner(embeddings, labels))

    def step_of(network: EmbeddingModel) -> Step:
        return make_step(network, mined_loss, task.learning_rate)

    def train(network: EmbeddingModel, clock: Clock) -> None:
        sampler = samplers.MPerClassSampler(
            task.labels, m=task.items_per_class, batch_size=task.batch, length_before_new_iter=len(task.files)
        )
        loader = DataLoader(
            ImageFiles(task.files, network.preprocessing),
            batch_size=task.batch,
            sampler=sampler,
            drop_last=True,
            num_workers=task.workers,
            persistent_workers=task.workers > 0,
        )
        run_epochs(task, clock, step_of(network), loader)

    train_and_hand_back(task, f"pytorch-metric-learning {pytorch_metric_learning.__version__}", step_of, train)


if __name__ == "__main__":
    main()
