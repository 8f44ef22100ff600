"""The documents that prove the model of a run: those sent for evaluation, or those of the train documents held out."""

import contextlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

from ..documents import DocumentArray
from ..errors import BadRequest, WorkspaceError
from .spool import DocumentArrayMemmap
from .workspace import Workspace


class _Chosen(Sequence[Any]):
    """Some of the documents of a sequence, each read when it is wanted."""

    def __init__(self, docs: Sequence[Any], positions: Sequence[int]) -> None:
        self._docs = docs
        self._positions = positions

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return DocumentArray(self._docs[position] for position in self._positions[index])
        return self._docs[self._positions[index]]


def proof_positions(workspace: Workspace, run: str) -> dict[str, list[int]] | None:
    """Return the positions, by split, of the documents that prove a run's model; None: it is not known yet.

    Raises: WorkspaceError: the file that says so is damaged.
    """
    file = workspace.proof_file(run)  # written when the training begins
    if not file.exists():
        return None
    try:
        found = json.loads(file.read_bytes())
        return {split: [int(position) for position in found[split]] for split in ("train", "eval")}
    except (KeyError, TypeError, ValueError) as error:
        raise WorkspaceError(
            f"{file}, which says what proved run {run!r}, is damaged ({error}). Restore it from a backup, send "
            "labelled documents to /evaluate, or start new runs from another version (base)."
        ) from error


@contextlib.contextmanager
def proof_documents(workspace: Workspace, run: str) -> Iterator[Sequence[Any]]:
    """Open the documents that prove the model of a run.

    Raises: BadRequest: there are none (yet). WorkspaceError: what says which they are is damaged.
    """
    with (
        DocumentArrayMemmap(workspace.spool_file(run), split="eval") as given,
        DocumentArrayMemmap(workspace.spool_file(run), split="train") as train,
    ):
        proof = proof_positions(workspace, run) or {"train": [], "eval": list(range(len(given)))}
        if not proof["train"] and not proof["eval"]:
            raise BadRequest(
                f"Run {run!r} has no eval documents, and none of its train documents were held out (or not yet); "
                "send labelled documents to /evaluate."
            )
        yield _Chosen(given, proof["eval"]) if proof["eval"] else _Chosen(train, proof["train"])
