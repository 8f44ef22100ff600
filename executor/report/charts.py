"""Compute the positions in a report's line charts; the template draws them as SVG."""

import math
from collections.abc import Sequence


class Curve:
    """One value per epoch, as a line chart in a box of `WIDTH` × `HEIGHT`.

    Args: reference: a value to compare with, drawn as a horizontal line.
    """

    WIDTH, HEIGHT = 340, 190
    LEFT, RIGHT, TOP, BOTTOM = 46, 330, 12, 160

    def __init__(self, title: str, values: Sequence[float], reference: float | None = None) -> None:
        self.title = title
        self.epochs = len(values)
        self.points = [
            (self._x(epoch), value, epoch) for epoch, value in enumerate(values, 1) if math.isfinite(value)
        ]  # (x, value, epoch)
        self.gaps = self.epochs - len(self.points)
        shown = [value for _, value, _ in self.points] + ([] if reference is None else [reference])
        self.y_ticks = _ticks(min(shown), max(shown)) if self.points else []
        self.x_ticks = [(self._x(epoch), epoch) for epoch in _epoch_ticks(self.epochs)]
        self.reference = None if reference is None or not self.points else (self.y(reference), reference)
        self.segments = [[(x, self.y(value)) for x, value, _ in segment] for segment in self._unbroken()]

    def y(self, value: float) -> float:
        """Return the y coordinate of `value`, which grows downwards as in SVG."""
        low, high = self.y_ticks[0], self.y_ticks[-1]
        return round(self.BOTTOM - (value - low) / (high - low) * (self.BOTTOM - self.TOP), 1)

    def _x(self, epoch: int) -> float:
        if self.epochs == 1:
            return (self.LEFT + self.RIGHT) / 2
        return round(self.LEFT + 8 + (epoch - 1) / (self.epochs - 1) * (self.RIGHT - self.LEFT - 16), 1)

    def _unbroken(self) -> list[list[tuple[float, float, int]]]:
        """Split the points wherever an epoch has no finite value."""
        parts: list[list[tuple[float, float, int]]] = []
        for point in self.points:
            if parts and parts[-1][-1][2] == point[2] - 1:
                parts[-1].append(point)
            else:
                parts.append([point])
        return parts


def _ticks(low: float, high: float) -> list[float]:
    """Return three to six round numbers that enclose the range."""
    if low == high:  # only one value, or all the same: show it in the middle
        low, high = low - (abs(low) or 1) / 4, high + (abs(high) or 1) / 4
    span = high - low
    size = 10.0 ** math.floor(math.log10(span / 3))
    step = next(size * factor for factor in (1, 2, 5, 10) if span / (size * factor) <= 4)
    first = math.floor(low / step)
    last = max(math.ceil(high / step), first + 1)
    return [round(number * step, 12) for number in range(first, last + 1)]


def _epoch_ticks(epochs: int) -> list[int]:
    """Return the first epoch, the last, and round ones between them, about six in all."""
    step = next(
        step for digits in range(9) for step in (10**digits, 2 * 10**digits, 5 * 10**digits) if epochs / step <= 6
    )
    between = [epoch for epoch in range(step, epochs, step) if epoch > 1 and epochs - epoch >= step / 2]
    return sorted({1, *between, epochs}) if epochs else []
