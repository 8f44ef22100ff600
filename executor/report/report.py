"""What the report of a run says, and how it is kept: `report.json`, from which it can be rendered again."""

import json
import math
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BeforeValidator, ConfigDict, PlainSerializer, PlainValidator, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from ..errors import NotFound, WorkspaceError
from ..evaluation.metrics import DECIDING, METRICS, Scores
from ..evaluation.proof import paired_difference
from .pictures import decoded, encoded

FORMAT = 1  # of report.json
CONFIG = ConfigDict(arbitrary_types_allowed=True)

# (H, W, 3) uint8; kept as a thumbnail: PNG, base64.
Picture = Annotated[
    np.ndarray,
    PlainValidator(lambda value: decoded(value) if isinstance(value, str) else value),
    PlainSerializer(encoded, when_used="json"),
]
# JSON has no word for what is not finite, such as a loss that was lost.
Measurement = Annotated[
    float,
    BeforeValidator(lambda value: math.nan if value is None else value),
    PlainSerializer(lambda value: value if math.isfinite(value) else None, when_used="json"),
]
# An id may hold half a surrogate pair, which no file can.
Text = Annotated[
    str, BeforeValidator(lambda value: value.encode(errors="replace").decode() if isinstance(value, str) else value)
]


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Interval:
    """A mean, and the 95 % confidence interval of it."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Change:
    """One metric of the version that the run started from, and of the tuned model."""

    before: Interval
    after: Interval


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Outcomes:
    """How many queries have a better, the same and a worse mAP@R after the run."""

    better: int
    same: int
    worse: int


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Neighbour:
    """A document that a query found.

    Attributes:
        image: (H, W, 3) uint8; None: the content is no image, and the caption stands for it.
        caption: What to call it: its label, or its id.
        fits: Whether it belongs to the query; None: not known, and not marked.
    """

    image: Picture | None
    caption: Text
    fits: bool | None


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Query:
    """A query and its nearest neighbours before and after the run, nearest first.

    Attributes:
        image: (H, W, 3) uint8, or None.
        worst: Chosen because the tuned model does worse on it; false: part of the random sample.
    """

    image: Picture | None
    caption: Text
    before: list[Neighbour]
    after: list[Neighbour]
    worst: bool = False


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Report:
    """Everything that the report of a run says. Texts are not trusted: all of them are escaped.

    Attributes:
        base: The version that the run started from.
        created_at, started_at, ended_at: ISO 8601.
        train_documents: Usable ones received for training, those held out from training included.
        held_out: Of these, held out by `val_split`.
        skipped: Quarantined documents; `problems` lists the first of them as (id, reason).
        classes: Different labels; None unless it is class data.
        options: The training options by name; JSON values.
        history: One list per measured value, one entry per epoch.
        metrics: Those of `METRICS`; empty if nothing was measured, and then `difference` and `outcomes` are None.
        difference: Of mAP@R, after - before, paired by query.
        queries: Scored ones; `queries_skipped` had nothing to find.
        promoted: None: not decided.
    """

    run: Text
    kind: str
    base: str
    created_at: str | None
    started_at: str | None
    ended_at: str | None
    train_documents: int
    eval_documents: int
    held_out: int
    skipped: int
    problems: list[tuple[Text, Text]]
    classes: int | None
    options: dict[str, Any]
    device: str
    history: dict[Text, list[Measurement]]
    metrics: dict[str, Change]
    difference: Interval | None
    outcomes: Outcomes | None
    queries: int
    queries_skipped: int
    verdict: Text
    promoted: bool | None
    gallery: list[Query]


def compare(before: Scores, after: Scores) -> tuple[dict[str, Change], Interval, Outcomes]:
    """Return `metrics`, `difference` and `outcomes` of a report. Raises: ValueError: they are of different queries."""

    def interval(scores: Scores, name: str, mean: float) -> Interval:
        low, high = scores.interval(name)
        return Interval(mean=mean, low=low, high=high)

    means = before.mean(), after.mean()
    metrics = {
        name: Change(before=interval(before, name, means[0][name]), after=interval(after, name, means[1][name]))
        for name in METRICS
    }
    mean, low, high = paired_difference(before, after, DECIDING)
    change = np.sign(np.round(after.per_query[DECIDING] - before.per_query[DECIDING], 9))
    better, same, worse = (int((change == sign).sum()) for sign in (1, 0, -1))
    return metrics, Interval(mean=mean, low=low, high=high), Outcomes(better=better, same=same, worse=worse)


_SAVED: TypeAdapter[Report] = TypeAdapter(Report)


def to_json(report: Report) -> str:
    """Return what `load` reads."""
    return json.dumps({"format": FORMAT, **_SAVED.dump_python(report, mode="json")}, allow_nan=False)


def load(folder: Path) -> Report:
    """Read the report that was saved in a folder.

    Raises: NotFound: there is no report. WorkspaceError: it is damaged, or of a release with another format.
    """
    file = folder / "report.json"
    try:
        values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if values.pop("format", None) != FORMAT:
            raise WorkspaceError(f"{file} has a format that this release does not read.")
        return _SAVED.validate_python(values)
    except FileNotFoundError:
        raise NotFound(f"There is no report in {folder}; a run writes one when it succeeds.") from None
    except (ValidationError, ValueError, AttributeError) as error:
        raise WorkspaceError(
            f"{file} is damaged ({type(error).__name__}); train the run again for a new one."
        ) from error
