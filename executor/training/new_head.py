"""Start a new projection head as the principal components of what the backbone says about the first documents."""

import numpy as np
import torch
from torch import nn

from ..loading.batches import collate
from ..loading.cache import ImageCache
from ..loading.content import item_content
from ..loading.datasets import Dataset
from ..loading.forward import compute_embeddings
from ..models.model import EmbeddingModel

DOCUMENTS = 512  # that the components are computed from, or twice as many as there are components
BATCH = 64


def start_new_head(
    model: nn.Module, dataset: Dataset, items: np.ndarray, cache: ImageCache | None, *, seed: int, device: torch.device
) -> None:
    """Let a head that was never trained start as principal components, so that it embeds about as well as the backbone.

    A head that was trained stays, and so does one that is not smaller than the features: it changes no similarity. The
    components are those of the features scaled to unit length, and not centred: so they keep as much of the cosine
    similarities as a projection of this size can.

    Args: items: indices of the train documents; some are drawn by `seed`.
    """
    if not (isinstance(model, EmbeddingModel) and model.head_is_new and model.head is not None):
        return
    if model.dim < model.features:
        chosen = np.random.default_rng(seed).permutation(items)[: max(DOCUMENTS, 2 * model.dim)]
        features = _features(model, dataset, chosen, cache, device)
        weight = torch.from_numpy(principal_components(features, model.head.weight.detach().cpu().numpy()))
        with torch.no_grad():
            model.head.weight.copy_(weight)


def principal_components(features: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return as many components as `others` has rows, (D, F) float32 and orthonormal, most important first.

    Args:
        features: (N, F). They are scaled to unit length here.
        others: (D, F) orthonormal directions; what the components leave of them fills the rest if N is below D.
    """
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    components = np.linalg.svd(unit, full_matrices=False)[2][: len(others)]
    orthonormal, _ = np.linalg.qr(np.concatenate([components, others]).T)
    orthonormal = orthonormal.T[: len(others)]
    return np.asarray(orthonormal, dtype=np.float32)


@torch.inference_mode()
def _features(
    model: EmbeddingModel, dataset: Dataset, items: np.ndarray, cache: ImageCache | None, device: torch.device
) -> np.ndarray:
    model.eval()
    parts = []
    for start in range(0, len(items), BATCH):
        contents = [item_content(dataset, int(item), cache) for item in items[start : start + BATCH]]
        inputs = collate(contents, dataset.collate_fn)
        parts.append(
            compute_embeddings(model, inputs, device, bf16=False, through=model.extract_features).cpu().numpy()
        )
    return np.concatenate(parts)
