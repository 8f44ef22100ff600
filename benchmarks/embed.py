"""Measure images per second and latency of `/embed`, idle and beside a trainer, and how much that slows the trainer.

    .venv/bin/python -m benchmarks.embed [--quick] [--door] [--device cuda] [--no-yields] [--nice N]

Measured: images per second, and p50 and p99 of the latency of a request. One asyncio client process sends over gRPC:
requests with one image, 1, 8 and 32 at a time, and requests with 100 images, one at a time. Images are JPEG buffers of
640×480 or 224×224 uint8 blobs.

The same images go to our own HTTP door, one as a raw body and a hundred as JSON, by a client that costs little; and to
that door with nothing behind it. Its limit is what decoding, the fastest admitted forward (both on every core at once:
`all_cores.py`), and the way there (the no-op's and the client's processor time) allow on all cores together. `--door`
measures only this. With `--device cuda` there is no such limit, because a process that waits for a GPU uses its core.

The limit is the bare model: its forward pass on batches in memory, in evaluation mode, with the same number of threads.
The cost of Jina is the round trip to an Executor that does nothing. The peer is an Executor as people usually write it:
it decodes and embeds one document after the other, with the same model and image loading.

The trainer's images per second come from the steps that `/status` reports, in turn without and with traffic.

Everything that is compared takes turns. Figures are medians over the rounds, and percentiles over all requests of a
cell.
"""

import contextlib
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from docarray import DocList
from jina import Client

from benchmarks.all_cores import AllCores, limit_version
from benchmarks.clients import ClientProcess
from benchmarks.common import (
    free_port,
    jpeg,
    median,
    options,
    print_headline,
    print_machine,
    print_table,
    seconds_of,
    spread,
    textured,
    write_jpegs,
)
from benchmarks.door_noop import ServedNoOp
from benchmarks.door_noop import served as served_noop
from benchmarks.http_clients import client as http_client
from benchmarks.serving import Served
from executor.compute.cores import usable_cores
from executor.documents import Document, DocumentArray, RunStatus
from executor.loading.batches import collate
from executor.models.building import build_model
from executor.models.model import EmbeddingModel, ModelConfig
from executor.serving.pipeline import Version

CLASSES = 16
SIZES = {"small": 128, "default": 160}
BATCH = 64
PAUSE = 0.003  # seconds, about as long as a round trip to an Executor that does nothing


class Traffic(NamedTuple):
    """Requests with `images` images each, `concurrency` requests at a time."""

    form: str
    images: int
    concurrency: int

    def __str__(self) -> str:
        return f"{self.images} × {self.form}, {self.concurrency} at a time"


SINGLE = [Traffic("jpeg", 1, concurrency) for concurrency in (1, 8, 32)]
LARGE = [Traffic(form, 100, 1) for form in ("blob", "jpeg")]


class Cell:
    """The measurements of one target with one kind of traffic."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.latencies: list[float] = []

    def add(self, rate: float, latencies: list[float]) -> None:
        """Add one window."""
        self.rates.append(rate)
        self.latencies += latencies

    def percentile(self, share: int) -> float:
        """Return a percentile of the latency, in ms."""
        return 1000 * float(np.percentile(self.latencies, share))


Cells = dict[tuple[str, Traffic], Cell]


def forward_rate(model: EmbeddingModel, size: int, batch: int, seconds: float) -> float:
    """Return images per second of the bare model."""
    images = inputs(model, batch, size)
    done, began = 0, time.perf_counter()
    with torch.inference_mode():
        compute(model, images)
        began = time.perf_counter()
        while time.perf_counter() - began < seconds:
            compute(model, images)
            done += batch
    return done / (time.perf_counter() - began)


def inputs(model: EmbeddingModel, batch: int, size: int) -> torch.Tensor:
    """Return a batch where the model is."""
    images = torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
    return images.to(next(model.parameters()).device)


def compute(model: EmbeddingModel, images: torch.Tensor) -> None:
    """Compute the embeddings, and wait for a GPU."""
    model(images)
    if images.is_cuda:
        torch.cuda.synchronize()


def forward_latency(model: EmbeddingModel, size: int, pause: float, seconds: float) -> list[float]:
    """Return the seconds of single-image forward passes, with pauses between them, which leave the caches cold."""
    images = inputs(model, 1, size)
    took, end = [], time.perf_counter() + seconds
    with torch.inference_mode():
        while time.perf_counter() < end:
            took.append(seconds_of(lambda: compute(model, images)))
            time.sleep(pause)
    return took


def rested_latency(version: Version, pause: float, seconds: float) -> list[float]:
    """Return the seconds of decoding and embedding one picture as the service does, with pauses between them."""
    files = [jpeg(textured(number % CLASSES, number)) for number in range(CLASSES)]
    took, end = [], time.perf_counter() + seconds

    def embed(file: bytes) -> None:
        version.embed(collate([version.preprocess(Document(buffer=file))]))

    while time.perf_counter() < end:
        took.append(seconds_of(lambda: embed(files[len(took) % CLASSES])))
        time.sleep(pause)
    return took


class Trainer:
    """A run of the service that trains for as long as the benchmark needs it."""

    def __init__(self, port: int, files: list[tuple[str, int]]) -> None:
        self._client = Client(host="127.0.0.1", port=port)
        docs = DocumentArray(Document(uri=path, tags={"finetuner_label": label}) for path, label in files)
        parameters = {"run": "load", "total": len(docs), "epochs": 100_000, "batch_size": BATCH}
        self._client.post("/fit", docs, parameters=parameters, return_type=DocList[RunStatus])
        while self._status().step < 2:
            time.sleep(0.2)

    def _status(self) -> RunStatus:
        found = self._client.post("/status", parameters={"run": "load"}, return_type=DocList[RunStatus])[0]
        if found.ended_at is not None:
            raise RuntimeError(f"the run has {found.state}: {found.error}")
        return found

    def _next_step(self) -> tuple[int, float]:
        """Wait until the next step is reported; return its number and the time."""
        step = self._status().step
        while (reached := self._status().step) == step:
            time.sleep(0.02)
        return reached, time.perf_counter()

    def rate(self, during: Any) -> tuple[float, Any]:
        """Return the trainer's images per second while `during` runs, and the result of `during`."""
        first, began = self._next_step()
        result = during()
        last, ended = self._next_step()
        return BATCH * (last - first) / (ended - began), result

    def cancel(self) -> None:
        """Cancel the run."""
        self._client.post("/cancel", parameters={"run": "load"}, return_type=DocList[RunStatus])


def measure_idle(
    client: ClientProcess, ports: dict[str, int], traffics: list[Traffic], seconds: float, rounds: int
) -> Cells:
    """Measure what listens on each port with every kind of traffic, in turns."""
    cells: Cells = defaultdict(Cell)
    for round_number in range(rounds + 1):
        for traffic in traffics:
            for name, port in ports.items():
                window = seconds if round_number else 0.01  # the first round loads models and connects
                measured = client.measure(port, **traffic._asdict(), seconds=window)
                if round_number:
                    cells[name, traffic].add(*measured)
    return cells


def measure_training(
    client: ClientProcess, ours: Served, trainer: Trainer, traffics: list[Traffic], seconds: float, rounds: int
) -> tuple[Cells, dict[str, list[float]]]:
    """Measure our service with every kind of traffic while it trains; also return the trainer's images per second."""
    cells: Cells = defaultdict(Cell)
    trained: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        for traffic in traffics:
            rate, _ = trainer.rate(lambda: time.sleep(seconds))
            trained["no traffic"].append(rate)
            rate, measured = trainer.rate(
                lambda traffic=traffic: client.measure(ours.port, **traffic._asdict(), seconds=seconds)
            )
            trained[str(traffic)].append(rate)
            cells["beside a trainer", traffic].add(*measured)
    return cells, trained


def measure_door(
    client: ClientProcess,
    ours: Served,
    door: int,
    noop: ServedNoOp,
    cores: AllCores,
    version: Version,
    traffics: list[Traffic],
    seconds: float,
    rounds: int,
) -> tuple[Cells, dict[Traffic, list[tuple[float, float]]], list[float]]:
    """Measure our door and its limit in turns.

    Args: version: what is served, in this process.
    Returns: the cells; for each window the processor seconds of an image: those that the limit allows (the no-op's,
        the client's, and those of decoding and the forward pass), and those that our service and the client take; and
        the seconds that decoding and embedding a picture take in this process, after a pause.
    """
    cells: Cells = defaultdict(Cell)
    rested: list[float] = []
    taken: dict[Traffic, list[tuple[float, float]]] = defaultdict(list)
    for round_number in range(rounds + 1):
        for traffic in traffics:
            window = seconds if round_number else 0.01  # the first round loads the model and connects
            before = ours.cpu()
            measured = client.measure(door, **traffic._asdict(), seconds=window)
            used = (ours.cpu() - before) / (traffic.images * len(measured[1])) + client.cpu
            before = noop.cpu()
            of_noop = client.measure(noop.port, **traffic._asdict(), seconds=window)
            if round_number:
                cells["our door", traffic].add(*measured)
                cells["our door, no-op", traffic].add(*of_noop)
                images = traffic.images * len(of_noop[1])
                way = (noop.cpu() - before) / images + client.cpu
                taken[traffic].append((way + cores.seconds_of_an_image(window), used))
        if round_number:
            rested += rested_latency(version, PAUSE, seconds)
    return cells, taken, rested


def print_limits(cells: Cells, taken: dict[Traffic, list[tuple[float, float]]], rested: list[float]) -> None:
    """Print what our door reaches of what decoding, the forward and the way allow on all cores together.

    That is a product: of the part of the cores' time that service and client use, and of what the limit takes of it.
    """
    cores = usable_cores()
    rows = []
    for traffic, windows in taken.items():
        cell = cells["our door", traffic]
        allowed, used = zip(*windows, strict=True)
        shares = [rate * each / cores for rate, each in zip(cell.rates, allowed, strict=True)]
        busy = [rate * each / cores for rate, each in zip(cell.rates, used, strict=True)]
        limit = cores / median(allowed)
        row = str(traffic), median(cell.rates), limit, median(shares), spread(shares), median(busy), cell.percentile(50)
        rows.append(row)
    print_table(("our door", "images/s", "allowed", "of it", "range", "cores busy", "p50 ms"), rows)
    print(
        f"Decoding and embedding one picture after a pause take {1000 * median(rested):.4g} ms (p50) without the door\n"
    )


def rows_of(cells: Cells, limit: float) -> list[tuple[object, ...]]:
    """Return a table row for each cell."""
    return [
        (str(traffic), name, median(cell.rates), median(cell.rates) / limit, cell.percentile(50), cell.percentile(99))
        for (name, traffic), cell in sorted(cells.items(), key=lambda item: str(item[0][1]))
    ]


def main() -> None:
    """Measure and print."""
    parser = options(__doc__)
    parser.add_argument(
        "--no-yields",
        action="store_false",
        dest="trainer_yields",
        default=None,
        help="the executor's option trainer_yields off",
    )
    parser.add_argument("--nice", type=int, dest="trainer_nice", help="the executor's option trainer_nice")
    parser.add_argument("--trainer-threads", type=int, help="the executor's option trainer_threads")
    parser.add_argument("--door", action="store_true", help="measure only our HTTP door and its limit")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where our service computes")
    parser.add_argument("--seconds", type=float, default=3.0, help="of a window")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", choices=SIZES, default="small")
    arguments = parser.parse_args()
    model_name, size = arguments.model, SIZES[arguments.model]
    seconds, rounds, images, traffics = arguments.seconds, arguments.rounds, 512, SINGLE + LARGE
    if arguments.quick:
        seconds, rounds, images, traffics = 0.8, 1, 128, [SINGLE[0], SINGLE[2], LARGE[1]]
    if arguments.tiny:
        arguments.trainer_threads = 1
        seconds, rounds, size, images, traffics = 0.2, 1, 32, 128, [Traffic("jpeg", 1, 4), Traffic("blob", 16, 1)]
    torch.set_num_threads(usable_cores())
    print_machine()
    chosen = {name: getattr(arguments, name) for name in ("trainer_yields", "trainer_nice", "trainer_threads")}
    settings: dict[str, Any] = {name: value for name, value in chosen.items() if value is not None}
    on_gpu = arguments.device == "cuda"
    model = build_model(ModelConfig(model=model_name, input_size=size)).to(arguments.device)
    with tempfile.TemporaryDirectory(prefix="finetuner-") as name:
        folder = Path(name).resolve()
        files = write_jpegs(folder / "images", images, CLASSES)
        forward: dict[int, list[float]] = defaultdict(list)
        paused: list[float] = []
        door_port = free_port()
        settings_of_ours = {
            "allowed_roots": [str(folder)],
            "http_port": door_port,
            "device": arguments.device,
            **settings,
        }
        ours = Served("ours", folder, model=model_name, input_size=size, **settings_of_ours)
        targets = {
            "/embed": ours,
            "sequential": Served("sequential", folder, model=model_name, input_size=size),
            "no-op": Served("noop", folder),
        }
        with contextlib.ExitStack() as running:
            for served in targets.values():
                running.enter_context(served)
            client = running.enter_context(ClientProcess())
            cells: Cells = defaultdict(Cell)
            for _ in range(0 if arguments.door else rounds):
                for batch in (1, BATCH):
                    forward[batch].append(forward_rate(model, size, batch, seconds))
                paused += forward_latency(model, size, PAUSE, seconds)
                ports = {name: served.port for name, served in targets.items()}
                for key, cell in measure_idle(client, ports, traffics, seconds, 1).items():
                    cells[key].rates += cell.rates
                    cells[key].latencies += cell.latencies
            noop = running.enter_context(served_noop(model.dim))
            over_http = running.enter_context(http_client())
            jpegs = [traffic for traffic in traffics if traffic.form == "jpeg"]  # arrays as JSON are no way to send one
            if on_gpu:
                doors = {"our door": door_port, "our door, no-op": noop.port}
                cells |= measure_idle(over_http, doors, jpegs, seconds, rounds)
            else:
                every_core = running.enter_context(AllCores(folder / "limit", model_name, size, usable_cores()))
                embedder, version = limit_version(folder / "limit", model_name, size)
                running.callback(embedder.close)
                door = over_http, ours, door_port, noop, every_core, version, jpegs
                at_door, taken, rested = measure_door(*door, seconds, rounds)
                if arguments.door:
                    print_limits(at_door, taken, rested)
                    return
                cells |= at_door
            trainer = Trainer(ours.port, files)
            busy, trained = measure_training(client, ours, trainer, traffics, seconds, rounds)
            trainer.cancel()
    limit = median(forward[BATCH])
    print(
        f"Bare forward on {arguments.device}, {size}×{size}, fp32: {limit:.4g} images/s in batches of {BATCH}, "
        f"{median(forward[1]):.4g} one by one; after a pause of {1000 * PAUSE:.0f} ms one takes "
        f"{1000 * median(paused):.3g} ms"
    )
    print(f"Options: {settings or 'the defaults'}; windows of {seconds} s, {rounds} rounds\n")
    columns = ("traffic", "target", "images/s", "of the bare forward", "p50 ms", "p99 ms")
    print_table(columns, rows_of(cells | busy, limit))
    if not on_gpu:
        print_limits(cells, taken, rested)
    alone = median(trained["no traffic"])
    rows = [(traffic, median(values), median(values) / alone) for traffic, values in trained.items()]
    print_table(("the trainer beside", "images/s", "of that without traffic"), rows)
    print_headline("embed_of_forward_large_requests", median(cells["/embed", traffics[-1]].rates) / limit)


if __name__ == "__main__":
    main()
