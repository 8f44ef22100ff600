"""Embeds documents with a model version: decoding in a pool of threads, the model in batches in one thread.

Requests that come at the same time share batches; their errors stay with their documents. A promotion changes which
version the next request gets; a request that has begun keeps its own, so no response mixes versions.
"""

import asyncio
import logging
import os
import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..compute.threads import in_brief_thread
from ..documents import ERROR_TAG, MODEL_TAG
from ..errors import Overloaded
from ..parameters import ExecutorOptions
from ..store.workspace import Workspace

if TYPE_CHECKING:
    from ..models.model import EmbeddingModel

_log = logging.getLogger(__name__)

MAX_BATCH = 64  # images: larger batches are no faster on a CPU, and keep others waiting longer
BATCH_OF_A_THREAD = 16  # of many small requests: while one batch is computed, the other cores decode the next
KEPT_MODELS = 3  # loaded at a time: the promoted one, base, and one other
CHUNK = 8  # documents decoded by one task of the pool
GATHER_SECONDS = 0.005  # longest wait for one more image of a batch


@dataclass(frozen=True)
class Version:
    """A loaded model version, and how a document becomes its input."""

    name: str
    model: "EmbeddingModel"
    preprocess: Callable[[Any], Any]
    device: torch.device
    bf16: bool = False
    light: bool = False
    graph: Any = None  # in place of `model`, where one is faster


class _Request:
    """Counts down the documents of one call; `done` is set when none is left."""

    def __init__(self, count: int) -> None:
        self.done = asyncio.Event()
        self._left = count
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()

    def finished(self, count: int) -> None:
        with self._lock:
            self._left -= count
            if self._left == 0:
                self._loop.call_soon_threadsafe(self.done.set)


@dataclass(frozen=True)
class _Item:
    doc: Any
    content: Any
    version: Version
    request: _Request


class Embedder:
    """Loads versions as they are asked for and embeds with them.

    Args: promoted: names the version now served.
    """

    def __init__(self, workspace: Workspace, options: ExecutorOptions, promoted: Callable[[], str]) -> None:
        self._workspace = workspace
        self._options = options
        self._promoted = promoted
        self._versions: OrderedDict[str, Version] = OrderedDict()
        self._loading = threading.Lock()
        self._pool = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="decode")
        self._items: queue.Queue[_Item | None] = queue.Queue()
        self._preparing = 0  # documents that are being decoded, or will be at once
        self._counting = threading.Lock()
        self._waiting = self._calls = 0  # images, and calls of `embed`; written in the event loop only
        self._threads = torch.get_num_threads()
        self._thread = threading.Thread(target=self._work, name="embedder", daemon=True)
        self._thread.start()

    def warm(self) -> None:
        """Load the promoted version in the background, so that the first request finds it."""
        threading.Thread(target=self._warm, name="warm-up", daemon=True).start()

    def _warm(self) -> None:
        try:
            self.version(self._promoted())
        except Exception:  # the first request meets the same error and its caller reads it
            _log.exception("The model cannot be loaded")

    def close(self) -> None:
        """End the threads; what waits is still embedded."""
        self._pool.shutdown(wait=True)
        self._items.put(None)
        self._thread.join()

    async def embed(
        self, docs: Sequence[Any], *, model: str | None = None, matches: bool = False, exact: bool = False
    ) -> str:
        """Fill the embeddings of `docs`, in place, and return the version that made them.

        A document that cannot be embedded gets `tags['finetuner_error']` instead.

        Args: exact: in fp32, as a run measures its model.

        Raises: UnknownModel. Overloaded: more images wait than `max_queued_images`.
        """
        name = model or self._promoted()
        version = self._versions.get(name)
        if version is None:
            version = await asyncio.to_thread(self.version, name)
        if exact:
            version = replace(version, bf16=False, graph=None)
        parts = [part for doc in docs for part in (doc, *(doc.matches if matches else ()))]
        if self._waiting and self._waiting + len(parts) > self._options.max_queued_images:
            raise Overloaded(
                f"{self._waiting} images wait to be embedded and max_queued_images is "
                f"{self._options.max_queued_images}; try again in a moment, or raise that option of the executor."
            )
        if not parts:
            return version.name
        request = _Request(len(parts))
        self._waiting += len(parts)
        self._calls += 1
        try:
            self._count(len(parts))
            for start in range(0, len(parts), CHUNK):
                self._pool.submit(self._prepare, parts[start : start + CHUNK], version, request)
            await request.done.wait()
        finally:
            self._waiting -= len(parts)
            self._calls -= 1
        return version.name

    def version(self, name: str) -> Version:
        """Return a version, loaded. Raises: UnknownModel: there is none."""
        found = self._versions.get(name)
        if found is not None:
            return found
        with self._loading:
            if name not in self._versions:
                self._versions[name] = in_brief_thread(self._load, name)
                kept = {name, self._promoted(), "base"}
                for other in [other for other in self._versions if other not in kept][: -KEPT_MODELS + 2]:
                    del self._versions[other]
            return self._versions[name]

    def forget(self, name: str) -> None:
        """Let go of a version that was deleted; requests that have begun with it still end with it."""
        with self._loading:
            self._versions.pop(name, None)

    def _load(self, name: str) -> Version:
        from ..compute.device import choose_device
        from ..loading.content import make_preprocess
        from ..models.versions import load_version
        from .inference import choose_path, is_light

        device = choose_device(self._options)
        model = load_version(self._workspace, self._options, name).to(device).eval()
        plain = not self._options.fast_inference or self._options.preprocess_fn is not None
        size, folder = model.preprocessing.size, self._workspace.model_folder(name)
        light = not plain and is_light(model, size, device)
        bf16, graph = (False, None) if plain else choose_path(model, size, device, folder, light=light)
        return Version(name, model, make_preprocess(self._options, model), device, bf16, light, graph)

    def _prepare(self, parts: list[Any], version: Version, request: _Request) -> None:
        """Decode documents and hand them to the model's thread."""
        for doc in parts:
            doc.embedding = None
            doc.tags.pop(ERROR_TAG, None)
            doc.tags.pop(MODEL_TAG, None)
            try:
                content = version.preprocess(doc)
            except Exception as error:  # whatever is wrong with a document stays with it
                doc.tags[ERROR_TAG] = str(error) or type(error).__name__
                request.finished(1)
            else:
                self._items.put(_Item(doc, content, version, request))
            self._count(-1)

    def _count(self, preparing: int) -> None:
        with self._counting:
            self._preparing += preparing

    def _work(self) -> None:
        """Embed what waits, as many at a time as share a version and a shape.

        What is just being decoded is waited for: a batch takes little longer than a single image, and the cores are
        busy meanwhile. With several calls under way Jina and decoding keep a core busy, on which a thread of a light
        model would wait its turn, and all others for it: the model leaves that core alone.
        """
        from .inference import torch_threads

        waiting: _Item | None = None  # taken from the queue already, and unlike the batch before it
        while (item := waiting or self._items.get()) is not None:
            waiting = None
            batch = [item]
            shared = item.version.light and self._calls > 1
            threads = max(1, self._threads - 1) if shared else self._threads
            most = min(MAX_BATCH, BATCH_OF_A_THREAD * threads) if shared else MAX_BATCH
            while len(batch) < most:
                try:
                    following = self._items.get(timeout=GATHER_SECONDS if self._preparing else 0)
                except queue.Empty:
                    break
                if following is None or not _alike(following, item):
                    waiting = following
                    if following is None:
                        self._items.put(None)
                    break
                batch.append(following)
            with torch_threads(threads):
                self._embed_batch(batch)

    def _embed_batch(self, batch: list[_Item]) -> None:
        try:
            embeddings = _forward(batch)
        except Exception as error:  # one bad content must not harm its neighbours: find it by trying each alone
            if len(batch) > 1:
                for item in batch:
                    self._embed_batch([item])
                return
            batch[0].doc.tags[ERROR_TAG] = f"the model cannot embed it: {error}"
        else:
            for item, embedding in zip(batch, embeddings, strict=True):
                item.doc.embedding = embedding
                item.doc.tags[MODEL_TAG] = item.version.name
        for item in batch:
            item.request.finished(1)


def _alike(one: _Item, other: _Item) -> bool:
    return one.version is other.version and getattr(one.content, "shape", None) == getattr(other.content, "shape", None)


def _forward(batch: list[_Item]) -> np.ndarray:
    from ..loading.batches import collate
    from ..loading.forward import embed_batches
    from .inference import embed_by_graph

    version = batch[0].version
    inputs = collate([item.content for item in batch])
    if version.graph is not None:
        return embed_by_graph(version.graph, inputs)
    return embed_batches(version.model, [inputs], version.device, bf16=version.bf16)
