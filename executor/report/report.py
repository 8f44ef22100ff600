"""What the report of a run says. It is kept as `report.json`, from which the page can be made again."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from ..errors import NotFound, WorkspaceError
from ..evaluation.metrics import DECIDING, METRICS, Scores
from ..evaluation.proof import USUAL_LEVEL, paired_difference
from .parts import (
    CONFIG,
    Change,
    ClassChange,
    Confusion,
    IndexWay,
    Interval,
    LabelErrors,
    Measurement,
    ModelFacts,
    Outcomes,
    Query,
    SmallVectorForm,
    Text,
    Tried,
)

FORMAT = 2  # of report.json; format 1 had fewer fields and is still read
READABLE = (1, 2)


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Report:
    """Everything that the report of a run says. No text is trusted: the page escapes all of them.

    Attributes:
        base: The version that the run started from.
        created_at, started_at, ended_at: ISO 8601.
        train_documents: Usable documents received for training, with those that were held out later.
        held_out: How many of these `val_split` held out.
        skipped: How many documents were quarantined; `problems` lists the first of them as (id, reason).
        classes: How many different labels there are; None unless it is class data.
        options: The training options by name; JSON values.
        history: One list per measured value, one entry per epoch.
        metrics: By the names in `METRICS`. If nothing was measured, it is empty, and `difference` and `outcomes` are
            None.
        difference: Of mAP@R, after minus before, query by query. level: The confidence of its interval, by which the
            run was judged; that of the other intervals is .95.
        queries: How many queries were scored; `queries_skipped` more had nothing to find.
        promoted: Whether the model is served; None: not decided yet.
        choosing: How many train documents were kept to choose the best epoch by. They are not among the held out ones.
            If there are any, the metrics in the history are theirs.
        served: The version that was served when the training ended, with which the tuned model is compared; None: it is
            `base`.
        used: What was used for an option, by its name, if the option itself does not say so, such as `auto`. Also
            `weights`: of which epoch the weights are.
        model: The tuned model; None: not known.
        by_class: For class data, every class that has queries.
        confusions: The pairs of classes that the tuned model confuses most, found by `confusion_queries` queries.
        label_errors: None: the labels were not checked.
        copies: Copies found, as (document, its copy, what was done).
        tried: The settings that were tried, by the option `trials`, the defaults first.
        ways: What can be done with an index of the vectors of `served`, the cheapest first; empty without a proof.
        small_vectors: What shortened and encoded vectors of the tuned version lose; empty without a proof.
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
    choosing: int = 0
    level: float = USUAL_LEVEL
    served: str | None = None
    used: dict[str, Any] = Field(default_factory=dict)
    model: ModelFacts | None = None
    by_class: list[ClassChange] = Field(default_factory=list)
    confusions: list[Confusion] = Field(default_factory=list)
    confusion_queries: int = 0
    label_errors: LabelErrors | None = None
    copies: list[tuple[Text, Text, Text]] = Field(default_factory=list)
    tried: list[Tried] = Field(default_factory=list)
    ways: list[IndexWay] = Field(default_factory=list)
    small_vectors: list[SmallVectorForm] = Field(default_factory=list)

    @property
    def trained_on(self) -> int:
        """How many documents the model was trained on: neither held out nor kept to choose the epoch by."""
        return self.train_documents - self.held_out - self.choosing


def compare(
    before: Scores, after: Scores, *, level: float = USUAL_LEVEL
) -> tuple[dict[str, Change], Interval, Outcomes]:
    """Return `metrics`, `difference` and `outcomes` of a report. Raises: ValueError: the queries are not the same.

    Args: level: the confidence of the interval of the difference.
    """

    def interval(scores: Scores, name: str, mean: float) -> Interval:
        low, high = scores.interval(name)
        return Interval(mean=mean, low=low, high=high)

    means = before.mean(), after.mean()
    metrics = {
        name: Change(before=interval(before, name, means[0][name]), after=interval(after, name, means[1][name]))
        for name in METRICS
    }
    mean, low, high = paired_difference(before, after, DECIDING, level=level)
    change = np.sign(np.round(after.per_query[DECIDING] - before.per_query[DECIDING], 9))
    better, same, worse = (int((change == sign).sum()) for sign in (1, 0, -1))
    return metrics, Interval(mean=mean, low=low, high=high), Outcomes(better=better, same=same, worse=worse)


_SAVED: TypeAdapter[Report] = TypeAdapter(Report)


def to_json(report: Report) -> str:
    """Return the report as JSON, which `load` reads."""
    return json.dumps({"format": FORMAT, **_SAVED.dump_python(report, mode="json")}, allow_nan=False)


def from_json(text: str, name: str = "The report") -> Report:
    """Return the report that `to_json` wrote. Args: name: what to call it in messages.

    Raises: WorkspaceError: it is damaged, or has the format of another release.
    """
    try:
        values: dict[str, Any] = json.loads(text)
        if values.pop("format", None) not in READABLE:
            raise WorkspaceError(f"{name} has a format that this release does not read.")
        return _SAVED.validate_python(values)
    except (ValidationError, ValueError, AttributeError) as error:
        raise WorkspaceError(
            f"{name} is damaged ({type(error).__name__}); train the run again for a new one."
        ) from error


def load(folder: Path) -> Report:
    """Read the report that was saved in a folder.

    Raises: NotFound: there is no report. WorkspaceError: it is damaged, or has the format of another release.
    """
    file = folder / "report.json"
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotFound(f"There is no report in {folder}; a run writes one when it succeeds.") from None
    except UnicodeDecodeError as error:
        raise WorkspaceError(f"{file} is damaged ({error.reason}); train the run again for a new one.") from error
    return from_json(text, str(file))
