"""Whether the model of a run that has succeeded is served, and what the verdict says of that."""

import itertools
import logging
from collections.abc import Callable, Iterable

from ..report.contents import UNPROVEN
from ..store.run import Progress, Run, RunState

MAX_TRIES = 5  # to serve a model, or to finish a report, before that is given up

_log = logging.getLogger(__name__)


class Tries:
    """Tries something once a call, and gives it up when it has failed `MAX_TRIES` times.

    If the caller cannot write down that it was given up, because the disk is full, it may call again. Then it is tried
    once more, so that a full disk costs no promotion.
    """

    def __init__(self) -> None:
        self._failed = 0

    def reset(self) -> None:
        """Begin to count anew, for something else."""
        self._failed = 0

    def make(self, what: Callable[[], None]) -> str | None:
        """Return None if it was done, and why not if it is given up. Raises: what it raises, before that."""
        try:
            what()
        except Exception as error:
            self._failed += 1
            if self._failed < MAX_TRIES:
                raise
            _log.exception("Given up after %d tries", self._failed)
            return f"{type(error).__name__}: {error}"
        return None


def is_wanted(run: Run, progress: Progress, served: str) -> bool:
    """Whether the model of a run shall be served, after the proof against the version `served` now.

    That version may be the run itself: it was promoted, and then something failed that is tried again now.
    """
    proven = progress.better is True and served in (progress.served, run.name)
    return run.options.promote == "always" or (run.options.promote == "if_better" and proven)


def was_promoted(events: Iterable[tuple[int, str, str, str]]) -> bool:
    """Whether the model of a run was served when the run was called succeeded, and not only later, by somebody's hand.

    Args: events: its history, as `RunStore.events` returns it.
    """
    before = itertools.takewhile(lambda kind: kind != RunState.SUCCEEDED.value, (kind for _, _, kind, _ in events))
    return "promoted" in before


def final_verdict(run: Run, progress: Progress, served: str, *, wanted: bool, failure: str | None) -> str:
    """Say what was measured, what became of the model, and what to know before trusting it.

    Args: served: the version served before. wanted: as `is_wanted` says. failure: why it could not be served.
    """
    policy = run.options.promote
    words = [progress.verdict or UNPROVEN]
    if failure is not None:
        words.append(
            f"It was not promoted, because it could not be served: {failure}. {served!r} is still served. Look into "
            "the service's log, then call /promote."
        )
    else:
        words.append("It was promoted." if wanted else f"It was not promoted (promote={policy}).")
    if progress.better and not wanted and policy == "if_better":
        words.append(
            f"It was measured against {progress.served!r}, and {served!r} is served by now: it is not proven "
            "better than that. Call /evaluate on both, and /promote for the better one."
        )
    if progress.warnings:
        words += ["Before you trust it:", *progress.warnings]
    return " ".join(words)
