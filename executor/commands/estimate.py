"""How long a training in a workspace will take and how much memory, from a few pictures and one small batch."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import nn

from ..compute.device import choose_device
from ..documents import Document
from ..errors import FinetunerError
from ..loading.batches import collate, model_inputs
from ..loading.content import make_preprocess
from ..models.model import is_pretrained
from ..models.versions import load_version
from ..parameters import ExecutorOptions, TrainingOptions
from ..store.workspace import Workspace
from ..training.parts import default_epochs, prepare_model

TRIED = 8  # pictures
COPIES_OF_WEIGHTS = 4  # the weights, their gradients, and AdamW's two moments
TRIES = 2  # the first one warms up


@dataclass(frozen=True)
class Estimate:
    """What a training will take, if the machine stays as busy as it is.

    Attributes:
        seconds: for decoding and all epochs; starting, measuring and saving come on top.
        bytes: the peak of its process.
        most: whether it is an upper bound, because a frozen backbone is computed once and not in each epoch.
    """

    epochs: int
    seconds: float
    bytes: float
    most: bool

    def __str__(self) -> str:
        about = "At most" if self.most else "About"
        epochs = "1 epoch" if self.epochs == 1 else f"{self.epochs} epochs"
        minutes = self.seconds / 60
        longer = f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
        duration = f"{max(1, math.ceil(self.seconds))} s" if minutes < 2 else longer
        free = psutil.virtual_memory().available
        text = (
            f"{about} {duration} for the training alone ({epochs}; starting, measuring and the report come on top), "
            f"and {self.bytes / 2**30:.1f} GiB of memory"
        )
        if self.bytes > free:
            return f"{text}; only {free / 2**30:.1f} GiB are free, so set --option micro_batch={TRIED}."
        return f"{text}, as this machine is now."


def estimate(
    workspace: Workspace, options: ExecutorOptions, wanted: TrainingOptions, documents: int, some: list[Document]
) -> Estimate | None:
    """Try a step on some of the documents.

    Args: documents: how many there are to train on.
    Returns: None if none of `some` can be read.
    Raises: UnknownModel: there is no such base. ConfigurationError: the model cannot be built.
    """
    device = choose_device(options)
    model = load_version(workspace, options, "base" if wanted.base == "promoted" else wanted.base).to(device)
    prepare_model(model, wanted)
    preprocess = make_preprocess(options, model)
    contents, decoding = [], []
    for doc in some[:TRIED]:
        began = time.perf_counter()
        try:
            contents.append(preprocess(doc))
        except FinetunerError:  # it will be left out
            continue
        decoding.append(time.perf_counter() - began)
    if not contents:
        return None
    inputs = model_inputs(model, collate(contents), device)
    step = min(_timed(lambda: _step(model, inputs)) for _ in range(TRIES)) / len(contents)
    epochs = wanted.epochs or default_epochs(documents, pretrained=is_pretrained(model))
    views = 2 if wanted.kind == "unlabeled" else 1
    weights = sum(parameter.nbytes for parameter in model.parameters())
    kept = _kept_for_backward(model, inputs) / len(contents) * min(wanted.micro_batch or wanted.batch_size, documents)
    return Estimate(
        epochs=epochs,
        seconds=documents * (sum(decoding) / len(decoding) + epochs * views * step),
        bytes=psutil.Process().memory_info().rss + (COPIES_OF_WEIGHTS - 1) * weights + kept,
        most=model.is_backbone_frozen,
    )


def _timed(function: Callable[[], None]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def _step(model: nn.Module, inputs: Any) -> None:
    embeddings = model.train()(inputs)
    if embeddings.requires_grad:
        embeddings.square().sum().backward()
    model.zero_grad(set_to_none=True)


def _kept_for_backward(model: nn.Module, inputs: Any) -> int:
    """Return the bytes that a forward pass keeps for its gradients."""
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model.train()(inputs)
    return sum(kept.values())
