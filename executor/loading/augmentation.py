"""Augment images by albumentations, with a seed, so that a resumed run sees the same pixels.

albumentations is imported where a pipeline is made: it takes a sixth of a trainer's start.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from ..errors import ConfigurationError
from .batches import is_image

if TYPE_CHECKING:
    import albumentations

STRENGTHS = {"default": 1.0, "weaker": 0.5, "stronger": 1.5}  # of the default pipeline


class Augmentation:
    """An albumentations pipeline with a seed. It changes uint8 images (H, W, 3); other content passes unchanged.

    Args: at: makes the same pipeline at another strength; None: it has no other.
    """

    def __init__(
        self, pipeline: "albumentations.Compose", *, at: Callable[[float], "Augmentation"] | None = None
    ) -> None:
        self.pipeline = pipeline
        self.at = at

    def seed(self, seed: int) -> None:
        """Restart the random numbers: the next images depend only on `seed`."""
        self.pipeline.set_random_seed(seed)

    def describe(self) -> dict[str, Any]:
        """Return the pipeline in albumentations' own form: all that its results depend on, except the seed."""
        description: dict[str, Any] = self.pipeline.to_dict()
        return description

    def __call__(self, content: Any) -> Any:
        """Return the augmented image, of the size that it had: the model sees one size, in training and in serving.

        Raises: ConfigurationError: the pipeline fails, or makes something else than a uint8 image.
        """
        if not is_image(content):
            return content
        try:
            made = self.pipeline(image=content)["image"]
        except Exception as error:  # a step may raise anything
            reason = " ".join(str(error).split())
            raise ConfigurationError(
                f"augment fails on an image of {content.shape[0]}×{content.shape[1]} pixels, as the model sees them: "
                f"{type(error).__name__}: {reason}."
            ) from error
        if not is_image(made):
            raise ConfigurationError(
                f"augment turns an image into {_described(made)}. It must end in uint8 images (H, W, 3): leave out "
                "Normalize, ToFloat, ToTensorV2 and the like. The model's own preprocessing follows, as in serving."
            )
        height, width = content.shape[:2]
        return made if made.shape == content.shape else cv2.resize(made, (width, height), interpolation=cv2.INTER_AREA)


def _described(made: Any) -> str:
    return f"{type(made).__name__} ({getattr(made, 'dtype', '')}, shape {tuple(getattr(made, 'shape', ()))})"


def default_augmentation(kind: str, size: int, strength: float = 1.0) -> Augmentation:
    """Return the pipeline for when none is configured. Labelled images are not flipped: a mirrored `b` is a `d`.

    Without labels the pipeline is stronger: the two views of an image must differ in all that the model should ignore.

    Args: strength: how far it changes an image, as a multiple of the usual; how often stays the same.
    """
    import albumentations

    turn = 10 * strength
    if kind == "unlabeled":
        jitter = 0.3 * strength
        steps = [
            albumentations.RandomResizedCrop((size, size), scale=(1 - 0.5 * strength, 1.0), ratio=(0.8, 1.25)),
            albumentations.Affine(rotate=(-turn, turn), p=0.5),
            albumentations.ColorJitter(
                brightness=jitter, contrast=jitter, saturation=jitter, hue=0.05 * strength, p=0.8
            ),
            albumentations.ToGray(p=0.1),
            albumentations.GaussianBlur(blur_limit=(3, 5), p=0.2),
        ]
    else:
        size_change, shift, light = 0.1 * strength, 0.06 * strength, 0.2 * strength
        steps = [
            albumentations.Affine(
                scale=(1 - size_change, 1 + size_change),
                translate_percent=(-shift, shift),
                rotate=(-turn, turn),
                p=0.8,
            ),
            albumentations.RandomBrightnessContrast(brightness_limit=light, contrast_limit=light, p=0.5),
        ]
    return Augmentation(albumentations.Compose(steps), at=functools.partial(default_augmentation, kind, size))


def load_augmentation(configured: str | dict[str, Any] | None, kind: str, size: int) -> Augmentation | None:
    """Return the configured pipeline.

    Args: configured: None: the default of the kind. `none`: no augmentation. Otherwise a pipeline as albumentations
        serialises it, or the path of one.
    Raises: ConfigurationError: it is neither a serialised pipeline nor the path of one, or does not make images.
    """
    if configured is None:
        return default_augmentation(kind, size)
    if configured == "none":
        return None
    import albumentations

    try:
        if isinstance(configured, dict):
            pipeline = albumentations.from_dict(configured)
        else:
            form = "json" if Path(configured).suffix == ".json" else "yaml"
            pipeline = albumentations.load(configured, data_format=form)
    except Exception as error:  # albumentations and the parsers may raise anything; the remedy is always the same
        reason = " ".join(str(error).split())  # a parser's message has several lines
        raise ConfigurationError(
            f"augment is not a pipeline that albumentations can load ({reason}); give "
            "albumentations.to_dict(pipeline), the path of a file written by albumentations.save, or 'none'."
        ) from error
    augmentation = Augmentation(pipeline)
    augmentation(np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8))  # refuse it at once
    return augmentation
