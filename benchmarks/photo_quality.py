"""Measure fine-tuning on a folder of photographs: our defaults, peers, and features that are not trained.

`benchmarks.quality --photos FOLDER` runs this. FOLDER has train/CLASS/*.jpg and test/CLASS/*.jpg, taken on another
visit. A seed draws two thirds of the classes as seen. Every method trains on the photographs below train/ of the seen
classes, and is measured on those below test/ of the seen and of the unseen classes, each on its own.

All start from the model `default` with its pretrained weights. They get the same decoded and resized images, our
augmentation, batches of 64, fp32, and as many steps as our defaults make. Ours is `executor.training.recipe`. Each
peer's program (`peers/photos_*.py`) runs once by what its library recommends, and once with our optimizer, rate,
schedule and fixed norm statistics. Features of the untrained network get a linear head: by our option `freeze`, by
pytorch-metric-learning (Adam at 1e-3) or as the scores of scikit-learn's logistic regression.

Intervals are Student's, over the seeds, of the mean. A difference is paired by the seed.
"""

import argparse
import hashlib
import json
import math
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.stats import t as student

from benchmarks.common import print_headline, print_table
from benchmarks.photo_methods import COLUMNS, OURS, OWN_RECIPE, PEERS, Method, Photographs, draw, methods, read


class Kept:
    """The results in a file of JSON lines, so that a run that was stopped goes on. None: nothing is kept."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        lines = file.read_text().splitlines() if file is not None and file.exists() else []
        self._found = {json.dumps(each["key"]): each["scores"] for each in map(json.loads, lines)}

    def get(self, key: Sequence[object]) -> list[float] | None:
        """Return the scores that are kept under a key."""
        return self._found.get(json.dumps(key))

    def put(self, key: Sequence[object], scores: list[float], seconds: float) -> None:
        """Keep scores."""
        if self._file is not None:
            with self._file.open("a") as file:
                file.write(json.dumps({"key": key, "scores": scores, "seconds": round(seconds, 1)}) + "\n")


def measure(
    rows: dict[str, Method], photos: Photographs, seeds: int, epochs: int | None, threads: int, kept: Kept
) -> dict[str, list[list[float]]]:
    """Return the scores by row and seed. All rows of a seed run before the next seed."""
    found: dict[str, list[list[float]]] = {row: [] for row in rows}
    content = hashlib.sha256(photos.images).hexdigest()[:16]
    for seed in range(seeds):
        split = draw(photos, seed, epochs, threads)
        print(
            f"seed {seed}: {len(split.seen)} seen classes, {len(split.items)} photographs to train on, "
            f"{split.epochs} epochs, {split.steps} steps",
            flush=True,
        )
        for row, method in rows.items():
            key = [content, split.epochs, seed, row]
            began = time.perf_counter()
            scores = kept.get(key)
            if scores is None:
                scores = split.score(method(split))
                kept.put(key, scores, time.perf_counter() - began)
            found[row].append(scores)
            print(
                f"  {row}: {', '.join(f'{score:.3f}' for score in scores)} ({time.perf_counter() - began:.0f} s)",
                flush=True,
            )
    return found


def interval(values: Sequence[float], *, signed: bool = False) -> str:
    """Return the mean and half the width of its 95 % interval, as text."""
    mean = f"{statistics.mean(values):{'+' if signed else ''}.3f}"
    return mean if len(values) < 2 else f"{mean} ± {half_width(values):.3f}"


def half_width(values: Sequence[float]) -> float:
    """Half the width of the 95 % interval of the mean, by Student's t; 0 of a single value."""
    if len(values) < 2:
        return 0.0
    return float(student.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))


def verdict(differences: Sequence[Sequence[float]]) -> str:
    """Say which of ours and another is better in mAP@R, by differences on seen and unseen classes, each by seed."""
    if len(differences[0]) < 2:
        return "–"
    words = []
    for values in differences:
        mean, half = statistics.mean(values), half_width(values)
        words.append("ours" if mean > half else "the other" if mean < -half else "open")
    return words[0] if words[0] == words[1] else f"{words[0]} / {words[1]}"


def report(found: dict[str, list[list[float]]], seeds: int) -> None:
    """Print the tables, and as the last line the least of: the better one of ours / peer on seen and on unseen classes.

    Above 1: none of the peers has a better mean mAP@R on both.
    """
    values = {row: np.array(scores) for row, scores in found.items()}  # (seeds, columns)
    print(f"\nMean of {seeds} seeds ± half the 95 % interval\n")
    print_table(
        ["method", *COLUMNS], ([row, *(interval(column.tolist()) for column in each.T)] for row, each in values.items())
    )
    if OURS not in values:
        return
    print("Ours less the other, paired by the seed. Better in mAP@R on seen / unseen classes, by the interval:\n")
    rows = []
    for row, each in values.items():
        differences = [column.tolist() for column in (values[OURS] - each).T]
        if row != OURS:
            rows.append([row, *(interval(column, signed=True) for column in differences), verdict(differences[:2])])
    print_table(["the other", *COLUMNS, "better"], rows)
    means = {row: each.mean(axis=0)[:2] for row, each in values.items()}
    ratios = [float((means[OURS] / mean).max()) for row, mean in means.items() if row.startswith(tuple(PEERS))]
    print_headline("ours_over_peers", min(ratios, default=float("nan")))


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for photographs."""
    parser.add_argument("--photos", type=Path, help="a folder with train/ and test/, each of folders of classes")
    parser.add_argument("--size", type=int, default=96, help="side of the photographs, in pixels")
    parser.add_argument("--threads", type=int, help="of torch, with --photos")
    parser.add_argument("--keep", type=Path, help="with --photos: a file of results, with which a stopped run goes on")


def run(arguments: argparse.Namespace) -> None:
    """Measure the photographs and print."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    rows, missing = methods()
    for name, problem in missing.items():
        print(f"{name} is left out: {problem}")
    size, seeds, epochs, classes, most = arguments.size, arguments.seeds, arguments.epochs, None, None
    if arguments.quick:
        size, seeds, epochs, most = min(size, 64), 1, 1, 5
        rows = {row: method for row, method in rows.items() if OWN_RECIPE not in row}  # each program takes seconds
    if arguments.tiny:
        size, seeds, epochs, classes, most = 32, 1, 1, 6, 4
    rows = {row: method for row, method in rows.items() if arguments.only in row or row == OURS}
    photos = read(arguments.photos, size, classes=classes, most=most)
    print(f"{len(photos.labels)} photographs of {len(np.unique(photos.labels))} classes at {size} pixels\n", flush=True)
    report(measure(rows, photos, seeds, epochs, torch.get_num_threads(), Kept(arguments.keep)), seeds)
