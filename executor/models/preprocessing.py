"""Resize, crop and normalise an image before a model sees it."""

from dataclasses import dataclass, replace
from typing import Literal

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
USUAL_SIZE = 224  # nearly all published image models were trained at this size
DEFAULT_SIZE = 64
FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
INTERPOLATIONS = ("area", *FILTERS)


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What happens to an image before the model sees it, the same in training, evaluation and serving.

    Attributes:
        size: Side of the square that the model sees, in pixels.
        mean: Mean of each channel, RGB in [0, 1].
        std: Standard deviation of each channel, RGB in [0, 1].
        crop: False squashes the whole image into the square, so that a search still sees what is at the borders.
            True keeps the aspect ratio and takes the middle.
        shorter_side: With `crop`: the shorter side is scaled to this many pixels before the middle `size` pixels
            are taken; None: to `size`.
        interpolation: `area` averages areas where the image shrinks, and interpolates by cubics where it grows. The
            others are Pillow's filters; they are slower, and for models that are sensitive to how they were trained.
    """

    size: int = DEFAULT_SIZE
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    crop: bool = False
    shorter_side: int | None = None
    interpolation: Literal["area", "bilinear", "bicubic", "lanczos"] = "area"

    def resize(self, image: np.ndarray) -> np.ndarray:
        """Return the image, H×W×3 uint8, as size×size×3 uint8; the same input always gives the same bytes."""
        if self.crop:
            image = self._middle(image)
        if self.interpolation != "area":
            filtered = Image.fromarray(image).resize((self.size, self.size), FILTERS[self.interpolation])
            return np.array(filtered)
        height, width = image.shape[:2]
        # First shrink by averaging areas, then enlarge by interpolation. These are two steps because OpenCV's area
        # mode does not average one axis while the other one grows.
        shrunk = min(width, self.size), min(height, self.size)
        if shrunk != (width, height):
            image = cv2.resize(image, shrunk, interpolation=cv2.INTER_AREA)
        if shrunk != (self.size, self.size):
            image = cv2.resize(image, (self.size, self.size), interpolation=cv2.INTER_CUBIC)
        return np.ascontiguousarray(image)

    @property
    def shrunk_to(self) -> int:
        """The pixels that the shorter side of an image is shrunk to."""
        return max(self.shorter_side or self.size, self.size) if self.crop else self.size

    def normalise(self, images: Tensor) -> Tensor:
        """Return (B, H, W, 3) uint8 as (B, 3, H, W) float32 on the same device, in channels-last memory format."""
        mean = torch.tensor(self.mean, device=images.device).view(1, 3, 1, 1)
        std = torch.tensor(self.std, device=images.device).view(1, 3, 1, 1)
        return images.permute(0, 3, 1, 2).to(torch.float32).sub_(mean * 255).div_(std * 255)

    def at(self, size: int | None) -> "Preprocessing":
        """Return the same preprocessing for squares of another size; None keeps the size."""
        if size is None:
            return self
        shorter_side = self.shorter_side and round(self.shorter_side * size / self.size)
        return replace(self, size=size, shorter_side=shorter_side)

    def _middle(self, image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        shorter = min(height, width)
        side = max(1, round(shorter * self.size / self.shrunk_to))
        top, left = (height - side) // 2, (width - side) // 2
        return image[top : top + side, left : left + side]
