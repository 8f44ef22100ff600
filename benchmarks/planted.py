"""Draw photographs, and copy images in the ways in which people send them on."""

import io
from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image

Change = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def photograph(number: int, width: int = 256, height: int = 192) -> np.ndarray:
    """Return an image, (height, width, 3) uint8: a few shapes on a ground with the 1/f spectrum of photographs."""
    random = np.random.default_rng([number, 7])
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = np.inf
    planes = [np.fft.irfft2(np.fft.rfft2(random.normal(size=(height, width))) / frequency) for _ in range(3)]
    mixed = np.stack(planes, axis=2) @ (np.full((3, 3), 0.3) + 0.4 * np.eye(3))
    image = np.ascontiguousarray((120 + 45 * mixed / mixed.std()).clip(0, 255).astype(np.uint8))
    for _ in range(6):
        centre = random.integers(0, (width, height)).tolist()
        axes = random.integers(height // 16, height // 4, 2).tolist()
        colour = random.integers(20, 236, 3).tolist()
        cv2.ellipse(image, centre, axes, random.uniform(0, 180), 0, 360, colour, -1, cv2.LINE_AA)
    return image


def encoded(format: str) -> Change:
    """Encode it anew, with a random quality of 50 to 95 if the format is lossy."""

    def change(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, format, quality=int(random.integers(50, 96)))
        return np.asarray(Image.open(buffer).convert("RGB"))

    return change


def halved(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Resize it to half."""
    how = int(random.choice([cv2.INTER_AREA, cv2.INTER_LINEAR, cv2.INTER_CUBIC]))
    return cv2.resize(image, (image.shape[1] // 2, image.shape[0] // 2), interpolation=how)


def cropped(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Cut out nine tenths of each side, at a random place."""
    return _part(image, 0.9, 0.9, random)


def cropped_freely(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Cut out nine tenths of one side, and nine tenths or more of the other, at a random place."""
    shares = random.permutation([0.9, random.uniform(0.9, 1)])
    return _part(image, shares[0], shares[1], random)


def _part(image: np.ndarray, high: float, wide: float, random: np.random.Generator) -> np.ndarray:
    height, width = round(high * image.shape[0]), round(wide * image.shape[1])
    top, left = random.integers(0, image.shape[0] - height + 1), random.integers(0, image.shape[1] - width + 1)
    return np.ascontiguousarray(image[top : top + height, left : left + width])


def mirrored(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Exchange left and right."""
    return np.ascontiguousarray(image[:, ::-1])


def recoloured(hue: float = 18) -> Change:
    """Change contrast, brightness, gamma and saturation by up to a tenth, and the hue by up to so many degrees."""

    def change(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
        contrast, brightness, gamma, saturation = random.uniform(0.9, 1.1, 4)
        values = (((image / 255 - 0.5) * contrast + 0.5) * brightness).clip(0, 1) ** gamma
        hsv = cv2.cvtColor(values.astype(np.float32), cv2.COLOR_RGB2HSV)
        hsv[..., 0] = (hsv[..., 0] + random.uniform(-hue, hue)) % 360
        hsv[..., 1] = (hsv[..., 1] * saturation).clip(0, 1)
        return (cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) * 255).round().clip(0, 255).astype(np.uint8)

    return change


def after(*changes: Change) -> Change:
    """Make several changes, one after the other."""

    def change(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
        for each in changes:
            image = each(image, random)
        return image

    return change


KINDS: dict[str, Change] = {
    "the same": lambda image, random: image.copy(),
    "JPEG": encoded("JPEG"),
    "PNG": encoded("PNG"),
    "WebP": encoded("WEBP"),
    "half": halved,
    "crop": cropped,
    "crop, other shape": cropped_freely,
    "mirror": mirrored,
    "colours": recoloured(),
    "half, JPEG": after(halved, encoded("JPEG")),
    "crop, JPEG": after(cropped, encoded("JPEG")),
    "mirror, crop": after(mirrored, cropped),
    "crop, half, colours, JPEG": after(cropped, halved, recoloured(), encoded("JPEG")),
    "mirror, crop, half, colours, JPEG": after(mirrored, cropped, halved, recoloured(), encoded("JPEG")),
    "beyond: hue by up to 36°": recoloured(36),
}
