"""Measure how well copies of images are found: how many of the planted copies, and how many that are none.

    .venv/bin/python -m benchmarks.copies [--photos FOLDER] [--others FOLDER] [--quick]

FOLDER has one subfolder of images for each label. Without it the program draws photographs. It copies a random sample
in one way at a time, and looks for these copies among all images, at several sizes: squashed to squares, as a model
sees them, and as they are. Labels with even numbers and labels with odd numbers are measured apart, so that thresholds
can be chosen on the first and confirmed on the others. A reported pair is false if the two do not come from the same
file. The originals of such pairs are listed, so that a person can look at them.

The peer is the perceptual hash, as imagehash 4.3.2 computes it, of an image and of its mirror image. All pairs are
compared. The hard cases are images of which none is a copy. Measured for the warning of nearly the same pictures: which
share of a random fifth has a nearly equal picture of its label among the rest, and with --others, which share of the
images in that folder has one.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from scipy.fft import dct
from sklearn.datasets import load_digits

from benchmarks import shapes
from benchmarks.common import options, print_headline, print_machine, print_table, textured
from benchmarks.planted import KINDS, Change, photograph
from executor.evaluation.copies import find_copies, groups_of_copies
from executor.evaluation.fingerprints import THUMBNAIL, Fingerprint, fingerprint, near_duplicates, share_nearly_seen
from executor.models.preprocessing import Preprocessing

HASH_BITS = 10  # of 64 in which two perceptual hashes may differ


class Collection:
    """Images at one size with their fingerprints, among which copies are planted."""

    def __init__(self, originals: Sequence[np.ndarray], size: int | None) -> None:
        self._originals = originals
        self._size = size
        self.images = [self._seen(image) for image in originals]
        self.prints = [fingerprint(image) for image in self.images]

    def _seen(self, image: np.ndarray) -> np.ndarray:
        return image if self._size is None else Preprocessing(size=self._size).resize(image)

    def plant(self, change: Change, sample: np.ndarray, random: np.random.Generator) -> "Planted":
        """Look for copies of the `sample`."""
        copies = [self._seen(change(self._originals[number], random)) for number in sample]
        images = [*self.images, *copies]
        source = np.concatenate([np.arange(len(self.images)), sample])
        return Planted(images, [*self.prints, *map(fingerprint, copies)], source)


class Planted:
    """Images of which the last ones are copies: `source` says of which."""

    def __init__(self, images: list[np.ndarray], prints: list[Fingerprint], source: np.ndarray) -> None:
        self._images, self._prints, self._source = images, prints, source
        self._originals = len(np.unique(source))

    def ours(self) -> tuple[np.ndarray, list[tuple[int, int]]]:
        """Return which copies were found, (S,) bool, and the reported pairs."""
        pairs = find_copies(self._prints, self._images.__getitem__)
        groups = groups_of_copies(pairs, len(self._images))
        return groups[self._originals :] == groups[self._source[self._originals :]], pairs

    def peer(self) -> tuple[np.ndarray, list[tuple[int, int]]]:
        """The same by perceptual hash."""
        codes = np.stack([perceptual_hash(image) for image in self._images])
        mirror = np.stack([perceptual_hash(image[:, ::-1]) for image in self._images])
        apart = np.minimum(_differing(codes, codes), _differing(mirror, codes))
        first, second = np.nonzero(np.triu(apart <= HASH_BITS, 1))
        copies = np.arange(self._originals, len(self._source))
        return apart[self._source[copies], copies] <= HASH_BITS, list(zip(first, second, strict=True))

    def false(self, pairs: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Those pairs of originals that the reported `pairs` wrongly join."""
        return [(self._source[i], self._source[j]) for i, j in pairs if self._source[i] != self._source[j]]


def perceptual_hash(image: np.ndarray) -> np.ndarray:
    """Return 64 bits, bool: which low frequencies of the image, at 32 × 32, lie above their median."""
    grey = np.asarray(Image.fromarray(image).convert("L").resize((32, 32), Image.Resampling.LANCZOS), np.float64)
    low = dct(dct(grey, axis=0), axis=1)[:8, :8]
    return (low > np.median(low)).ravel()


def _differing(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    one, other = first.astype(np.float32), second.astype(np.float32)
    return one @ (1 - other).T + (1 - one) @ other.T


def interval(hits: int, of: int) -> str:
    """Return the 95 % interval of a share by Wilson's score (1927), as text."""
    share, z = hits / of, 1.96
    middle, half = share + z * z / (2 * of), z * (share * (1 - share) / of + z * z / (4 * of * of)) ** 0.5
    low, high = ((middle + sign * half) / (1 + z * z / of) for sign in (-1, 1))
    return f"{share:.3f} ({low:.3f}–{high:.3f})"


def measure_copies(
    title: str, originals: Sequence[np.ndarray], names: Sequence[str], sizes: Sequence[int | None], seeds: int, of: int
) -> float:
    """Print recall and precision; return the lowest recall of a kind that should be found."""
    found = {kind: [] for kind in KINDS}
    precision: list[list[object]] = []
    for size in sizes:
        collection = Collection(originals, size)
        of_size, reported, false = {kind: [0, 0] for kind in KINDS}, 0, set()
        wrong = 0
        for seed in range(seeds):
            random = np.random.default_rng([seed, 3])
            sample = random.choice(len(originals), min(of, len(originals)), replace=False)
            for kind, change in KINDS.items():
                planted = collection.plant(change, sample, random)
                hits, pairs = planted.ours()
                of_size[kind][0] += int(hits.sum())
                of_size[kind][1] += len(hits)
                joined = planted.false(pairs)
                reported, wrong, false = reported + len(pairs), wrong + len(joined), false | set(joined)
        for kind, counted in of_size.items():
            found[kind].append(counted)
        pictures = ", ".join(sorted(f"{names[i]} {names[j]}" for i, j in false)) or "–"
        precision.append([size or "as they are", reported, wrong, interval(reported - wrong, reported), pictures])
    peer = _peer(Collection(originals, sizes[0]), of)
    print(f"{title}: {len(originals)} images, {seeds} × {of} copies of each kind; found (95 % interval):\n")
    columns = ("kind", *(f"{size}×{size}" if size else "as they are" for size in sizes), "peer")
    rows = [(kind, *(interval(*each) for each in counts), peer[kind]) for kind, counts in found.items()]
    print_table(columns, rows)
    print("Reported pairs:\n")
    print_table(("size", "pairs", "false", "precision", "originals joined"), precision)
    print(f"The peer's precision: {peer['precision']}\n")
    return min(hits / total for kind, counts in found.items() if "beyond" not in kind for hits, total in counts)


def _peer(collection: Collection, of: int) -> dict[str, str]:
    random = np.random.default_rng([0, 3])
    sample = random.choice(len(collection.images), min(of, len(collection.images)), replace=False)
    shares, reported, false = {}, 0, 0
    for kind, change in KINDS.items():
        planted = collection.plant(change, sample, random)
        hits, pairs = planted.peer()
        shares[kind] = f"{hits.mean():.3f}"
        reported, false = reported + len(pairs), false + len(planted.false(pairs))
    return shares | {"precision": interval(reported - false, reported)}


def measure_hard_cases(many: int) -> None:
    """Print how many pairs are reported among images that are no copies."""
    random = np.random.default_rng(0)
    digits = [np.repeat((each * 255 / 16).astype(np.uint8)[..., None], 3, axis=2) for each in load_digits().images]
    y, x = np.mgrid[:64, :64] / 64
    slopes = [np.cos(a) * x + np.sin(a) * y for a in random.uniform(0, 6.28, many)]
    cases = {
        "one colour each": [np.full((64, 64, 3), random.integers(0, 256, 3), np.uint8) for _ in range(many)],
        "shades from side to side": [np.repeat((120 + 60 * g).astype(np.uint8)[..., None], 3, 2) for g in slopes],
        "noise": list(random.integers(0, 256, (many, 64, 64, 3), dtype=np.uint8)),
        "digits 8×8, enlarged": [cv2.resize(each, (64, 64), interpolation=cv2.INTER_CUBIC) for each in digits[:many]],
        "digits 8×8, as blocks": [
            cv2.resize(each, (64, 64), interpolation=cv2.INTER_NEAREST) for each in digits[:many]
        ],
        "drawn shapes": list(shapes.make(shapes.classes(20), -(-many // 20), 0)[0]),
        "textured": [textured(number % 5, number, 96, 96) for number in range(min(many, 200))],
        "product on white, other number on it": [_product(number % 20, number) for number in range(min(many, 200))],
        "one form in other colours": [_form(number) for number in range(min(many, 100))],
    }
    rows = []
    for name, images in cases.items():
        prints = [fingerprint(image) for image in images]
        began = time.process_time()
        pairs = find_copies(prints, images.__getitem__)
        seconds = time.process_time() - began
        unequal = [pair for pair in pairs if prints[pair[0]].digest != prints[pair[1]].digest]
        looked_at = len(near_duplicates(prints).first)
        rows.append((name, len(images), looked_at, len(unequal), seconds))
    print("Images that are no copies:\n")
    print_table(("", "images", "pairs that look alike", "reported, equal ones apart", "processor s"), rows)


def _product(kind: int, number: int) -> np.ndarray:
    random = np.random.default_rng(kind)
    image = np.full((128, 128, 3), 250, np.uint8)
    box, spot, ink = random.integers(30, 220, (3, 3)).tolist()
    cv2.rectangle(image, (40, 20), (88, 110), box, -1)
    cv2.circle(image, (64, 50), 18, spot, -1)
    cv2.putText(image, f"{101 + 7 * number % 899}", (44, 100), cv2.FONT_HERSHEY_SIMPLEX, 0.6, ink, 2)
    return image


def _form(number: int) -> np.ndarray:
    image = np.full((128, 128, 3), 250, np.uint8)
    colour = np.random.default_rng(number).integers(20, 230, 3).tolist()
    outline = [20, 30, 50, 15, 78, 15, 108, 30, 100, 55, 90, 50, 90, 115, 38, 115, 38, 50, 28, 55]
    cv2.fillPoly(image, [np.array(outline).reshape(-1, 2)], colour)
    return image


def measure_warning(prints: list[Fingerprint], labels: list[str], others: list[Fingerprint], names: list[str]) -> None:
    """Print which share of held-out images is nearly the same as one of its label among the rest."""
    rows: list[tuple[object, ...]] = []
    for seed in range(3):
        held = np.random.default_rng(seed).permutation(len(prints)) < len(prints) // 5
        rows.append((f"a random fifth, seed {seed}", int(held.sum()), share_nearly_seen(prints, labels, held)))
    if others:
        held = np.arange(len(prints) + len(others)) >= len(prints)
        share = share_nearly_seen([*prints, *others], [*labels, *names], held)
        rows.append(("the other folder", len(others), share))
    print("Held-out images that are nearly the same as one of their label among the rest:\n")
    print_table(("held out", "images", "share"), rows)


def measure_cost(counts: Sequence[int], images: Sequence[np.ndarray]) -> None:
    """Print the processor time for a fingerprint, for the comparison of a pair, and for a search among fingerprints."""
    rows: list[tuple[object, ...]] = []
    for size in (64, 96, 160, 224):
        seen = [Preprocessing(size=size).resize(image) for image in images[:200]]
        rows.append(
            (f"{size}×{size}", 1e3 * _processor_seconds(lambda seen=seen: list(map(fingerprint, seen))) / len(seen))
        )
    print("A fingerprint, one core:\n")
    print_table(("image", "ms"), rows)
    random = np.random.default_rng(0)
    rows = []
    frequency = np.hypot(np.fft.fftfreq(THUMBNAIL)[:, None], np.fft.rfftfreq(THUMBNAIL))
    frequency[0, 0] = np.inf
    for count in counts:
        noise = np.fft.irfft2(np.fft.rfft2(random.normal(size=(count, THUMBNAIL, THUMBNAIL))) / frequency)
        grey = (120 + 20 * noise / noise.std()).clip(0, 255).astype(np.uint8)
        prints = [Fingerprint(number.to_bytes(16, "big"), thumbnail) for number, thumbnail in enumerate(grey)]
        began = time.process_time()
        near = near_duplicates(prints)
        seconds = time.process_time() - began
        rows.append((count, f"{near.comparisons / count:.0f}", f"{64 * count / 2:.0f}", seconds, len(near.first)))
    print("Looking through fingerprints (1/f noise):\n")
    columns = ("fingerprints", "comparisons an image", "of all pairs and windows", "processor s", "alike")
    print_table(columns, rows)


def _processor_seconds(function: Callable[[], object]) -> float:
    began = time.process_time()
    function()
    return time.process_time() - began


def read(folder: Path) -> tuple[list[np.ndarray], list[str], list[str]]:
    """Return the images of a folder, their labels, and their names."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in {".jpg", ".jpeg", ".png", ".webp"})
    images = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
    return images, [path.parent.name for path in paths], [path.stem for path in paths]


def main() -> None:
    """Measure and print."""
    parser = options(__doc__)
    parser.add_argument("--photos", type=Path, help="a folder with a subfolder of images for each label")
    parser.add_argument("--others", type=Path, help="another such folder, of the same labels and other occasions")
    arguments = parser.parse_args()
    seeds, of, many, sizes, counts = 3, 100, 1000, (64, 96, 160, None), (1000, 10_000, 100_000)
    if arguments.quick:
        seeds, of, many, sizes, counts = 1, 40, 200, (64, 160), (1000, 10_000)
    if arguments.tiny:
        seeds, of, many, sizes, counts = 1, 6, 40, (64,), (200,)
    print_machine()
    if arguments.photos:
        images, labels, names = read(arguments.photos)
    else:
        images = [photograph(number) for number in range(6 * of)]
        labels, names = [str(number % 4) for number in range(len(images))], list(map(str, range(len(images))))
    every = sorted(set(labels))
    lowest = []
    for part, title in enumerate(("even labels", "odd labels")):
        chosen = [number for number, label in enumerate(labels) if every.index(label) % 2 == part]
        pictures, called = [images[number] for number in chosen], [names[number] for number in chosen]
        lowest.append(measure_copies(title.capitalize(), pictures, called, sizes, seeds, of))
    measure_hard_cases(many)
    prints = [fingerprint(Preprocessing(size=96).resize(image)) for image in images]
    others, other_labels, _ = read(arguments.others) if arguments.others else ([], [], [])
    others = [fingerprint(Preprocessing(size=96).resize(image)) for image in others]
    measure_warning(prints, labels, others, other_labels)
    measure_cost(counts, images)
    print_headline("lowest_share_of_copies_found", min(lowest))


if __name__ == "__main__":
    main()
