"""Generate textured shapes: images whose classes differ in texture and form, but not in position.

By default they do not differ in colour either. On request each class has a hue, which varies by 16°; several classes
may share one.
"""

import itertools

import cv2
import numpy as np

ANGLES = 6
PERIODS = (5.0, 8.0, 13.0)
CORNERS = (3, 4, 5, 8, 24)  # of the polygon; with 24 it is nearly a circle
Kind = tuple[float, float, int]  # angle in radians, period in pixels at 64 × 64, corners


def classes(count: int, seed: int = 0) -> list[Kind]:
    """Draw `count` classes."""
    every = list(itertools.product(np.arange(ANGLES) * np.pi / ANGLES, PERIODS, CORNERS))
    return [every[index] for index in np.random.default_rng(seed).permutation(len(every))[:count]]


def draw(kind: Kind, random: np.random.Generator, size: int = 64) -> np.ndarray:
    """Return an image, (size, size, 3) uint8: a polygon filled with stripes, on a plain ground, all with noise.

    The class sets the corners and the stripes. Colours, position, size, phase and rotation of the polygon are random.
    The direction of the stripes varies with a standard deviation of 4°.
    """
    angle, period, corners = kind
    scale = size / 64
    angle += random.normal(0, np.deg2rad(4))
    y, x = np.mgrid[:size, :size]
    wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / (period * scale) + random.uniform(0, 2 * np.pi))
    dark, light, ground = random.uniform(20, 110, 3), random.uniform(140, 235, 3), random.uniform(30, 225, 3)
    stripes = dark + (light - dark) * (wave[..., None] + 1) / 2
    mask = np.zeros((size, size), np.uint8)
    radius = random.uniform(0.26, 0.4) * size
    centre = random.uniform(radius, size - radius, 2)
    turns = random.uniform(0, 2 * np.pi) + np.arange(corners) * 2 * np.pi / corners
    polygon = centre + radius * np.stack([np.cos(turns), np.sin(turns)], axis=1)
    cv2.fillPoly(mask, [np.round(polygon).astype(np.int32)], 255)
    image = np.where(mask[..., None] > 0, stripes, ground) + random.normal(0, 14, (size, size, 1))
    return image.clip(0, 255).astype(np.uint8)


def tinted(image: np.ndarray, hue: int, random: np.random.Generator) -> np.ndarray:
    """Return the image with all hues near `hue`, which is in OpenCV's unit of 2°."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV).astype(int)
    hsv[..., 0] = (hsv[..., 0] // 8 + hue + random.normal(0, 8)) % 180
    return cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB)


def make(
    kinds: list[Kind], each: int, seed: int, size: int = 64, hues: list[int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return images (N, size, size, 3) uint8 and labels (N,) int64: `each` of every class. `hues`: one per class."""
    random = np.random.default_rng(seed)
    images = []
    for label, kind in enumerate(kinds):
        for _ in range(each):
            image = draw(kind, random, size)
            images.append(image if hues is None else tinted(image, hues[label], random))
    return np.stack(images), np.repeat(np.arange(len(kinds)), each)
