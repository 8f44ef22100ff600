"""Learns what an index needs when the model changes: a map between two versions, and how to make vectors small.

Both versions embed the documents that the tuned one was trained on. The proof's documents are used to measure only.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ..errors import BadDocument
from ..evaluation.eval_set import EvalSet, Measured, embed_in_steps
from ..evaluation.index_plan import IndexPlan, measure_plan
from ..evaluation.map_fitting import LARGEST, Embeddings, learn_maps
from ..evaluation.small_vector_scores import SmallVectorScore, score_small_vectors
from ..models.model import EmbeddingModel
from ..models.saving import space_of
from ..models.small_vectors import SmallVectors, learn_small_vectors, write_small_vectors
from ..models.space_map import KnownMap, SpaceMap, write_map

FEWEST = 20  # documents to learn from; with fewer there is no map
MOST = 4000  # documents to learn from; a random choice of more
MOST_CHOOSING = 1000
CHOOSING_SHARE = 0.2  # of the documents to learn from, where none are kept to choose by


@dataclass(frozen=True, kw_only=True)
class LearnedIndex:
    """What was learned and measured.

    Attributes:
        version, space: the version served and its space. forward, backward: to the tuned version's space, and back.
        plan: None: there is no proof. scores: of small vectors; empty without a proof.
    """

    version: str
    space: str
    forward: SpaceMap
    backward: SpaceMap
    kinds: tuple[str, str]
    small: SmallVectors
    plan: IndexPlan | None = None
    scores: list[SmallVectorScore] = field(default_factory=list)

    def write(self, folder: Path) -> None:
        """Write the files beside the tuned version's weights, which are in the folder already."""
        known = KnownMap(
            version=self.version,
            space=self.space,
            own_space=space_of(folder),
            forward=self.forward,
            backward=self.backward,
            plan={} if self.plan is None else self.plan.as_status(),
            kinds=self.kinds,
        )
        write_map(folder, known)
        write_small_vectors(folder, self.small)


@dataclass(frozen=True, kw_only=True)
class Served:
    """The version that was served when the run ended, its space, its model, and what it did on the eval set."""

    version: str
    space: str
    model: EmbeddingModel
    measured: Measured | None


def learn_index(
    learn: EvalSet,
    choose: EvalSet | None,
    served: Served,
    tuned: EmbeddingModel,
    *,
    prepared_for: Callable[[EmbeddingModel, EvalSet], EvalSet],
    check: Callable[[], None],
    alone: bool,
    first: bool,
) -> LearnedIndex | None:
    """Learn the map and the small vectors. Every rank calls this and embeds; only the first learns.

    Args:
        learn: documents to learn from. choose: others, which choose the map; None: some of the former do.
        prepared_for: returns the documents with their images preprocessed for a model.
        check: called now and then; it raises an exception to stop the work. alone: whether there is one rank.
    Returns: None: too few documents, too large vectors, or an image that has disappeared since the training.
    """

    def both(of: EvalSet) -> Embeddings:
        old, new = (embed_in_steps(model, prepared_for(model, of), check) for model in (served.model, tuned))
        return old, new

    if len(learn.items) < FEWEST or max(served.model.dim, tuned.dim) > LARGEST:
        return None
    learn = _sampled(learn, MOST)
    learn, choose = _parted(learn) if choose is None else (learn, _sampled(choose, MOST_CHOOSING))
    try:
        lessons, choices = both(learn), both(choose)
    except BadDocument:
        if not alone:
            raise
        return None
    return _learned(lessons, choices, served, tuned) if first else None


def measure_index(
    learned: LearnedIndex,
    eval_set: EvalSet,
    served: Measured,
    after: Measured,
    *,
    tolerance: float,
    unseen: tuple[int, ...],
) -> LearnedIndex:
    """Add what is measured on the eval set. Args: served, after: what the version served and the tuned one did."""
    plan = measure_plan(
        eval_set,
        served,
        after,
        version=learned.version,
        forward=learned.forward,
        backward=learned.backward,
        tolerance=tolerance,
        unseen=unseen,
    )
    return replace(learned, plan=plan, scores=score_small_vectors(eval_set, after, learned.small))


def _learned(lessons: Embeddings, choices: Embeddings, served: Served, tuned: EmbeddingModel) -> LearnedIndex:
    forward, backward = learn_maps(lessons, choices, unit=(served.model.normalise, tuned.normalise))
    return LearnedIndex(
        version=served.version,
        space=served.space,
        forward=forward.map,
        backward=backward.map,
        kinds=(forward.kind, backward.kind),
        small=learn_small_vectors(np.concatenate([lessons[1], choices[1]]), unit=tuned.normalise),
    )


def _sampled(items: EvalSet, most: int) -> EvalSet:
    count = len(items.items)
    return items if count <= most else items.part(np.sort(np.random.default_rng(0).permutation(count)[:most]))


def _parted(items: EvalSet) -> tuple[EvalSet, EvalSet]:
    """Divide the items in two: to learn from, and to choose by."""
    order = np.random.default_rng(1).permutation(len(items.items))
    chosen = round(CHOOSING_SHARE * len(order))
    return items.part(np.sort(order[chosen:])), items.part(np.sort(order[:chosen]))
