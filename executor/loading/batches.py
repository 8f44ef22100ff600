"""Turn the contents of documents into a batch, and a batch into model input."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import BadDocument
from ..models.preprocessing import Preprocessing
from .datasets import CollateFn


@dataclass(frozen=True)
class Batch:
    """One batch: `inputs`, (B, H, W, 3) uint8 images or what `collate_fn` returned, `labels`, and `items` (B,) indices.

    With several ranks, each rank has its own share of the inputs, but the labels and items of the whole batch.
    """

    inputs: Any
    labels: Tensor
    items: np.ndarray


def is_image(content: Any) -> bool:
    """Whether `content` is a uint8 image of shape (H, W, 3)."""
    return isinstance(content, np.ndarray) and content.dtype == np.uint8 and content.ndim == 3 and content.shape[2] == 3


def collate(contents: list[Any], collate_fn: CollateFn | None = None) -> Any:
    """Combine the contents of a batch into one model input, by `collate_fn` if there is one.

    uint8 images of one shape become (B, H, W, 3) uint8 (normalised later, as a whole batch); other arrays are stacked
    as float32.

    Raises: BadDocument: a content is not an array, or the shapes differ.
    """
    if collate_fn is not None:
        return collate_fn(contents)
    if not all(isinstance(content, (np.ndarray, Tensor)) for content in contents):
        wrong = next(content for content in contents if not isinstance(content, (np.ndarray, Tensor)))
        raise BadDocument(
            f"A document's content is {type(wrong).__name__}, not an array; pass a preprocess_fn that returns an array "
            "(load_uri_to_image_blob for images), or a collate_fn."
        )
    shapes = {tuple(content.shape) for content in contents}
    if len(shapes) > 1:
        raise BadDocument(
            f"The contents of a batch have different shapes, such as {sorted(shapes)[0]} and {sorted(shapes)[-1]}; "
            "resize them in preprocess_fn, or pass a collate_fn."
        )
    if all(is_image(content) for content in contents):
        return torch.from_numpy(np.stack(contents))
    return torch.stack([torch.as_tensor(np.ascontiguousarray(content)).float() for content in contents])


def model_inputs(model: nn.Module, inputs: Any, device: torch.device) -> Any:
    """Move a batch to `device` in the form that `model` takes: uint8 images (B, H, W, 3) become (B, 3, H, W) float32.

    The model's own `preprocessing` normalises them; for a module without one they are scaled to [0, 1].
    """
    if isinstance(inputs, np.ndarray):
        inputs = torch.from_numpy(inputs)
    if not isinstance(inputs, Tensor):
        return inputs
    inputs = inputs.to(device, non_blocking=True)
    if inputs.dtype != torch.uint8 or inputs.ndim != 4 or inputs.shape[3] != 3:
        return inputs
    preprocessing = getattr(model, "preprocessing", None)
    if isinstance(preprocessing, Preprocessing):
        return preprocessing.normalise(inputs)
    return inputs.permute(0, 3, 1, 2).float().div_(255)
