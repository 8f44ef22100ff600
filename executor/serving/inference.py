"""How a model version computes when it serves: what was measured to be fastest of what gives the same.

That is fp32, bf16, or a graph in bf16: traced, with casts and batch norms folded into its weights. What was chosen is
written beside the weights, so that a restarted service embeds as the one before did. A light model is measured with one
thread: a service that starts has other work for the other cores, and threads that wait for each other are slower by far
than what is compared.
"""

import contextlib
import functools
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..loading.forward import embed_batches
from ..models.model import EmbeddingModel, WithNormalisation
from ..store.files import publish_file
from ..training.precision import computes_in_bf16

AGREEMENT = 0.999  # cosine between the fp32 embedding of an image and the one served, at least
ALONE = 1e-5  # largest difference between an image's embedding alone and among others: it must not depend on them
FASTER = 1.15  # a batch must gain so much,
SLOWER_ALONE = 1.25  # and a single image, which nobody waits with, may lose so much
LIGHT_SECONDS = 0.02  # with one thread, for an image; Jina and decoding take about 0.004
IMAGES = 16
PAIRS = 6
ENOUGH_SECONDS = 2.0  # of measuring: a heavy model need not be tried so often
TRIES = 3
CPU = torch.device("cpu")
Embed = Callable[[Tensor], np.ndarray]  # (B, S, S, 3) uint8 images -> (B, D) float32 embeddings

_log = logging.getLogger(__name__)


def choose_path(
    model: EmbeddingModel, size: int, device: torch.device, folder: Path, *, light: bool
) -> tuple[bool, torch.jit.ScriptModule | None]:
    """Return whether to embed with `model` in bf16, and the graph to do it by, if that is faster still.

    Measured once a version and kept in its `folder`.

    Args: model: takes images of `size` × `size`. light: as `is_light` says.
    """
    if not computes_in_bf16(device):
        return False, None
    chosen = folder / "serving"
    kept = chosen.read_text() if chosen.is_file() else ""
    if kept in ("fp32", "bf16", "graph"):
        return kept in ("bf16", "graph"), _graph_of(model, sample_images(size)) if kept == "graph" else None
    images = sample_images(size)
    with torch_threads(1 if light else torch.get_num_threads()):
        bf16 = agrees_and_is_faster(model, images, device)
        graph = faster_graph(model, images) if bf16 and device.type == "cpu" else None
    try:
        publish_file(chosen, b"graph" if graph is not None else b"bf16" if bf16 else b"fp32")
    except OSError as error:  # measured again at the next start
        _log.warning("The precision of %s cannot be kept: %s", folder, error)
    return bf16, graph


@torch.inference_mode()
def embed_by_graph(graph: torch.jit.ScriptModule, images: Tensor) -> np.ndarray:
    """Return the embeddings (B, D) float32 of images (B, S, S, 3) uint8. Python's lock is free meanwhile."""
    embeddings: np.ndarray = graph(images).numpy()
    return embeddings


def is_light(model: nn.Module, size: int, device: torch.device) -> bool:
    """Return whether one thread embeds an image in so short a time that Jina and decoding take a like share of it."""
    if device.type != "cpu":
        return False
    image = sample_images(size)[:1]
    with torch_threads(1):
        return any(_seconds(_eager(model, device), image) < LIGHT_SECONDS for _ in range(TRIES))


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
    """Return whether `model` gives the same in bf16, and sooner."""
    exact, rounded = _eager(model, device), _eager(model, device, bf16=True)
    return (
        _agrees(rounded, exact, images)
        and _gain(rounded, exact, images) >= FASTER
        and _gain(rounded, exact, images[:1]) * SLOWER_ALONE >= 1
    )


def faster_graph(model: EmbeddingModel, images: Tensor) -> torch.jit.ScriptModule | None:
    """Return a graph in bf16 that gives the same as `model` and is faster than it is in bf16, or None."""
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
    """Trace `model`; None where it cannot be: not every network of transformers can."""
    whole = WithNormalisation(model).eval()
    try:
        with warnings.catch_warnings(), torch.no_grad(), torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            # That TorchScript is deprecated (what is to replace it needs a C++ compiler), and where tracing may go
            # wrong: `_agrees` looks whether it did.
            warnings.simplefilter("ignore")
            graph: torch.jit.ScriptModule = torch.jit.freeze(torch.jit.trace(whole, images, check_trace=False))
        embed_by_graph(graph, images[:1])
    except Exception as error:  # of many kinds; the eager way is always there
        _log.info("The model is not served by a graph: %s", error)
        return None
    return graph


def _agrees(embed: Embed, exact: Embed, images: Tensor) -> bool:
    """Whether embeddings are the exact ones but for rounding, and no image's depends on its neighbours."""
    true, found, alone = exact(images), embed(images), embed(images[:1])
    if (found.shape, alone.shape) != (true.shape, true[:1].shape):
        return False
    lengths = np.linalg.norm(true, axis=1) * np.linalg.norm(found, axis=1)
    cosines = (true * found).sum(axis=1) / np.maximum(lengths, 1e-12)
    return bool(cosines.min() >= AGREEMENT and np.abs(alone[0] - found[0]).max() <= ALONE)


def _gain(embed: Embed, before: Embed, images: Tensor) -> float:
    """How many times as fast `embed` is, in turns, by the shortest times: a service that starts has other work too."""
    pairs: list[list[float]] = []
    end = time.perf_counter() + ENOUGH_SECONDS
    while not pairs or (len(pairs) < PAIRS and time.perf_counter() < end):
        pairs.append([_seconds(function, images) for function in (before, embed)])
    return min(old for old, _ in pairs) / min(new for _, new in pairs)


def _seconds(function: Embed, images: Tensor) -> float:
    began = time.perf_counter()
    function(images)
    return time.perf_counter() - began


def sample_images(size: int) -> Tensor:
    """(16, size, size, 3) uint8: smooth colours and edges, as photos have them, rather than noise."""
    random = torch.Generator().manual_seed(0)
    coarse = torch.rand((IMAGES, 3, 8, 8), generator=random)
    smooth = nn.functional.interpolate(coarse, (size, size), mode="bilinear")
    edges = nn.functional.interpolate(coarse.flip(0), (size, size), mode="nearest")
    return ((0.6 * smooth + 0.4 * edges) * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
