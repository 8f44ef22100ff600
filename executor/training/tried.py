"""What a run has tried, and the file that keeps it."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..compute.ranks import Ranks
from ..store.files import publish_file, read_kept

Settings = dict[str, Any]  # by name; JSON values


@dataclass
class Trial:
    """A setting that was tried.

    Attributes: scores: mAP@R after a short run of so many epochs; NaN: its loss or gradient became no number.
    """

    settings: Settings
    scores: dict[int, float] = field(default_factory=dict)

    @property
    def epochs(self) -> int:
        """Of its longest short run."""
        return max(self.scores)

    @property
    def score(self) -> float:
        """After its longest short run."""
        return self.scores[self.epochs]

    @property
    def result(self) -> str:
        """How it did, in words."""
        if math.isnan(self.score):
            return "the loss became no number"
        return f"mAP@R {self.score:.3f} after {self.epochs} epoch{'s' if self.epochs > 1 else ''}"

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` takes; JSON has no NaN."""
        scores = {str(epochs): None if math.isnan(score) else score for epochs, score in self.scores.items()}
        return {"settings": self.settings, "scores": scores}

    @staticmethod
    def from_json(settings: Settings, scores: dict[str, float | None]) -> "Trial":
        """Return the trial that was kept."""
        return Trial(settings, {int(key): math.nan if score is None else score for key, score in scores.items()})

    def __str__(self) -> str:
        return ", ".join(
            f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in self.settings.items()
        )


@dataclass
class Trials:
    """What was tried, in order, the defaults first. Attributes: chosen: an index; None: the trials are not over."""

    tried: list[Trial] = field(default_factory=list)
    chosen: int | None = None

    @property
    def settings(self) -> Settings:
        """Those to train with."""
        return {} if self.chosen is None else self.tried[self.chosen].settings


class KeptTrials:
    """The trials of a run and the file that keeps them. The first rank writes it; all know what is in it."""

    def __init__(self, file: Path | None, ranks: Ranks) -> None:
        self._file = file
        self._first = ranks.first
        self.now = ranks.agree(self._read)

    def _read(self) -> Trials:
        found = None if self._file is None else read_kept(self._file)
        if found is None:
            return Trials()
        try:
            return Trials([Trial.from_json(**tried) for tried in found["tried"]], found["chosen"])
        except (AttributeError, KeyError, TypeError, ValueError):  # it was edited, or cut short: try all again
            return Trials()

    def trial(self, number: int, settings: Settings) -> Trial:
        """Return a trial, with the scores that are known already."""
        tried = self.now.tried
        if number < len(tried) and tried[number].settings != settings:
            del tried[number:]  # an earlier attempt was of another release, and came to others
        if number == len(tried):
            tried.append(Trial(settings))
        return tried[number]

    def choose(self, number: int) -> None:
        """Keep which trial is chosen."""
        self.now.chosen = number
        self.save()

    def save(self) -> None:
        """Write the file."""
        if self._file is not None and self._first:
            tried = [trial.to_json() for trial in self.now.tried if trial.scores]
            publish_file(self._file, json.dumps({"tried": tried, "chosen": self.now.chosen}).encode())
