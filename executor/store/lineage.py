"""Which documents of a run were seen before: by the version that it starts from, and by the one that is served.

A version looks good on documents that it was trained on. So a run that starts from another run's model is not proven by
them, and it is measured against the version served on others, where there are enough. It is proven by what proved those
models, and by some of what is new.

Documents are known again by their id or by their content: an id may be new each time that a document is sent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from .proof_documents import proof_positions
from .spool import DocumentArrayMemmap

if TYPE_CHECKING:
    from .run import Run
    from .runs import RunStore

Keys = set[str | bytes]  # ids and digests of contents


class Seen(BaseModel):
    """The documents of a split that were seen before, by their positions. Each is in one of the lists at most.

    Attributes:
        taught: those that the base version was trained on. taught_served: those that only the version served was.
        proved: others, which proved one of the two.
    """

    model_config = ConfigDict(frozen=True)

    taught: list[int] = []
    taught_served: list[int] = []
    proved: list[int] = []


def seen_before(store: RunStore, run: Run, split: str) -> Seen:
    """Look through the runs that the base version of a run comes from, and the version served now.

    Raises: WorkspaceError: what says which documents proved one of them is damaged.
    """
    base, proved_base = _history(store, run.options.base)
    served, proved_served = _history(store, store.served_now())
    proved = proved_base | proved_served
    found: dict[str, list[int]] = {"taught": [], "taught_served": [], "proved": []}
    if base or served:
        with DocumentArrayMemmap(store.workspace.spool_file(run.name), split=split) as docs:
            for position, keys in enumerate(docs.ids_and_contents()):
                for name, known in (("taught", base), ("taught_served", served), ("proved", proved)):
                    if not known.isdisjoint(keys):
                        found[name].append(position)
                        break
    return Seen(**found)


def taught(store: RunStore, version: str) -> Keys:
    """The ids and contents of the documents that a version, or one that it comes from, was trained on."""
    return _history(store, version)[0]


def _history(store: RunStore, version: str) -> tuple[Keys, Keys]:
    """What a version was trained on, and what proved it, by its run and by those that it comes from."""
    trained: Keys = set()
    proved: Keys = set()
    while version != "base" and store.exists(version):
        held_out, others = _parts(store, version)
        trained |= others
        proved |= held_out
        version = store.get(version).options.base
    return trained, proved


def _parts(store: RunStore, version: str) -> tuple[Keys, Keys]:
    """The documents of a run: those that proved it, and the others that it had to train on."""
    known = proof_positions(store.workspace, version) or {"train": [], "eval": []}
    spool = store.workspace.spool_file(version)
    with DocumentArrayMemmap(spool) as train, DocumentArrayMemmap(spool, split="eval") as given:
        proof = set(known["train"])
        held_out: Keys = set()
        others: Keys = set()
        for position, keys in enumerate(train.ids_and_contents()):
            (held_out if position in proof else others).update(keys)
        for keys in given.ids_and_contents():
            held_out.update(keys)
    return held_out, others
