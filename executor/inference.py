"""How a model version computes when it serves: bf16 where that was measured to be faster and to give the same.

What was chosen is written beside the weights, so that a restarted service embeds as the one before did. A light model
is measured with one thread: a service that starts has other work for the other cores, and threads that wait for each
other are slower by far than what is compared.
"""

import contextlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from .evaluation import embed_batches
from .precision import computes_in_bf16

AGREEMENT = 0.999  # cosine between the fp32 and the bf16 embedding of an image, at least
ALONE = 1e-5  # largest difference between an image's embedding alone and among others: it must not depend on them
FASTER = 1.15  # a batch must gain so much,
SLOWER_ALONE = 1.25  # and a single image, which nobody waits with, may lose so much
LIGHT_SECONDS = 0.02  # with one thread, for an image; Jina and decoding take about 0.004
IMAGES = 16
PAIRS = 6
ENOUGH_SECONDS = 2.0  # of measuring: a heavy model need not be tried so often
TRIES = 3

_log = logging.getLogger(__name__)


def serves_in_bf16(model: nn.Module, size: int, device: torch.device, folder: Path, *, light: bool) -> bool:
    """Return whether to embed with `model` in bf16; measured once a version and kept in its `folder`.

    Args: model: takes images of `size` × `size`, normalised by itself. light: as `is_light` says.
    """
    if not computes_in_bf16(device):
        return False
    chosen = folder / "serving"
    if not chosen.is_file():
        with torch_threads(1 if light else torch.get_num_threads()):
            faster = agrees_and_is_faster(model, sample_images(size), device)
        try:
            chosen.write_text("bf16" if faster else "fp32")
        except OSError as error:  # measured again at the next start
            _log.warning("The precision of %s cannot be kept: %s", folder, error)
        return faster
    return chosen.read_text() == "bf16"


def is_light(model: nn.Module, size: int, device: torch.device) -> bool:
    """Return whether one thread embeds an image in so short a time that Jina and decoding take a like share of it."""
    if device.type != "cpu":
        return False
    image = sample_images(size)[:1]
    with torch_threads(1):
        return any(_seconds(model, image, device, bf16=False) < LIGHT_SECONDS for _ in range(TRIES))


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Compute with so many threads in this thread, which then has as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def agrees_and_is_faster(model: nn.Module, images: Tensor, device: torch.device) -> bool:
    exact = embed_batches(model, [images], device)
    rounded = embed_batches(model, [images], device, bf16=True)
    alone = embed_batches(model, [images[:1]], device, bf16=True)
    lengths = np.linalg.norm(exact, axis=1) * np.linalg.norm(rounded, axis=1)
    cosines = (exact * rounded).sum(axis=1) / np.maximum(lengths, 1e-12)
    if cosines.min() < AGREEMENT or np.abs(alone[0] - rounded[0]).max() > ALONE:
        return False
    return _gain(model, images, device) >= FASTER and _gain(model, images[:1], device) * SLOWER_ALONE >= 1


def _gain(model: nn.Module, images: Tensor, device: torch.device) -> float:
    """How many times as fast bf16 is, in turns, by the shortest times: a service that starts has other work too."""
    pairs: list[list[float]] = []
    end = time.perf_counter() + ENOUGH_SECONDS
    while not pairs or (len(pairs) < PAIRS and time.perf_counter() < end):
        pairs.append([_seconds(model, images, device, bf16=bf16) for bf16 in (False, True)])
    return min(exact for exact, _ in pairs) / min(rounded for _, rounded in pairs)


def _seconds(model: nn.Module, images: Tensor, device: torch.device, *, bf16: bool) -> float:
    began = time.perf_counter()
    embed_batches(model, [images], device, bf16=bf16)
    return time.perf_counter() - began


def sample_images(size: int) -> Tensor:
    """(16, size, size, 3) uint8: smooth colours and edges, as photos have them, rather than noise."""
    random = torch.Generator().manual_seed(0)
    coarse = torch.rand((IMAGES, 3, 8, 8), generator=random)
    smooth = nn.functional.interpolate(coarse, (size, size), mode="bilinear")
    edges = nn.functional.interpolate(coarse.flip(0), (size, size), mode="nearest")
    return ((0.6 * smooth + 0.4 * edges) * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
