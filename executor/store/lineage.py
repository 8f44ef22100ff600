"""What a version has seen: what it, or a version that it comes from, was trained on, and what proved one of them.

A version looks good on documents that it was trained on. So a run is not proven by what taught the version that it
starts from, and it is measured against the version served on what that one was not trained on, where there is enough.

A run writes down what it has seen when its documents are divided, with all that its base had seen. So this holds though
the runs before it are deleted, or their names are used again. Documents are known again by digests: of what was sent,
of the picture as the model saw it, and of the group; not by their ids, which other pictures may have in another table.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from ..documents import Label
from ..errors import WorkspaceError
from .files import publish_file
from .proof_documents import proof_positions
from .spool import DocumentArrayMemmap
from .workspace import Workspace

Digests = frozenset[bytes]
Keys = tuple[bytes, ...]
_SIZE = 16  # bytes of a digest


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """What a version has seen, as digests.

    Attributes:
        taught: documents and groups that were trained on. matches: those that were only in sessions of such documents.
        labels: those of documents that were trained on. proved: documents and groups that proved a version, and taught
            none.
    """

    taught: Digests = frozenset()
    matches: Digests = frozenset()
    labels: Digests = frozenset()
    proved: Digests = frozenset()

    def trained_on(self, *, sessions: bool) -> Digests:
        """Return by what documents are known that were trained on.

        Args: sessions: whether the documents in question are sessions. Their candidates are often those of others, so
            that a root is not known for having been a candidate.
        """
        return self.taught if sessions else self.taught | self.matches

    def with_more(self, more: "Lineage") -> "Lineage":
        """Return what a version has seen that comes from this one and has seen more."""
        both = {field.name: getattr(self, field.name) | getattr(more, field.name) for field in fields(self)}
        return Lineage(**{**both, "proved": both["proved"] - both["taught"]})

    def save(self, file: Path) -> None:
        """Write it to a file. Raises: OSError."""
        from safetensors.numpy import save  # only here and below: what only asks a service starts without it

        arrays = {
            field.name: np.frombuffer(b"".join(sorted(getattr(self, field.name))), np.uint8).reshape(-1, _SIZE)
            for field in fields(self)
        }
        publish_file(file, save(arrays))


def lineage_of(workspace: Workspace, version: str) -> Lineage:
    """Return what a version has seen.

    Raises: WorkspaceError: the file that says so is damaged.
    """
    if version == "base":
        return Lineage()
    file = workspace.lineage_file(version)
    if not file.exists():
        return _by_its_documents(workspace, version)
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        content = {name: array.tobytes() for name, array in load(file.read_bytes()).items()}
        return Lineage(**{field.name: _digests(content[field.name]) for field in fields(Lineage)})
    except (SafetensorError, KeyError, ValueError) as error:
        raise WorkspaceError(
            f"{file}, which says what {version!r} was trained on, is damaged ({error}). Restore it from a backup, or "
            "start new runs from another version (base) and serve that."
        ) from error


def keys_of_document(content: bytes, picture: bytes | None, group: str | None) -> Keys:
    """Return by what a document is known again.

    Args: content: the digest of what was sent. picture: of the picture as a model sees it; None: it is not known.
        group: its group; None: it is in none.
    """
    return (content, *([] if picture is None else [picture]), *([] if group is None else [key_of_group(group)]))


def key_of_group(group: str) -> bytes:
    """Return the digest by which a group is known again."""
    return hashlib.sha256(b"group\n" + group.encode("utf-8", "surrogatepass")).digest()[:_SIZE]


def keys_of_labels(labels: Iterable[Label]) -> Digests:
    """Return the digests by which labels are known again: 1 is another label than '1'."""
    return frozenset(
        hashlib.sha256(f"label\n{label!r}".encode("utf-8", "surrogatepass")).digest()[:_SIZE] for label in labels
    )


def _digests(content: bytes) -> Digests:
    return frozenset(content[start : start + _SIZE] for start in range(0, len(content), _SIZE))


def _by_its_documents(workspace: Workspace, run: str) -> Lineage:
    """What is known of a run without a lineage: its model was put there by hand, or trained by an early release."""
    spool = workspace.spool_file(run)
    if not spool.exists():
        return Lineage()
    proof = proof_positions(workspace, run) or {"train": [], "eval": []}
    found: dict[bool, set[bytes]] = {True: set(), False: set()}
    for split in ("train", "eval"):
        with DocumentArrayMemmap(spool, split=split) as docs:
            proving = set(proof[split])
            for position, content in enumerate(docs.contents()):
                if split == "train" or position in proving:
                    found[position in proving].add(content)
    return Lineage(taught=frozenset(found[False]), proved=frozenset(found[True] - found[False]))
