"""What to do with an index when a model changes: four ways, measured on the eval set, and which of them to take."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..models.space_map import SpaceMap
from .eval_set import EvalSet, Measured
from .intervals import TOO_FEW, is_open
from .metrics import DECIDING, Scores
from .proof import paired_difference

NOTHING, QUERIES, INDEX, ANEW = "nothing", "map queries", "map index", "embed anew"  # the cheapest first
CHANCE = 0.025  # that a way is called good that is not: one side of a 95 % interval
Figure = tuple[float, float, float]  # mean, and the ends of the 95 % interval

_DONE = {
    NOTHING: "leave the index and the queries as they are",
    QUERIES: "leave the index, and ask /embed for queries in its space",
    INDEX: "map the stored vectors with `python -m executor map`",
    ANEW: "embed the whole index anew",
}
_HOW = {
    NOTHING: "if nothing is done",
    QUERIES: "with mapped queries",
    INDEX: "with mapped vectors",
    ANEW: "embedded anew",
}


@dataclass(frozen=True, kw_only=True)
class IndexPlan:
    """What was measured.

    Attributes:
        version: the version whose vectors the index has.
        figures: mAP@R of each way; None: it is impossible, since the vectors have another size.
        losses: of each way but `embed anew`, what it loses against that, query by query: positive is worse.
        advice: the cheapest way whose loss is within the tolerance, at the unfavourable end of the interval.
        unseen: classes held out whole; the advice was checked on these, too. 0: there are none.
    """

    version: str
    figures: dict[str, Figure | None]
    losses: dict[str, Figure | None]
    advice: str
    tolerance: float
    unseen: int = 0
    unseen_figures: dict[str, Figure | None] = field(default_factory=dict)

    def as_status(self) -> dict[str, Any]:
        """As `index_plan` of a `RunStatus`; a way that is impossible has an empty list."""
        found = {way: [] if figure is None else list(figure) for way, figure in self.figures.items()}
        return {"from": self.version, "advice": self.advice, **found}

    def sentence(self) -> str:
        """Say it in words."""
        impossible = [_HOW[way] for way, figure in self.figures.items() if figure is None]
        words = f" There is none {' or '.join(impossible)}, as the sizes differ." if impossible else ""
        if self.unseen_figures:
            words += f" On the {self.unseen} classes never seen: {_told(self.unseen_figures)}."
        loss = self.losses.get(self.advice)
        why = "no cheaper way is proven to lose at most " if loss is None else f"it {loss_told(loss)}, and may lose "
        return (
            f"Searches in an index of {self.version!r} vectors have mAP@R {_told(self.figures)}.{words} "
            f"Advice: {_DONE[self.advice]} ({self.advice}): {why}{self.tolerance:g}."
        )


def loss_told(loss: Figure) -> str:
    """Say what is lost, or gained, with its interval."""
    mean, low, high = loss
    if round(mean, 3) < 0:
        return f"gains {-mean:.3f} ({_range(-high, -low)})"
    return f"loses {abs(mean):.3f} ({_range(low, high)})"


def _range(low: float, high: float) -> str:
    return TOO_FEW if is_open(low, high, signed=True) else f"{low:.3f} to {high:.3f}"


def _told(figures: dict[str, Figure | None]) -> str:
    return ", ".join(f"{figure[0]:.3f} {_HOW[way]}" for way, figure in figures.items() if figure is not None)


def measure_plan(
    eval_set: EvalSet,
    old: Measured,
    new: Measured,
    *,
    version: str,
    forward: SpaceMap,
    backward: SpaceMap,
    tolerance: float,
    unseen: tuple[int, ...] = (),
) -> IndexPlan:
    """Measure the four ways on the eval set.

    Args:
        old, new: what the version served and the tuned one did. version: the name of the former.
        forward, backward: the maps from the old space to the new one and back; learned without the eval set.
        tolerance: the loss of mAP@R that is accepted. unseen: the classes held out whole.
    """
    same_size = old.stored.shape[1] == new.embeddings.shape[1]
    scores: dict[str, Scores | None] = {
        NOTHING: eval_set.search(new.embeddings, old.stored) if same_size else None,
        QUERIES: eval_set.search(backward(new.embeddings), old.stored),
        INDEX: eval_set.search(new.embeddings, forward(old.stored)),
        ANEW: new.scores,
    }
    apart: dict[str, Scores | None] = {}
    if unseen:
        theirs = np.isin(eval_set.labels, unseen)
        apart = {way: None if found is None else found.of(theirs) for way, found in scores.items()}
    losses = {way: _loss(found, new.scores) for way, found in scores.items() if way != ANEW}
    proven = (way for way, loss in losses.items() if _accepted(way, loss, apart, tolerance, new.scores.queries))
    advice = next(proven, ANEW)
    return IndexPlan(
        version=version,
        figures={way: _figure(found) for way, found in scores.items()},
        losses=losses,
        advice=advice,
        tolerance=tolerance,
        unseen=len(unseen),
        unseen_figures={way: _figure(found) for way, found in apart.items()},
    )


def _accepted(way: str, loss: Figure | None, apart: dict[str, Scores | None], tolerance: float, queries: int) -> bool:
    """Whether the loss is proven to be within the tolerance, and not proven to exceed it on classes never seen."""
    if loss is None or loss[2] > tolerance or (loss[1] == loss[2] and _may_be_luck(queries, tolerance)):
        return False
    anew = apart.get(ANEW)
    unseen = None if anew is None else _loss(apart[way], anew)
    return unseen is None or unseen[1] <= tolerance


def _may_be_luck(queries: int, tolerance: float) -> bool:
    """Whether so few queries may all lose the same by chance, though a share of `tolerance` of all queries is lost.

    That none of n shows it bounds the share (Clopper & Pearson 1934); their own spread, which is zero, says nothing.
    """
    return bool((1 - tolerance) ** queries > CHANCE)


def _loss(found: Scores | None, anew: Scores) -> Figure | None:
    return None if found is None else paired_difference(found, anew)


def _figure(found: Scores | None) -> Figure | None:
    return None if found is None else (found.mean()[DECIDING], *found.interval(DECIDING))
