"""Makes one HTML page of a report. It opens anywhere, also offline.

The page needs no other file: it has no script, font or link, and its images are `data:` uris.
"""

import json
import math
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from ..evaluation.intervals import is_open, said
from ..evaluation.metrics import DECIDING
from ..evaluation.proof import LEAST_QUERIES, USUAL_LEVEL
from .advice import advise
from .charts import Curve
from .parts import ClassChange, Interval
from .pictures import data_uri
from .report import Report

TITLES = {
    "mean_average_precision_at_r": ("mAP@R", "how well the R documents that fit fill the first R places"),
    "recall_at_1": ("Recall@1", "share of queries whose nearest neighbour fits"),
    "recall_at_5": ("Recall@5", "share of queries with one that fits among the nearest five"),
    "precision_at_1": ("Precision@1", "share of nearest neighbours that fit; equal to Recall@1"),
    "ndcg_at_10": ("NDCG@10", "quality of the first ten places, the upper ones counting more"),
    "mrr": ("MRR", "mean of 1 / rank of the first that fits"),
}


EXTREMES = 10  # classes shown that lost most, and as many that gained most; a click shows the others


def render(report: Report) -> str:
    """Return the report as one HTML page."""
    return _template().render(values_of(report))


def values_of(report: Report) -> dict[str, Any]:
    """Return what the templates of the report show."""
    before = report.metrics[DECIDING].before.mean if report.metrics and not report.choosing else None
    measured_on = f"the {report.choosing:,} documents to choose by" if report.choosing else "the eval documents"
    return {
        "report": report,
        "deciding": report.metrics.get(DECIDING),  # none without a difference
        "standing": _standing(report),
        "titles": TITLES,
        "charts": charts_of(report.history, measured_on, before),
        "epochs": max(map(len, report.history.values()), default=0),
        "sample": [query for query in report.gallery if not query.worst],
        "worst": [query for query in report.gallery if query.worst],
        "reach": _reach(report.difference),
        "advice": advise(report),
        "by_class": _parted(report.by_class),
        "settings": _settings(report),
    }


def charts_of(history: Mapping[str, Sequence[float]], measured_on: str, before: float | None = None) -> list[Curve]:
    """Return the line charts of a history. Args: measured_on: which documents, in words. before: mAP@R before."""
    charts = [
        Curve("Loss", history.get("loss", [])),
        Curve(f"mAP@R on {measured_on}", history.get(DECIDING, []), before),
        Curve("Learning rate", history.get("learning_rate", [])),
    ]
    return [curve for curve in charts if curve.segments]


def _parted(classes: list[ClassChange]) -> dict[str, list[ClassChange]]:
    """Divide the classes into those that are shown at once and the `rest`, which a click shows."""
    if len(classes) <= 2 * EXTREMES:
        return {"all": classes, "worst": [], "best": [], "rest": []}
    worst, rest, best = classes[:EXTREMES], classes[EXTREMES:-EXTREMES], classes[-EXTREMES:][::-1]
    return {"all": classes, "worst": worst, "best": best, "rest": rest}


def _settings(report: Report) -> list[tuple[str, Any, str | None]]:
    """Return every option as (name, what was used, what was asked for); the last is None if it is the same.

    After them comes what was used and is no option, such as `weights`.
    """
    options = [
        (name, used, None if used == asked else _value(asked))
        for name, asked in report.options.items()
        for used in [report.used.get(name, asked)]
    ]
    return options + [(name, used, None) for name, used in report.used.items() if name not in report.options]


def _standing(report: Report) -> tuple[str, str]:
    """Say what is proven, as (style, words)."""
    difference = report.difference
    is_automatic = report.level != USUAL_LEVEL
    if difference is None or (is_automatic and report.queries < LEAST_QUERIES):
        return "open", "Unproven"
    if difference.low > 0:
        return "good", "Proven better"
    return ("bad", "Proven worse") if difference.high < 0 else ("open", "Not proven better")


def _reach(difference: Interval | None) -> float:
    """Return how far the axis of the difference goes to each side of zero."""
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
    environment.filters |= FILTERS
    environment.globals |= {"duration": _duration}
    return environment.get_template("report.html.jinja")


def _number(number: float, places: int = 4) -> str:
    """Return a number as short text with at most `places` significant digits: 0.001, 1.5e-05, 12.31."""
    return f"{number:.{places}g}".replace("-", "−") if math.isfinite(number) else "not finite"


def _interval(value: Any, signed: bool = False) -> str:
    """Return the `low` and `high` of a value: 0.744 to 0.871. Empty: they leave all open."""
    low, high = value.low, value.high
    return "" if is_open(low, high, signed=signed) else said(low, high, signed=signed).replace("-", "−")


def _percent(share: float) -> str:
    """Return a share as in a verdict: 95 %, 99.24 %."""
    return f"{100 * share:.5g} %"


def _value(value: Any) -> str:
    """Return an option's value as a user writes it."""
    if value is None:
        return "by default"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _moment(text: str) -> str:
    return datetime.fromisoformat(text).astimezone(timezone.utc).strftime("%Y-%m-%d %H:%M:%S")


def _duration(started: str, ended: str) -> str:
    seconds = round((datetime.fromisoformat(ended) - datetime.fromisoformat(started)).total_seconds())
    hours, minutes = seconds // 3600, seconds // 60 % 60
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds % 60} s" if minutes else f"{seconds} s"


FILTERS: dict[str, Any] = {
    "image": data_uri,
    "interval": _interval,
    "number": _number,
    "moment": _moment,
    "percent": _percent,
    "value": _value,
}
