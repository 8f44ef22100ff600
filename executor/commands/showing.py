"""What a command shows of runs: tables for people on standard output, JSON for programs, progress on standard error."""

import json
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table

from ..documents import RunStatus
from ..errors import Conflict
from .calling import Place

MAP = "mean_average_precision_at_r"
POLL_SECONDS = 0.5
QUIET_SECONDS = 10.0  # without a change, after which it is asked whether a service works: one may just start anew
UNCHANGED = ("history", "problems")  # fields of a status that no table shows


def as_json(doc: Any) -> Any:
    """Return a document of an answer as `/status` and `/evaluate` give it over HTTP."""
    return json.loads(doc.model_dump_json())


def print_json(value: Any) -> None:
    """Print a value on a line of its own, at once: a program may wait for it."""
    print(json.dumps(value, ensure_ascii=False), flush=True)


def console() -> Console:
    """Standard output, as wide as it needs where it is no terminal."""
    return Console(width=None if sys.stdout.isatty() else 160, highlight=False, soft_wrap=False)


def runs_table(statuses: Iterable[RunStatus]) -> Table:
    """Return a table with a run in each row."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("run", "state", "epoch", "documents", "left out", "mAP@R before", "after", "served", "created"):
        table.add_column(name, overflow="fold")
    for status in statuses:
        table.add_row(
            status.run,
            f"{status.state} ({status.phase})" if status.phase else status.state,
            f"{status.epoch}/{status.epochs}" if status.epochs else "–",
            str(status.train_documents + status.eval_documents),
            str(status.skipped),
            _figure(status.metrics.get(f"served/{MAP}", status.metrics.get(f"base/{MAP}"))),
            _figure(status.metrics.get(f"tuned/{MAP}")),
            "yes" if status.promoted else "",
            (status.created_at or "")[:19].replace("T", " "),
        )
    return table


def details(status: RunStatus) -> Table:
    """Return a table with a field of one status in each row."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in as_json(status).items():
        if name in (*UNCHANGED, "id") or value in (None, "", [], {}):
            continue
        if name == "eval_documents" and not value and status.metrics:
            value = "0; the model was measured on train documents that were held out"
        elif name in _IN_WORDS:
            value = _IN_WORDS[name](value)
        table.add_row(name, "\n".join(value) if isinstance(value, list) else str(value))
    for problem in status.problems:
        table.add_row("left out", f"{problem.id}: {problem.reason}")
    return table


def _metrics(values: dict[str, float]) -> list[str]:
    return [f"{metric} {figure:.3f}" for metric, figure in sorted(values.items())]


def _bytes(value: float) -> str:
    units = ("bytes", "kB", "MB", "GB", "TB")
    power = 0
    while value >= 999.5 and power < len(units) - 1:
        value, power = value / 1000, power + 1
    return f"{value:.3g} {units[power]}"


def _time_left(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d} left"


def _plan(plan: dict[str, Any]) -> list[str]:
    """Say what to do with an index, and the figures of each way, an empty list where it is impossible."""
    ways = [(way, figure) for way, figure in plan.items() if way not in ("from", "advice")]
    return [
        f"for an index of {plan.get('from')!r} vectors: {plan.get('advice')}; mAP@R of each way:",
        *(
            f"{way}: {'{:.3f} ({:.3f} to {:.3f})'.format(*figure) if figure else 'impossible, as the sizes differ'}"
            for way, figure in ways
        ),
    ]


_IN_WORDS: dict[str, Callable[[Any], Any]] = {
    "metrics": _metrics,
    "loss": "{:.4f}".format,
    "images_per_second": "{:.3g} images/s".format,
    "eta_seconds": _time_left,
    "disk_bytes": _bytes,
    "index_plan": _plan,
    "level": "{:.3g}".format,
    "sources": lambda found: [f"{source} {count:.0f}" for source, count in found.items()],
}


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def follow(
    place: Place, run: str, *, show: bool, lines: bool, is_served: Callable[[], bool] = lambda: True
) -> RunStatus:
    """Follow a run until it ends, and return its last status.

    Args:
        show: draw its progress on standard error. lines: print each status that differs from the one before, as JSON.
        is_served: whether a service works on it; asked where nothing changes.
    Raises: Conflict: no service works on it, so it would never end.
    """
    with _Bar(visible=show) as bar:
        last: Any = None
        quiet_since = time.monotonic()
        while True:
            status: RunStatus = place.call("/status", run=run)[0]
            bar.update(status)
            now = as_json(status)
            if lines and now != last:
                print_json(now)
            if status.ended_at is not None:
                return status
            if now != last:
                last, quiet_since = now, time.monotonic()
            elif time.monotonic() - quiet_since > QUIET_SECONDS:
                if not is_served():
                    raise Conflict(
                        f"Run {run!r} is {status.state}, and no service works in its workspace, so it does not go on. "
                        "Start one there, and watch it again."
                    )
                quiet_since = time.monotonic()
            time.sleep(POLL_SECONDS)


class _Bar:
    """The epoch, the loss, images per second and the time left, as `fit()` shows them."""

    def __init__(self, *, visible: bool) -> None:
        self._bar = Progress(
            TextColumn("{task.fields[what]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rest]}"),
            console=Console(stderr=True),
            disable=not visible,
        )
        self._task = self._bar.add_task("", total=None, what="", rest="")

    def __enter__(self) -> "_Bar":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def update(self, status: RunStatus) -> None:
        what = status.phase or status.state
        rest = []
        if status.phase == "training":
            what = f"epoch {status.epoch}/{status.epochs}"
        if status.loss is not None:
            rest.append(f"loss {status.loss:.4f}")
        if status.images_per_second:
            rest.append(f"{status.images_per_second:.0f} images/s")
        if status.eta_seconds is not None:
            rest.append(_time_left(status.eta_seconds))
        self._bar.update(self._task, total=status.steps or None, completed=status.step, what=what, rest="  ".join(rest))


def sending(visible: bool, total: int | None) -> Progress:
    """Return a bar for documents that are sent or embedded; `total` None: it is not known how many there are."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TaskProgressColumn(show_speed=True),
        console=Console(stderr=True),
        disable=not visible,
    )
    return bar


def end_of(status: RunStatus) -> int:
    """Say in a sentence or two how a run ended, and return the exit code."""
    out = Console(stderr=True, highlight=False, soft_wrap=True)
    if status.skipped:
        examples = [f"  {problem.id}: {problem.reason}" for problem in status.problems]
        out.print("\n".join([f"{status.skipped} could not be used:", *examples]), markup=False)
    if status.state == "succeeded":
        out.print(status.verdict or "The run has succeeded.", markup=False)  # the warnings are in it
        return 0
    out.print(f"Run {status.run} is {status.state}{': ' + status.error if status.error else '.'}", markup=False)
    return 1
