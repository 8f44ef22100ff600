"""Customers of a service that is often killed. They repeat a request until it is answered, and keep a ledger."""

import asyncio
import itertools
import random
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from benchmarks.common import textured
from benchmarks.traffic import Caller, RequestFailed
from executor.documents import Document, DocumentArray, RunStatus

IMAGE = 24  # pixels of a document's side
REQUEST = 6  # documents in a request
REPEATED_SHARE = 0.2  # share of the answered requests that are sent again
PATIENCE = 600.0  # seconds until a request must be answered; runs may stand still twice as long
SHARED = {"batch_size": 16, "seed": 1, "precision": "fp32"}


class Recipe(NamedTuple):
    """Documents and options of a run. All runs of one recipe must end with the same weights."""

    train: DocumentArray
    held_out: DocumentArray
    options: dict[str, Any]


class Ledger:
    """The recipe of each run, the ids of its documents that were acknowledged, and how it ended."""

    def __init__(self) -> None:
        self.recipes: dict[str, str] = {}
        self.acknowledged: dict[str, set[str]] = {}
        self.ended: dict[str, RunStatus] = {}


def recipes(epochs: int, *, tiny: bool) -> dict[str, Recipe]:
    """Return recipes that together need all parts of a checkpoint: proxies, an average, a memory, a best model."""

    def documents(name: str, count: int, first: int = 0) -> DocumentArray:
        return DocumentArray(
            Document(
                id=f"{name}{number}",
                blob=textured(number % 4, first + number, IMAGE, IMAGE),
                tags={"finetuner_label": number % 4},
            )
            for number in range(count)
        )

    def unlabelled(count: int) -> DocumentArray:
        docs = documents("u", count)
        for doc in docs:
            doc.tags = {}
        return docs

    every = {
        "class": Recipe(
            documents("c", 48),
            documents("e", 12, 1000),
            SHARED | {"kind": "class", "loss": "proxy_anchor", "epochs": epochs, "ema": 0.9, "promote": "always"},
        ),
        "memory": Recipe(
            documents("m", 48),
            DocumentArray(),
            SHARED | {"kind": "class", "loss": "ntxent", "epochs": epochs, "memory_size": 32, "val_split": 0.25},
        ),
        "unlabeled": Recipe(
            unlabelled(40),
            DocumentArray(),
            SHARED | {"kind": "unlabeled", "epochs": epochs, "promote": "never"},
        ),
    }
    return {"class": every["class"]} if tiny else every


async def insist(caller: Caller, docs: Any, **parameters: Any) -> None:
    """Send a request to `/fit` again and again until it is acknowledged."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            await caller.post("/fit", docs, **parameters)
            return
        except RequestFailed:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.2)


async def deliver(caller: Caller, run: str, recipe: Recipe, chance: random.Random, ledger: Ledger) -> None:
    """Post the documents of a run in order, a few at a time, and note which are acknowledged."""
    ledger.acknowledged[run] = set()
    shared = recipe.options | {"run": run, "total": len(recipe.train)}
    for split, docs in (("eval", recipe.held_out), ("train", recipe.train)):
        for start in range(0, len(docs), REQUEST):
            some = docs[start : start + REQUEST]
            await insist(caller, some, split=split, **shared)
            ledger.acknowledged[run] |= {doc.id for doc in some}
            if chance.random() < REPEATED_SHARE:
                await insist(caller, some, split=split, **shared)
            await asyncio.sleep(chance.uniform(0, 0.4))


async def wait_for_end(caller: Caller, run: str, ledger: Ledger) -> None:
    """Ask until the run has ended, and note its status. Give up if for a long time no run has made any progress."""
    deadline = time.monotonic() + PATIENCE * 2
    seen: object = None
    while time.monotonic() < deadline:
        try:
            statuses = await caller.post("/status")
        except RequestFailed:
            statuses = []
        for status in statuses:
            if status.run == run and status.ended_at is not None:
                ledger.ended[run] = status
                return
        stand = [(status.run, status.state, status.attempts, status.step) for status in statuses]
        if statuses and stand != seen:
            deadline, seen = time.monotonic() + PATIENCE * 2, stand
        await asyncio.sleep(0.3)


async def have_one_trained(caller: Caller, run: str, recipe: Recipe, chance: random.Random, ledger: Ledger) -> None:
    """Deliver the documents of a run and wait until it has ended."""
    await deliver(caller, run, recipe, chance, ledger)
    await wait_for_end(caller, run, ledger)


async def have_trained(
    callers: Sequence[Caller], of: dict[str, Recipe], seed: int, ledger: Ledger, enough: Callable[[], bool]
) -> None:
    """Have runs trained until `enough()`, one run for each caller at a time."""
    names = itertools.cycle(of)
    while not enough():
        under_way = []
        for caller in callers:
            run = f"run-{len(ledger.recipes)}"
            ledger.recipes[run] = name = next(names)
            chance = random.Random(f"{seed} {run}")
            under_way.append(have_one_trained(caller, run, of[name], chance, ledger))
        await asyncio.gather(*under_way)
