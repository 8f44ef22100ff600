"""Textured shapes: a generated image set whose classes differ in texture and form, never in colour or place."""

import itertools

import cv2
import numpy as np

ANGLES = 6
PERIODS = (5.0, 8.0, 13.0)
CORNERS = (3, 4, 5, 8, 24)  # of the polygon; 24 is nearly a circle


def classes(count: int, seed: int = 0) -> list[tuple[float, float, int]]:
    """Draw `count` classes, each (angle in radians, period in pixels at 64 × 64, corners)."""
    every = list(itertools.product(np.arange(ANGLES) * np.pi / ANGLES, PERIODS, CORNERS))
    return [every[index] for index in np.random.default_rng(seed).permutation(len(every))[:count]]


def draw(kind: tuple[float, float, int], random: np.random.Generator, size: int = 64) -> np.ndarray:
    """Return an image, (size, size, 3) uint8: the class's polygon, filled with the class's stripes, on noise.

    Colours, place, size, phase and rotation of the polygon are random, and the stripes' direction varies by 8°.
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


def make(kinds: list[tuple[float, float, int]], each: int, seed: int, size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Return images (N, size, size, 3) uint8 and labels (N,) int64: `each` of every class."""
    random = np.random.default_rng(seed)
    images = [draw(kind, random, size) for kind in kinds for _ in range(each)]
    return np.stack(images), np.repeat(np.arange(len(kinds)), each)
