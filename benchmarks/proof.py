"""Is the proof of a better model right? We count how often its 95 % interval covers the truth, how often a model is
called better that is not, and how many pictures the proof of a gain needs.

    .venv/bin/python -m benchmarks.proof [--photos FOLDER] [--quick]

A trial draws classes, and pictures of each. It scores two models on these pictures alone, like an eval set, and
computes the interval of the difference. The populations are:

generated     Two networks of equal quality, simulated by numbers. A class is a point in 34 directions, with a width in
              each. A picture lies at random around the point of its class. Each network sees 30 of the directions.
              Neither network has an advantage, so the true difference is 0 with any number of classes. The mAP@R, and
              how its difference varies between and within classes, are similar to those on smartphone photographs of
              groceries.
photographs   (--photos: train/CLASS/*.jpg and test/CLASS/*.jpg) Pairs of networks of similar quality (`photos.py`),
              scored once on all photographs below test/. Their classes are the population. A sample draws classes
              **with** replacement, as if there were infinitely many. The truth is the difference over all photographs,
              weighted like the sample.
redrawn       (--photos) The same pairs, scored anew on each sample of **different** classes. The truth is the mean over
              all samples of one size. Every sample has many of the classes, so the samples resemble each other more
              than samples of an infinite population. A correct interval covers this truth too often.

The methods: The verdict used the percentile bootstrap of single queries before. Three methods draw classes with
replacement: percentile and BCa (scipy), and bootstrap-t (Cameron, Gelbach & Miller 2008, "Bootstrap-based improvements
for inference with clustered errors"). The last method is `executor.evaluation.intervals.cluster_interval`.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.stats import bootstrap

from benchmarks.common import options, print_headline, print_table
from benchmarks.photos import Photos, embed, trained
from executor.evaluation.intervals import bootstrap_interval, cluster_interval
from executor.evaluation.metrics import DECIDING, score_classes

CLASSES = (3, 5, 10, 15, 20, 30, 41)
PICTURES = (5, 10, 20)  # a class
GAINS = (0.02, 0.05, 0.10)
RESAMPLES = 999
OTHERS = 300  # most trials of a method that is not ours, because these are slow

# How the difference in mAP@R varies between classes and within them, by pictures a class: measured on smartphone
# photographs of groceries, 41 classes, by this program.
NETWORKS = {5: (0.086, 0.165), 10: (0.066, 0.121), 20: (0.060, 0.101)}  # two networks of like quality
HEADS = {5: (0.85, 1.84), 10: (0.74, 1.23), 20: (0.67, 0.96)}  # a head that is trained a little, as shares of its gain

Draw = tuple[np.ndarray, np.ndarray]  # differences (Q,) float64, from which the true one is taken, and classes (Q,)
Method = Callable[[np.ndarray, np.ndarray], tuple[float, float]]
Spreads = dict[int, tuple[float, float]]  # by pictures a class: standard deviations between classes, within them


def main() -> None:
    """Print the tables, and how often the interval covers the truth with 20 classes or more."""
    parser = options(__doc__)
    parser.add_argument("--photos", type=Path, help="a folder with train/ and test/, each of folders of classes")
    wanted = parser.parse_args()
    trials = 16 if wanted.tiny else 160 if wanted.quick else 1200
    random = np.random.default_rng(0)
    photos = None if wanted.photos is None else embed(wanted.photos)
    torch.set_num_threads(1)  # thousands of small samples, for which threads only wait for each other

    print("Covers the truth, in %; in brackets: lies above it, in %, which promotes where nothing is better.")
    print(f"{trials} trials a number of classes, {min(trials, OTHERS)} of the other methods.\n")
    print("Generated, 10 pictures a class:\n")
    even = {count: [generated(random, np.full(count, 10)) for _ in range(trials)] for count in CLASSES}
    compare_methods(even)
    print("Generated, 2 to 60 pictures a class (log-normal, median 10):\n")
    uneven = {count: [generated(random, sizes(random, count)) for _ in range(trials)] for count in CLASSES}
    compare_methods(uneven)
    networks, heads = NETWORKS, HEADS
    if photos is not None:
        networks, heads = on_photographs(photos, trials, random)
    print("How often a true gain is proven, in %, between two networks as different as those of like quality:\n")
    print_power(networks, GAINS, trials, random)
    print("The same where a head is trained a little: its gain varies in proportion to itself.\n")
    print_power({pictures: (0.05 * a, 0.05 * b) for pictures, (a, b) in heads.items()}, (0.05,), trials, random)
    enough = [draw for many in (even, uneven) for count, drawn in many.items() if count >= 20 for draw in drawn]
    print_headline("proof_coverage", float(np.mean([low <= 0 <= high for low, high in intervals(enough)])))


# populations ------------------------------------------------------------------------------------------------------


def population(random: np.random.Generator, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the embeddings of the generated pictures by two networks, (N, 30) float32 each, and labels (N,)."""
    labels = np.repeat(np.arange(len(counts)), counts)
    centres = random.normal(size=(len(counts), 34))
    widths = 0.85 * np.exp(0.7 * random.normal(size=(len(counts), 34)))
    pictures = (centres[labels] + widths[labels] * random.normal(size=(len(labels), 34))).astype(np.float32)
    return pictures[:, :30], pictures[:, 4:], labels


def sizes(random: np.random.Generator, classes: int) -> np.ndarray:
    """How many pictures each class has: from 2 to 60, as uneven as in what people send."""
    return np.exp(random.normal(np.log(10), 0.6, classes)).round().clip(2, 60).astype(int)


def generated(random: np.random.Generator, counts: np.ndarray) -> Draw:
    """Draw classes from the generated population, with so many pictures each."""
    return differences_of(*population(random, counts))


def differences_of(first: np.ndarray, second: np.ndarray, labels: np.ndarray) -> Draw:
    """Score two embeddings (N, D) of the same pictures. Every class has at least two."""
    return average_precision(second, labels) - average_precision(first, labels), labels


def average_precision(embeddings: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the mAP@R of each picture, (N,)."""
    return score_classes(embeddings, labels.tolist()).per_query[DECIDING]


def with_replacement(
    random: np.random.Generator, values: np.ndarray, labels: np.ndarray, classes: int, pictures: int | None
) -> Draw:
    """Draw classes with replacement, and of each so many values, or all if there are fewer."""
    members = [np.flatnonzero(labels == label) for label in range(int(labels.max()) + 1)]
    chosen = [members[label] for label in random.integers(0, len(members), classes)]
    if pictures is not None:
        chosen = [random.choice(rows, pictures, replace=False) for rows in chosen]
    return values[np.concatenate(chosen)], np.repeat(np.arange(classes), [len(rows) for rows in chosen])


def apart(random: np.random.Generator, labels: np.ndarray, classes: int, pictures: int) -> np.ndarray:
    """Return rows of so many pictures, or all if there are fewer, of each of `classes` different classes."""
    chosen = random.permutation(int(labels.max()) + 1)[:classes]
    members = [np.flatnonzero(labels == label) for label in chosen]
    return np.concatenate([random.choice(rows, min(pictures, len(rows)), replace=False) for rows in members])


# methods ----------------------------------------------------------------------------------------------------------


def intervals(drawn: Iterable[Draw], method: Method = cluster_interval) -> np.ndarray:
    """Return the low and high end of each interval, (T, 2)."""
    return np.array([method(*draw) for draw in drawn])


def queries_percentile(values: np.ndarray, clusters: np.ndarray) -> tuple[float, float]:
    """Resample single queries."""
    return bootstrap_interval(values, 0.95, RESAMPLES, 0)


def classes_by_scipy(method: str) -> Method:
    """Resample classes. A mean over queries is the sum of the classes' sums, divided by that of their sizes."""

    def interval(values: np.ndarray, clusters: np.ndarray) -> tuple[float, float]:
        found = bootstrap(
            (np.bincount(clusters, values), np.bincount(clusters)),
            lambda sums, counts, axis=-1: sums.sum(axis) / counts.sum(axis),
            paired=True,
            n_resamples=RESAMPLES,
            method=method,
            rng=np.random.default_rng(0),
        ).confidence_interval
        return float(found.low), float(found.high)

    return interval


def classes_bootstrap_t(values: np.ndarray, clusters: np.ndarray) -> tuple[float, float]:
    """Resample classes. Take quantiles of the difference to the mean, divided by its standard error."""
    sums, counts = np.bincount(clusters, values), np.bincount(clusters)
    count, mean = len(counts), values.mean()
    weights = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), RESAMPLES)  # (B, C)
    totals = weights @ counts
    means = weights @ sums / totals
    squares = weights @ sums**2 - 2 * means * (weights @ (sums * counts)) + means**2 * (weights @ counts**2)
    errors = np.sqrt(np.maximum(squares, 1e-18)) / totals
    low, high = np.percentile((means - mean) / errors, [2.5, 97.5])
    error = np.sqrt(np.sum((sums - mean * counts) ** 2)) / len(values)
    return float(mean - high * error), float(mean - low * error)


METHODS: dict[str, Method] = {
    "queries, percentile": queries_percentile,
    "classes, percentile": classes_by_scipy("percentile"),
    "classes, BCa": classes_by_scipy("BCa"),
    "classes, bootstrap-t": classes_bootstrap_t,
    "classes, CR2 and t: ours": cluster_interval,
}


def compare_methods(many: dict[int, list[Draw]]) -> None:
    """Print how often each method covers the truth, and how often it lies above, by number of classes."""
    rows = []
    for name, method in METHODS.items():
        every = {count: 1 if method is cluster_interval else -(-len(drawn) // OTHERS) for count, drawn in many.items()}
        found = [intervals(drawn[:: every[count]], method) for count, drawn in many.items()]
        rows.append([name, *(f"{_share((x[:, 0] <= 0) & (x[:, 1] >= 0))} ({_share(x[:, 0] > 0)})" for x in found)])
    print_table(["resampled, method", *(f"{count} classes" for count in many)], rows)


def print_power(spreads: Spreads, gains: Sequence[float], trials: int, random: np.random.Generator) -> None:
    """Print how often a gain is proven, by classes and pictures a class. It varies normally, with these spreads."""
    rows = []
    for classes, (pictures, (between, within)) in itertools.product((5, 10, 20, 40, 80), spreads.items()):
        clusters = np.repeat(np.arange(classes), pictures)
        effects = random.normal(0, between, (trials, classes)).repeat(pictures, axis=1)
        noise = effects + random.normal(0, within, (trials, len(clusters)))
        lows = intervals((values, clusters) for values in noise)[:, 0]
        rows.append([classes, pictures, classes * pictures, *(_share(lows + gain > 0, "{:.0f}") for gain in gains)])
    print_table(["classes", "pictures a class", "pictures", *(f"gain {gain:g}" for gain in gains)], rows)


def _share(found: np.ndarray, form: str = "{:.1f}") -> str:
    return form.format(100 * float(np.mean(found)))


# photographs ------------------------------------------------------------------------------------------------------


def on_photographs(photos: Photos, trials: int, random: np.random.Generator) -> tuple[Spreads, Spreads]:
    """Print the tables of the photographs. Return the spreads measured on them, like `NETWORKS` and `HEADS`."""
    labels = photos.measured
    measured = {name: features[~photos.training] for name, features in photos.features.items()}
    scores = {name: average_precision(values, labels) for name, values in measured.items()}
    print_table(["network", "mAP@R"], [[name, float(values.mean())] for name, values in scores.items()])
    alike = [(a, b) for a, b in itertools.permutations(scores, 2) if abs((scores[b] - scores[a]).mean()) < 0.06]
    pairs = [alike[number] for number in random.permutation(len(alike))[:24]]

    for pictures in (10, None):
        print(f"Photographs, {pictures or 'all'} of each class, {len(pairs)} pairs of networks:\n")
        differences = [centred(scores[b] - scores[a], labels, pictures) for a, b in pairs]
        compare_methods(
            {
                count: [
                    with_replacement(random, differences[trial % len(pairs)], labels, count, pictures)
                    for trial in range(trials)
                ]
                for count in CLASSES
            }
        )
    print("Redrawn photographs, 10 of each class, 8 pairs of networks:\n")
    compare_methods({count: redrawn(random, pairs[:8], measured, labels, count, trials) for count in (5, 10, 15, 20)})

    base = photos.whitened(128, 0.0)
    print_false_promotions(base, photos, trials, random)
    networks = {
        pictures: components([(measured[a], measured[b]) for a, b in pairs], labels, pictures, random)[1:]
        for pictures in PICTURES
    }
    heads = [trained(base[photos.training], photos.labels[photos.training], 60, seed) for seed in range(4)]
    before = base[~photos.training]
    gains = {
        pictures: components([(before, before @ head) for head in heads], labels, pictures, random)
        for pictures in PICTURES
    }
    print("Spread of the difference between classes and within them, by pictures of each class, all classes:\n")
    print_table(
        ["pictures", "two networks: between", "within", "a head: its gain", "between", "within"],
        [[pictures, *networks[pictures], *gains[pictures]] for pictures in PICTURES],
    )
    shares = {pictures: (between / gain, within / gain) for pictures, (gain, between, within) in gains.items()}
    return networks, shares


def print_false_promotions(
    base: np.ndarray, photos: Photos, trials: int, random: np.random.Generator, models: int = 50
) -> None:
    """Print how often a model is promoted that is not better. Args: base: (N, D), of all photographs."""
    labels, before = photos.measured, base[~photos.training]
    worse: dict[str, list[np.ndarray]] = {"two perturbed versions": [], "trained on shuffled labels": []}
    for number in range(min(models, trials)):
        first, second = (average_precision(perturbed(random, before), labels) for _ in range(2))
        worse["two perturbed versions"].append(not_better(second - first, labels))
        shuffled = random.permutation(photos.labels[photos.training])
        head = trained(base[photos.training], shuffled, 20, number)
        gained = average_precision(before @ head, labels) - average_precision(before, labels)
        worse["trained on shuffled labels"].append(not_better(gained, labels))
    rows = []
    for name, differences in worse.items():
        truth = float(np.mean([class_means(values, labels).mean() for values in differences]))
        shares = []
        for count in CLASSES:
            drawn = [
                with_replacement(random, differences[trial % len(differences)], labels, count, 10)
                for trial in range(trials)
            ]
            shares.append(_share(intervals(drawn)[:, 0] > 0))
        rows.append([name, truth, *shares])
    print(f"Promoted though not better, in %, photographs, 10 of each class, {trials} trials each:\n")
    print_table(["after, before", "true difference", *(f"{count} classes" for count in CLASSES)], rows)


def not_better(differences: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the differences (N,). The models are ordered so that the second one is not better in truth."""
    return -differences if class_means(differences, labels).mean() > 0 else differences


def perturbed(random: np.random.Generator, embeddings: np.ndarray) -> np.ndarray:
    """Return the embeddings (N, D) turned and stretched at random, alike for all pictures, each with its own noise."""
    width = embeddings.shape[1]
    stretch = np.eye(width) + random.normal(0, 0.5 / width**0.5, (width, width))
    noise = random.normal(0, 0.2 * embeddings.std(), embeddings.shape)
    return (embeddings @ stretch + noise).astype(np.float32)


def centred(differences: np.ndarray, labels: np.ndarray, pictures: int | None) -> np.ndarray:
    """Return the differences (N,) minus the true one, for a mean over classes or over all pictures."""
    truth = differences if pictures is None else class_means(differences, labels)
    return differences - truth.mean()


def class_means(differences: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the mean of each class, (C,). The labels are 0 to C - 1."""
    means: np.ndarray = np.bincount(labels, differences) / np.bincount(labels)
    return means


def redrawn(
    random: np.random.Generator,
    pairs: Sequence[tuple[str, str]],
    measured: dict[str, np.ndarray],
    labels: np.ndarray,
    classes: int,
    trials: int,
) -> list[Draw]:
    """Score each pair anew on samples of `classes` different classes. The mean over the samples is the truth."""
    found: list[Draw] = []
    for first, second in pairs:
        drawn = []
        for _ in range(trials // len(pairs)):
            rows = apart(random, labels, classes, 10)
            numbers = np.unique(labels[rows], return_inverse=True)[1]
            drawn.append(differences_of(measured[first][rows], measured[second][rows], numbers))
        truth = np.mean([values.mean() for values, _ in drawn])
        found += [(values - truth, clusters) for values, clusters in drawn]
    return found


def components(
    pairs: Sequence[tuple[np.ndarray, np.ndarray]], labels: np.ndarray, pictures: int, random: np.random.Generator
) -> tuple[float, float, float]:
    """Return the mean difference, and its standard deviation between and within classes (one-way analysis of variance).

    Every pair is scored on three samples of all classes, with so many pictures of each, or all if there are fewer.
    """
    found = []
    for first, second in pairs:
        for _ in range(3):
            rows = apart(random, labels, int(labels.max()) + 1, pictures)
            values, clusters = differences_of(first[rows], second[rows], labels[rows])
            counts, means = np.bincount(clusters), class_means(values, clusters)
            within = np.sum((values - means[clusters]) ** 2) / (len(values) - len(counts))
            found.append((values.mean(), means.var(ddof=1) - np.mean(within / counts), within))
    mean, between, within = np.mean(found, axis=0)
    return float(mean), float(max(between, 0.0) ** 0.5), float(within**0.5)


if __name__ == "__main__":
    main()
