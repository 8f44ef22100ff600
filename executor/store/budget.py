"""The automatic runs of a workspace, and what each has taken of their shared budget of false promotions.

A model that is no better than the served one is called better with some chance, the *level* of its test. One run may
have 2.5 %. Of forty runs with 2.5 % each, two thirds of all histories would promote noise. So the automatic runs share
2.5 %: the k-th that is judged gets 2.5 % · 6 / (π² k²), which sums up to 2.5 % however many follow (alpha spending; the
bound is Bonferroni's, so the runs may depend on each other). A run that was never judged has spent nothing.
"""

import math
from typing import Any, NamedTuple

from .feedback import FeedbackStore, now

BUDGET = 0.025
# How an automatic run ended: the first three were judged.
PROMOTED, KEPT, LOST, FAILED, UNPROVEN = "promoted", "kept", "lost", "failed", "unproven"
_UNSPENT = (FAILED, UNPROVEN)


def level_of(number: int) -> float:
    """The chance of a false promotion that the judged run `number` (from 1) gets."""
    return BUDGET * 6 / (math.pi * number) ** 2


class Attempt(NamedTuple):
    """An automatic run.

    Attributes:
        run, name: its number and its name. level: its share of the budget.
        began, ended: seconds since the epoch. outcome: one of those above; None: it goes on.
        before: the version that was served before it was promoted. looks: how often the two were compared since.
        before_run: the number of that version's run; None: it is `base`, or an older release has not noted it.
        begun: how often a service has begun the next look, and was killed before it came to its end.
    """

    run: int
    name: str
    level: float
    began: float
    ended: float | None
    outcome: str | None
    before: str | None
    looks: int
    before_run: int | None
    begun: int


class Budget:
    """The ledger. It outlives the runs: one that is deleted has spent its share all the same."""

    def __init__(self, kept: FeedbackStore) -> None:
        self._kept = kept

    def attempts(self) -> list[Attempt]:
        """All automatic runs, newest first."""
        query = "SELECT run, name, level, began, ended, outcome, before, looks, before_run, begun FROM automatic"
        return [Attempt(*row) for row in self._kept.database.rows(f"{query} ORDER BY number DESC")]

    def spent(self) -> float:
        """How much of the budget is spent, or reserved for a run that goes on."""
        return sum(attempt.level for attempt in self.attempts() if attempt.outcome not in _UNSPENT)

    def next(self) -> tuple[int, float]:
        """The number and the level of the next run."""
        number = 1 + sum(attempt.outcome not in _UNSPENT for attempt in self.attempts())
        return number, level_of(number)

    def begin(self, run: int, name: str, level: float) -> None:
        """Note a run. Noting it again changes nothing."""
        self._execute(
            "INSERT OR IGNORE INTO automatic (run, name, level, began) VALUES (?, ?, ?, ?)", run, name, level, now()
        )

    def end(self, run: int, outcome: str, before: str | None = None, before_run: int | None = None) -> None:
        """Note how a run ended. Args: before, before_run: the version served before, if it was promoted."""
        self._execute(
            "UPDATE automatic SET outcome = ?, before = ?, before_run = ?, ended = ? WHERE run = ?",
            *(outcome, before, before_run, now(), run),
        )

    def begin_look(self, run: int) -> None:
        """Note that a promoted run is about to be compared with the version before."""
        self._execute("UPDATE automatic SET begun = begun + 1 WHERE run = ?", run)

    def looked(self, run: int) -> None:
        """Note that this comparison came to its end: the look is used up."""
        self._execute("UPDATE automatic SET looks = looks + 1, begun = 0 WHERE run = ?", run)

    def not_looked(self, run: int) -> None:
        """Note that this comparison was broken off, and nothing was seen."""
        self._execute("UPDATE automatic SET begun = begun - 1 WHERE run = ?", run)

    def _execute(self, statement: str, *arguments: Any) -> None:
        with self._kept.database.transaction() as db:
            db.execute(statement, arguments)
