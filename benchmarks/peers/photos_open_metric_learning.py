"""Train on photographs with open-metric-learning, by the recipe in its README: a triplet loss with margin 0.1 over all
triplets of balanced batches, and Adam at 1e-4.
"""

# isort: off
import benchmarks.peers.torchvision_operators  # noqa: F401 - before oml, which imports torchvision

# isort: on
import torch
from oml.losses.triplet import TripletLossWithMiner
from oml.miners.inbatch_all_tri import AllTripletsMiner
from oml.samplers.balance import BalanceSampler

from benchmarks.peers.photos_task import PhotosTask, train_and_hand_back

ITEMS_PER_CLASS = 4
MARGIN = 0.1


def main() -> None:
    """Train the network of the task."""
    task = PhotosTask.given()
    labels = task.labels.tolist()
    classes = min(task.settings.batch // ITEMS_PER_CLASS, len(set(labels)))
    train_and_hand_back(
        task,
        BalanceSampler(labels, n_labels=classes, n_instances=task.settings.batch // classes),
        TripletLossWithMiner(MARGIN, AllTripletsMiner()),
        lambda network: torch.optim.Adam(network.parameters(), lr=1e-4),
    )


if __name__ == "__main__":
    main()
