"""Look for anything that grows: train short runs one after another, with `/embed` and `/status` called all the time.

    .venv/bin/python -m benchmarks.soak [--minutes 10] [--quick]

`/embed` is called by gRPC at the Flow's gateway, and by HTTP at the door of our own. Each run is promoted. After each
run, all but the newest three are deleted through `/delete`, and we take a sample. It has the memory (PSS, which divides
shared pages among processes), open files, threads and processes of the service without its trainer, the bytes of the
workspace, and the latency of the `/embed` requests since the last sample. The first six samples are left out: in this
time models and libraries are loaded, and the first runs are kept. For the rest we compare the median of the first
quarter with that of the last one, and fit a line through all samples for the slope. A row is flat if its last quarter
is within the bound next to it. The exit code is 1 if a row is not flat, if there were too few runs to tell (except with
--quick and --tiny), or if a request failed.
"""

import asyncio
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.common import free_port, options, print_machine, print_table, textured
from benchmarks.serving import Served, words_of
from benchmarks.traffic import Caller, DoorCaller, Request, end
from executor.documents import Document, DocumentArray, RunStatus
from executor.store.workspace import find_workspace

DOCUMENTS = 24
KEPT = 3  # ended runs that are not deleted
LEFT_OUT = KEPT + 3  # samples at the beginning, while the first runs are kept and models and libraries are loaded
FEWEST = 8  # samples that are needed to judge
PATIENCE = 600.0  # seconds for one run
SERVICE = {"model": "small", "input_size": 16, "trainer_threads": 1}
OPTIONS: dict[str, Any] = {
    "kind": "class",
    "epochs": 2,
    "batch_size": 12,
    "val_split": 0.25,
    "precision": "fp32",
    "promote": "always",
}
MB = 2**20


class Quantity(NamedTuple):
    """One row. The last quarter may exceed the first by this share of it, plus `more` in the row's unit."""

    name: str
    share: float
    more: float


QUANTITIES = (
    Quantity("memory of the executor, MB", 0.03, 4),
    Quantity("memory of the gateway, MB", 0.03, 4),
    Quantity("open files", 0, 1),
    Quantity("threads", 0, 1),
    Quantity("processes", 0, 0),
    Quantity("workspace, MB", 0.02, 0.1),
    Quantity("/embed, median ms", 0.25, 2),
    Quantity("/embed, 95th percentile ms", 0.5, 10),
)


def sample(served: Served, latencies: list[float]) -> tuple[float, ...]:
    """Measure one value of each quantity."""
    executor = served.executor_pid()
    memory = {True: 0.0, False: 0.0}
    files = threads = count = 0
    for process in served.processes():
        if {"train", "standby"} & words_of(process):
            continue
        with process.oneshot():
            memory[process.pid == executor] += process.memory_full_info().pss / MB
            files += process.num_fds()
            threads += process.num_threads()
            count += 1
    disk = sum(size_of(Path(folder, name)) for folder, _, names in os.walk(served.workspace) for name in names) / MB
    quantiles = np.percentile([1000 * latency for latency in latencies], [50, 95]) if latencies else (np.nan, np.nan)
    return memory[True], memory[False], files, threads, count, disk, *map(float, quantiles)


def size_of(path: Path) -> int:
    """Return the bytes of a file; 0 if it is gone."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def documents(number: int) -> DocumentArray:
    """Return labelled images for a run."""
    return DocumentArray(
        Document(blob=textured(image % 4, number + image, 24, 24), tags={"finetuner_label": image % 4})
        for image in range(DOCUMENTS)
    )


async def train(caller: Caller, run: str, number: int) -> RunStatus:
    """Train one run and return its last status."""
    await caller.post("/fit", documents(number), run=run, total=DOCUMENTS, **OPTIONS)
    deadline = time.monotonic() + PATIENCE
    while True:
        status: RunStatus = (await caller.post("/status", run=run))[0]
        if status.ended_at is not None:
            return status
        if time.monotonic() > deadline:
            raise TimeoutError(f"run {run} is still {status.state}")
        await asyncio.sleep(0.2)


async def soak(served: Served, door: int, minutes: float, record: list[Request]) -> list[tuple[float, ...]]:
    """Train one run after another; return a sample for each."""
    steady = [
        Caller(served.port, record).embed_steadily(),
        Caller(served.port, record).ask_steadily(),
        DoorCaller(door, record).embed_steadily(),
    ]
    background = [asyncio.create_task(task) for task in steady]
    caller = Caller(served.port, record)
    samples: list[tuple[float, ...]] = []
    ended: list[str] = []
    seen = 0
    until = time.monotonic() + minutes * 60
    try:
        while time.monotonic() < until:
            status = await train(caller, f"run-{len(samples)}", len(samples))
            if status.state != "succeeded":
                raise RuntimeError(f"{status.run} is {status.state}: {status.error}")
            ended.append(status.run)
            while len(ended) > KEPT:
                await caller.post("/delete", run=ended.pop(0))
            latencies = [request.ended - request.began for request in record[seen:] if request.endpoint == "/embed"]
            seen = len(record)
            samples.append(await asyncio.to_thread(sample, served, latencies))
    finally:
        await end(background)
    return samples


def judged(samples: list[tuple[float, ...]]) -> Iterator[tuple[str, float, float, float, str, str]]:
    """Yield a row for each quantity: its name, first and last quarter, slope per run, bound, verdict."""
    steady = samples[LEFT_OUT:] or samples
    quarter = max(1, len(steady) // 4)
    for quantity, values in zip(QUANTITIES, zip(*steady, strict=True), strict=True):
        first, last = statistics.median(values[:quarter]), statistics.median(values[-quarter:])
        slope = float(np.polyfit(range(len(values)), values, 1)[0]) if len(values) > 1 else 0.0
        bound = first * (1 + quantity.share) + quantity.more
        verdict = "too few runs" if len(samples) < LEFT_OUT + FEWEST else "flat" if last <= bound else "NOT FLAT"
        yield quantity.name, first, last, slope, f"≤ {bound:.4g}", verdict


def main() -> int:
    """Run the benchmark and return the exit code."""
    parser = options(__doc__)
    parser.add_argument("--minutes", type=float, help="how long (10; quick: 1; tiny: a quarter)")
    arguments = parser.parse_args()
    minutes = arguments.minutes or (0.25 if arguments.tiny else 1.0 if arguments.quick else 10.0)
    signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    print_machine()
    record: list[Request] = []
    door = free_port()
    settings = SERVICE | {"http_port": door}
    with tempfile.TemporaryDirectory(prefix="soak-") as folder, Served("ours", Path(folder), **settings) as served:
        try:
            samples = asyncio.run(soak(served, door, minutes, record))
        except KeyboardInterrupt:
            return 130
        kept = [size_of(path) for path in (find_workspace(served.workspace).root / "runs").rglob("*")]
    rows = list(judged(samples))
    failed = [request for request in record if request.error is not None]
    print(
        f"{len(samples)} runs, {len(record)} requests; {sum(kept) / MB / min(KEPT, len(samples)):.3g} MB a kept run\n"
    )
    print_table(("", "first quarter", "last quarter", "slope a run", "bound", "verdict"), rows)
    for request in failed[:20]:
        print(f"{request.endpoint}: {request.error}")
    accepted = {"flat", "too few runs"} if arguments.quick or arguments.tiny else {"flat"}
    bad = sum(row[-1] not in accepted for row in rows) + len(failed)
    print(f"not_flat_or_failed: {bad}", flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
