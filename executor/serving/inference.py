"""Measure the fastest way to serve a model version, among those that give the same embeddings.

The ways are fp32, bf16, and a graph in either precision: the model traced, with casts and batch norms folded into its
weights. The choice is written beside the weights, so that a restarted service embeds the same way. All is measured with
one thread: while the service starts, the other cores are busy, and threads that wait for each other would cost far more
time than the differences that we measure.
"""

import contextlib
import functools
import io
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..loading.forward import embed_batches
from ..models.model import EmbeddingModel, WithNormalisation
from ..store.files import publish_file, remove_leftovers
from ..store.published import KEPT_WAY
from ..training.precision import computes_in_bf16

AGREEMENT = 0.999  # least cosine similarity between the served embedding and the fp32 one
ALONE = 1e-5  # largest difference between an image's embedding alone and in a batch: other images must not matter
FASTER = 1.15  # a batch must become at least this many times as fast
SLOWER_ALONE = 1.25  # a single image may take up to this many times as long: then no other request waits
LIGHT_SECONDS = 0.005  # a light model takes less for an image, as it is served; Jina and decoding take about as much
LIGHT_IMAGES = 8  # in a batch
IMAGES = 16
PAIRS = 6
ENOUGH_SECONDS = 2.0  # stop measuring after this time: a heavy model needs fewer pairs and tries
TRIES = 3  # at least; more, up to a quarter of a second, where a starting service may be busy
TRY_SECONDS = 0.25
CPU = torch.device("cpu")
Embed = Callable[[Tensor], np.ndarray]  # (B, S, S, 3) uint8 images -> (B, D) float32 embeddings


class Way(NamedTuple):
    """A way to serve. Attributes: traced: by a graph."""

    bf16: bool
    traced: bool


# By the names under which the choice is kept.
WAYS = {"fp32": Way(False, False), "bf16": Way(True, False), "graph": Way(True, True), "fp32 graph": Way(False, True)}

_log = logging.getLogger(__name__)


def choose_path(
    model: EmbeddingModel, size: int, device: torch.device, folder: Path, *, like: str | None = None
) -> tuple[bool, torch.jit.ScriptModule | None]:
    """Return whether to serve `model` in bf16, and a graph, in the same precision, if that is even faster.

    A version is measured once; the choice is kept in its `folder`. A machine without its precision, and a GPU where it
    is a graph, measures anew.

    Args:
        model: takes images of `size` × `size`.
        like: the way (`way_of`) of another version of the same network on this machine. It is as fast here, so it is
            taken if it gives the same embeddings here too, and a promotion need not wait until that is measured again.
    """
    chosen = folder / KEPT_WAY
    kept = chosen.read_text(errors="replace") if chosen.is_file() else ""
    if kept in WAYS and _can_serve(device, WAYS[kept]):
        bf16, traced = WAYS[kept]
        return bf16, _graph_of(model, sample_images(size), bf16=bf16) if traced else None
    images = sample_images(size)
    found = _way_like(like, model, images, device)
    if found is None:
        with torch_threads(1):
            found = _measured(model, images, device)
    remove_leftovers(folder)
    try:
        publish_file(chosen, way_of(*found).encode())
    except OSError as error:  # then the next start measures again
        _log.warning("The precision of %s cannot be kept: %s", folder, error)
    return found


def _measured(
    model: EmbeddingModel, images: Tensor, device: torch.device
) -> tuple[bool, torch.jit.ScriptModule | None]:
    """Return whether to serve in bf16, and a graph in the same precision if that is even faster.

    How long a single image takes counts for the way that would serve it: autocast casts all weights for each call,
    which a graph has done before.
    """
    traces = device.type == "cpu"
    if computes_in_bf16(device) and agrees_and_is_faster(model, images, device):
        graph = faster_graph(model, images, bf16=True) if traces else None
        served = served_by(model, device, bf16=True, graph=graph)
        if _gain(served, _eager(model, device), images[:1], device) * SLOWER_ALONE >= 1:
            return True, graph
    return False, faster_graph(model, images, bf16=False) if traces else None


def _can_serve(device: torch.device, way: Way) -> bool:
    """Whether a way that was chosen elsewhere is one for this device: graphs are for CPUs."""
    return (computes_in_bf16(device) or not way.bf16) and (device.type == "cpu" or not way.traced)


def way_of(bf16: bool, graph: Any) -> str:
    """Return the name of a way to serve, as in `WAYS`."""
    return next(name for name, way in WAYS.items() if way == (bf16, graph is not None))


def _way_like(
    like: str | None, model: EmbeddingModel, images: Tensor, device: torch.device
) -> tuple[bool, torch.jit.ScriptModule | None] | None:
    """Return the way called `like` if `model` gives the same embeddings by it, else None."""
    if like is None:
        return None
    bf16, traced = WAYS[like]
    if not bf16 and not traced:
        return False, None
    graph = _graph_of(model, images, bf16=bf16) if traced else None
    if traced and graph is None:
        return None
    served = served_by(model, device, bf16=bf16, graph=graph)
    return (bf16, graph) if _agrees(served, _eager(model, device), images) else None


@torch.inference_mode()
def embed_by_graph(graph: torch.jit.ScriptModule, images: Tensor) -> np.ndarray:
    """Return the embeddings (B, D) float32 of images (B, S, S, 3) uint8. Python's lock is released meanwhile."""
    embeddings: np.ndarray = graph(images).numpy()
    return embeddings


def is_light(embed: Embed, size: int, *, clock: Callable[[], float] = time.thread_time) -> bool:
    """Return whether one thread embeds so fast that Jina and decoding take a similar time.

    Args:
        embed: how the model is served: `served_by`. size: of its images.
        clock: returns the time in seconds; by default that of this thread alone, because other threads and processes
            are busy while a service starts.
    """
    images = sample_images(size)[:LIGHT_IMAGES]
    with torch_threads(1):
        tries: list[float] = []
        while sum(tries) < TRY_SECONDS or (len(tries) < TRIES and sum(tries) <= ENOUGH_SECONDS):
            tries.append(_seconds(embed, images, clock))
            if tries[-1] < LIGHT_SECONDS * LIGHT_IMAGES:
                return True
    return False


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
    """Return whether `model` gives the same embeddings in bf16, and a batch of them faster."""
    exact, rounded = _eager(model, device), _eager(model, device, bf16=True)
    return _agrees(rounded, exact, images) and _gain(rounded, exact, images, device) >= FASTER


def faster_graph(model: EmbeddingModel, images: Tensor, *, bf16: bool) -> torch.jit.ScriptModule | None:
    """Return a graph of `model` if it gives the same embeddings, faster than `model` in the same precision; else None.

    Args: bf16: the precision; false: fp32.
    """
    graph = _graph_of(model, images, bf16=bf16)
    if graph is None:
        return None
    traced = served_by(model, CPU, bf16=bf16, graph=graph)
    eager = _eager(model, CPU, bf16=bf16)
    faster = _agrees(traced, _eager(model, CPU), images) and all(
        _gain(traced, eager, some, CPU) >= 1 for some in (images, images[:1])
    )
    return graph if faster else None


def _eager(model: nn.Module, device: torch.device, *, bf16: bool = False) -> Embed:
    return lambda images: embed_batches(model, [images], device, bf16=bf16)


def served_by(model: nn.Module, device: torch.device, *, bf16: bool, graph: Any) -> Embed:
    """Return how a model is served: by its graph, if it has one, else in bf16 or fp32."""
    return _eager(model, device, bf16=bf16) if graph is None else functools.partial(embed_by_graph, graph)


def _graph_of(model: EmbeddingModel, images: Tensor, *, bf16: bool) -> torch.jit.ScriptModule | None:
    """Trace `model`; return None if that fails, as it does for some networks of transformers.

    What torch traces stays in memory until the process ends, weights and all. So a network is traced once, and a
    further version of it gets a copy of that with weights of its own, if the copy gives the embeddings of its model.
    """
    whole = WithNormalisation(model).eval()
    shapes = ((name, value.shape, value.dtype) for name, value in whole.state_dict().items())
    network = hash((bf16, images.shape, repr(whole), *shapes))
    try:
        if network in _traces:
            graph = _copy_of(_traces[network], whole)
            served = served_by(model, CPU, bf16=bf16, graph=graph)
            if _agrees(served, _eager(model, CPU, bf16=bf16), images):
                return graph
        _traces[network] = _traced(whole, images, bf16=bf16)
        graph = _copy_of(_traces[network], whole)
        embed_by_graph(graph, images[:1])
    except Exception as error:  # tracing may raise anything; the model itself always works
        _log.info("The model is not served by a graph: %s", error)
        return None
    return graph


_traces: dict[int, bytes] = {}  # by network


def _traced(whole: nn.Module, images: Tensor, *, bf16: bool) -> bytes:
    """Return a trace as the bytes of a file."""
    precision = torch.autocast("cpu", torch.bfloat16, enabled=bf16, cache_enabled=False)
    file = io.BytesIO()
    with _in_peace(), torch.no_grad(), precision:
        torch.jit.save(torch.jit.trace(whole, images, check_trace=False), file)
    return file.getvalue()


def _copy_of(trace: bytes, whole: nn.Module) -> torch.jit.ScriptModule:
    """Return a graph with the weights of `whole`. It is freed with the last reference to it."""
    with _in_peace(), torch.no_grad():
        copy = torch.jit.load(io.BytesIO(trace)).eval()
        copy.load_state_dict(whole.state_dict(), strict=False)  # it calls all buffers persistent
        graph: torch.jit.ScriptModule = torch.jit.freeze(copy)
    return graph


@contextlib.contextmanager
def _in_peace() -> Iterator[None]:
    """Show no warnings: that TorchScript is deprecated (its successor needs a C++ compiler), and where it may go wrong.

    `_agrees` checks the result.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _agrees(embed: Embed, exact: Embed, images: Tensor) -> bool:
    """Whether the embeddings differ from the exact ones only by rounding, and do not depend on the other images."""
    true, found, alone = exact(images), embed(images), embed(images[:1])
    if (found.shape, alone.shape) != (true.shape, true[:1].shape):
        return False
    lengths = np.linalg.norm(true, axis=1) * np.linalg.norm(found, axis=1)
    cosines = (true * found).sum(axis=1) / np.maximum(lengths, 1e-12)
    return bool(cosines.min() >= AGREEMENT and np.abs(alone[0] - found[0]).max() <= ALONE)


def _gain(embed: Embed, before: Embed, images: Tensor, device: torch.device) -> float:
    """How many times as fast `embed` is. They take turns, and the shortest times count: a starting service is busy.

    On a CPU the time of this thread counts, which computes all: other processes may have the cores meanwhile.
    """
    clock = time.thread_time if device.type == "cpu" else time.perf_counter
    pairs: list[list[float]] = []
    end = time.perf_counter() + ENOUGH_SECONDS
    while not pairs or (len(pairs) < PAIRS and time.perf_counter() < end):
        pairs.append([_seconds(function, images, clock) for function in (before, embed)])
    return min(old for old, _ in pairs) / min(new for _, new in pairs)


def _seconds(function: Embed, images: Tensor, clock: Callable[[], float]) -> float:
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
