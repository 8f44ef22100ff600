"""Embed documents with a model version. A pool of threads decodes; one thread runs the model in batches.

Requests that come at the same time share batches, but an error affects only its own document. A promotion takes effect
at the next request. A request that has begun keeps its version, so no response mixes versions.
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
from ..documents import ERROR_TAG, MODEL_TAG, SPACE_TAG
from ..errors import Overloaded
from ..parameters import ExecutorOptions
from ..store.workspace import Workspace

if TYPE_CHECKING:
    from ..models.model import EmbeddingModel

_log = logging.getLogger(__name__)

MAX_BATCH = 64  # images; on a CPU larger batches are no faster and make other requests wait longer
BATCH_OF_A_THREAD = 16  # per thread, with many small requests: other cores decode the next batch meanwhile
KEPT_MODELS = 3  # stay loaded when another is asked for: the promoted one, base and one more
CHUNK = 8  # documents that one task of the pool decodes
GATHER_SECONDS = 0.005  # a batch waits at most this long for its next image


@dataclass(frozen=True)
class Version:
    """A loaded model version, the space of its embeddings, and its `preprocess`, from a document to model input."""

    name: str
    space: str
    model: "EmbeddingModel"
    preprocess: Callable[[Any], Any]
    device: torch.device
    bf16: bool = False
    light: bool = False
    graph: Any = None  # used in place of `model` if it is faster


class _Request:
    """Counts the unfinished documents of one call; sets `done` when all are finished."""

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
    """Loads versions when they are asked for and embeds with them.

    Args: promoted: returns the name of the version now served. batched: is told how many images each batch has.
    Attributes: load_error: why the promoted version could not be loaded, the last time that was tried.
    """

    def __init__(
        self,
        workspace: Workspace,
        options: ExecutorOptions,
        promoted: Callable[[], str],
        batched: Callable[[int], None] = lambda images: None,
    ) -> None:
        self._workspace = workspace
        self._options = options
        self._promoted = promoted
        self._batched = batched
        self.load_error: str | None = None
        self._warming: threading.Thread | None = None
        self._versions: OrderedDict[str, Version] = OrderedDict()
        self._loading = threading.Lock()
        self._pool = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="decode")
        self._items: queue.Queue[_Item | None] = queue.Queue()
        self._preparing = 0  # documents that are being decoded or wait for it
        self._counting = threading.Lock()
        self._waiting = self._calls = 0  # images, and calls of `embed`; changed only in the event loop
        self._threads = torch.get_num_threads()
        self._thread = threading.Thread(target=self._work, name="embedder", daemon=True)
        self._thread.start()

    def warm(self) -> None:
        """Load the promoted version in the background, so that the first request need not wait for it."""
        if self._warming is None or not self._warming.is_alive():
            self._warming = threading.Thread(target=self._warm, name="warm-up", daemon=True)
            self._warming.start()

    def _warm(self) -> None:
        try:
            self.version(self._promoted())
        except Exception as error:  # the first request will raise the same error, and its caller sees it
            before, self.load_error = self.load_error, str(error) or type(error).__name__
            if self.load_error != before:  # it is tried again and again
                _log.exception("The model cannot be loaded")

    @property
    def waiting(self) -> int:
        """How many images are in calls that have not been answered yet."""
        return self._waiting

    def loaded(self, name: str) -> Version | None:
        """Return a version if it is loaded."""
        return self._versions.get(name)

    def close(self) -> None:
        """Embed what still waits, then end the threads."""
        if self._warming is not None:
            self._warming.join()  # a thread that computes when Python ends takes the process with it
        self._pool.shutdown(wait=True)
        self._items.put(None)
        self._thread.join()

    async def embed(
        self, docs: Sequence[Any], *, model: str | None = None, matches: bool = False, exact: bool = False
    ) -> str:
        """Set the embeddings of `docs` in place and return the name of the version.

        A document that cannot be embedded gets `tags['finetuner_error']` instead.

        Args: exact: compute in fp32, as a run does when it measures its model.
        Raises: UnknownModel: there is no such version. Overloaded: others wait, and all together would be
            more than `max_queued_images` images.
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
        """Return a version, and load it first if needed. Raises: UnknownModel: there is no such version."""
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
        """Drop a deleted version. Requests that have begun with it still finish with it."""
        with self._loading:
            self._versions.pop(name, None)

    def _load(self, name: str) -> Version:
        from ..compute.device import choose_device
        from ..loading.content import make_preprocess
        from ..models.saving import space_of
        from ..models.versions import load_version
        from .inference import choose_path, is_light

        device = choose_device(self._options)
        model = load_version(self._workspace, self._options, name).to(device).eval()
        plain = not self._options.fast_inference or self._options.preprocess_fn is not None
        size, folder = model.preprocessing.size, self._workspace.model_folder(name)
        light = not plain and is_light(model, size, device)
        bf16, graph = (False, None) if plain else choose_path(model, size, device, folder, light=light)
        space = space_of(folder)
        return Version(name, space, model, make_preprocess(self._options, model), device, bf16, light, graph)

    def _prepare(self, parts: list[Any], version: Version, request: _Request) -> None:
        """Decode documents and pass them to the model's thread."""
        for doc in parts:
            doc.embedding = None
            for tag in (ERROR_TAG, MODEL_TAG, SPACE_TAG):
                doc.tags.pop(tag, None)
            try:
                content = version.preprocess(doc)
            except Exception as error:  # an error of one document must not affect the others
                doc.tags[ERROR_TAG] = str(error) or type(error).__name__
                request.finished(1)
            else:
                self._items.put(_Item(doc, content, version, request))
            self._count(-1)

    def _count(self, preparing: int) -> None:
        with self._counting:
            self._preparing += preparing

    def _work(self) -> None:
        """Embed what waits, in batches of the same version and shape.

        A batch waits for images that are just being decoded: it takes little longer than a single image, and the cores
        are busy decoding anyway. With several calls at once, Jina and decoding keep one core busy. A thread of a light
        model would have to wait for that core, and the other threads for it. So the model then uses one thread less.
        """
        waiting: _Item | None = None  # taken from the queue, but did not fit into the last batch
        while (item := waiting or self._items.get()) is not None:
            # Only here, because an item's model is imported already. If two threads import a package at once, one may
            # see half of it; this thread would end, and `/embed` would never answer.
            from .inference import torch_threads

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
        self._batched(len(batch))
        try:
            embeddings = _forward(batch)
        except Exception as error:  # try each alone, so that a bad one does not spoil the others
            if len(batch) > 1:
                for item in batch:
                    self._embed_batch([item])
                return
            batch[0].doc.tags[ERROR_TAG] = f"the model cannot embed it: {error}"
        else:
            for item, embedding in zip(batch, embeddings, strict=True):
                item.doc.embedding = embedding
                item.doc.tags[MODEL_TAG] = item.version.name
                item.doc.tags[SPACE_TAG] = item.version.space
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
