"""Makes a fingerprint of every image when it is decoded, and finds images that look alike by their fingerprints.

A fingerprint has a digest of the content and a thumbnail. Of two thumbnails the low frequencies are compared: of one
as a whole, and of windows of the other, as they are and mirrored. An index spares most comparisons: among N images each
is compared with about 128 · sqrt(N) others.
"""

import hashlib
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import cv2
import numpy as np

from ..loading.batches import is_image

MAYBE_COPIES = 0.85  # cosine of the low frequencies; from this on the pixels of two images are compared
NEARLY_THE_SAME = 0.8  # the same cosine; from this on two images of one label are nearly the same picture
WINDOWS = ((0.0, 1.0), (0.0, 0.9), (0.05, 0.9), (0.1, 0.9))  # (start, length) of a window along an axis
THUMBNAIL = 32  # pixels
_FREQUENCIES = 6  # of the cosine transform, along each axis
_CONTRAST = 1.0  # grey levels: an image with less in its low frequencies is not compared
_BLOCK = 256  # images compared at a time
_PROBES = 4  # cells that a window is compared with
_NEIGHBOURS = 8  # an image is the first of at most so many pairs
_PAIR = np.dtype([("first", np.int64), ("second", np.int64), ("window", np.int64), ("similarity", np.float32)])


class Fingerprint(NamedTuple):
    """What is kept of an image: a `digest` of its content (16 bytes) and a grey `thumbnail`, (32, 32) uint8."""

    digest: bytes
    thumbnail: np.ndarray


class Near(NamedTuple):
    """Pairs of images that look alike, most similar first.

    Attributes:
        first: (P,) int64, the image whose window is compared.
        second: (P,) int64, the image that resembles it.
        window: (P,) int64: 2 · (4 · rows + columns), where both are indices into `WINDOWS`; plus 1 if mirrored.
        similarity: (P,) float32, the cosine.
        comparisons: how many similarities were computed.
    """

    first: np.ndarray
    second: np.ndarray
    window: np.ndarray
    similarity: np.ndarray
    comparisons: int


def fingerprint(image: np.ndarray) -> Fingerprint:
    """Return the fingerprint of an image, (H, W, 3) uint8. Any other array resembles only arrays that are equal."""
    content = hashlib.blake2b(f"{image.dtype.str} {image.shape} ".encode(), digest_size=16)
    content.update(np.ascontiguousarray(image).data)
    if not is_image(image):
        return Fingerprint(content.digest(), np.zeros((THUMBNAIL, THUMBNAIL), np.uint8))
    return Fingerprint(content.digest(), squashed(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), THUMBNAIL))


def share_nearly_seen(fingerprints: Sequence[Fingerprint], labels: Sequence[object], held: np.ndarray) -> float:
    """Return the share of the held-out images that nearly equal an image of their label that is not held out.

    Such are copies, and many pictures of one moment. When a random fifth of photographs that came in bursts was held
    out, the share was 0.19 to 0.26; with photographs of the same things on another day it was 0.01.

    Args: held: (N,) bool, whether an image is held out.
    """
    near = near_duplicates(fingerprints, NEARLY_THE_SAME)
    names = np.unique(np.array([str(label) for label in labels]), return_inverse=True)[1]
    across = (names[near.first] == names[near.second]) & (held[near.first] != held[near.second])
    seen = np.unique(np.where(held[near.first], near.first, near.second)[across])
    return len(seen) / max(1, int(np.count_nonzero(held)))


def near_duplicates(fingerprints: Sequence[Fingerprint], at_least: float = MAYBE_COPIES) -> Near:
    """Return pairs of images that look alike in their low frequencies, by inverted file (Sivic & Zisserman 2003).

    The images are sorted into cells, each around one of them. A window is compared only with the images of the nearest
    cells, so a few pairs are missed. An image has at most 8 pairs, the nearest ones. One without contrast has none.
    """
    starts = range(0, len(fingerprints), _BLOCK)
    blocks = [np.stack([one.thumbnail for one in fingerprints[start : start + _BLOCK]]) for start in starts]
    whole = [_described(block, WINDOWS[:1])[:, 0] for block in blocks]
    cells = _Cells(np.concatenate([np.zeros((0, _FREQUENCIES**2), np.float32), *whole]))
    found = [cells.nearest(start, _described(block), at_least) for start, block in zip(starts, blocks, strict=True)]
    pairs = np.concatenate([np.zeros(0, _PAIR), *found])
    pairs = pairs[np.argsort(-pairs["similarity"], kind="stable")]
    ends = np.sort(np.stack([pairs["first"], pairs["second"]]), axis=0)
    pairs = pairs[np.sort(np.unique(ends[0] * len(fingerprints) + ends[1], return_index=True)[1])]
    return Near(pairs["first"], pairs["second"], pairs["window"], pairs["similarity"], cells.comparisons)


class _Cells:
    """Descriptors, (N, D) float32, sorted into cells, each around one of them. Descriptors of zeros are in no cell."""

    def __init__(self, descriptors: np.ndarray) -> None:
        members = np.flatnonzero(descriptors.any(axis=1))
        count = round((_PROBES * len(members)) ** 0.5) if len(members) > _PROBES else len(members)
        self._centres = descriptors[np.random.default_rng(0).choice(members, count, replace=False)]
        parts = [members[start : start + _BLOCK] for start in range(0, len(members), _BLOCK)]
        nearest = [(descriptors[part] @ self._centres.T).argmax(axis=1) for part in parts]
        self._members = [members[part] for part in _by_value(np.concatenate([members[:0], *nearest]), count)]
        self._descriptors = [descriptors[part] for part in self._members]
        self.comparisons = len(members) * count

    def nearest(self, start: int, described: np.ndarray, at_least: float) -> np.ndarray:
        """Return pairs, (P,) of `_PAIR`: for each image from `start` on the most similar others, each once.

        Args: described: the descriptors of these images, (B, windows, D).
        """
        windows = described.shape[1]
        found = [np.zeros(0, _PAIR)]
        for query, other, similarity in self._similar(described.reshape(-1, described.shape[2]), at_least):
            pairs = np.zeros(len(query), _PAIR)
            pairs["first"], pairs["window"] = start + query // windows, query % windows
            pairs["second"], pairs["similarity"] = other, similarity
            found.append(pairs[pairs["first"] != other])
        pairs = np.concatenate(found)
        pairs = pairs[np.lexsort((-pairs["similarity"], pairs["second"], pairs["first"]))]
        again = (np.diff(pairs["first"]) == 0) & (np.diff(pairs["second"]) == 0)  # in another window
        pairs = np.delete(pairs, 1 + np.flatnonzero(again))
        pairs = pairs[np.lexsort((-pairs["similarity"], pairs["first"]))]
        rank = np.arange(len(pairs)) - np.searchsorted(pairs["first"], pairs["first"])
        return pairs[rank < _NEIGHBOURS]

    def _similar(self, queries: np.ndarray, at_least: float) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yield (query, image, similarity), each (P,), for `queries` (Q, D)."""
        probes = min(_PROBES, len(self._centres))
        if not probes:
            return
        to_centres = queries @ self._centres.T
        probed = np.argpartition(to_centres, -probes, axis=1)[:, -probes:]
        self.comparisons += to_centres.size
        for cell, part in enumerate(_by_value(probed.ravel(), len(self._centres))):
            asking = part // probes
            similarity = queries[asking] @ self._descriptors[cell].T
            self.comparisons += similarity.size
            row, column = np.nonzero(similarity >= at_least)
            yield asking[row], self._members[cell][column], similarity[row, column]


def _by_value(values: np.ndarray, count: int) -> list[np.ndarray]:
    """Return for each of the values 0 … count-1 its positions in `values`, (N,) int64."""
    order = np.argsort(values, kind="stable")
    return [order[low:high] for low, high in pairwise(np.searchsorted(values[order], np.arange(count + 1)))]


def _described(thumbnails: np.ndarray, windows: Sequence[tuple[float, float]] = WINDOWS) -> np.ndarray:
    """Return the low frequencies of windows of thumbnails, (B, 32, 32) uint8, as they are and mirrored.

    They are cosine coefficients without the mean. Each is multiplied by its frequency, because the spectrum of
    photographs falls with 1/f. Then they get unit norm. Window 2w is pair w of (rows, columns), 2w + 1 is it mirrored.

    Returns: (B, 2 · windows², 36) float32; zeros for an image without contrast.
    """
    basis = np.stack([_cosines(*window) for window in windows])
    grey = thumbnails.astype(np.float32)
    values = np.einsum("aus,bst,cvt->bacuv", basis, grey, basis, optimize=True)
    frequency = np.arange(_FREQUENCIES)
    values *= np.hypot(frequency[:, None], frequency)
    values = np.stack([values, values * (-1.0) ** frequency], axis=3).reshape(len(grey), -1, _FREQUENCIES**2)
    norm = np.linalg.norm(values, axis=2, keepdims=True)
    return np.where(norm > _CONTRAST, values / np.maximum(norm, _CONTRAST), 0).astype(np.float32)


def _cosines(start: float, length: float) -> np.ndarray:
    """Return the cosines (frequencies, 32) of a window along an axis, averaged over each pixel."""
    fine = 16
    place = ((np.arange(THUMBNAIL * fine) + 0.5) / (THUMBNAIL * fine) - start) / length
    wave = np.cos(np.pi * np.arange(_FREQUENCIES)[:, None] * place) * ((place >= 0) & (place < 1))
    means: np.ndarray = wave.reshape(_FREQUENCIES, THUMBNAIL, fine).mean(axis=2) / (length * THUMBNAIL)
    return means.astype(np.float32)


def squashed(image: np.ndarray, side: int) -> np.ndarray:
    """Return an image, (H, W) or (H, W, 3), squashed to a square of `side` pixels."""
    if image.shape[:2] == (side, side):
        return image
    smaller = max(image.shape[:2]) >= side
    return cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC)
