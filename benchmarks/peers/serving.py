"""Compare servers of a CLIP model: our `/embed`, a plain Jina Executor, and infinity if it is installed.

    .venv/bin/python -m benchmarks.peers.serving [--quick]

All load the same folder, a small CLIP vision model with random weights, and get the same JPEG files of 640×480. Each
has its usual client: gRPC for ours and the Executor, HTTP with data uris for infinity. `sequential` is an Executor as
people usually write it; it decodes and embeds one document after the other. We measure images per second, and p50 and
p99 of the latency of a request. The limit is the bare model's forward pass on batches in memory.

Everything that is compared takes turns. Figures are medians over the rounds, and percentiles over all requests.
"""

import contextlib
import os
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.clients import ClientProcess
from benchmarks.common import median, options, print_headline, print_machine, print_table
from benchmarks.embed import BATCH, Cell, Traffic, forward_rate
from benchmarks.peers.clip_folder import write_clip
from benchmarks.peers.environments import problem_of, python_of
from benchmarks.peers.infinity import ENVIRONMENT, Infinity
from benchmarks.serving import Served
from executor.models.building import build_model
from executor.models.model import ModelConfig

TRAFFICS = [Traffic("jpeg", 1, 1), Traffic("jpeg", 1, 32), Traffic("jpeg", 32, 1)]
Measure = Callable[[Traffic, float], tuple[float, list[float]]]


def main() -> None:
    """Measure and print."""
    arguments = options(__doc__).parse_args()
    seconds, rounds, size, traffics = 8.0, 3, 128, TRAFFICS
    if arguments.quick:
        seconds, rounds = 1.0, 1
    if arguments.tiny:
        seconds, rounds, size, traffics = 0.2, 1, 32, TRAFFICS[:1]
    torch.set_num_threads(os.cpu_count() or 1)
    print_machine()
    cells: dict[tuple[str, Traffic], Cell] = defaultdict(Cell)
    forward: list[float] = []
    with tempfile.TemporaryDirectory(prefix="finetuner-") as name, contextlib.ExitStack() as running:
        folder = Path(name).resolve()
        write_clip(folder / "clip", size)
        targets, problems = start(folder, running)
        model = build_model(ModelConfig(model=str(folder / "clip")))
        for number in range(rounds + 1):
            window = seconds if number else 0.01  # the first round loads models and connects
            forward += [forward_rate(model, size, BATCH, seconds)] if number else []
            for traffic in traffics:
                for target, measure in targets.items():
                    measured = measure(traffic, window)
                    if number:
                        cells[target, traffic].add(*measured)
    print(
        f"Bare forward: {median(forward):.4g} images/s in batches of {BATCH}; windows of {seconds} s, {rounds} rounds\n"
    )
    print_cells(cells, traffics, median(forward))
    if problems:
        print_table(("not measured", "why"), problems.items())
    ours = cells["/embed", traffics[-1]]
    print_headline("embed_over_sequential", median(ours.rates) / median(cells["sequential", traffics[-1]].rates))


def start(folder: Path, running: contextlib.ExitStack) -> tuple[dict[str, Measure], dict[str, str]]:
    """Start every server; return how to measure each, and why the others cannot be measured."""
    model = str(folder / "clip")
    flows = {
        "/embed": Served("ours", folder, model=model),
        "sequential": Served("sequential", folder, model=model),
    }
    client = running.enter_context(ClientProcess())
    targets: dict[str, Measure] = {}
    for name, served in flows.items():
        running.enter_context(served)
        targets[name] = lambda traffic, seconds, port=served.port: client.measure(
            port, **traffic._asdict(), seconds=seconds
        )
    problems = {name: problem_of(name) for name in (ENVIRONMENT, "clip_server") if python_of(name) is None}
    if ENVIRONMENT not in problems:
        try:
            infinity = running.enter_context(Infinity(Path(model), folder / "infinity.log"))
            targets[ENVIRONMENT] = lambda traffic, seconds: infinity.measure(
                traffic.images, traffic.concurrency, seconds
            )
        except RuntimeError as error:
            problems[ENVIRONMENT] = str(error)
    return targets, problems


def print_cells(cells: dict[tuple[str, Traffic], Cell], traffics: list[Traffic], limit: float) -> None:
    """Print a row for each cell."""
    rows = []
    for traffic in traffics:
        ours = median(cells["/embed", traffic].rates)
        for (target, of_traffic), cell in cells.items():
            if of_traffic == traffic:
                rate = median(cell.rates)
                rows.append(
                    (str(traffic), target, rate, rate / limit, ours / rate, cell.percentile(50), cell.percentile(99))
                )
    print_table(("traffic", "target", "images/s", "of the bare forward", "ours: ×", "p50 ms", "p99 ms"), rows)


if __name__ == "__main__":
    main()
