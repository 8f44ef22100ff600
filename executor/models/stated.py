"""The preprocessing that a model states: by its published image processor, or by an attribute of a factory's module.

What cannot be honoured is refused by its name. Else the model would see other images than it was trained on, and nobody
would know why it is worse.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import ConfigurationError
from .preprocessing import IMAGENET_MEAN, IMAGENET_STD, INTERPOLATIONS, USUAL_SIZE, Preprocessing

LARGEST_SIDE = 4096
STEPS = {"do_resize", "do_rescale", "do_normalize", "do_center_crop"}  # of an image processor, that we follow
HARMLESS = {"do_convert_rgb", "do_reduce_labels"}  # all images are RGB here, and no pixel has a label
NEEDED = {"size", "mean", "std"}  # of the preprocessing that a module states
OF_IMAGES = {"size", "image_mean", "do_resize", "do_rescale", "do_normalize"}  # one of these makes an image processor

Colour = tuple[float, float, float]


def preprocessing_from(settings: Mapping[str, Any]) -> Preprocessing:
    """Return the preprocessing that was saved as a mapping of its fields.

    Raises: ValueError: a field is impossible. KeyError, TypeError: one is missing or unknown.
    """
    for key, (read, expected) in _STATED.items():
        if (key in NEEDED or settings.get(key) is not None) and read(settings[key]) is None:
            raise ValueError(f"its preprocessing has {key}={settings[key]!r}, which must be {expected}")
    return Preprocessing(**{**settings, "mean": tuple(settings["mean"]), "std": tuple(settings["std"])})


def assumed(preprocessing: Preprocessing, name: str, remedy: str) -> str:
    """Say what is assumed of a model that states nothing."""
    return (
        f"model={name!r} does not state its preprocessing. Assumed: squares of {preprocessing.size} pixels, RGB in "
        f"[0, 1] with mean {preprocessing.mean} and std {preprocessing.std}. {remedy}"
    )


def first_line(error: Exception) -> str:
    """Return the first line of an error message, as a sentence."""
    return str(error).strip().partition("\n")[0].rstrip(" .") + "."


# The module of a factory


def own_preprocessing(module: nn.Module, path: str) -> Preprocessing | None:
    """Return the attribute `preprocessing` of a module: a `Preprocessing`, or a mapping of its fields.

    Returns: None: there is no such attribute.
    Raises: ConfigurationError: a field is missing, unknown or impossible; the message names it.
    """
    own = getattr(module, "preprocessing", None)
    if own is None:
        return None
    # Look at the fields, not the class: Jina loads this package a second time under another name.
    stated = asdict(own) if is_dataclass(own) and not isinstance(own, type) else own
    known = [each.name for each in fields(Preprocessing)]
    if not isinstance(stated, Mapping) or not NEEDED <= set(stated) <= set(known):
        raise ConfigurationError(
            f"The preprocessing of model={path!r} must be a mapping with size, mean and std; it has no other fields "
            f"than {', '.join(known)}."
        )
    settings = dict(stated)
    for key, (read, expected) in _STATED.items():
        if key in NEEDED or settings.get(key) is not None:
            value, settings[key] = settings[key], read(settings[key])
            if settings[key] is None:
                raise ConfigurationError(
                    f"The preprocessing of model={path!r} has {key}={value!r}; it must be {expected}."
                )
    return preprocessing_from(settings)


# A published image processor


def published_preprocessing(name: str, config: Any) -> tuple[Preprocessing, bool]:
    """Read the image processor published with a transformers model; without one, assume ImageNet's mean and std.

    Its resizing is replaced by ours, which gives a square.

    Returns: the preprocessing, and whether there is an image processor.
    Raises: ConfigurationError: an entry cannot be honoured; the message names it.
    """
    settings = _image_processor(name)
    published = _Published(settings or {}, name)
    for key, value in published.settings.items():
        if key.startswith("do_") and value and key not in STEPS | HARMLESS:
            raise published.refusal(key, "that is not supported")
    of_model = getattr(config, "image_size", None) or USUAL_SIZE
    size = _side(of_model)
    if size is None and published.settings.get("size") is None:
        raise ConfigurationError(f"model={name!r} has the image_size {of_model!r}; only squares are supported.")
    mean, std = _colours(published, settings is None)
    return replace(_square(published, size or USUAL_SIZE), mean=mean, std=std), settings is not None


class _Published:
    """The entries of an image processor; one that cannot be understood is refused by its name."""

    def __init__(self, settings: Mapping[str, Any], name: str) -> None:
        self.settings = settings
        self._name = name

    def refusal(self, key: str, reason: str) -> ConfigurationError:
        return ConfigurationError(
            f"{key} is {self.settings.get(key)!r} in the image processor of model={self._name!r}: {reason}. "
            "Change its preprocessor_config.json if the model allows it, or give another model."
        )

    def flag(self, key: str, default: bool) -> bool:
        """Null means false, as in transformers."""
        value = self.settings.get(key, default)
        if value not in (None, False, True):
            raise self.refusal(key, "it must be true or false")
        return bool(value)

    def number(self, key: str, default: float) -> float:
        value = _number(self.settings.get(key, default))
        if value is None or value <= 0:
            raise self.refusal(key, "it must be a number above 0")
        return value

    def colour(self, key: str, default: Colour, *, divides: bool = False) -> Colour:
        value = _colour(self.settings.get(key, default), divides=divides)
        if value is None:
            raise self.refusal(key, "it must be three numbers" + (" above 0" if divides else "") + ", or one for all")
        return value

    def side(self, key: str, default: int) -> int:
        value = self.settings.get(key)
        side = default if value is None else _side(value)
        if side is None:
            raise self.refusal(key, f"only squares of 1 to {LARGEST_SIDE} pixels are supported")
        return side


def _square(published: _Published, size_of_model: int) -> Preprocessing:
    """Return the preprocessing that says which square of an image the model sees, with any mean and std."""
    resized = side = published.side("size", size_of_model)
    crop = published.flag("do_center_crop", False)
    if crop:
        side = published.side("crop_size", resized)
        if not published.flag("do_resize", True):
            raise published.refusal("do_resize", "with do_center_crop, that takes another part of each size of image")
    if "crop_pct" in published.settings and (crop or side < 384):  # PoolFormer's or ConvNeXt's way to cut off a margin
        share = 0.875 if published.settings["crop_pct"] is None else published.number("crop_pct", 1.0)
        crop, resized = True, int(resized / share)
    if side > resized:
        raise published.refusal("crop_size", f"it is larger than the image, which is resized to {resized}")
    return Preprocessing(size=side, crop=crop, shorter_side=resized if crop else None)


def _colours(published: _Published, unknown: bool) -> tuple[Colour, Colour]:
    """Return mean and std for RGB in [0, 1].

    The processor multiplies the channels in [0, 255] by a factor, may subtract 1, and normalises. EfficientNet's
    divides by the deviation once more where the model has its top (`include_top`).
    """
    rescales = published.flag("do_rescale", True)
    scale = 255 * (published.number("rescale_factor", 1 / 255) if rescales else 1.0)
    offset = 1.0 if rescales and published.flag("rescale_offset", False) else 0.0
    mean: Colour = (0.0, 0.0, 0.0)
    std = again = (1.0, 1.0, 1.0)
    if unknown or published.flag("do_normalize", "image_mean" in published.settings):
        mean = published.colour("image_mean", IMAGENET_MEAN)
        std = published.colour("image_std", IMAGENET_STD, divides=True)
    efficientnet = str(published.settings.get("image_processor_type")).startswith("EfficientNet")
    if published.flag("include_top", efficientnet):
        again = published.colour("image_std", IMAGENET_STD, divides=True)
    red, green, blue = ((m + offset) / scale for m in mean)
    of_red, of_green, of_blue = (one * other / scale for one, other in zip(std, again, strict=True))
    return (red, green, blue), (of_red, of_green, of_blue)


def _image_processor(name: str) -> dict[str, Any] | None:
    """Return the settings of the image processor published with a model; None if there is none.

    We read its file ourselves, because the image processors of transformers need torchvision.
    """
    from transformers.utils import cached_file

    for file_name in ("preprocessor_config.json", "processor_config.json"):
        try:
            file = cached_file(name, file_name, _raise_exceptions_for_missing_entries=False)
            content: Any = json.loads(Path(file).read_text(encoding="utf-8")) if file else {}
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"{file_name} of model={name!r} cannot be read: {first_line(error)}") from error
        published = content.get("image_processor", content) if isinstance(content, dict) else None
        if not isinstance(published, dict):
            raise ConfigurationError(f"{file_name} of model={name!r} cannot be read: it holds no settings.")
        if OF_IMAGES & published.keys():
            return published
    return None


# Values


def _side(size: Any) -> int | None:
    """Return the side of a square, from an image size in any form that image processors use; None if it is none."""
    if isinstance(size, Mapping):
        given = {key: value for key, value in size.items() if value is not None}
        if not given or not given.keys() <= {"shortest_edge", "height", "width"}:
            return None  # `longest_edge` keeps the shape of the image
        size = list(given.values())
    sides = {_whole(each) for each in (size if isinstance(size, (list, tuple)) else [size])}
    return sides.pop() if len(sides) == 1 else None


def _whole(value: Any) -> int | None:
    number = _number(value)
    return int(number) if number is not None and number == int(number) and 1 <= number <= LARGEST_SIDE else None


def _number(value: Any) -> float | None:
    usable = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if usable else None


def _colour(value: Any, *, divides: bool) -> Colour | None:
    """Return three numbers, from three or one for all; None if they are none, or not above 0 where they divide."""
    several = list(value) if isinstance(value, (list, tuple)) else [value]
    numbers = [_number(each) for each in (several * 3 if len(several) == 1 else several)]
    usable = [number for number in numbers if number is not None and (number > 0 or not divides)]
    if not len(numbers) == len(usable) == 3:
        return None
    red, green, blue = usable
    return red, green, blue


_SIDE = f"a number of pixels, 1 to {LARGEST_SIDE}, for the side of a square"
_STATED: dict[str, tuple[Callable[[Any], Any], str]] = {  # how a field is read, and what it must be
    "size": (_whole, _SIDE),
    "mean": (partial(_colour, divides=False), "three numbers"),
    "std": (partial(_colour, divides=True), "three numbers above 0"),
    "crop": (lambda value: value if isinstance(value, bool) else None, "true or false"),
    "shorter_side": (_whole, _SIDE),
    "interpolation": (lambda value: value if value in INTERPOLATIONS else None, f"one of {', '.join(INTERPOLATIONS)}"),
}
