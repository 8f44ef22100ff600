"""Measure the fastest way to serve a model version, among those that give the same embeddings.

The ways are fp32, bf16, and a graph in bf16: the model traced, with casts and batch norms folded into its weights. The
choice is written beside the weights, so that a restarted service embeds the same way. A light model is measured with
one thread: while the service starts, the other cores are busy, and threads that wait for each other would cost far
more time than the differences that we measure.
"""

import contextlib
import functools
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..loading.forward import embed_batches
from ..models.model import EmbeddingModel, WithNormalisation
from ..store.files import publish_file, remove_leftovers
from ..training.precision import computes_in_bf16

AGREEMENT = 0.999  # least cosine similarity between the served embedding and the fp32 one
ALONE = 1e-5  # largest difference between an image's embedding alone and in a batch: other images must not matter
FASTER = 1.15  # a batch must become at least this many times as fast
SLOWER_ALONE = 1.25  # a single image may take up to this many times as long: then no other request waits
LIGHT_SECONDS = 0.008  # a light model takes less for an image in one thread; Jina and decoding take about 0.004
IMAGES = 16
PAIRS = 6
ENOUGH_SECONDS = 2.0  # stop measuring after this time: a heavy model needs fewer pairs
TRIES = 3
CPU = torch.device("cpu")
Embed = Callable[[Tensor], np.ndarray]  # (B, S, S, 3) uint8 images -> (B, D) float32 embeddings

_log = logging.getLogger(__name__)


def choose_path(
    model: EmbeddingModel, size: int, device: torch.device, folder: Path, *, light: bool, like: str | None = None
) -> tuple[bool, torch.jit.ScriptModule | None]:
    """Return whether to serve `model` in bf16, and a graph if that is even faster.

    A version is measured once; the choice is kept in its `folder`.

    Args:
        model: takes images of `size` × `size`. light: the answer of `is_light`.
        like: the way (`way_of`) of another version of the same network on this machine. It is as fast here, so it is
            taken if it gives the same embeddings here too, and a promotion need not wait until that is measured again.
    """
    if not computes_in_bf16(device):
        return False, None
    chosen = folder / "serving"
    kept = chosen.read_text() if chosen.is_file() else ""
    if kept in ("fp32", "bf16", "graph"):
        return kept in ("bf16", "graph"), _graph_of(model, sample_images(size)) if kept == "graph" else None
    images = sample_images(size)
    found = _way_like(like, model, images, device)
    if found is None:
        with torch_threads(1 if light else torch.get_num_threads()):
            bf16 = agrees_and_is_faster(model, images, device)
            found = bf16, faster_graph(model, images) if bf16 and device.type == "cpu" else None
    remove_leftovers(folder)
    try:
        publish_file(chosen, way_of(*found).encode())
    except OSError as error:  # then the next start measures again
        _log.warning("The precision of %s cannot be kept: %s", folder, error)
    return found


def way_of(bf16: bool, graph: Any) -> str:
    """Return the name of a way to serve: `fp32`, `bf16` or `graph`."""
    return "graph" if graph is not None else "bf16" if bf16 else "fp32"


def _way_like(
    like: str | None, model: EmbeddingModel, images: Tensor, device: torch.device
) -> tuple[bool, torch.jit.ScriptModule | None] | None:
    """Return the way called `like` if `model` gives the same embeddings by it, else None."""
    if like in (None, "fp32"):
        return None if like is None else (False, None)
    graph = _graph_of(model, images) if like == "graph" else None
    if like == "graph" and graph is None:
        return None
    embed = _eager(model, device, bf16=True) if graph is None else functools.partial(embed_by_graph, graph)
    return (True, graph) if _agrees(embed, _eager(model, device), images) else None


@torch.inference_mode()
def embed_by_graph(graph: torch.jit.ScriptModule, images: Tensor) -> np.ndarray:
    """Return the embeddings (B, D) float32 of images (B, S, S, 3) uint8. Python's lock is released meanwhile."""
    embeddings: np.ndarray = graph(images).numpy()
    return embeddings


def is_light(
    model: nn.Module, size: int, device: torch.device, *, clock: Callable[[], float] = time.perf_counter
) -> bool:
    """Return whether the model is so fast in one thread that Jina and decoding take a similar time.

    Args: clock: returns the time in seconds.
    """
    if device.type != "cpu":
        return False
    image = sample_images(size)[:1]
    with torch_threads(1):
        return any(_seconds(_eager(model, device), image, clock) < LIGHT_SECONDS for _ in range(TRIES))


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch use `count` threads in this thread, and restore the old number afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def agrees_and_is_faster(model: nn.Module, images: Tensor, device: torch.device) -> bool:
    """Return whether `model` gives the same embeddings in bf16, and faster."""
    exact, rounded = _eager(model, device), _eager(model, device, bf16=True)
    return (
        _agrees(rounded, exact, images)
        and _gain(rounded, exact, images) >= FASTER
        and _gain(rounded, exact, images[:1]) * SLOWER_ALONE >= 1
    )


def faster_graph(model: EmbeddingModel, images: Tensor) -> torch.jit.ScriptModule | None:
    """Return a bf16 graph of `model` if it gives the same embeddings and is faster than `model` in bf16, else None."""
    graph = _graph_of(model, images)
    if graph is None:
        return None
    traced = functools.partial(embed_by_graph, graph)
    rounded = _eager(model, CPU, bf16=True)
    faster = _agrees(traced, _eager(model, CPU), images) and all(
        _gain(traced, rounded, some) >= 1 for some in (images, images[:1])
    )
    return graph if faster else None


def _eager(model: nn.Module, device: torch.device, *, bf16: bool = False) -> Embed:
    return lambda images: embed_batches(model, [images], device, bf16=bf16)


def _graph_of(model: EmbeddingModel, images: Tensor) -> torch.jit.ScriptModule | None:
    """Trace `model`; return None if that fails, as it does for some networks of transformers."""
    whole = WithNormalisation(model).eval()
    try:
        with warnings.catch_warnings(), torch.no_grad(), torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            # The warnings say that TorchScript is deprecated (its successor needs a C++ compiler) and where tracing may
            # go wrong; `_agrees` checks the result.
            warnings.simplefilter("ignore")
            graph: torch.jit.ScriptModule = torch.jit.freeze(torch.jit.trace(whole, images, check_trace=False))
        embed_by_graph(graph, images[:1])
    except Exception as error:  # tracing may raise anything; the model itself always works
        _log.info("The model is not served by a graph: %s", error)
        return None
    return graph


def _agrees(embed: Embed, exact: Embed, images: Tensor) -> bool:
    """Whether the embeddings differ from the exact ones only by rounding, and do not depend on the other images."""
    true, found, alone = exact(images), embed(images), embed(images[:1])
    if (found.shape, alone.shape) != (true.shape, true[:1].shape):
        return False
    lengths = np.linalg.norm(true, axis=1) * np.linalg.norm(found, axis=1)
    cosines = (true * found).sum(axis=1) / np.maximum(lengths, 1e-12)
    return bool(cosines.min() >= AGREEMENT and np.abs(alone[0] - found[0]).max() <= ALONE)


def _gain(embed: Embed, before: Embed, images: Tensor) -> float:
    """How many times as fast `embed` is. They take turns, and the shortest times count: a starting service is busy."""
    pairs: list[list[float]] = []
    end = time.perf_counter() + ENOUGH_SECONDS
    while not pairs or (len(pairs) < PAIRS and time.perf_counter() < end):
        pairs.append([_seconds(function, images) for function in (before, embed)])
    return min(old for old, _ in pairs) / min(new for _, new in pairs)


def _seconds(function: Embed, images: Tensor, clock: Callable[[], float] = time.perf_counter) -> float:
    began = clock()
    function(images)
    return clock() - began


def sample_images(size: int) -> Tensor:
    """Return (16, size, size, 3) uint8 images with smooth colours and edges, like photos, not noise."""
    random = torch.Generator().manual_seed(0)
    coarse = torch.rand((IMAGES, 3, 8, 8), generator=random)
    smooth = nn.functional.interpolate(coarse, (size, size), mode="bilinear")
    edges = nn.functional.interpolate(coarse.flip(0), (size, size), mode="nearest")
    return ((0.6 * smooth + 0.4 * edges) * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
