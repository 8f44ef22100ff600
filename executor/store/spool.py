"""`DocumentArrayMemmap`: documents on disk, in one SQLite file that can be read while documents are appended.

The file, schema version 1: table `documents`, one row per document. `id` is unique in the whole file; `position`
counts 0, 1, … without gaps within a `split`; `label` is normalised; `matches` is the number of matches; `document` is
the document's protobuf (docarray's `DocProto`). The other columns can be read without decoding the document.
"""

import operator
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, overload

import numpy as np
from docarray import DocList
from docarray.proto import DocProto
from google.protobuf.message import DecodeError, EncodeError
from pydantic import ValidationError
from typing_extensions import Self

from ..documents import LABEL_TAG, Document, DocumentArray, Label, Match, has_label, label_of, with_id
from ..errors import BadDocument
from .spool_file import Connections, create_file

_INSERT = """
INSERT INTO documents (id, split, position, label, matches, document)
VALUES (?1, ?2, (SELECT coalesce(max(position), -1) + 1 FROM documents WHERE split = ?2), ?3, ?4, ?5)
ON CONFLICT (id) DO NOTHING"""
_CHUNK = 1000  # documents per transaction,
_CHUNK_BYTES = 64 << 20  # or fewer if they are large, because a chunk is held in memory
_MAX_BYTES = 999_000_000  # a row in SQLite may have 10**9 bytes at most
_PAGE = 32  # documents read at a time; a page of 640×480 arrays is 28 MB
_ROWS_PAGE = 2000  # rows read at a time without their documents
_UNSTORABLE = (ValueError, TypeError, AttributeError, RecursionError, DecodeError, EncodeError)


class LabelRow(NamedTuple):
    """What can be read without decoding a document. `label` may be None; `matches` is the number of matches."""

    id: str
    label: Label | None
    matches: int


class Sorts(NamedTuple):
    """How many documents of each sort there are.

    Attributes:
        labelled: those with a label and no matches. sessions: those with matches. unlabelled: those with neither.
        examples: the id of the first document of each sort that occurs, under the names above.
    """

    labelled: int
    sessions: int
    unlabelled: int
    examples: dict[str, str]


class DocumentArrayMemmap(Sequence[Document]):
    """The documents of one split of a file: a sequence that may exceed memory, and can be read while it grows.

    Several threads and processes may read one file and append to it at once. Threads may share an instance. It can be
    pickled, and used on both sides of a fork. A file stores each `id` once, whatever the split: a document whose `id`
    is already there is ignored.

    Args:
        path: The file. It is created, with its folders, if it does not exist.
        split: Which of the file's sequences this is, usually `train` or `eval`.

    Raises: WorkspaceError, here and from every method: the file is of another kind or version, or cannot be read or
        written, or this instance was closed.
    """

    def __init__(self, path: str | os.PathLike[str], *, split: str = "train") -> None:
        self.path = Path(path).absolute()
        self.split = split
        create_file(self.path)
        self._connections = Connections(self.path)

    def append(self, doc: Any) -> bool:
        """Store one document durably; return whether it was new. See `extend`."""
        return self.extend([doc]) == 1

    def extend(self, docs: Iterable[Any]) -> int:
        """Store documents durably, in order, and return how many were new.

        Any object with the fields of `Document` is stored as a `Document`. A document without an id gets one. A
        transaction holds up to 1,000 documents or 64 MiB, so `docs` may be endless.

        Raises: BadDocument: a document cannot be stored, or its label is neither an integer nor a string. Then nothing
            of its transaction is stored.
        """
        return sum(self._insert(chunk) for chunk in _chunks(_row(doc, self.split) for doc in docs))

    def _insert(self, rows: list["_Row"]) -> int:
        with self._connections.use() as connection:
            connection.execute("BEGIN IMMEDIATE")  # take the write lock first: it protects the numbering of positions
            try:
                new = connection.executemany(_INSERT, rows).rowcount
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:  # a full disk has rolled it back already
                    connection.execute("ROLLBACK")
                raise
        return new

    def __len__(self) -> int:
        query = "SELECT position + 1 FROM documents WHERE split = ? ORDER BY position DESC LIMIT 1"
        rows = self._select(query, self.split)
        return int(rows[0][0]) if rows else 0

    @overload
    def __getitem__(self, index: int) -> Document: ...
    @overload
    def __getitem__(self, index: slice) -> "DocList[Document]": ...
    def __getitem__(self, index: Any) -> Any:
        """Return a document, or a `DocumentArray` for a slice. Raises: IndexError."""
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step == 1:
                return DocumentArray(self._documents(start, stop))
            return DocumentArray(self[position] for position in range(start, stop, step))
        position = operator.index(index)
        if position < 0:
            position += len(self)
        rows = self._select("SELECT document FROM documents WHERE split = ? AND position = ?", self.split, position)
        if not rows:
            raise IndexError(f"Index {index} is out of range: split {self.split!r} has {len(self)} documents.")
        return Document.from_protobuf(DocProto.FromString(rows[0][0]))

    def __iter__(self) -> Iterator[Document]:
        """Iterate in order, in constant memory, over the documents that are there now."""
        return self._documents(0, len(self))

    def _documents(self, start: int, stop: int) -> Iterator[Document]:
        pages = self._pages("document", start, stop, _PAGE)
        return (Document.from_protobuf(DocProto.FromString(document)) for (document,) in pages)

    def __contains__(self, doc: object) -> bool:
        """Whether this split has the document `doc`, or a document with the id `doc`."""
        id = doc if isinstance(doc, str) else getattr(doc, "id", None)
        return bool(id) and bool(self._select("SELECT 1 FROM documents WHERE id = ? AND split = ?", id, self.split))

    def ids(self) -> Iterator[str]:
        """Iterate over the ids in order, without decoding documents."""
        return (id for (id,) in self._pages("id", 0, len(self), _ROWS_PAGE))

    def labels(self) -> Iterator[LabelRow]:
        """Iterate over the labels in order, without decoding documents."""
        return map(LabelRow._make, self._pages("id, label, matches", 0, len(self), _ROWS_PAGE))

    def sorts(self) -> Sorts:
        """Count the sorts of documents, without decoding them."""
        rows = self._select(
            "SELECT CASE WHEN matches > 0 THEN 'sessions' WHEN label IS NULL THEN 'unlabelled' ELSE 'labelled' END"
            " AS sort, count(*), id, min(position) FROM documents WHERE split = ? GROUP BY sort",  # id of the minimum
            self.split,
        )
        return _sorts({sort: count for sort, count, _, _ in rows}, {sort: id for sort, _, id, _ in rows})

    def known_ids(self, ids: Iterable[str]) -> set[str]:
        """Return which of `ids` the file already has, in any split."""
        wanted = iter(ids)
        known: set[str] = set()
        while chunk := list(islice(wanted, 500)):
            marks = ",".join("?" * len(chunk))
            known.update(id for (id,) in self._select(f"SELECT id FROM documents WHERE id IN ({marks})", *chunk))
        return known

    def _select(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        with self._connections.use() as connection:
            return connection.execute(query, values).fetchall()

    def _pages(self, columns: str, first: int, last: int, size: int) -> Iterator[tuple[Any, ...]]:
        """Yield the rows from `first` to before `last`, a page at a time: an open statement would block checkpoints."""
        query = f"SELECT {columns} FROM documents WHERE split = ? AND position >= ? AND position < ? ORDER BY position"
        for start in range(first, last, size):
            yield from self._select(query, self.split, start, min(start + size, last))

    def close(self) -> None:
        """Close the file in all threads, after they have finished what they do with it. Closing again does nothing."""
        self._connections.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "split": self.split}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._connections = Connections(self.path)

    def __repr__(self) -> str:
        return f"DocumentArrayMemmap({str(self.path)!r}, split={self.split!r})"


class StoredForm(NamedTuple):
    """A document as files of ours keep it. `payload`: its protobuf; `matches`: how many it has."""

    id: str
    label: Label | None
    matches: int
    payload: bytes


def stored_form(doc: Any) -> StoredForm:
    """Return how a document is kept. Raises: BadDocument: it cannot be stored."""
    id, _, label, matches, payload = _row(doc, "")
    return StoredForm(id, label, matches, payload)


def restored(payload: bytes) -> Document:
    """Return the document of a `StoredForm`."""
    document: Document = Document.from_protobuf(DocProto.FromString(payload))
    return document


def label_rows(docs: Iterable[Any]) -> Iterator[LabelRow]:
    """Iterate over the labels of any documents. Raises: BadDocument: a label is neither an integer nor a string."""
    if isinstance(docs, DocumentArrayMemmap):
        return docs.labels()
    return (LabelRow(doc.id, label_of(doc) if has_label(doc) else None, len(doc.matches or ())) for doc in docs)


def sorts_of(docs: Iterable[Any]) -> Sorts:
    """Count the sorts of any documents. Raises: BadDocument: a label is neither an integer nor a string."""
    if isinstance(docs, DocumentArrayMemmap):
        return docs.sorts()
    counts: dict[str, int] = {}
    examples: dict[str, str] = {}
    for id, label, matches in label_rows(docs):
        sort = "sessions" if matches else "unlabelled" if label is None else "labelled"
        counts[sort] = counts.get(sort, 0) + 1
        examples.setdefault(sort, id)
    return _sorts(counts, examples)


def _sorts(counts: dict[str, int], examples: dict[str, str]) -> Sorts:
    labelled, sessions, unlabelled = (counts.get(sort, 0) for sort in ("labelled", "sessions", "unlabelled"))
    return Sorts(labelled, sessions, unlabelled, examples)


_Row = tuple[str, str, Label | None, int, bytes]


def _chunks(rows: Iterable[_Row]) -> Iterator[list[_Row]]:
    chunk: list[_Row] = []
    size = 0
    for row in rows:
        chunk.append(row)
        size += len(row[-1])
        if len(chunk) == _CHUNK or size >= _CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _row(doc: Any, split: str) -> _Row:
    id = with_id(_document_like(doc)).id
    try:
        document = doc if _is_plain(doc) else _converted(doc)
        label = label_of(document) if has_label(document) else None
        if isinstance(label, int) and not -(2**63) <= label < 2**63:
            raise BadDocument(f"tags[{LABEL_TAG!r}] is beyond 64 bits; write it as a string")
        return str(id), split, label, len(document.matches), _payload(document)
    except BadDocument as error:
        raise BadDocument(f"Document {id!r}: {error}") from error


def _document_like(doc: Any) -> Any:
    if not hasattr(doc, "id"):
        raise BadDocument(f"A {type(doc).__name__} is not a document; give objects with the fields of `Document`")
    return doc


def _is_plain(doc: Any) -> bool:
    return isinstance(doc, Document) and all(type(match) is Match for match in doc.matches)


def _converted(doc: Any) -> Document:
    """Convert any document to a `Document`, its matches to `Match`es, and numpy's scalars in tags to Python's."""
    try:
        matches = DocList[Match](Match(**_fields(match)) for match in getattr(doc, "matches", None) or ())
        return Document(**_fields(doc), matches=matches)
    except ValidationError as error:
        first = error.errors()[0]
        raise BadDocument(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def _fields(doc: Any) -> dict[str, Any]:
    fields = {name: getattr(_document_like(doc), name, None) for name in Match.model_fields}
    return fields | {"tags": _plain_scalars(fields["tags"] or {})}


def _plain_scalars(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {key: _plain_scalars(item) for key, item in value.items()}
    if type(value) in (list, tuple, set):
        return type(value)(map(_plain_scalars, value))
    return value


def _payload(document: Document) -> bytes:
    try:
        return _encoded(document)
    except _UNSTORABLE:  # often a numpy scalar in the tags, which docarray does not encode
        try:
            return _encoded(_converted(document))
        except _UNSTORABLE as error:
            raise BadDocument(
                f"it cannot be stored ({error.args[-1] if error.args else error}). Tags hold strings, numbers "
                "(integers of 32 bits), booleans, arrays, and lists and dicts of those, up to 32 deep"
            ) from error


def _encoded(document: Document) -> bytes:
    for part in (document, *document.matches):
        if any(array is not None and array.dtype.hasobject for array in (part.blob, part.embedding)):
            raise ValueError("an array of Python objects")
    payload: bytes = document.to_protobuf().SerializeToString()
    if len(payload) > _MAX_BYTES:
        raise ValueError(f"{len(payload)} bytes; a document holds {_MAX_BYTES}")
    DocProto.FromString(payload)  # protobuf writes deeper nesting than it can read: try it
    return payload
