"""Recall over time, as a plot."""

from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from examples.search.traffic import Traffic

TOGETHER = 40  # answers of which each point is the mean


def draw(file: Path, traffic: Traffic) -> None:
    """Draw the mean of the latest answers at each time, and name the way in which the index was treated then."""
    answers = sorted(traffic.answers, key=lambda answer: answer.at)
    hits = np.array([answer.hit for answer in answers], float)
    width = min(TOGETHER, len(hits))
    recall = np.convolve(hits, np.full(width, 1 / width), "valid")
    figure, axes = plt.subplots(figsize=(9, 4), layout="constrained")
    axes.plot([answer.at for answer in answers][width - 1 :], recall, color="#1f4e79", linewidth=1.2)
    for number, (way, of_way) in enumerate(traffic.by_way().items()):
        first, last = of_way[0].at, of_way[-1].at
        axes.axvspan(first, last, color="#d9a441", alpha=0.15 + 0.1 * (number % 2))
        axes.text((first + last) / 2, 0.02, way, rotation=90, ha="center", va="bottom", fontsize=8)
    for answer in answers:
        if answer.failed:
            axes.axvline(answer.at, color="#b03030", linewidth=0.8)
    axes.set(xlabel="seconds", ylabel=f"recall@1 of the last {width} queries", ylim=(0, 1.02))
    figure.savefig(file, dpi=150)
    plt.close(figure)
