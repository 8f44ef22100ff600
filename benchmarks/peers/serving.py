"""Compare servers of a CLIP model: our door and our `/embed` in a Flow, a plain Jina Executor, and infinity.

    .venv/bin/python -m benchmarks.peers.serving [--quick] [--rounds N]

All load the same folder, a small CLIP vision model with random weights, and get the same JPEG files of 640×480. The two
that speak HTTP get them from one client, ours as raw bodies and JSON, infinity in its own API with data uris; the two
Flows get them over gRPC from a client of the same kind. `sequential` is an Executor as people usually write it: it
decodes and embeds one document after the other. We measure images per second, and p50 and p99 of the latency of a
request. The limit is the bare model's forward pass on batches in memory.

Everything that is compared takes turns. Figures are medians over the rounds, and percentiles over all requests. Before,
the servers are started one after the other: the seconds from the command to the first answered embedding. Afterwards
their memory is read: of all processes of a server, shared pages divided between them (PSS). infinity takes at most 32
images in a request.
"""

import contextlib
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import psutil
import torch

from benchmarks.clients import ClientProcess
from benchmarks.common import median, options, print_headline, print_machine, print_table
from benchmarks.embed import BATCH, Cell, Traffic, forward_rate
from benchmarks.http_clients import client as http_client
from benchmarks.peers.clip_folder import write_clip
from benchmarks.peers.environments import problem_of, python_of
from benchmarks.peers.http_servers import ENVIRONMENT, HttpServer, infinity, our_door
from benchmarks.serving import Served
from executor.compute.cores import usable_cores
from executor.models.building import build_model
from executor.models.model import ModelConfig

OURS = "our door"
SINGLE = [Traffic("jpeg", 1, callers) for callers in (1, 8, 32)]
LARGE = [Traffic("jpeg", images, 1) for images in (32, 100)]
MOST = {ENVIRONMENT: 32}  # images in a request


class Target(NamedTuple):
    """A server. Attributes: form: in which the client sends a JPEG. seconds: from its start to the first embedding."""

    client: ClientProcess
    port: int
    form: str
    processes: Callable[[], list[psutil.Process]]
    seconds: float

    def measure(self, traffic: Traffic, seconds: float) -> tuple[float, list[float]]:
        """Measure as `ClientProcess.measure` does."""
        wanted = traffic._replace(form=self.form)._asdict()
        return self.client.measure(self.port, **wanted, seconds=seconds)

    def megabytes(self) -> float:
        """Return its memory."""
        return sum(process.memory_full_info().pss for process in self.processes()) / 1e6


def main() -> None:
    """Measure and print."""
    parser = options(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    seconds, rounds, size, traffics = 5.0, arguments.rounds, 128, SINGLE + LARGE
    if arguments.quick:
        seconds, rounds = 1.0, 1
    if arguments.tiny:
        seconds, rounds, size, traffics = 0.2, 1, 32, SINGLE[:1]
    torch.set_num_threads(usable_cores())
    print_machine()
    cells: dict[tuple[str, Traffic], Cell] = defaultdict(Cell)
    forward: list[float] = []
    with tempfile.TemporaryDirectory(prefix="finetuner-") as name, contextlib.ExitStack() as running:
        folder = Path(name).resolve()
        write_clip(folder / "clip", size)
        targets, problems = start(folder, running)
        model = build_model(ModelConfig(model=str(folder / "clip")))
        for _ in range(rounds):
            forward.append(forward_rate(model, size, BATCH, seconds))
            for traffic in traffics:
                for name, target in targets.items():
                    if traffic.images <= MOST.get(name, traffic.images):
                        cells[name, traffic].add(*target.measure(traffic, seconds))
        started = [(name, target.seconds, target.megabytes()) for name, target in targets.items()]
    print(
        f"Bare forward: {median(forward):.4g} images/s in batches of {BATCH}; windows of {seconds} s, {rounds} rounds"
    )
    print()
    print_cells(cells, traffics, median(forward))
    print_table(("server", "seconds to the first embedding", "memory, MB"), started)
    if problems:
        print_table(("not measured", "why"), problems.items())
    ratios = [
        median(cells[OURS, traffic].rates) / median(cell.rates)
        for (name, traffic), cell in cells.items()
        if name not in (OURS, "/embed")
    ]
    print_headline("door_over_best_peer_worst_row", min(ratios))


def start(folder: Path, running: contextlib.ExitStack) -> tuple[dict[str, Target], dict[str, str]]:
    """Start every server, one after the other; also return why others cannot be measured."""
    model = folder / "clip"
    over_grpc, over_http = running.enter_context(ClientProcess()), running.enter_context(http_client())
    targets: dict[str, Target] = {}
    problems = {name: problem_of(name) for name in (ENVIRONMENT, "clip_server") if python_of(name) is None}
    http = {OURS: our_door} | ({ENVIRONMENT: infinity} if ENVIRONMENT not in problems else {})
    for name, starting in http.items():
        began = time.monotonic()
        server = starting(model, folder / f"{name}.log")
        try:
            running.enter_context(server)
        except RuntimeError as error:
            problems[name] = str(error)
            continue
        form = "jpeg" if name == OURS else name
        targets[name] = ready(Target(over_http, server.port, form, lambda server=server: family(server), began))
    for name, what in (("/embed", "ours"), ("sequential", "sequential")):
        began = time.monotonic()
        flow = running.enter_context(Served(what, folder, model=str(model)))
        targets[name] = ready(Target(over_grpc, flow.port, "jpeg", flow.processes, began))
    return targets, problems


def family(server: HttpServer) -> list[psutil.Process]:
    """Return the processes of a server."""
    return [server.process, *server.process.children(recursive=True)]


def ready(target: Target) -> Target:
    """Wait for the first embedding; `seconds` is when the server was started, and becomes what that took."""
    target.measure(Traffic("jpeg", 1, 1), 0.01)
    return target._replace(seconds=time.monotonic() - target.seconds)


def print_cells(cells: dict[tuple[str, Traffic], Cell], traffics: list[Traffic], limit: float) -> None:
    """Print a row for each cell."""
    rows = []
    for traffic in traffics:
        ours = median(cells[OURS, traffic].rates)
        for (target, of_traffic), cell in cells.items():
            if of_traffic == traffic:
                rate = median(cell.rates)
                rows.append(
                    (str(traffic), target, rate, rate / limit, ours / rate, cell.percentile(50), cell.percentile(99))
                )
    columns = ("traffic", "target", "images/s", "of the bare forward", "our door: ×", "p50 ms", "p99 ms")
    print_table(columns, rows)


if __name__ == "__main__":
    main()
