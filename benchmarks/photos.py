"""Embeddings of a folder of photographs by networks of like quality, and by heads that are trained on them.

The networks are the default model at several sizes, and averages of what its inner blocks say.
"""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from executor.models.efficientnet import PRETRAINED, EfficientNetLite0, load_pretrained

SIZES = (160, 112, 80)  # pixels a side: smaller is worse
BLOCKS = (8, 11, 14)  # whose output is averaged over the picture, besides the last layer's
BEST = f"last layer of {SIZES[0]} pixels"
BATCH = 64


@dataclass(frozen=True)
class Photos:
    """Labels (N,) int64, which photographs are for training (N,) bool, and features by name, (N, D) float32 each."""

    labels: np.ndarray
    training: np.ndarray
    features: dict[str, np.ndarray]

    @property
    def measured(self) -> np.ndarray:
        """The labels of the photographs that are not for training. Models are measured on them."""
        return self.labels[~self.training]

    def whitened(self, directions: int, power: float) -> np.ndarray:
        """The best features along their first principal directions, each divided by its spread to this power.

        The directions are those of the photographs to train on. Returns: (N, directions) float32.
        """
        features = self.features[BEST]
        unit = features / np.linalg.norm(features, axis=1, keepdims=True)
        unit = unit - unit[self.training].mean(0)
        _, spreads, axes = np.linalg.svd(unit[self.training], full_matrices=False)
        return (unit @ axes[:directions].T / spreads[:directions] ** power).astype(np.float32)


def embed(folder: Path) -> Photos:
    """Embed `train/CLASS/*.jpg` and `test/CLASS/*.jpg` below `folder` at each of `SIZES`.

    Raises: SystemExit: there are no photographs.
    """
    files = sorted(folder.glob("train/*/*.jpg")) + sorted(folder.glob("test/*/*.jpg"))
    if not files:
        raise SystemExit(f"{folder} has no photographs as train/CLASS/NAME.jpg and test/CLASS/NAME.jpg.")
    classes = sorted({file.parent.name for file in files})
    network = EfficientNetLite0().eval()
    load_pretrained(network)
    found: dict[str, list[np.ndarray]] = {}
    for start in range(0, len(files), BATCH):
        images = [cv2.imread(str(file))[:, :, ::-1] for file in files[start : start + BATCH]]
        for size in SIZES:
            batch = np.stack([cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA) for image in images])
            for name, values in _layers(network, batch).items():
                found.setdefault(f"{name} of {size} pixels", []).append(values)
    features = {name: np.concatenate(parts) for name, parts in found.items()}
    labels = np.array([classes.index(file.parent.name) for file in files])
    photos = Photos(labels, np.array([file.parts[-3] == "train" for file in files]), features)
    for directions, power in ((64, 0.0), (64, 0.5), (64, 1.0), (256, 0.5)):
        features[f"{BEST}, {directions} directions, whitened by {power:g}"] = photos.whitened(directions, power)
    return photos


@torch.inference_mode()
def _layers(network: EfficientNetLite0, images: np.ndarray) -> dict[str, np.ndarray]:
    """Return the mean features of `BLOCKS` and of the last layer. Args: images: (B, H, W, 3) uint8."""
    x = network.stem(PRETRAINED.normalise(torch.from_numpy(images)))
    found = {}
    for number, block in enumerate(network.blocks):
        x = block(x)
        if number in BLOCKS:
            found[f"block {number}"] = x.mean((2, 3)).numpy()
    return found | {"last layer": network.top(x).mean((2, 3)).numpy()}


def trained(features: np.ndarray, labels: np.ndarray, steps: int, seed: int) -> np.ndarray:
    """Train a linear head, which starts as the identity, with SupCon. Return its matrix, (D, D) float32.

    SupCon: Khosla et al. 2020, arXiv:2004.11362, at temperature 0.1; 24 classes × 4 photographs a step.
    """
    random = np.random.default_rng(seed)
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    inputs, targets = torch.from_numpy(features), torch.from_numpy(labels)
    matrix = torch.eye(features.shape[1], requires_grad=True)
    optimizer = torch.optim.Adam([matrix], lr=1e-3)
    for _ in range(steps):
        chosen = random.permutation(len(members))[:24]
        items = torch.from_numpy(np.concatenate([random.choice(members[label], 4) for label in chosen]))
        embeddings = torch.nn.functional.normalize(inputs[items] @ matrix, dim=1)
        itself = torch.eye(len(items), dtype=torch.bool)
        similarity = (embeddings @ embeddings.T / 0.1).masked_fill(itself, -1e9)
        same = (targets[items][:, None] == targets[items]) & ~itself
        loss = -(similarity.log_softmax(1) * same).sum() / same.sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return matrix.detach().numpy()
