"""`fit` and `embed` for Python callers: the service's trainer and embedder, in the foreground."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .parameters import TrainingOptions, parse

if TYPE_CHECKING:
    import torch


def fit(
    model: "torch.nn.Module",
    train_data: Any,
    eval_data: Any = None,
    *,
    preprocess_fn: Callable[[Any], np.ndarray] | None = None,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    device: str = "auto",
    progress: bool = True,
    **options: Any,
) -> "torch.nn.Module":
    """Fine-tune `model` in place on labelled documents, and return it, in evaluation mode.

    Args:
        model: any module from a batch to embeddings (B, D), or to an output like those of transformers.
        train_data: documents (a `DocumentArray`, a `DocumentArrayMemmap`, any sequence), or a dataset of them.
        eval_data: the same; measured before, and after every epoch: the weights of the best epoch are kept.
        preprocess_fn: from a document to an array, called anew for every batch; without it, `document.content`.
            uint8 images (H, W, 3) become (B, 3, H, W) float32, normalised as the model wants it, else in [0, 1];
            all other arrays are stacked as float32.
        collate_fn: from the contents of a batch to the model's input.
        device: a torch device; `auto` is CUDA where there is one.
        progress: show epoch, loss, images a second and time left.
        options: the training options of `/fit`, such as `epochs=5` or `loss='triplet'`.
    Raises: InvalidParameter: an unknown or ill-typed option. NotTrainable: nothing can be learned from these
        documents. BadDocument: one of them cannot be used; it is named.
    """
    from .foreground import train_here

    return train_here(
        model,
        train_data,
        eval_data,
        parse(TrainingOptions, options, where="fit"),
        preprocess_fn=preprocess_fn,
        collate_fn=collate_fn,
        device=device,
        progress=progress,
    )


def embed(
    docs: Sequence[Any],
    model: "torch.nn.Module",
    preprocess_fn: Callable[[Any], np.ndarray] | None = None,
    *,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    batch_size: int = 64,
    device: str = "auto",
) -> None:
    """Fill `embedding` of every document in place: (D,) float32, of unit length unless `model.normalise` is false.

    Raises: BadDocument: a document cannot be used; it is named.
    """
    from .foreground import embed_here

    embed_here(docs, model, preprocess_fn, collate_fn=collate_fn, batch_size=batch_size, device=device)
