"""Train with open-metric-learning's loss and sampler for `benchmarks.quality`, in its environment, in a given folder.

The folder has `images.npz` (images (N, S, S, 3) uint8, labels (N,)), `settings.json` (steps, batch, seed, and the
augmentation as albumentations serialises it) and the untrained network `model`. The trained network replaces it. The
triplet loss over all triplets is the one in its README; the optimizer and schedule are the same as for other methods.
"""

import json
import sys
from pathlib import Path

# isort: off
import benchmarks.peers.torchvision_operators  # noqa: F401 - before oml, which imports torchvision

# isort: on
import albumentations
import numpy as np
import torch
from oml.losses.triplet import TripletLossWithMiner
from oml.miners.inbatch_all_tri import AllTripletsMiner
from oml.samplers.balance import BalanceSampler
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from executor.models.saving import load_model, save_model
from executor.training.precision import computes_in_bf16

ITEMS_PER_CLASS = 4


def main() -> None:
    """Train the network in the folder."""
    folder = Path(sys.argv[1])
    settings = json.loads((folder / "settings.json").read_text())
    data = np.load(folder / "images.npz")
    images, labels = data["images"], data["labels"]
    torch.manual_seed(settings["seed"])
    np.random.seed(settings["seed"])
    model = load_model(folder / "model")
    augment = albumentations.from_dict(settings["augment"])
    augment.set_random_seed(settings["seed"])
    loss = TripletLossWithMiner(0.2, AllTripletsMiner())
    classes = min(settings["batch"] // ITEMS_PER_CLASS, len(np.unique(labels)))
    sampler = BalanceSampler(labels.tolist(), n_labels=classes, n_instances=settings["batch"] // classes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    rising = max(1, settings["steps"] // 10)
    parts = [
        LinearLR(optimizer, 1 / rising, total_iters=rising),
        CosineAnnealingLR(optimizer, settings["steps"] - rising),
    ]
    schedule = SequentialLR(optimizer, parts, milestones=[rising])
    bf16 = computes_in_bf16(torch.device("cpu"))
    model.train()
    done = 0
    while done < settings["steps"]:
        for part in sampler:
            batch = torch.from_numpy(np.stack([augment(image=images[index])["image"] for index in part]))
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                embeddings = model(model.preprocessing.normalise(batch))
            value = loss(embeddings.float(), torch.from_numpy(labels[part]))
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            schedule.step()
            done += 1
            if done == settings["steps"]:
                break
    save_model(model.eval(), folder / "model")


if __name__ == "__main__":
    main()
