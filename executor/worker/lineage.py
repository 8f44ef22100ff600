"""Which documents of a run were there before: those that its base version was trained on, and those that proved it.

A version looks good on documents that it was trained on. So a run that starts from another run's model is not proven by
them. It is proven by what proved that model, and by some of what is new.
"""

from dataclasses import dataclass

import numpy as np

from ..store.proof_documents import proof_positions
from ..store.run import Run
from ..store.runs import RunStore
from ..store.spool import DocumentArrayMemmap


@dataclass(frozen=True)
class Lineage:
    """Attributes: taught, proved: (D,) bool, for each train document of the run."""

    taught: np.ndarray
    proved: np.ndarray


def lineage_of(store: RunStore, run: Run, docs: DocumentArrayMemmap) -> Lineage | None:
    """Look through the runs that the base version of a run comes from; None: it comes from none that is there."""
    before, proved = _history(store, run.options.base)
    if not before:
        return None
    ids = list(docs.ids())
    known = np.fromiter((id in before for id in ids), bool, len(ids))
    return Lineage(known, ~known & np.fromiter((id in proved for id in ids), bool, len(ids)))


def taught(store: RunStore, version: str) -> set[str]:
    """The ids of the documents that a version was trained on, by its own run and by those that it comes from."""
    return _history(store, version)[0]


def _history(store: RunStore, version: str) -> tuple[set[str], set[str]]:
    """The ids that a version was trained on, and those that proved it, by its run and by those that it comes from."""
    trained: set[str] = set()
    proved: set[str] = set()
    while version != "base" and store.exists(version):
        held_out, others = _parts(store, version)
        trained |= others
        proved |= held_out
        version = store.get(version).options.base
    return trained, proved


def _parts(store: RunStore, version: str) -> tuple[set[str], set[str]]:
    """The ids of the train documents of a run: those that proved it, and the others."""
    known = proof_positions(store.workspace, version)
    proof = set() if known is None else set(known["train"])
    held_out: set[str] = set()
    others: set[str] = set()
    with DocumentArrayMemmap(store.workspace.spool_file(version)) as docs:
        for number, id in enumerate(docs.ids()):
            (held_out if number in proof else others).add(id)
    return held_out, others
