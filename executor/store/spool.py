"""`DocumentArrayMemmap`: documents on disk, in one SQLite file that can be read while documents are appended.

The file, schema version 2: table `documents`, one row per document. `position` counts 0, 1, … without gaps within a
`split`; `parts` is how many documents and matches the split has up to this row; `label` is normalised; `matches` is the
number of matches; `content` and `said` are digests (see `spool_rows.py`), by which `id` and `content` are unique within
a split; `document` is the document's protobuf (docarray's `DocProto`). The other columns can be read without decoding
the document.
"""

import operator
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, overload

from docarray import DocList
from docarray.proto import DocProto
from typing_extensions import Self

from ..documents import Document, DocumentArray, Label, check_ours, has_label, label_of
from ..errors import BadDocument, brief
from .chunks import chunks
from .spool_file import Connections, close_gaps, create_file
from .spool_rows import Identity, LabelRow, Row, Sorts, identity_of, row_of

_INSERT = """
INSERT INTO documents (id, split, position, parts, label, matches, content, said, document)
VALUES (?1, ?2, (SELECT coalesce(max(position), -1) + 1 FROM documents WHERE split = ?2),
        1 + ?4 + coalesce((SELECT parts FROM documents WHERE split = ?2 ORDER BY position DESC LIMIT 1), 0),
        ?3, ?4, ?5, ?6, ?7)
ON CONFLICT (split, id, content) DO NOTHING"""
_FIRST_WITH_ID = "SELECT min(position) FROM documents WHERE split = ? AND id = ?"
_CHUNK = 1000  # documents per transaction,
_CHUNK_BYTES = 64 << 20  # or fewer if they are large, because a chunk is held in memory
_PAGE = 32  # documents read at a time; a page of 640×480 arrays is 28 MB
_ROWS_PAGE = 2000  # rows read at a time without their documents
FILE_IN_FOLDER = "documents.sqlite"  # where a folder is given


class DocumentArrayMemmap(Sequence[Document]):
    """The documents of one split of a file: a sequence that may exceed memory, and can be read while it grows.

    Several threads and processes may read one file and append to it at once. Threads may share an instance. It can be
    pickled, and used on both sides of a fork.

    Within a split, a document with the id, the content and the labels of one that is there counts as sent again, and is
    ignored. With other content it is another document, and both are kept. With the same content and another label,
    group or other matches it is refused.

    Args:
        path: The file, or a folder: then the file in it is called `documents.sqlite`. The file is created, with its
            folders, if it does not exist.
        split: Which of the file's sequences this is, usually `train` or `eval`.

    Raises: WorkspaceError, here and from every method: the file is of another kind or version, or cannot be read or
        written, or this instance was closed.
    """

    def __init__(self, path: str | os.PathLike[str], *, split: str = "train") -> None:
        self.path = Path(path).absolute()
        if self.path.is_dir():
            self.path /= FILE_IN_FOLDER
        self.split = split
        create_file(self.path, _digests)
        self._connections = Connections(self.path)

    def append(self, doc: Any) -> bool:
        """Store one document durably; return whether it was new. See `extend`."""
        return self.extend([doc]) == 1

    def extend(self, docs: Iterable[Any]) -> int:
        """Store documents durably, in order, and return how many were new.

        Any object with the fields of `Document` is stored as a `Document`. A document without an id gets one. A
        transaction holds up to 1,000 documents or 64 MiB, so `docs` may be endless.

        Raises: BadDocument: a document cannot be stored, its label is neither an integer nor a string, or it
            contradicts one that is there. Then nothing of its transaction is stored.
        """
        new = 0
        for chunk in _chunks(row_of(doc, self.split) for doc in docs):
            with self._transaction() as connection:
                added, contradictions = self._insert(connection, chunk)
                for number, reason in contradictions.items():
                    raise BadDocument(f"Document {brief(chunk[number].id)!r}: {reason}")
            new += added
        return new

    def take(self, docs: Sequence[Any]) -> dict[int, str]:
        """Store documents as `extend` does, but leave out those that cannot be stored, or contradict one that is there.

        Returns: why each was left out, by its place in `docs`.
        """
        left_out: dict[int, str] = {}
        places: list[int] = []

        def rows() -> Iterator[Row]:
            for place, doc in enumerate(docs):
                try:
                    row = row_of(doc, self.split)
                except BadDocument as error:
                    left_out[place] = str(error.__cause__ or error)  # without the id
                else:
                    places.append(place)
                    yield row

        seen = 0
        for chunk in _chunks(rows()):
            with self._transaction() as connection:
                _, contradictions = self._insert(connection, chunk)
            left_out |= {places[seen + number]: reason for number, reason in contradictions.items()}
            seen += len(chunk)
        return left_out

    def _insert(self, connection: sqlite3.Connection, rows: list[Row]) -> tuple[int, dict[int, str]]:
        """Insert the rows that are new. Return how many, and why others cannot be, by their numbers."""
        new = connection.executemany(_INSERT, rows).rowcount
        contradictions: dict[int, str] = {}
        for number, row in enumerate(rows if new < len(rows) else ()):
            query = "SELECT said, label FROM documents WHERE split = ? AND id = ? AND content = ?"
            ((said, label),) = connection.execute(query, (self.split, row.id, row.content))
            if said != row.said:
                contradictions[number] = _contradiction(label, row.label)
        return new, contradictions

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._connections.use() as connection:
            connection.execute("BEGIN IMMEDIATE")  # take the write lock first: it protects the numbering of positions
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:  # a full disk has rolled it back already
                    connection.execute("ROLLBACK")
                raise

    def __delitem__(self, index: int | str | slice) -> None:
        """Delete a document by its index or id, or those of a slice; the later ones move up.

        An id means the first document that has it. Nobody else should read this split meanwhile. It takes time in
        proportion to the documents behind the deleted one.

        Raises: IndexError, KeyError: there is none.
        """
        with self._transaction() as connection:
            if isinstance(index, slice):
                positions = range(*index.indices(self._count(connection)))
            else:
                positions = range(found := self._position(connection, index), found + 1)
            if positions:
                deleted = [(self.split, position) for position in positions]
                connection.executemany("DELETE FROM documents WHERE split = ? AND position = ?", deleted)
                close_gaps(connection, self.split, min(positions))

    def clear(self) -> None:
        """Delete all documents of this split. Nobody else should read it meanwhile."""
        with self._transaction() as connection:
            connection.execute("DELETE FROM documents WHERE split = ?", (self.split,))

    def _count(self, connection: sqlite3.Connection) -> int:
        query = "SELECT coalesce(max(position), -1) + 1 FROM documents WHERE split = ?"
        ((count,),) = connection.execute(query, (self.split,))
        return int(count)

    def _position(self, connection: sqlite3.Connection, index: Any) -> int:
        """Return the position of a document by its index, from the end if negative, or by its id."""
        if isinstance(index, str):
            ((found,),) = connection.execute(_FIRST_WITH_ID, (self.split, index))
            if found is None:
                raise KeyError(f"There is no document {brief(index)!r} in split {self.split!r}.")
            return int(found)
        position, count = operator.index(index), self._count(connection)
        if not -count <= position < count:
            raise IndexError(f"Index {index} is out of range: split {self.split!r} has {count} documents.")
        return position % count

    def __len__(self) -> int:
        with self._connections.use() as connection:
            return self._count(connection)

    @property
    def parts(self) -> int:
        """How many documents and matches there are."""
        query = "SELECT parts FROM documents WHERE split = ? ORDER BY position DESC LIMIT 1"
        rows = self._select(query, self.split)
        return int(rows[0][0]) if rows else 0

    @overload
    def __getitem__(self, index: int | str) -> Document: ...
    @overload
    def __getitem__(self, index: slice) -> "DocList[Document]": ...
    def __getitem__(self, index: Any) -> Any:
        """Return a document by its index or id, or a `DocumentArray` for a slice. Raises: IndexError, KeyError.

        An id means the first document that has it.
        """
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step == 1:
                return DocumentArray(self._documents(start, stop))
            return DocumentArray(self[position] for position in range(start, stop, step))
        query = "SELECT document FROM documents WHERE split = ? AND position = ?"
        with self._connections.use() as connection:
            ((document,),) = connection.execute(query, (self.split, self._position(connection, index)))
        return Document.from_protobuf(DocProto.FromString(document))

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

    def with_id(self, id: str) -> list[Document]:
        """Return the documents that have an id: one as a rule, the first two if there are several."""
        query = "SELECT document FROM documents WHERE split = ? AND id = ? ORDER BY position LIMIT 2"
        return [restored(document) for (document,) in self._select(query, self.split, id)]

    def ids(self) -> Iterator[str]:
        """Iterate over the ids in order, without decoding documents."""
        return (id for (id,) in self._pages("id", 0, len(self), _ROWS_PAGE))

    def contents(self) -> Iterator[bytes]:
        """Iterate over the digests of the contents in order, without decoding documents."""
        return (content for (content,) in self._pages("content", 0, len(self), _ROWS_PAGE))

    def labels(self) -> Iterator[LabelRow]:
        """Iterate over the labels in order, without decoding documents."""
        return map(LabelRow._make, self._pages("id, label, matches", 0, len(self), _ROWS_PAGE))

    def label_counts(self) -> list[tuple[Label, int]]:
        """Return how many documents have each label, the most frequent first, without decoding documents."""
        query = "SELECT label, count(*) FROM documents WHERE split = ? AND label IS NOT NULL AND matches = 0"
        return self._select(f"{query} GROUP BY label ORDER BY count(*) DESC, label", self.split)

    def sorts(self) -> Sorts:
        """Count the sorts of documents, without decoding them."""
        rows = self._select(
            "SELECT CASE WHEN matches > 0 THEN 'sessions' WHEN label IS NULL THEN 'unlabelled' ELSE 'labelled' END"
            " AS sort, count(*), id, min(position) FROM documents WHERE split = ? GROUP BY sort",  # id of the minimum
            self.split,
        )
        return Sorts.of({sort: count for sort, count, _, _ in rows}, {sort: id for sort, _, id, _ in rows})

    def has(self, identity: Identity) -> bool:
        """Whether the very same document is there already: id, content, and what is said of it."""
        query = "SELECT 1 FROM documents WHERE split = ? AND id = ? AND content = ? AND said = ?"
        return bool(self._select(query, self.split, *identity))

    def shared_ids(self) -> tuple[int, list[str]]:
        """Return how many ids several documents have, and the first few of those ids."""
        shared = "SELECT id FROM documents WHERE split = ? GROUP BY id HAVING count(*) > 1"
        ((count,),) = self._select(f"SELECT count(*) FROM ({shared})", self.split)
        return int(count), [id for (id,) in self._select(f"{shared} ORDER BY min(position) LIMIT 5", self.split)]

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
    row = row_of(doc, "")
    return StoredForm(row.id, row.label, row.matches, row.document)


def restored(payload: bytes) -> Document:
    """Return the document of a `StoredForm`."""
    document: Document = Document.from_protobuf(DocProto.FromString(payload))
    return document


def label_rows(docs: Iterable[Any]) -> Iterator[LabelRow]:
    """Iterate over the labels of any documents. Raises: BadDocument: a label is neither an integer nor a string."""
    if isinstance(docs, DocumentArrayMemmap):
        return docs.labels()
    return map(_label_row, docs)


def _label_row(doc: Any) -> LabelRow:
    check_ours(doc)
    return LabelRow(doc.id, label_of(doc) if has_label(doc) else None, len(doc.matches or ()))


def _digests(document: bytes) -> tuple[bytes, bytes]:
    identity = identity_of(Document.from_protobuf(DocProto.FromString(document)))
    return identity.content, identity.said


def _contradiction(before: Label | None, now: Label | None) -> str:
    if before == now:
        what = "another group or other matches"
    elif brief(before) == brief(now):  # an integer and a text
        what = f"the label {brief(repr(before))}, not {brief(repr(now))}"
    else:
        what = f"the label {brief(before)!r}, not {brief(now)!r}"
    return f"the same id and content came before with {what}; the first counts. Give another document an id of its own"


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
    return Sorts.of(counts, examples)


def _chunks(rows: Iterable[Row]) -> Iterator[list[Row]]:
    return chunks(rows, most=_CHUNK, enough_bytes=_CHUNK_BYTES, size_of=lambda row: len(row.document))
