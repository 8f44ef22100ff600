"""The nearest pictures of a gallery: its embeddings, computed once for each space and kept.

A gallery is embedded in the background, by the way of `/embed` and as one caller among others: a few pictures at a time
while others call, more while nobody does. Blocks of pictures are taken at random, so that what is embedded so far is a
fair part of all. Each embedding is kept by what its picture is: after a restart, or when a few files were added, only
what is new is computed. A gallery that brings embeddings of the space along needs none of that.
"""

import asyncio
import contextlib
import logging
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..documents import ERROR_TAG, SPACE_TAG, Document
from ..errors import Conflict, FinetunerError, Overloaded
from ..images.policy import ImagePolicy
from ..store.cache import Cache
from .content_keys import content_key
from .embedder import Embedder
from .galleries import Gallery, documents_at
from .pipeline import Version

KEPT_BYTES = 2 << 30  # of embeddings in the workspace: 800,000 of the default model
MEMORY_BYTES = 256 << 20  # of embeddings in memory: 100,000 of the default model
KEPT = 8  # galleries; what was begun of others goes on when they are asked for again
BLOCK = 64  # pictures that are looked up at a time
_FEW, _MANY = 4, 32  # pictures embedded at a time, while others call `/embed` and while nobody does
_PATIENCE = 0.25  # seconds for which `/embed` goes first
_GLANCE = 0.01
_ROWS = 4096  # similarities computed at a time

_log = logging.getLogger(__name__)


class Near(NamedTuple):
    """A picture near to a query. Attributes: number: in the gallery. similarity: the cosine."""

    number: int
    similarity: float


class Embedded:
    """The embeddings of a gallery in one space, as far as there are any.

    Attributes:
        numbers: (M,) int64, which pictures of the gallery are looked at; fewer than all if all do not fit into memory.
        looked: how many of them were embedded, or could not be. failed: how many could not.
        done: set when that is all of them.
    """

    def __init__(self, gallery: Gallery, numbers: np.ndarray) -> None:
        self.gallery = gallery
        self.numbers = numbers
        self.looked = self.failed = 0
        self.done = asyncio.Event()
        self.trouble: Exception | None = None
        self.task: asyncio.Task[None] | None = None
        self._vectors: np.ndarray | None = None  # (M, D) float16, of unit length; 0 where there is none

    @property
    def bytes(self) -> int:
        return 0 if self._vectors is None else self._vectors.nbytes

    def put(self, places: np.ndarray, vectors: Sequence[np.ndarray | None]) -> None:
        """Add embeddings at places of `numbers`; None where a picture cannot be embedded."""
        for place, vector in zip(places.tolist(), vectors, strict=True):
            if vector is not None:
                if self._vectors is None:
                    self._vectors = np.zeros((len(self.numbers), len(vector)), np.float16)
                self._vectors[place] = vector / max(float(np.linalg.norm(vector)), 1e-12)
        self.failed += sum(vector is None for vector in vectors)
        self.looked += len(vectors)

    def put_all(self, vectors: np.ndarray) -> None:
        """Set all embeddings, (M, D)."""
        lengths = np.linalg.norm(vectors.astype(np.float32), axis=1, keepdims=True)
        self._vectors = (vectors / np.maximum(lengths, 1e-6)).astype(np.float16)
        self.failed = int((lengths == 0).sum())
        self.looked = len(vectors)

    async def enough(self, pictures: int) -> None:
        """Wait until so many pictures were embedded, or all of them. Raises: FinetunerError: they cannot be."""
        while not self.done.is_set() and self.looked < pictures:
            await asyncio.sleep(_GLANCE)
        if self.trouble is not None:
            raise self.trouble

    def some(self, most: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the numbers (N,) int64 and the embeddings (N, D) float32 of pictures, at most so many, in order.

        Of more some are drawn.
        """
        if self._vectors is None:
            return np.empty(0, np.int64), np.empty((0, 0), np.float32)
        there = np.flatnonzero(self._vectors.any(axis=1))
        if len(there) > most:
            there = np.sort(np.random.default_rng(0).permutation(there)[:most])
        return self.numbers[there], self._vectors[there].astype(np.float32)

    def nearest(self, query: np.ndarray, limit: int) -> list[Near]:
        """Return the nearest pictures, nearest first. Args: query: (D,) float32."""
        vectors = self._vectors
        if vectors is None:
            return []
        unit = query / max(float(np.linalg.norm(query)), 1e-12)
        parts = [
            vectors[start : start + _ROWS].astype(np.float32) @ unit for start in range(0, len(vectors), _ROWS)
        ]  # one part after the other in 32 bits: all together would take twice the memory of all embeddings
        similarity = np.concatenate(parts)
        similarity[similarity == 0] = -np.inf  # where there is no embedding
        top = np.argpartition(-similarity, min(limit, len(similarity)) - 1)[:limit]
        top = top[np.argsort(-similarity[top], kind="stable")]
        return [
            Near(int(self.numbers[place]), float(similarity[place])) for place in top if similarity[place] > -np.inf
        ]


class Neighbours:
    """Embeds galleries, and keeps what it has.

    Args: kept: where embeddings are kept. policy: what may be read.
    """

    def __init__(self, embedder: Embedder, kept: Cache, policy: ImagePolicy) -> None:
        self._embedder = embedder
        self._kept = kept
        self._policy = policy
        self._galleries: OrderedDict[tuple[str, int, str], Embedded] = OrderedDict()

    async def of(self, gallery: Gallery, version: Version) -> Embedded:
        """Return the embeddings of a gallery by a version; what is missing is computed from now on.

        Raises: FinetunerError: they cannot be computed.
        """
        key = gallery.name, gallery.owner, version.space
        known = self._galleries.get(key)
        if known is not None and known.trouble is not None:
            del self._galleries[key]
            raise known.trouble
        if known is None or known.gallery.state != gallery.state:
            self._stop(known)
            known = self._galleries[key] = Embedded(gallery, self._chosen(gallery, version))
            known.task = asyncio.get_running_loop().create_task(self._fill(known, version))
        self._galleries.move_to_end(key)
        self._let_go()
        return known

    def _chosen(self, gallery: Gallery, version: Version) -> np.ndarray:
        most = max(1, MEMORY_BYTES // (2 * version.model.dim))
        if gallery.count <= most:
            return np.arange(gallery.count)
        return np.sort(np.random.default_rng(0).permutation(gallery.count)[:most])

    def _let_go(self) -> None:
        """Let go of the galleries that were asked for longest ago, until the others fit into memory."""
        while len(self._galleries) > 1 and (
            len(self._galleries) > KEPT or sum(each.bytes for each in self._galleries.values()) > MEMORY_BYTES
        ):
            _, oldest = self._galleries.popitem(last=False)
            self._stop(oldest)

    def _stop(self, embedded: Embedded | None) -> None:
        if embedded is not None and embedded.task is not None:
            embedded.task.cancel()

    async def _fill(self, embedded: Embedded, version: Version) -> None:
        try:
            found = await asyncio.to_thread(embedded.gallery.vectors, version.space)
            if found is not None:
                vectors, there = found
                vectors[~there] = 0
                await asyncio.to_thread(embedded.put_all, vectors[embedded.numbers])
                return
            blocks = np.random.default_rng(0).permutation(-(-len(embedded.numbers) // BLOCK))
            for block in blocks.tolist():
                places = np.arange(block * BLOCK, min((block + 1) * BLOCK, len(embedded.numbers)))
                await self._fill_block(embedded, places, version)
        except Exception as error:
            if not isinstance(error, FinetunerError):
                _log.exception("A gallery cannot be embedded")
            embedded.trouble = error
        finally:
            embedded.done.set()

    async def _fill_block(self, embedded: Embedded, places: np.ndarray, version: Version) -> None:
        gallery = embedded.gallery
        docs = await asyncio.to_thread(documents_at, gallery, embedded.numbers[places].tolist())
        keys = await asyncio.to_thread(self._keys, docs, gallery.owner)
        known = await asyncio.to_thread(self._kept.get, version.space, [key for key in keys if key is not None])
        vectors: list[np.ndarray | None] = [
            None if key is None or key not in known else np.frombuffer(known[key], np.float16).astype(np.float32)
            for key in keys
        ]
        made: dict[bytes, bytes] = {}
        missing = [number for number, vector in enumerate(vectors) if vector is None]
        while missing:
            some, missing = _parted(missing, await self._how_many())
            asked = [docs[number] for number in some]
            await self._embed(asked, version)
            for number, doc in zip(some, asked, strict=True):
                if ERROR_TAG not in doc.tags and doc.embedding is not None:
                    if doc.tags[SPACE_TAG] != version.space:
                        raise Conflict(f"The version {version.name!r} was replaced meanwhile; ask again.")
                    vectors[number] = np.asarray(doc.embedding, np.float32)
                    if (key := keys[number]) is not None:
                        made[key] = np.asarray(doc.embedding, np.float16).tobytes()
        embedded.put(places, vectors)
        if made:
            await asyncio.to_thread(self._kept.put, version.space, made, gallery.owner)

    def _keys(self, docs: Sequence[Document], owner: int) -> list[bytes | None]:
        return [content_key(doc, self._policy, owner) for doc in docs]

    async def _how_many(self) -> int:
        """Let the calls of others go first for a moment. Return how many pictures to embed next."""
        loop = asyncio.get_running_loop()
        until, were_there = loop.time() + _PATIENCE, False
        while self._embedder.waiting and loop.time() < until:
            were_there = True
            await asyncio.sleep(_GLANCE)
        return _FEW if were_there else _MANY

    async def _embed(self, docs: list[Document], version: Version) -> None:
        while True:
            try:
                await self._embedder.embed(docs, model=version.name)
                return
            except Overloaded:
                await asyncio.sleep(1.0)

    async def forget(self, run: int) -> None:
        """Remove the embeddings of a run's documents. Args: run: its number."""
        stopped = [self._galleries.pop(key) for key in list(self._galleries) if key[1] == run]
        for embedded in stopped:
            self._stop(embedded)
        await asyncio.gather(*(each.task for each in stopped if each.task is not None), return_exceptions=True)
        await asyncio.to_thread(self._kept.forget, run)

    def close(self) -> None:
        """Stop what is being embedded."""
        for embedded in self._galleries.values():
            if embedded.task is not None and not embedded.task.done():
                with contextlib.suppress(RuntimeError):  # its loop has ended already
                    embedded.task.get_loop().call_soon_threadsafe(embedded.task.cancel)
        self._kept.close()


def _parted(numbers: list[int], count: int) -> tuple[list[int], list[int]]:
    return numbers[:count], numbers[count:]
