"""The way of documents to their embeddings: fetched where they are remote, decoded by all cores, embedded in batches.

Each stage has threads of its own and a queue that serves callers in turn. So one caller's slow pictures delay
another's by one picture at most, and slow servers delay nobody who decodes. Large pictures have threads of their own,
one fewer than cores, so small ones do not even wait for one. Decoding waits for the model where it is ahead. An error
affects only its own document.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .. import tracing
from ..compute.cores import usable_cores
from ..compute.one_core_each import OneCoreEach
from ..compute.turns import Turns
from ..documents import ERROR_TAG, MAPPED_TAG, MODEL_TAG, SPACE_TAG
from ..images.budget import LargePicture, abandoned_when, small_only
from ..images.policy import ImagePolicy
from ..images.remote import given
from ..loading.fetches import Fetch, Fetches
from .stages import Stages, running

if TYPE_CHECKING:
    from ..models.model import EmbeddingModel

MAX_BATCH = 64  # images
# On a CPU, for each thread, and in all at least 16 images. What a network computes for them stays in the caches: in
# larger batches `default` becomes slower, and no network that was tried faster. And nobody waits long for a batch.
BATCH_OF_A_THREAD = 8
LEAST_BATCH = 16
MANY_FOR_A_CORE = 12  # images: with so many for each core it computes a batch of its own,
BATCH_OF_A_CORE = 16  # or of so many for a single caller's call: an image takes 0.87 of what it takes in a batch of 8
MOST_DECODED = 2 * MAX_BATCH  # images that wait for the model, before decoding waits too
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

    @property
    def loads_images(self) -> bool:
        """Whether `preprocess` is the default image loading: it tells what it would fetch, and which image is large."""
        return hasattr(self.preprocess, "remote")

    def remote(self, doc: Any) -> tuple[str, ImagePolicy] | None:
        """Return the uri that `preprocess` would fetch, and by which policy, as far as it tells."""
        return self.preprocess.remote(doc) if self.loads_images else None  # type: ignore[attr-defined]

    def embed(self, inputs: Any) -> np.ndarray:
        """Return the embeddings (B, D) float32 of a batch of what `preprocess` gives, the fastest way."""
        from ..loading.forward import embed_batches
        from .inference import embed_by_graph

        if self.graph is not None:
            return embed_by_graph(self.graph, inputs)
        return embed_batches(self.model, [inputs], self.device, bf16=self.bf16)


class Request:
    """The documents of one call that are not finished. `done` is set when all are.

    Args: count: of documents. caller: whose they are. Callers take turns.
    """

    def __init__(self, count: int, version: Version, caller: Hashable) -> None:
        self.version = version
        self.caller = caller
        self.stages = Stages() if tracing.is_recording() else None
        self.done = asyncio.Event()
        self.abandoned = False  # nobody waits for the answer any more
        self._left = count
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()

    def is_abandoned(self) -> bool:
        """Whether nobody waits for the answer any more."""
        return self.abandoned

    def finished(self) -> None:
        """Count one document as finished."""
        with self._lock:
            self._left -= 1
            if self._left == 0:
                self._loop.call_soon_threadsafe(self.done.set)


@dataclass(frozen=True)
class _Picture:
    doc: Any
    request: Request
    fetch: Fetch | None = None


@dataclass(frozen=True)
class _Item:
    doc: Any
    content: Any
    request: Request

    @property
    def version(self) -> Version:
        return self.request.version


class Pipeline:
    """Embeds what it is given. It has threads of its own.

    Args: callers: returns how many of them wait now. batched: is told how many images each batch has.
    """

    def __init__(self, callers: Callable[[], int], batched: Callable[[int], None]) -> None:
        self._callers = callers
        self._batched = batched
        self._fetches = Fetches()
        self._pictures: Turns[_Picture] = Turns()
        self._large: Turns[_Picture] = Turns()
        self._items: Turns[_Item] = Turns(MOST_DECODED)
        self._preparing = 0  # documents that are being decoded or wait for it, without large pictures
        self._counting = threading.Lock()
        self._embedded_last = 0  # images: who has just got their embeddings may soon send more
        cores = usable_cores()
        self._threads = min(torch.get_num_threads(), cores)
        self._decoders = _started(cores, "decode", self._decode)
        self._large_decoders = _started(max(1, cores - 1), "decode-large", self._decode_large)
        beside = min(self._threads, MAX_BATCH // BATCH_OF_A_THREAD)
        self._beside = OneCoreEach(beside, "embedder-beside", self._embed, begin=_use_one_core)
        torch.set_num_threads(self._threads)  # those threads have set the number for every thread that begins
        (self._thread,) = _started(1, "embedder", self._work)

    def put(self, docs: Sequence[Any], request: Request) -> None:
        """Embed `docs` in place when it is their turn; `request.done` tells when that is done."""
        pictures = []
        for doc in docs:
            remote = request.version.remote(doc)
            if remote is None:
                pictures.append(_Picture(doc, request))
            else:
                self._fetch(doc, request, *remote)
        self._count(len(pictures))
        self._pictures.put(request.caller, pictures)

    def close(self) -> None:
        """Embed what still waits, then end the threads."""
        self._fetches.close()
        for turns, threads in (
            (self._pictures, self._decoders),
            (self._large, self._large_decoders),
            (self._items, [self._thread]),
        ):
            turns.close()
            for thread in threads:
                thread.join()
        self._beside.close()

    def _fetch(self, doc: Any, request: Request, uri: str, policy: ImagePolicy) -> None:
        def decode(fetch: Fetch) -> None:
            if request.stages is not None:
                request.stages.ran("fetch", request.stages.began)
            self._count(1)
            self._pictures.put(request.caller, [_Picture(doc, request, fetch)])

        self._fetches.start(Fetch(request.caller, uri, policy, decode, request.is_abandoned))

    def _decode(self) -> None:
        while (picture := self._pictures.take()) is not None:
            try:
                self._prepare(picture, small=picture.request.version.loads_images)
            except LargePicture:
                self._large.put(picture.request.caller, [picture])
            else:
                self._let_go_of(picture)
            self._count(-1)  # no batch waits for a large one
            del picture

    def _decode_large(self) -> None:
        while (picture := self._large.take()) is not None:
            self._prepare(picture, small=False)
            self._let_go_of(picture)
            del picture

    def _let_go_of(self, picture: _Picture) -> None:
        if picture.fetch is not None:
            self._fetches.finish(picture.fetch)

    def _prepare(self, picture: _Picture, *, small: bool) -> None:
        """Decode a document and pass it to the model's thread. Raises: LargePicture: it is one, and `small` is true."""
        doc, request = picture.doc, picture.request
        if request.abandoned:
            return
        try:
            doc.embedding = None
            for tag in (ERROR_TAG, MODEL_TAG, SPACE_TAG, MAPPED_TAG):
                doc.tags.pop(tag, None)
            with (
                given({} if picture.fetch is None else picture.fetch.fetched),
                abandoned_when(request.is_abandoned),
                small_only(small),
                running(request.stages, "decode"),
            ):
                content = request.version.preprocess(doc)
        except LargePicture:
            raise
        except Exception as error:  # an error of one document must not affect the others
            doc.tags[ERROR_TAG] = str(error) or type(error).__name__
            request.finished()
        else:
            self._items.put(request.caller, [_Item(doc, content, request)])

    def _count(self, preparing: int) -> None:
        with self._counting:
            self._preparing += preparing

    def _work(self) -> None:
        """Embed what waits, in batches of the same version and shape.

        A batch waits for images that are just being decoded: it takes little longer than a single image, and the cores
        are busy decoding anyway. With several callers, Jina and decoding keep one core busy. A thread of a light model
        would have to wait for that core, and the other threads for it. So the model then uses one thread less.

        Where enough images wait, each core computes a batch of its own.
        """
        while (item := self._items.take()) is not None:
            from .inference import torch_threads  # only here, because an item's model has imported it already

            shared = item.version.light and self._callers() > 1
            threads = max(1, self._threads - 1) if shared else self._threads
            if self._is_enough_for(threads, item.version):
                self._beside.wait_for(busy=threads - 1)
                self._beside.put(self._batch(item, self._batch_of_a_core(threads)))
            else:
                self._beside.wait_for(busy=0)
                with torch_threads(threads):
                    self._embed(self._batch(item, largest_batch(item.version.device, threads)))
            del item  # while there is nothing to do, no version is held in memory by it

    def _is_enough_for(self, cores: int, version: Version) -> bool:
        """Whether there are so many images that each core should compute a batch of its own.

        While some cores still do, they cannot all share one. Only graphs are used by several threads at once: whether
        other people's code may be, nobody knows.
        """
        if version.graph is None or cores == 1:
            return False
        waiting = self._waiting + 1
        each_has_some = waiting > BATCH_OF_A_THREAD * (cores - 1)
        return self._beside.busy > 0 or (each_has_some and waiting + self._embedded_last >= MANY_FOR_A_CORE * cores)

    def _batch_of_a_core(self, cores: int) -> int:
        """Return how many images at most. Larger batches take less time an image, but others would wait longer."""
        large = self._callers() == 1 and self._waiting + 1 >= BATCH_OF_A_CORE * cores
        return BATCH_OF_A_CORE if large else BATCH_OF_A_THREAD

    @property
    def _waiting(self) -> int:
        """How many images are decoded, being decoded, or wait for that."""
        return self._preparing + len(self._items)

    def _embed(self, batch: list[_Item]) -> None:
        wanted = [each for each in batch if not each.request.abandoned]
        self._embedded_last = len(wanted)
        if wanted:
            self._batched(len(wanted))
            _embed(wanted)

    def _batch(self, first: _Item, most: int) -> list[_Item]:
        batch = [first]
        while len(batch) < most:
            following = self._items.take(
                timeout=GATHER_SECONDS if self._preparing else 0, fits=lambda item: _alike(item, first)
            )
            if following is None:
                break
            batch.append(following)
        return batch


def largest_batch(device: torch.device, threads: int) -> int:
    """Return how many images are embedded at once at most. Args: threads: of torch."""
    return min(MAX_BATCH, max(LEAST_BATCH, BATCH_OF_A_THREAD * threads)) if device.type == "cpu" else MAX_BATCH


def _started(count: int, name: str, target: Callable[[], None]) -> list[threading.Thread]:
    threads = [threading.Thread(target=target, name=f"{name}-{number}", daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()
    return threads


def _use_one_core() -> None:
    """Let torch use one thread in this thread."""
    torch.get_num_threads()  # else its first computation would take the number that another thread has set last
    torch.set_num_threads(1)


def _alike(one: _Item, other: _Item) -> bool:
    return one.version is other.version and getattr(one.content, "shape", None) == getattr(other.content, "shape", None)


def _embed(batch: list[_Item]) -> None:
    from ..loading.batches import collate

    began = time.time_ns()
    try:
        embeddings = batch[0].version.embed(collate([item.content for item in batch]))
        pairs = list(zip(batch, embeddings, strict=True))
    except Exception as error:  # try each alone, so that a bad one does not spoil the others
        if len(batch) > 1:
            for item in batch:
                _embed([item])
            return
        batch[0].doc.tags[ERROR_TAG] = f"the model cannot embed it: {error}"
    else:
        for item, embedding in pairs:
            item.doc.embedding = embedding
            item.doc.tags[MODEL_TAG] = item.version.name
            item.doc.tags[SPACE_TAG] = item.version.space
    for item in batch:
        if item.request.stages is not None:
            item.request.stages.ran("forward", began)
        item.request.finished()
