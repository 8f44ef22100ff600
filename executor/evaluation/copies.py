"""Finds copies among images: equal, encoded anew, resized, cropped by a tenth, mirrored, recoloured.

Fingerprints find candidates. Then the pixels decide: the two images are aligned. A copy fits without rotation or shear,
shows no more than its original, and has the same fine detail. Two pictures of one moment fail in one of these. Images
without detail, such as one colour, are copies only if they are equal.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

import cv2
import numpy as np
from scipy.cluster.hierarchy import DisjointSet
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from .fingerprints import WINDOWS, Fingerprint, near_duplicates, squashed

_SIDE = 64  # pixels a side of two images that are aligned
_ITERATIONS = 6  # of the alignment; copies need about 4
_TILT = 0.007  # a copy is not rotated or sheared by more than this, in pixels per pixel
_SMALLEST = 0.87  # a copy shows at least this share of each side of its original
_BEYOND = 0.01  # a copy shows at most this share of a side beyond the borders of its original
_DETAIL = 0.95  # least correlation of the fine detail
_DETAIL_OF_A_BLOCK = 0.8  # the same for each of the sixteen blocks of an image
_FINE_CONTRAST = 0.5  # grey levels: least standard deviation of the fine detail
_NOISE = 4.0  # grey levels squared: less detail than this in a block may be noise
_COLOUR = 75.0  # levels: most difference of a channel, as the mean of a block


def find_copies(fingerprints: Sequence[Fingerprint], image: Callable[[int], np.ndarray]) -> list[tuple[int, int]]:
    """Return pairs (i, j) of copies, i < j. They connect every group of copies, but are not all pairs of a group.

    For each image at most 8 pairs are compared by their pixels. Images that other pairs have joined are not compared.

    Args: image: returns image i, (H, W, 3) uint8. It is called only for candidates, and may be called again.
    """
    first = {one.digest: number for number, one in reversed(list(enumerate(fingerprints)))}
    pairs = [(first[one.digest], number) for number, one in enumerate(fingerprints) if first[one.digest] != number]
    unequal = sorted(first.values())
    near = near_duplicates([fingerprints[number] for number in unequal])
    groups = DisjointSet(range(len(unequal)))
    small = lru_cache(4096)(lambda number: squashed(image(unequal[number]), _SIDE))
    for one, other, window in zip(near.first.tolist(), near.second.tolist(), near.window.tolist(), strict=True):
        if not groups.connected(one, other) and _is_copy(small(one), small(other), window):
            groups.merge(one, other)
            low, high = sorted((unequal[one], unequal[other]))
            pairs.append((low, high))
    return sorted(pairs)


def groups_of_copies(pairs: Sequence[tuple[int, int]], count: int) -> np.ndarray:
    """Number the groups of `count` images: (count,) int64. An image without copies is a group of its own."""
    ends = np.array(pairs, np.int64).reshape(-1, 2).T
    graph = coo_matrix((np.ones(ends.shape[1], bool), (ends[0], ends[1])), (count, count))
    groups: np.ndarray = connected_components(graph, directed=False)[1].astype(np.int64)
    return groups


def _is_copy(first: np.ndarray, second: np.ndarray, window: int) -> bool:
    """Whether `second` is a copy of about the window `window` of `first`; both (64, 64, 3) uint8.

    They are aligned by the enhanced correlation coefficient (Evangelidis & Psarakis 2008, doi:10.1109/TPAMI.2008.113).
    """
    if window % 2:
        second = np.ascontiguousarray(second[:, ::-1])
    (top, height), (left, width) = (WINDOWS[number] for number in divmod(window // 2, len(WINDOWS)))
    shift = [left * _SIDE + (width - 1) / 2, top * _SIDE + (height - 1) / 2]  # between centres of pixels
    matrix: np.ndarray = np.array([[width, 0, shift[0]], [0, height, shift[1]]], np.float32)
    grey, wanted = (cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32) for image in (first, second))
    ending = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, _ITERATIONS, 1e-4)
    try:
        matrix = cv2.findTransformECC(wanted, grey, matrix, cv2.MOTION_AFFINE, ending)[1]
    except cv2.error:  # the alignment does not converge
        return False
    return (
        _is_part(matrix)
        and _same_colours(_fitted(first, matrix), second)
        and _same_detail(_fitted(grey, matrix), wanted)
    )


def _is_part(matrix: np.ndarray) -> bool:
    """Whether `matrix` (2, 3) maps a square to a part of a square, neither turned nor much smaller."""
    corners = matrix @ np.array([[-0.5, -0.5, 1], [_SIDE - 0.5, _SIDE - 0.5, 1]]).T + 0.5
    inside = corners.min() >= -_BEYOND * _SIDE and corners.max() <= (1 + _BEYOND) * _SIDE
    tilt = max(abs(matrix[0, 1]), abs(matrix[1, 0]))
    return bool(inside and tilt <= _TILT and min(matrix[0, 0], matrix[1, 1]) >= _SMALLEST)


def _fitted(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Return the image (64, 64, ...) warped by `matrix` (2, 3), so that it fits another one."""
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(image, matrix, (_SIDE, _SIDE), flags=flags, borderMode=cv2.BORDER_REPLICATE)


def _same_colours(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether the colours differ only slightly in every block; both (64, 64, 3) uint8."""
    return bool(np.abs(_blocks(first.astype(np.float32) - second)).max() <= _COLOUR)


def _same_detail(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether the fine detail, between blurs of 0.7 and 2 pixels, correlates as a whole and in each block.

    Args: first, second: (64, 64) float32, grey.
    """
    one, other = (cv2.GaussianBlur(grey, (0, 0), 0.7) - cv2.GaussianBlur(grey, (0, 0), 2) for grey in (first, second))
    common, power = _blocks(one * other), np.sqrt(_blocks(one * one) * _blocks(other * other))
    whole = common.mean() / max(_FINE_CONTRAST**2, float(np.linalg.norm(one) * np.linalg.norm(other)) / one.size)
    within = (common + _NOISE) / (power + _NOISE)
    return bool(whole >= _DETAIL and within.min() >= _DETAIL_OF_A_BLOCK)


def _blocks(values: np.ndarray) -> np.ndarray:
    """The means (4, 4, ...) of the sixteen blocks of (64, 64, ...)."""
    means: np.ndarray = values.reshape(4, _SIDE // 4, 4, _SIDE // 4, *values.shape[2:]).mean(axis=(1, 3))
    return means
