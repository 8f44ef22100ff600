"""Measure the time from a run's first request to its first optimizer step, for a service's first run and a later one.

    .venv/bin/python -m benchmarks.startup [--quick]

Measured: one gRPC client posts all documents of a run in one call, with `total`, and asks for the status every 20 ms
until a step is done. Then the run is cancelled. Between the two runs a short one succeeds; after it the next trainer
waits with its imports done. For comparison, other services have no waiting trainer (`standby_seconds: 0`). In the
measured time the trainer decodes the images, which are small, loads the model and measures the precision.
"""

import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from docarray import DocList
from jina import Client

from benchmarks.common import median, options, print_headline, print_machine, print_table, spread, textured
from benchmarks.serving import Served
from executor.documents import Document, DocumentArray, RunStatus

LABELS = 8
SIZE = 64
POLL_SECONDS = 0.02
SETTLE_SECONDS = 15.0  # time for the next trainer to do its imports


def main() -> None:
    """Measure and print."""
    arguments = options(__doc__).parse_args()
    services, documents = (1, 64) if arguments.quick or arguments.tiny else (3, 256)
    settle = 1.0 if arguments.tiny else SETTLE_SECONDS
    print_machine()
    seconds: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="finetuner-") as name:
        for number in range(services):
            for standby in (600, 0):
                folder = Path(name) / f"{number}-{standby}"
                folder.mkdir()
                with Served("ours", folder, model="small", input_size=SIZE, standby_seconds=standby) as served:
                    first, second = first_steps(served, documents, settle)
                seconds["first run"].append(first)
                seconds["second run" if standby else "second run, no trainer waits"].append(second)
    first = median(seconds["first run"])
    rows = [(row, median(values), spread(values), median(values) / first) for row, values in seconds.items()]
    print_table(("seconds from the first request to the first step", "median", "range", "of the first run"), rows)
    print_headline("second_run_of_first", median(seconds["second run"]) / first)


def first_steps(served: Served, count: int, settle: float) -> tuple[float, float]:
    """Return the seconds to the first step: for the first run of a service, and for a run after one that succeeded."""
    client = Client(host="127.0.0.1", port=served.port)

    def post(endpoint: str, docs: Any = None, **parameters: Any) -> RunStatus:
        return client.post(endpoint, docs, parameters=parameters, return_type=DocList[RunStatus])[-1]

    def fit(run: str, epochs: int, until: Callable[[RunStatus], object]) -> float:
        docs = DocumentArray(
            Document(blob=textured(number % LABELS, number, SIZE, SIZE), tags={"finetuner_label": number % LABELS})
            for number in range(count)
        )
        began = time.perf_counter()
        post("/fit", docs, run=run, total=count, epochs=epochs)
        while not until(status := post("/status", run=run)):
            if status.ended_at is not None:
                raise RuntimeError(f"the run is {status.state}: {status.error}")
            time.sleep(POLL_SECONDS)
        return time.perf_counter() - began

    def step(status: RunStatus) -> bool:
        return status.step > 0

    first = fit("first", 1000, step)
    post("/cancel", run="first")
    fit("between", 1, lambda status: status.ended_at)
    time.sleep(settle)
    second = fit("second", 1000, step)
    post("/cancel", run="second")
    return first, second


if __name__ == "__main__":
    main()
