"""Measure two versions on the same documents, with intervals."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from ..documents import Evaluation
from .measuring import measured
from .places import add_place
from .reading import add_columns
from .showing import as_json, console, print_json

if TYPE_CHECKING:
    from ..report.parts import Change, Interval


def add(commands: Any) -> None:
    """Add the command and its arguments."""
    compare = commands.add_parser("compare", help="measure two versions on the same labelled documents")
    compare.add_argument("first", metavar="A", help="`base` or a run")
    compare.add_argument("second", metavar="B", help="`base` or a run")
    add_place(compare)
    compare.add_argument(
        "--on", dest="source", type=Path, metavar="SOURCE", help="labelled pictures, as for fit: those for evaluation"
    )
    compare.add_argument("--run", help="in a workspace: the run whose proof to use; by default B, or A if B is base")
    add_columns(compare)
    compare.add_argument("--json", action="store_true", help="print what /evaluate answers for each, and the intervals")


def run(arguments: argparse.Namespace) -> int:
    """Print the metrics of both versions, and whether the second is better."""
    from ..report.report import compare

    first, second, skipped = measured(arguments)
    metrics, difference, outcomes = compare(first, second)
    if arguments.json:
        answers = [
            Evaluation(model=name, metrics=scores.mean(), queries=scores.queries, skipped=scores.skipped + skipped)
            for name, scores in ((arguments.first, first), (arguments.second, second))
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
    console().print(
        f"mAP@R of {arguments.second} minus that of {arguments.first}: {difference.mean:+.3f}, 95 % interval "
        f"{difference.low:+.3f} to {difference.high:+.3f}, which {_judgement(difference)}. Of {first.queries} queries "
        f"{outcomes.better} got better and {outcomes.worse} worse; {first.skipped + skipped} were left out.",
        soft_wrap=True,
    )
    return 0


def _plain(interval: "Interval") -> list[float]:
    return [interval.mean, interval.low, interval.high]


def _table(first: str, second: str, metrics: "dict[str, Change]") -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("metric", first, second):
        table.add_column(title)
    for name, change in metrics.items():
        sides = (change.before, change.after)
        table.add_row(name, *(f"{side.mean:.3f} ({side.low:.3f} to {side.high:.3f})" for side in sides))
    return table


def _judgement(difference: "Interval") -> str:
    if difference.low > 0:
        return "is better"
    return "is worse" if difference.high < 0 else "proves neither better"
