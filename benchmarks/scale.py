"""Measure training with more and more documents: time per image, memory of the trainer, and time to open a run.

    .venv/bin/python -m benchmarks.scale [--quick] [--counts 1000 10000 200000] [--opened 10000 1000000]

Measured, in one process for each number of documents: the trainer of the service itself, for two epochs in fp32 at
16×16 pixels. Every document has a `uri`; all share 256 small JPEG files. We measure the time per image before the first
step, when images are decoded into the run's cache, and in the second epoch. The latter is compared with the limit of
`benchmarks.train`, which runs after each epoch. Memory is the resident set at the end, and its peak.

Up to a million documents are only opened, not trained on: we open the spool, find the kind of the documents, read and
check their labels, and draw the order of an epoch.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.common import options, print_headline, print_machine, print_table, write_jpegs
from benchmarks.ingest import resident
from benchmarks.train import BATCH, CLASSES, Limit, TimedTrainer, prepare_run
from executor.loading.datasets import check_trainable, make_dataset
from executor.parameters import TrainingOptions
from executor.store.spool import DocumentArrayMemmap
from executor.training.parts import make_sampler

SIZE = 16
FILE = 32  # pixels of a file's side
FILES = 256
LIMIT_STEPS = 200
MB = 1 << 20


def train(folder: Path, files: list[tuple[str, int]]) -> dict[str, float]:
    """Train on the files; return times per image in µs, the share of the limit, and memory in MB."""
    store = prepare_run(folder, "run", files, SIZE, epochs=2, precision="fp32")
    steps = min(LIMIT_STEPS, len(files) // BATCH)
    limit = Limit("small", SIZE, "fp32", steps)
    seconds: list[float] = []
    trainer = TimedTrainer(store, "run", lambda: seconds.append(limit.epoch() / (steps * BATCH)))
    trainer.run()
    later = trainer.epochs[1] / len(files)
    return {
        "decoded": 1e6 * trainer.decoded / len(files),
        "later": 1e6 * later,
        "share": (seconds[0] + seconds[1]) / 2 / later,
        "memory": resident(os.getpid()),
        "peak": resident(os.getpid(), "VmHWM"),
    }


def open_only(folder: Path, files: list[tuple[str, int]]) -> dict[str, float]:
    """Open a run of the files and draw the order of an epoch; return times in seconds and memory in MB."""
    store = prepare_run(folder, "run", files, SIZE, epochs=1)
    spool = store.workspace.spool_file("run")
    before = resident(os.getpid())
    began = time.perf_counter()
    with DocumentArrayMemmap(spool) as docs:
        dataset = make_dataset(docs)
        check_trainable(dataset, np.arange(len(dataset)))
        opened = time.perf_counter()
        sampler = make_sampler(dataset, np.arange(len(dataset)), TrainingOptions(batch_size=BATCH))
        for _ in sampler.batches(0):
            pass
        ordered = time.perf_counter()
    return {
        "spool": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / MB,
        "opened": opened - began,
        "ordered": ordered - opened,
        "grown": resident(os.getpid()) - before,
    }


def measured(part: str, count: int) -> dict[str, float]:
    """Run a part in its own process and return what it measured."""
    command = [sys.executable, "-m", "benchmarks.scale", "--part", part, "--counts", str(count)]
    finished = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(finished.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Measure and print."""
    parser = options(__doc__)
    parser.add_argument("--counts", type=int, nargs="*", default=[1000, 10_000, 200_000], help="of trained documents")
    parser.add_argument("--opened", type=int, nargs="*", default=[10_000, 1_000_000], help="documents that are opened")
    parser.add_argument("--part", choices=list(PARTS), help="measure this alone, of the first of the counts")
    arguments = parser.parse_args()
    counts, opened = arguments.counts, arguments.opened
    if arguments.quick:
        counts, opened = [1000, 10_000], [10_000, 100_000]
    if arguments.tiny:
        counts, opened = [128, 256], [128, 256]
    if arguments.part:
        with tempfile.TemporaryDirectory(prefix="finetuner-") as name:
            folder = Path(name).resolve()
            files = write_jpegs(folder / "images", FILES, CLASSES, width=FILE, height=FILE)
            many = [files[number % FILES] for number in range(counts[0])]
            print(json.dumps(PARTS[arguments.part](folder, many)))
        return
    print_machine()
    trained = {count: measured("train", count) for count in counts}
    columns = ("documents", "µs of an image before the first step", "µs in the second epoch", "of the limit")
    rows = [(count, *found.values()) for count, found in trained.items()]
    print_table((*columns, "trainer, MB", "its peak, MB"), rows)
    rows = [(count, *measured("open", count).values()) for count in opened]
    columns = ("documents", "MB on disk", "s to open, sort out and label", "s to order an epoch")
    print_table((*columns, "more memory, MB"), rows)
    print_headline("cost_of_an_image_most_of_fewest", trained[counts[-1]]["later"] / trained[counts[0]]["later"])


PARTS = {"train": train, "open": open_only}

if __name__ == "__main__":
    main()
