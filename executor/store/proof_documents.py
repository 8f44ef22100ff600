"""The documents that prove the model of a run: those sent for evaluation, or those of the train documents held out."""

import contextlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

from ..documents import DocumentArray
from ..errors import BadRequest, WorkspaceError
from .files import publish_file
from .spool import DocumentArrayMemmap
from .workspace import Workspace

_BySplit = dict[str, list[int]]


class ProofDocuments(Sequence[Any]):
    """Some of the documents of a sequence, each read when it is wanted.

    Attributes:
        units: a number for each document; those that the run found to belong together have equal ones. None: that was
            not written down, as by an early release.
    """

    def __init__(self, docs: Sequence[Any], positions: Sequence[int], units: Sequence[int] | None) -> None:
        self._docs = docs
        self._positions = positions
        self.units = units

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return DocumentArray(self._docs[position] for position in self._positions[index])
        return self._docs[self._positions[index]]


def save_proof(workspace: Workspace, run: str, positions: dict[str, list[int]], units: dict[str, list[int]]) -> None:
    """Write down which documents prove a run's model. Args: positions, units: by split. Raises: OSError."""
    publish_file(workspace.proof_file(run), json.dumps(positions | {"units": units}).encode())


def proof_positions(workspace: Workspace, run: str) -> dict[str, list[int]] | None:
    """Return the positions, by split, of the documents that prove a run's model; None: it is not known yet.

    Raises: WorkspaceError: the file that says so is damaged.
    """
    found = _read(workspace, run)
    return None if found is None else found[0]


def _read(workspace: Workspace, run: str) -> tuple[_BySplit, _BySplit | None] | None:
    """Return the positions, and the units if they are there."""
    file = workspace.proof_file(run)  # written when the training begins
    if not file.exists():
        return None
    try:
        found = json.loads(file.read_bytes())
        positions, units = (
            {split: [int(number) for number in numbers[split]] for split in ("train", "eval")}
            for numbers in (found, found.get("units", found))
        )
        if any(len(units[split]) != len(positions[split]) for split in positions):
            raise ValueError("its units are not those of its documents")
        return positions, units if "units" in found else None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise WorkspaceError(
            f"{file}, which says what proved run {run!r}, is damaged ({error}). Restore it from a backup, send "
            "labelled documents to /evaluate, or start new runs from another version (base)."
        ) from error


@contextlib.contextmanager
def proof_documents(workspace: Workspace, run: str) -> Iterator[ProofDocuments]:
    """Open the documents that prove the model of a run.

    Raises: BadRequest: there are none (yet). WorkspaceError: what says which they are is damaged.
    """
    with (
        DocumentArrayMemmap(workspace.spool_file(run), split="eval") as given,
        DocumentArrayMemmap(workspace.spool_file(run), split="train") as train,
    ):
        proof, units = _read(workspace, run) or ({"train": [], "eval": list(range(len(given)))}, None)
        if not proof["train"] and not proof["eval"]:
            raise BadRequest(
                f"Run {run!r} has no eval documents, and none of its train documents were held out (or not yet); "
                "send labelled documents to /evaluate."
            )
        docs, split = (given, "eval") if proof["eval"] else (train, "train")
        yield ProofDocuments(docs, proof[split], None if units is None else units[split])
