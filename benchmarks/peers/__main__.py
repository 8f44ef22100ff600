"""Compare our trainer with its peers on the same task. They take turns.

    .venv/bin/python -m benchmarks.peers.environments    # once; installs each peer into its own environment
    .venv/bin/python -m benchmarks.peers [--quick]

The task is the same for all: JPEG files of 640×480 in 32 classes, the default network with the same weights, batches of
64, a triplet loss, no augmentation, a learning rate of 1e-3 and the same number of epochs. If a sampler can be told, it
takes four images per class. Peers train as their guides show: in fp32 with Adam, decoding the files again in every
epoch, with no worker process and with one per core. Ours runs in fp32 and in bf16, from a run's spool to its model.

Measured: images per second in the first epoch (which starts workers or, in ours, decodes everything), in the later
epochs, and over all. The limit of each program is its own step on a batch in memory, measured before and after the
training. The quality is the mAP@R of the trained network on images that it has not seen. The number of steps differs a
little with the sampler.

Everything that is compared takes turns, each in its own process. Figures are medians over the rounds.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.common import median, options, print_headline, print_machine, print_table, write_jpegs
from benchmarks.peers.environments import error_line, problem_of, python_of
from benchmarks.peers.task import Result, Task
from benchmarks.train import BATCH, CLASSES, TINY_FILES
from executor import embed, load_uri_to_image_blob
from executor.compute.cores import usable_cores
from executor.documents import Document, DocumentArray
from executor.evaluation.metrics import DECIDING, score_classes
from executor.models.building import build_model
from executor.models.model import ModelConfig
from executor.models.saving import load_model, save_model
from executor.worker.command import SPIN_BRIEFLY

ROOT = Path(__file__).resolve().parent.parent.parent
PEERS = {  # environment: program
    "finetuner": "finetuner_fit",
    "pytorch_metric_learning": "metric_learning",
    "open_metric_learning": "open_metric_learning",
    "sentence_transformers": "sentence_trainer",
}
Files = list[tuple[str, int]]


class Entry(NamedTuple):
    """A row of the table: a program, its environment (None: ours), its worker processes and its precision."""

    environment: str | None
    program: str
    workers: int
    precision: str

    def __str__(self) -> str:
        return self.precision if self.environment is None else f"{self.precision}, {self.workers} workers"

    def run(self, task: Task) -> Result:
        """Run the program in its own process. Raises: RuntimeError: it failed; the message is its error."""
        python = python_of(self.environment) if self.environment else Path(sys.executable)
        spinning = {} if self.environment else SPIN_BRIEFLY  # as the service starts its trainer
        finished = subprocess.run(
            [str(python), "-m", f"benchmarks.peers.{self.program}", json.dumps(asdict(task))],
            cwd=ROOT,
            env=os.environ | spinning | {"JINA_OPTOUT_TELEMETRY": "1", "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        if finished.returncode:
            raise RuntimeError(error_line(finished.stderr))
        return Result.read(finished.stdout)


class Measured:
    """The results of one entry in all rounds."""

    def __init__(self) -> None:
        self.results: list[Result] = []
        self.quality: list[float] = []

    @property
    def first(self) -> float:
        """Images per second in the first epoch."""
        return median(result.images[0] / result.seconds[0] for result in self.results)

    @property
    def later(self) -> float:
        """Images per second in the later epochs."""
        return median(sum(result.images[1:]) / sum(result.seconds[1:]) for result in self.results)

    @property
    def overall(self) -> float:
        """Images per second over all epochs."""
        return median(sum(result.images) / sum(result.seconds) for result in self.results)

    @property
    def limit(self) -> float:
        """Images per second of the step alone."""
        return median(limit for result in self.results for limit in result.limits)


def quality(network: Path, held_out: Files) -> float:
    """Return the mAP@R of a network on files."""
    docs = DocumentArray(Document(buffer=Path(path).read_bytes()) for path, _ in held_out)
    model = load_model(network)
    embed(docs, model, load_uri_to_image_blob)
    embeddings = torch.stack([torch.as_tensor(doc.embedding) for doc in docs]).numpy()
    return score_classes(embeddings, [label for _, label in held_out]).mean()[DECIDING]


def main() -> None:
    """Measure and print."""
    parser = options(__doc__)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=list(PEERS), default=list(PEERS), help="these peers")
    arguments = parser.parse_args()
    size, threads, limit_steps = 128, usable_cores(), 6
    images, epochs, rounds, workers = arguments.images, arguments.epochs, arguments.rounds, [0, threads]
    if arguments.quick:
        images, epochs, rounds, workers, limit_steps = 256, 2, 1, [threads], 2
    pixels = dict[str, int]()  # of a file: the usual ones
    if arguments.tiny:
        images, epochs, rounds, size, threads, workers, limit_steps = 128, 2, 1, 16, 1, [0], 1
        pixels = TINY_FILES
    torch.set_num_threads(threads)
    print_machine()
    entries = [Entry(None, "ours", 0, precision) for precision in ("fp32", "bf16")]
    missing = [name for name in arguments.only if python_of(name) is None]
    entries += [
        Entry(name, PEERS[name], count, "fp32") for name in arguments.only if name not in missing for count in workers
    ]
    measured: dict[Entry, Measured] = defaultdict(Measured)
    problems = {name: problem_of(name) for name in missing}
    with tempfile.TemporaryDirectory(prefix="finetuner-") as name:
        folder = Path(name).resolve()
        files = write_jpegs(folder / "images", images + images // 2, CLASSES, **pixels)
        save_model(build_model(ModelConfig(model="small", input_size=size)), folder / "network")
        untrained = quality(folder / "network", files[images:])
        for number in range(rounds):
            for index, entry in enumerate(entries):
                task = Task(
                    files=files[:images],
                    network=str(folder / "network"),
                    result=str(folder / f"{number}-{index}"),
                    size=size,
                    batch=BATCH,
                    items_per_class=4,
                    epochs=epochs,
                    learning_rate=1e-3,
                    workers=entry.workers,
                    threads=threads,
                    precision=entry.precision,
                    limit_steps=limit_steps,
                )
                try:
                    measured[entry].results.append(entry.run(task))
                except RuntimeError as error:
                    if entry.environment is None:
                        raise
                    problems[entry.environment] = str(error)
                    continue
                measured[entry].quality.append(quality(Path(task.result), files[images:]))
    print(f"{images} images to {size}×{size}, {epochs} epochs, {rounds} rounds; untrained mAP@R {untrained:.3f}\n")
    print_measured({entry: found for entry, found in measured.items() if found.results}, problems)


def print_measured(measured: dict[Entry, Measured], problems: dict[str, str]) -> None:
    """Print the table, the peers that could not be measured, and the headline."""
    ours = {entry.precision: found for entry, found in measured.items() if entry.environment is None}
    rows = [
        (
            found.results[0].version,
            str(entry),
            found.first,
            found.later,
            found.overall,
            found.limit,
            found.later / found.limit,
            ours["fp32"].later / found.later,
            ours["bf16"].later / found.later,
            found.results[0].steps,
            median(found.quality),
        )
        for entry, found in measured.items()
    ]
    columns = ("", "", "first epoch, images/s", "later", "all", "its limit", "later, of its limit")
    print_table((*columns, "ours, fp32: ×", "ours, bf16: ×", "steps", "mAP@R"), rows)
    if problems:
        print_table(("not measured", "why"), problems.items())
    peers = [found.later for entry, found in measured.items() if entry.environment is not None]
    if peers:
        print(f"The fastest peer's later epochs: {max(peers):.4g} images/s.")
    print_headline("ours_bf16_of_its_limit", ours["bf16"].later / ours["bf16"].limit)


if __name__ == "__main__":
    main()
