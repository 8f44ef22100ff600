"""The embedder serves its callers in turn: one is slowed, never refused, and its slow pictures are its own trouble."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import coloured, encoded, images
from executor import Document, DocumentArray
from executor.compute.device import choose_device
from executor.errors import Overloaded
from executor.images import remote
from executor.images.budget import reserved
from executor.models.model import EmbeddingModel
from executor.models.versions import WorkspaceVersions
from executor.parameters import ExecutorOptions, parse_executor_options
from executor.serving.embedder import COUNTED_OF_A_CALLER, Embedder
from executor.serving.inference import torch_threads
from executor.serving.pipeline import BATCH_OF_A_CORE, BATCH_OF_A_THREAD, largest_batch
from executor.store.published import KEPT_WAY
from executor.store.workspace import Workspace
from serving import QUICK

pytestmark = pytest.mark.compute

LARGE = 2000  # documents of a call that is not done when another comes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace; its base model is built once."""
    return tmp_path_factory.mktemp("workspace")


@asynccontextmanager
async def embedder(
    folder: Path, batched: Callable[[int], None] = lambda images: None, **options: Any
) -> AsyncIterator[Embedder]:
    """An embedder with its model loaded, in the running event loop."""
    parsed = parse_executor_options(QUICK | {"fast_inference": True} | options).with_roots()
    running = Embedder(WorkspaceVersions(Workspace(folder), parsed, lambda: "base"), parsed, batched)
    try:
        await running.embed(images(1))
        yield running
    finally:
        await asyncio.to_thread(running.close)


def in_turn(folder: Path, play: Callable[[Embedder], Awaitable[None]], **options: Any) -> None:
    """Let `play` call an embedder."""

    async def with_embedder() -> None:
        async with embedder(folder, **options) as running:
            await asyncio.wait_for(play(running), 120)

    asyncio.run(with_embedder())


def embedded(docs: DocumentArray) -> int:
    return sum(doc.embedding is not None for doc in docs)


def test_a_call_of_many_pictures_is_embedded_in_batches_for_which_nobody_waits_long(folder: Path) -> None:
    batches: list[int] = []

    async def play(embedder: Embedder) -> None:
        await embedder.embed(images(200))

    in_turn(folder, play, batched=batches.append)
    assert sum(batches) == 201
    assert 1 < max(batches) <= largest_batch(choose_device(ExecutorOptions()), torch.get_num_threads())


def test_many_pictures_are_embedded_by_each_core_on_its_own_and_few_by_all_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A light model would leave a core to several callers.
    monkeypatch.setattr("executor.serving.inference.LIGHT_SECONDS", 0.0)
    found: dict[str, DocumentArray] = {}
    batches: list[tuple[str, int]] = []

    def batched(count: int) -> None:
        batches.append((threading.current_thread().name, count))

    async def play(embedder: Embedder) -> None:
        docs = images(200)
        await embedder.embed(docs)
        found["plain" if embedder.version("base").graph is None else "graph"] = docs

    def beside() -> list[int]:
        return [count for name, count in batches if name.startswith("embedder-beside")]

    async def play_several(embedder: Embedder) -> None:
        await play(embedder)
        assert batches[0] == ("embedder-0", 1)
        assert sum(beside()) > 150
        assert max(beside()) == BATCH_OF_A_CORE
        batches.clear()
        await asyncio.gather(*(embedder.embed(images(100)) for _ in range(2)))
        assert sum(beside()) > 150
        assert sorted(beside())[-2] == BATCH_OF_A_THREAD  # the first may be taken before the other caller is known

    in_turn(tmp_path, play, fast_inference=False, device="cpu")  # graphs are for CPUs
    (Workspace(tmp_path).base / KEPT_WAY).write_text("fp32 graph")
    with torch_threads(2):
        in_turn(tmp_path, play_several, batched=batched, fast_inference=True, device="cpu")
    for plain, by_graph in zip(found["plain"], found["graph"], strict=True):
        np.testing.assert_allclose(plain.embedding, by_graph.embedding, atol=1e-4)


def test_one_call_may_have_any_number_of_documents(folder: Path) -> None:
    async def play(embedder: Embedder) -> None:
        docs = images(300)
        await embedder.embed(docs)
        assert embedded(docs) == 300

    in_turn(folder, play, max_queued_images=1)


def test_a_small_call_is_done_long_before_a_large_one_that_came_first(folder: Path) -> None:
    async def play(embedder: Embedder) -> None:
        large, small = images(LARGE), images(1)
        first = asyncio.create_task(embedder.embed(large))
        await asyncio.sleep(0)
        await embedder.embed(small)
        assert embedded(small) == 1
        assert not first.done()
        assert embedded(large) < LARGE / 2
        await first
        assert embedded(large) == LARGE

    in_turn(folder, play)


def test_a_queue_that_many_callers_have_filled_refuses_the_next(folder: Path) -> None:
    async def play(embedder: Embedder) -> None:
        calls = [asyncio.create_task(embedder.embed(images(100))) for _ in range(4)]
        await asyncio.sleep(0)
        with pytest.raises(
            Overloaded, match=r"400 images of 4 callers wait .* max_queued_images is 16 .* at most 4 count"
        ):
            await embedder.embed(images(1))
        await asyncio.gather(*calls)
        await embedder.embed(images(1))

    in_turn(folder, play, max_queued_images=4 * COUNTED_OF_A_CALLER)


def test_calls_of_one_caller_are_not_refused_for_each_other(folder: Path) -> None:
    async def play(embedder: Embedder) -> None:
        parts = [images(50) for _ in range(10)]
        await asyncio.gather(*(embedder.embed(part, caller="a door's call") for part in parts))
        assert [embedded(part) for part in parts] == [50] * 10

    in_turn(folder, play, max_queued_images=1)


def test_one_jina_call_of_many_requests_leaves_room_in_the_default_queue() -> None:
    requests_at_a_time = 1000  # of Jina's client
    assert requests_at_a_time * COUNTED_OF_A_CALLER < parse_executor_options({}).max_queued_images


def test_what_a_caller_that_has_gone_had_sent_is_not_embedded(folder: Path) -> None:
    async def play(embedder: Embedder) -> None:
        docs = images(LARGE)
        leaving = asyncio.create_task(embedder.embed(docs))
        await asyncio.sleep(0)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        await embedder.embed(images(1))
        assert embedded(docs) < LARGE / 2
        await embedder.embed(images(1))  # and nothing of it counts as waiting

    in_turn(folder, play, max_queued_images=1)


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A server that takes connections and says nothing; loopback stands in for a public address."""
    monkeypatch.setitem(remote.fetch.__kwdefaults__, "forbidden", lambda address: False)
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        yield server


def test_slow_servers_of_one_caller_hold_up_nobody_else(folder: Path, silent: socket.socket) -> None:
    host = f"http://127.0.0.1:{silent.getsockname()[1]}"

    async def play(embedder: Embedder) -> None:
        slow = DocumentArray(Document(uri=f"{host}/{number}.png") for number in range(20))
        waiting = asyncio.create_task(embedder.embed(slow))
        await asyncio.sleep(0.1)
        quick = images(20)
        await embedder.embed(quick)
        assert embedded(quick) == 20
        assert not waiting.done()
        silent.close()
        await waiting
        assert all("cannot be fetched" in doc.tags["finetuner_error"] for doc in slow)

    in_turn(folder, play, allow_remote_uris=True)


def test_large_pictures_hold_up_no_small_one(folder: Path) -> None:
    large_png = encoded(np.zeros((3200, 3200, 3), np.uint8))

    async def play(embedder: Embedder) -> None:
        large = DocumentArray(Document(buffer=large_png) for _ in range(4))
        small = images(20)
        with reserved(2**50, limit=1):  # all the memory for large pictures is taken
            waiting = asyncio.create_task(embedder.embed(large))
            await asyncio.sleep(0.1)
            await embedder.embed(small)
            assert (embedded(small), embedded(large)) == (20, 0)
        await waiting
        assert embedded(large) == 4

    in_turn(folder, play)


def test_a_document_that_cannot_be_used_harms_no_other(folder: Path) -> None:
    async def play(embedder: Embedder) -> None:
        docs = DocumentArray([Document(uri="data:," + "%" * 1_000_000), *images(1), Document(buffer=b"GIF89a")])
        docs.append(Document(uri="data:;base64,", blob=coloured(0)))  # the blob counts
        docs.append(Document(buffer=encoded(coloured(1))))
        await embedder.embed(docs)
        assert [doc.embedding is not None for doc in docs] == [False, True, False, True, True]

    in_turn(folder, play)


class Published(WorkspaceVersions):
    """Versions of any name, as they come one after the other."""

    def load(self, version: str) -> EmbeddingModel:
        return super().load("base")

    def folder(self, version: str) -> Path:
        return super().folder("base")


def test_a_reader_keeps_no_more_versions_than_a_writer(folder: Path) -> None:
    """It loads each version by `renew`, for as long as it runs: one a day is a model a day."""
    options = parse_executor_options(QUICK).with_roots()
    served = "base"
    embedder = Embedder(Published(Workspace(folder), options, lambda: served), options)
    for number in range(6):
        embedder.renew(f"v{number}")
        served = f"v{number}"
    assert [name for name in ("base", *map("v{}".format, range(6))) if embedder.loaded(name)] == ["v3", "v4", "v5"]
    embedder.close()
