"""What is meant, in plain words: errors, states, times and sizes."""

import math
import re
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

ERRORS: dict[int, tuple[str, str]] = {
    400: ("This cannot be done", "The service refused what was asked for."),
    401: ("Who are you?", "This page asks for the token of the service."),
    403: ("Nothing was changed", "For your safety, only this page itself may change something."),
    404: ("There is nothing here", "What this address shows was deleted, or never was."),
    405: ("There is nothing here", "This address shows nothing; it belongs to a button of another page."),
    408: ("This came too slowly", "The connection broke off, or is too slow. Nothing was stored; try again."),
    409: ("Not now", "The service refused this for a reason that may pass."),
    413: ("This is too large", "Nothing of it was stored."),
    422: ("This cannot be used", "The service could not read what was sent."),
    429: ("Too much at once", "The service has much to do. Wait a moment, and try again."),
    500: ("Something went wrong", "It is the fault of the service, not yours. Its log has the details."),
    503: (
        "The service behind this page does not answer",
        "It will come back by itself. This page tries again every few seconds; there is nothing that you must do.",
    ),
}
TOO_LARGE = "A page can send at most {size} at once. Send fewer pictures at a time, or smaller ones."

# What a page says after something was done, by a key that stands in its address.
SAID = {
    "started": "The run was started.",
    "cancelled": "The run was cancelled.",
    "deleted": "The run was deleted, with all its files.",
    "promoted": "This version is served now.",
    "corrected": "The label is corrected for the next run.",
    "dropped": "The document is left out of the next run.",
    "undone": "That was taken back.",
    "kept": "That was stored.",
    "left": "You have signed out.",
}

# What the advice of an index plan means. `version`: whose vectors the index has.
INDEX = {
    "nothing": "An index of the vectors of {version} can stay as it is: what new queries find in it is as good.",
    "map queries": (
        "An index of the vectors of {version} can stay as it is, if each new query is mapped to it: call /embed with "
        "space={version}."
    ),
    "map index": (
        "The vectors in an index of {version} can be mapped to the new version, which takes microseconds each: "
        "python -m executor map."
    ),
    "embed anew": "An index of the vectors of {version} must be made anew: every picture has to be embedded again.",
}

STATES = {
    "receiving": "receives documents",
    "queued": "waits",
    "training": "trains",
    "succeeded": "succeeded",
    "failed": "failed",
    "cancelled": "was cancelled",
}
PHASES = {
    "starting": "is being started",
    "loading": "loads its pictures",
    "training": "learns",
    "evaluating": "is being measured",
    "saving": "is being saved",
}


def size(count: float) -> str:
    """Return bytes as a person says them: 12 MB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.3g} {unit}" if count < 100 else f"{count:.0f} {unit}"
        count /= 1000
    raise AssertionError


def duration(seconds: float) -> str:
    """Return seconds as a person says them: 3 min 20 s."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, hours = whole // 60, whole // 3600
    return f"{minutes} min {whole % 60} s" if not hours else f"{hours} h {minutes % 60} min"


def moment(text: str, seconds: bool = False) -> str:
    """Return an ISO 8601 time as a person reads it, in UTC. What is no such time is returned as it is."""
    try:
        form = "%Y-%m-%d %H:%M:%S" if seconds else "%Y-%m-%d %H:%M"
        return datetime.fromisoformat(text).astimezone(timezone.utc).strftime(form)
    except ValueError:
        return text


def number(value: float, places: int = 4) -> str:
    """Return a number as short text with at most `places` significant digits."""
    return f"{value:.{places}g}".replace("-", "−") if math.isfinite(value) else "not finite"


def count(value: float, one: str, many: str | None = None) -> str:
    """Return a count with its noun: 1 run, 2 runs."""
    return f"{value:,.0f} {one if value == 1 else many or f'{one}s'}"


def quoted(text: object) -> str:
    """Return what somebody wrote, in quotation marks and as it was written: no escapes."""
    return f"“{text}”"


def first_sentence(text: str) -> str:
    """Return the first sentence of a text."""
    first, mark, _ = text.partition(". ")
    return f"{first}." if mark else text


def verdict_alone(verdict: str, warnings: Sequence[str]) -> list[str]:
    """Return the sentences of a verdict, without the warnings that it ends with, which stand beside it."""
    alone = verdict.removesuffix(" ".join(["Before you trust it:", *warnings])).strip() if warnings else verdict
    return re.split(r"(?<=[.!?]) (?=[A-Z])", alone)


FILTERS: dict[str, Any] = {
    "size": size,
    "duration": duration,
    "moment": moment,
    "number": number,
    "count": count,
    "first_sentence": first_sentence,
    "verdict_alone": verdict_alone,
    "state": lambda state: STATES.get(state, state),
    "phase": lambda phase: PHASES.get(phase, phase),
}
