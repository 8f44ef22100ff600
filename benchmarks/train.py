"""Measure images per second of the trainer, against its limit and against a plain PyTorch DataLoader.

    .venv/bin/python -m benchmarks.train [--quick] [--device cuda]

Measured: the trainer of the service itself (`worker.trainer.Trainer`), with the model `small` (or `--model default`),
the default loss, augmentation and batch size. The documents name 640×480 JPEG files by `uri` and are all in the spool
already. The first epoch includes everything before it: loading the model, decoding every image, its steps and its
checkpoint. This is the worst case, because in the service decoding overlaps with receiving. Later epochs include their
checkpoint too. The imports of the trainer process are not included.

The limit is a bare loop with the same model, loss, precision and batch size on tensors in memory. No input pipeline can
be faster than that, so 1.0 is the best ratio.

The peer is torch's DataLoader with Pillow decoding and the same augmentation, batches, model and loss, in fp32, as
scripts usually do it. It runs without worker processes, with one for every second core and with one for each; we
compare with the best.

After every epoch of the trainer, the limit and a peer also run for an epoch in the same process. An epoch's share of
the limit is its rate divided by the mean of the limit's rates before and after it, so that a change of the machine's
load affects both. Figures are medians over all rounds.
"""

import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.common import (
    median,
    options,
    print_headline,
    print_machine,
    print_table,
    seconds_of,
    spread,
    write_jpegs,
)
from executor.compute.cores import usable_cores
from executor.compute.memory import keep_freed_memory
from executor.compute.ranks import ALONE
from executor.documents import Document
from executor.evaluation.eval_set import Measured
from executor.loading.augmentation import default_augmentation
from executor.loading.samplers import ClassSampler
from executor.models.building import build_model
from executor.models.model import ModelConfig, is_pretrained
from executor.parameters import ExecutorOptions, TrainingOptions
from executor.store.run import Configuration, RunState
from executor.store.runs import RunStore
from executor.store.spool import DocumentArrayMemmap
from executor.store.workspace import Workspace
from executor.training.config import TrainConfig
from executor.training.losses import build_loss
from executor.training.norms import set_training
from executor.training.optimizer import parameter_groups
from executor.training.state import TrainState
from executor.worker.other_ranks import OtherRanks
from executor.worker.trainer import Trainer

BATCH = 64
CPU = torch.device("cpu")
CLASSES = 32
SIZES = {"small": 128, "default": 160}
TINY = {"small": 16, "default": 32}
TINY_FILES = {"width": 80, "height": 60}  # pixels


class TimedTrainer(Trainer):
    """The trainer with a clock for each epoch. `between` runs after each epoch; its time is not counted."""

    def __init__(self, store: RunStore, name: str, between: Callable[[], None]) -> None:
        super().__init__(store, name, ALONE, OtherRanks([]))
        self.decoded = 0.0  # seconds until the first step
        self.epochs: list[float] = []  # seconds of each; the first includes everything before it
        self._between = between
        self._began = time.perf_counter()

    def begin(self, before: Measured | None, epochs: int, steps: int) -> None:
        self.decoded = time.perf_counter() - self._began
        super().begin(before, epochs, steps)

    def _save(self, state: Callable[[], TrainState], epoch_ended: bool) -> None:
        super()._save(state, epoch_ended)
        if epoch_ended:
            self.epochs.append(time.perf_counter() - self._began)
            self._between()
            self._began = time.perf_counter()


class Steps:
    """A bare loop over batches, with a model, a loss and an optimizer like the trainer's."""

    def __init__(
        self, model: str, size: int, precision: str, device: torch.device = CPU, *, channels_last: bool
    ) -> None:
        self.bf16 = precision == "bf16"
        self.device = device
        self.model = build_model(ModelConfig(model=model, input_size=size)).to(device)
        set_training(self.model, fixed_norms=is_pretrained(self.model))
        if not channels_last:
            self.model.to(memory_format=torch.contiguous_format)
        self.loss = build_loss("auto", "class", num_classes=CLASSES, embedding_size=self.model.dim).to(device)
        self.optimizer = torch.optim.AdamW(parameter_groups(self.model, self.loss, TrainConfig()))

    def run(self, batches: Iterator[tuple[Tensor, Tensor]]) -> None:
        """Train on the batches: images (B, 3, H, W) float32 and labels (B,) int64."""
        for images, labels in batches:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                embeddings = self.model(images.to(self.device, non_blocking=True))
            value = self.loss(embeddings.float(), labels.to(self.device, non_blocking=True))
            self.optimizer.zero_grad(set_to_none=True)
            value.backward()
            self.optimizer.step()
        if self.device.type == "cuda":
            torch.cuda.synchronize()


class Limit:
    """Steps on one batch in memory."""

    def __init__(self, model: str, size: int, precision: str, batches: int, device: torch.device = CPU) -> None:
        self._steps = Steps(model, size, precision, device, channels_last=True)
        images = torch.randn(BATCH, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
        self._batch = images, torch.arange(BATCH, device=device) % CLASSES
        self._batches = batches
        self._steps.run(iter([self._batch]))  # the first step allocates

    def epoch(self) -> float:
        """Seconds of one epoch."""
        return seconds_of(lambda: self._steps.run(iter([self._batch] * self._batches)))


class PlainDataset(Dataset[tuple[Tensor, int]]):
    """Image files; each access decodes one by Pillow and augments it."""

    def __init__(self, files: list[tuple[str, int]], size: int) -> None:
        self._files = files
        self._size = size
        self._augment = default_augmentation("class", size)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self._files[index]
        image = np.asarray(Image.open(path).convert("RGB").resize((self._size, self._size), Image.Resampling.BILINEAR))
        pixels = torch.tensor(self._augment(image)).permute(2, 0, 1).float().div_(255)
        return pixels.sub_(0.45).div_(0.225), label


class Plain:
    """Steps on the batches of a DataLoader."""

    def __init__(
        self, files: list[tuple[str, int]], model: str, size: int, workers: int, device: torch.device = CPU
    ) -> None:
        self._steps = Steps(model, size, "fp32", device, channels_last=False)
        labels = np.asarray([label for _, label in files])
        batches = ClassSampler(labels, batch_size=BATCH, num_items_per_class=4).batches(0)
        self._loader: DataLoader[tuple[Tensor, int]] = DataLoader(
            PlainDataset(files, size),
            batch_sampler=[batch.tolist() for batch in batches],
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=device.type == "cuda",
        )
        self._steps.run(batch for batch, _ in zip(self._loader, range(1), strict=False))  # starts the workers

    def epoch(self) -> float:
        """Seconds of one epoch."""
        return seconds_of(lambda: self._steps.run(iter(self._loader)))


def prepare_run(
    folder: Path,
    name: str,
    files: list[tuple[str, int]],
    size: int,
    *,
    model: str = "small",
    augment: str | None = None,
    device: str = "cpu",
    **training: Any,
) -> RunStore:
    """Make a workspace with one run that is complete and in state `training`; return its store."""
    store = RunStore(Workspace(folder / name))
    executor = ExecutorOptions(
        model=model,
        input_size=size,
        augment=augment,
        device=device,
        allowed_roots=(str(folder),),
        trainer_threads=torch.get_num_threads(),
    ).with_roots()
    configuration = Configuration(options=executor, directory=os.getcwd())
    settings = {"batch_size": BATCH, "val_split": 0.0} | training  # every image is trained on: that is what is counted
    store.create(name, TrainingOptions(**settings), configuration)
    with DocumentArrayMemmap(store.workspace.spool_file(name)) as spool:
        spool.extend(Document(uri=path, tags={"finetuner_label": label}) for path, label in files)
    store.advance(name, RunState.QUEUED, train_rows=len(files), eval_rows=0)
    store.advance(name, RunState.TRAINING)
    return store


def main() -> None:
    """Measure and print."""
    parser = options(__doc__)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", choices=SIZES, default="small")
    parser.add_argument("--augment", choices=("none",), help="none: without the default augmentation")
    parser.add_argument("--device", default="cpu", help="a torch device, such as cuda")
    arguments = parser.parse_args()
    device, cores = torch.device(arguments.device), usable_cores()
    images, epochs, rounds, model = arguments.images, 5, arguments.rounds, arguments.model
    size, threads = SIZES[model], cores
    if arguments.quick:
        images, epochs, rounds = 256, 3, 1  # 8 of a class: batches of 4 repeat none
    pixels = dict[str, int]()  # of a file: the usual ones
    if arguments.tiny:
        images, epochs, rounds, size, threads, pixels = 128, 2, 1, TINY[model], 1, TINY_FILES
    torch.set_num_threads(threads)
    keep_freed_memory()  # as the trainer process does; the limit and the peers have it too
    print_machine(device)
    precisions = ["fp32", "bf16"]
    rates: dict[str, list[float]] = defaultdict(list)
    shares: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="finetuner-") as name:
        folder = Path(name)
        files = write_jpegs(folder / "images", images, CLASSES, **pixels)
        limits = {precision: Limit(model, size, precision, images // BATCH, device) for precision in precisions}
        peers = cycle(
            [(workers, Plain(files, model, size, workers, device)) for workers in (0, max(1, cores // 2), cores)]
        )
        for number in range(rounds):
            for precision in precisions:

                def between(precision: str = precision) -> None:
                    rates[f"limit {precision}"].append(images / limits[precision].epoch())
                    workers, peer = next(peers)
                    rates[f"DataLoader, {workers} workers"].append(images / peer.epoch())

                run = f"{precision}-{number}"
                store = prepare_run(
                    folder,
                    run,
                    files,
                    size,
                    model=model,
                    augment=arguments.augment,
                    device=arguments.device,
                    epochs=epochs,
                    precision=precision,
                )
                between()
                trainer = TimedTrainer(store, run, between)
                trainer.run()
                limit = rates[f"limit {precision}"][-epochs - 1 :]
                measured = [images / seconds for seconds in trainer.epochs]
                of_limit = [
                    2 * rate / (before + after)
                    for rate, before, after in zip(measured, limit[:-1], limit[1:], strict=True)
                ]
                rates[f"decoding {precision}"].append(images / trainer.decoded)
                for found, values in ((rates, measured), (shares, of_limit)):
                    found[f"first {precision}"].append(values[0])
                    found[f"later {precision}"] += values[1:]
    what = f"{model} on {device}, {images} images to {size}×{size}, {epochs} epochs, {rounds} rounds"
    print_rates(rates, {name: median(values) for name, values in shares.items()}, precisions, what)


def print_rates(rates: dict[str, list[float]], shares: dict[str, float], precisions: list[str], what: str) -> None:
    """Print the table and the headline."""
    figure = {name: median(values) for name, values in rates.items()}
    best = max((name for name in rates if name.startswith("DataLoader")), key=figure.__getitem__)
    print(f"{what}; the best DataLoader is the one with {best.removeprefix('DataLoader, ')}.\n")
    rows: list[tuple[object, ...]] = []
    for precision in precisions:
        for label in ("limit", "first", "later", "decoding"):
            values = rates[f"{label} {precision}"]
            title = {
                "limit": f"limit, {precision}",
                "first": f"trainer, {precision}, from nothing to the end of the first epoch",
                "later": f"trainer, {precision}, later epochs",
                "decoding": f"trainer, {precision}, decoding before the first step",
            }[label]
            shown = 1 if label == "limit" else shares.get(f"{label} {precision}", "–")
            rows.append((title, median(values), spread(values), shown, median(values) / figure[best]))
    rows += [
        (f"{name}, fp32", figure[name], spread(rates[name]), figure[name] / figure["limit fp32"], "–")
        for name in sorted(rates)
        if name.startswith("DataLoader")
    ]
    print_table(("", "images/s", "range", "of the limit", "× the best DataLoader"), rows)
    faster = max(precisions, key=lambda precision: figure[f"later {precision}"])
    print_headline(f"later_epochs_of_limit_{faster}", shares[f"later {faster}"])


if __name__ == "__main__":
    main()
