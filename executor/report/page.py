"""The report of a finished run: what it learned, shown in one HTML file that opens anywhere, offline.

A folder holds `report.json`, everything that is needed to render it again, and `report.html`, which refers to nothing
outside itself: no script, no font, no link, images as `data:` uris.
"""

import base64
import io
import json
import math
import os
import tempfile
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from PIL import Image

from ..errors import NotFound, WorkspaceError
from ..evaluation.metrics import DECIDING, METRICS, Scores
from ..evaluation.proof import paired_difference
from ..images.arrays import image_from_array
from ..store.files import sync
from .charts import Curve

FORMAT = 1  # of report.json
TITLES = {
    "mean_average_precision_at_r": ("mAP@R", "how well the R documents that fit fill the first R places"),
    "recall_at_1": ("Recall@1", "share of queries whose nearest neighbour fits"),
    "recall_at_5": ("Recall@5", "share of queries with one that fits among the nearest five"),
    "precision_at_1": ("Precision@1", "share of nearest neighbours that fit; equal to Recall@1"),
    "ndcg_at_10": ("NDCG@10", "quality of the first ten places, the upper ones counting more"),
    "mrr": ("MRR", "mean of 1 / rank of the first that fits"),
}
_THUMBNAIL = 144  # pixels of the longer side: twice what is shown, for dense screens
_EXACT = 48  # images up to this side are embedded without loss; JPEG would smear them


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean, and the 95 % confidence interval of it."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Change:
    """One metric of the version that the run started from, and of the tuned model."""

    before: Interval
    after: Interval


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """How many queries have a better, the same and a worse mAP@R after the run."""

    better: int
    same: int
    worse: int


@dataclass(frozen=True, kw_only=True)
class Neighbour:
    """A document that a query found.

    Attributes:
        image: (H, W, 3) uint8; None: the content is no image, and the caption stands for it.
        caption: What to call it: its label, or its id.
        fits: Whether it belongs to the query; None: not known, and not marked.
    """

    image: np.ndarray | None
    caption: str
    fits: bool | None


@dataclass(frozen=True, kw_only=True)
class Query:
    """A query and its nearest neighbours before and after the run, nearest first.

    Attributes:
        image: (H, W, 3) uint8, or None.
        worst: Chosen because the tuned model does worse on it; false: part of the random sample.
    """

    image: np.ndarray | None
    caption: str
    before: list[Neighbour]
    after: list[Neighbour]
    worst: bool = False


@dataclass(frozen=True, kw_only=True)
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

    run: str
    kind: str
    base: str
    created_at: str | None
    started_at: str | None
    ended_at: str | None
    train_documents: int
    eval_documents: int
    held_out: int
    skipped: int
    problems: list[tuple[str, str]]
    classes: int | None
    options: dict[str, Any]
    device: str
    history: dict[str, list[float]]
    metrics: dict[str, Change]
    difference: Interval | None
    outcomes: Outcomes | None
    queries: int
    queries_skipped: int
    verdict: str
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


# --- files -------------------------------------------------------------------------------------------------------


def save(report: Report, folder: Path) -> Path:
    """Write `report.json` and `report.html` into `folder`, each replaced as a whole.

    Images are kept as thumbnails, so that a report stays small.

    Returns: the path of the HTML file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    values = asdict(report)
    values["history"] = {name: [_finite(number) for number in numbers] for name, numbers in report.history.items()}
    text = json.dumps({"format": FORMAT, **values}, default=_encoded, allow_nan=False)
    _replace(folder / "report.json", text)
    _replace(folder / "report.html", render(report))
    return folder / "report.html"


def load(folder: Path) -> Report:
    """Read what `save` wrote.

    Raises: NotFound: there is no report. WorkspaceError: another release wrote it, in another format.
    """
    try:
        values = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotFound(f"There is no report in {folder}; a run writes one when it succeeds.") from None
    if values.pop("format", None) != FORMAT:
        raise WorkspaceError(f"{folder / 'report.json'} has a format that this release does not read.")
    values["problems"] = [(doc, reason) for doc, reason in values["problems"]]
    values["history"] = {
        name: [math.nan if number is None else number for number in numbers]
        for name, numbers in values["history"].items()
    }
    values["metrics"] = {
        name: Change(before=Interval(**change["before"]), after=Interval(**change["after"]))
        for name, change in values["metrics"].items()
    }
    values["difference"] = Interval(**values["difference"]) if values["difference"] else None
    values["outcomes"] = Outcomes(**values["outcomes"]) if values["outcomes"] else None
    values["gallery"] = [_query(query) for query in values["gallery"]]
    return Report(**values)


def _query(values: dict[str, Any]) -> Query:
    for side in ("before", "after"):
        values[side] = [Neighbour(**found | {"image": _decoded(found["image"])}) for found in values[side]]
    return Query(**values | {"image": _decoded(values["image"])})


def _replace(path: Path, text: str) -> None:
    """Replace `path`: readers see the old text or the new one, never half of it."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with open(descriptor, "wb") as file:
            file.write(text.encode("utf-8", errors="replace"))  # an id may hold half a surrogate pair
            os.fchmod(descriptor, 0o644)
        sync(Path(temporary))
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    sync(path.parent)


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


# --- images ------------------------------------------------------------------------------------------------------


def _encoded(value: Any) -> str:
    """An image as it is kept in JSON: a thumbnail, PNG, base64."""
    if not isinstance(value, np.ndarray):
        raise TypeError(f"A report cannot hold {value!r}, of type {type(value).__name__}.")
    return _base64(_thumbnail(value), "PNG")


def _decoded(text: str | None) -> np.ndarray | None:
    if text is None:
        return None
    with Image.open(io.BytesIO(base64.b64decode(text)), formats=["PNG"]) as image:
        return np.array(image)


def _thumbnail(image: np.ndarray) -> Image.Image:
    picture = Image.fromarray(image_from_array(image))
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL), Image.Resampling.LANCZOS)  # never enlarges
    return picture


def _data_uri(image: np.ndarray) -> str:
    picture = _thumbnail(image)
    if max(picture.size) <= _EXACT:
        return f"data:image/png;base64,{_base64(picture, 'PNG')}"
    return f"data:image/jpeg;base64,{_base64(picture, 'JPEG', quality=85)}"


def _base64(picture: Image.Image, form: str, **options: Any) -> str:
    file = io.BytesIO()
    picture.save(file, form, **options)
    return base64.b64encode(file.getvalue()).decode("ascii")


# --- page --------------------------------------------------------------------------------------------------------


def render(report: Report) -> str:
    """Return the report as one HTML page."""
    before = report.metrics[DECIDING].before.mean if report.metrics else None
    charts = [
        Curve("Loss", report.history.get("loss", [])),
        Curve("mAP@R on the eval documents", report.history.get(DECIDING, []), before),
        Curve("Learning rate", report.history.get("learning_rate", [])),
    ]
    return _template().render(
        report=report,
        deciding=report.metrics.get(DECIDING),  # none without a difference
        standing=_standing(report.difference),
        titles=TITLES,
        charts=[curve for curve in charts if curve.segments],
        epochs=max(map(len, report.history.values()), default=0),
        sample=[query for query in report.gallery if not query.worst],
        worst=[query for query in report.gallery if query.worst],
        reach=_reach(report.difference),
    )


def _standing(difference: Interval | None) -> tuple[str, str]:
    """What is proven, as (style, words)."""
    if difference is None:
        return "open", "Unproven"
    if difference.low > 0:
        return "good", "Proven better"
    return ("bad", "Proven worse") if difference.high < 0 else ("open", "Not proven better")


def _reach(difference: Interval | None) -> float:
    """How far the axis of the difference goes to either side of zero."""
    largest = max(abs(difference.low), abs(difference.high)) if difference else 0.0
    return next((reach for reach in (0.02, 0.05, 0.1, 0.2, 0.3, 0.5) if largest <= reach), 1.0)


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"image": _data_uri, "number": _number, "moment": _moment, "value": _value}
    environment.globals |= {"duration": _duration}
    return environment.get_template("report.html.jinja")


def _number(number: float, places: int = 4) -> str:
    """A number in so many significant digits, as short as it goes: 0.001, 1.5e-05, 12.31."""
    return f"{number:.{places}g}".replace("-", "−") if math.isfinite(number) else "not finite"


def _value(value: Any) -> str:
    """An option's value as a reader writes it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _moment(text: str) -> str:
    return datetime.fromisoformat(text).astimezone(timezone.utc).strftime("%Y-%m-%d %H:%M:%S")


def _duration(started: str, ended: str) -> str:
    seconds = round((datetime.fromisoformat(ended) - datetime.fromisoformat(started)).total_seconds())
    hours, minutes = seconds // 3600, seconds // 60 % 60
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds % 60} s" if minutes else f"{seconds} s"
