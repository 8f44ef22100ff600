"""Measure two versions on the same documents, with intervals."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.table import Table

from ..documents import Comparison, Evaluation
from ..errors import BadRequest, NotFound
from ..evaluation.intervals import difference_said, said
from .calling import Place, connect
from .measuring import measured
from .places import add_place
from .reading import add_columns
from .showing import MAP, as_json, console, print_json

if TYPE_CHECKING:
    from ..report.parts import Change, Interval

WAIT_SECONDS = 60.0  # for a service to measure, before it is asked again
NOT_FOUND = "Not Found"  # what Jina's gateway answers over HTTP; over gRPC it answers nothing


def add(commands: Any) -> None:
    """Add the command and its arguments."""
    compare = commands.add_parser("compare", help="measure two versions on the same labelled documents")
    compare.add_argument("first", metavar="A", help="`base` or a run")
    compare.add_argument("second", metavar="B", help="`base` or a run")
    add_place(compare)
    compare.add_argument(
        "--on", dest="source", type=Path, metavar="SOURCE", help="labelled pictures, as for fit: those for evaluation"
    )
    compare.add_argument("--run", help="the run whose proof to use without --on; by default B, or A if B is base")
    add_columns(compare)
    compare.add_argument("--json", action="store_true", help="print what /evaluate answers for each, and the intervals")


class _Compared(NamedTuple):
    """What is printed of two versions. Attributes: difference: in mAP@R, second minus first."""

    metrics: "dict[str, Change]"
    difference: "Interval"
    better: int
    worse: int
    queries: int
    skipped: int


def run(arguments: argparse.Namespace) -> int:
    """Print the metrics of both versions, and whether the second is better."""
    asks = arguments.service and arguments.source is None
    metrics, difference, better, worse, queries, skipped = _asked(arguments) if asks else _measured(arguments)
    if arguments.json:
        answers = [
            Evaluation(model=name, metrics=means, queries=queries, skipped=skipped)
            for name, means in (
                (arguments.first, {name: change.before.mean for name, change in metrics.items()}),
                (arguments.second, {name: change.after.mean for name, change in metrics.items()}),
            )
        ]
        print_json(
            {
                "versions": [as_json(answer) for answer in answers],
                "intervals": {name: [_plain(change.before), _plain(change.after)] for name, change in metrics.items()},
                "difference": _plain(difference),
            }
        )
        return 0
    console().print(_table(arguments.first, arguments.second, metrics))
    interval = difference_said(difference.low, difference.high)
    console().print(
        f"mAP@R of {arguments.second} minus that of {arguments.first}: {difference.mean:+.3f}, {interval}, "
        f"which {_judgement(difference)}. Of {queries} queries {better} got better and {worse} worse; "
        f"{skipped} were left out.",
        soft_wrap=True,
    )
    return 0


def _measured(arguments: argparse.Namespace) -> _Compared:
    """Score the documents here."""
    from ..report.report import compare

    first, second, skipped = measured(arguments)
    metrics, difference, outcomes = compare(first, second)
    return _Compared(metrics, difference, outcomes.better, outcomes.worse, first.queries, first.skipped + skipped)


def _asked(arguments: argparse.Namespace) -> _Compared:
    """Let the service compare on the documents that prove a run; its warnings go to standard error."""
    from ..report.parts import Change, Interval

    wanted = {name: getattr(arguments, name) for name in ("first", "second", "run") if getattr(arguments, name)}
    place = connect(arguments.service)
    try:
        while (answer := _answer(place, wanted)).state != "done":
            pass
    finally:
        place.close()
    for warning in answer.warnings:
        print(warning, file=sys.stderr)
    found: dict[str, dict[str, Interval]] = {"first": {}, "second": {}, "difference": {}}
    for key, (mean, low, high) in answer.metrics.items():
        side, _, name = key.partition("/")
        found[side][name] = Interval(mean=mean, low=low, high=high)
    return _Compared(
        {name: Change(before=found["first"][name], after=found["second"][name]) for name in found["first"]},
        found["difference"][MAP],
        answer.better,
        answer.worse,
        answer.better + answer.same + answer.worse,
        answer.skipped,
    )


def _answer(place: Place, wanted: dict[str, Any]) -> Comparison:
    """Return what there is after a while.

    Raises: FinetunerError: in the service's own words. BadRequest: a gateway passes no such call.
    """
    answers = list[Comparison]()
    try:
        answers = place.call("/compare", **wanted, limit=0, wait=WAIT_SECONDS)
    except NotFound as error:
        if str(error) != NOT_FOUND:
            raise
    if not answers:
        raise BadRequest(
            "This gateway of Jina's does not know /compare: name the executor's own HTTP door, or the documents to "
            "measure on, with --on SOURCE."
        )
    return answers[0]


def _plain(interval: "Interval") -> list[float]:
    return [interval.mean, interval.low, interval.high]


def _table(first: str, second: str, metrics: "dict[str, Change]") -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("metric", first, second):
        table.add_column(title)
    for name, change in metrics.items():
        sides = (change.before, change.after)
        table.add_row(name, *(f"{side.mean:.3f} ({said(side.low, side.high)})" for side in sides))
    return table


def _judgement(difference: "Interval") -> str:
    if difference.low > 0:
        return "is better"
    return "is worse" if difference.high < 0 else "proves neither better"
