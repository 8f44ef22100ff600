"""`DocumentArrayMemmap`: documents on disk, in one SQLite file that is appended to while it is read.

The file, schema version 1: table `documents`, one row a document. `id` is unique in the whole file; `position`
counts 0, 1, … without gaps within a `split`; `label` is normalised; `matches` is their number; `document` is its
protobuf (docarray's `DocProto`). Everything but `document` can be read without decoding one.
"""

import operator
import os
import sqlite3
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
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

from .documents import LABEL_TAG, Document, DocumentArray, Label, Match, has_label, label_of, with_id
from .errors import BadDocument, WorkspaceError

_APPLICATION_ID = 0x46544D44  # "FTMD", in the file's header
_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE documents (
    row INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    split TEXT NOT NULL,
    position INTEGER NOT NULL,
    label,  -- no type, so that 1 and '1' stay two labels
    matches INTEGER NOT NULL,
    document BLOB NOT NULL,  -- last, so that the other columns are read without it
    UNIQUE (split, position)
)"""
_INSERT = """
INSERT INTO documents (id, split, position, label, matches, document)
VALUES (?1, ?2, (SELECT coalesce(max(position), -1) + 1 FROM documents WHERE split = ?2), ?3, ?4, ?5)
ON CONFLICT (id) DO NOTHING"""
_BUSY_SECONDS = 60  # how long to wait for another process's transaction
_CHUNK = 1000  # documents a transaction,
_CHUNK_BYTES = 64 << 20  # or fewer if they are large: a chunk is held in memory
_MAX_BYTES = 999_000_000  # SQLite holds no row above 10**9 bytes
_PAGE = 32  # documents read at a time; a page of 640×480 arrays is 28 MB
_ROWS_PAGE = 2000  # rows read at a time without their documents
_UNSTORABLE = (ValueError, TypeError, AttributeError, RecursionError, DecodeError, EncodeError)


class LabelRow(NamedTuple):
    """What is known of a document without decoding it: `label` is None without one, `matches` their number."""

    id: str
    label: Label | None
    matches: int


class Sorts(NamedTuple):
    """How many documents have matches (`sessions`), else a label (`labelled`), else neither (`unlabelled`).

    `examples` has the first document's id of each sort that occurs, under those names.
    """

    labelled: int
    sessions: int
    unlabelled: int
    examples: dict[str, str]


class DocumentArrayMemmap(Sequence[Document]):
    """The documents of one split of a file: a sequence larger than memory, appendable while it is read.

    Several threads and processes may append to and read one file at once. An instance may be shared by threads,
    pickled, and used on both sides of a fork. A document counts once in the file, whatever its split: one whose
    `id` is there already is ignored.

    Args:
        path: The file, made with its folders if absent.
        split: Which of the file's sequences this is; `train` and `eval` are usual.

    Raises: WorkspaceError, here and from every method: the file is of another kind or version, cannot be read or
        written, or this instance was closed.
    """

    def __init__(self, path: str | os.PathLike[str], *, split: str = "train") -> None:
        self.path = Path(path).absolute()
        self.split = split
        _create(self.path)
        self._connections = _Connections(self.path)

    def append(self, doc: Any) -> bool:
        """Store one document durably; return whether it was new. See `extend`."""
        return self.extend([doc]) == 1

    def extend(self, docs: Iterable[Any]) -> int:
        """Store documents durably, in order, and return how many were new.

        Objects with the fields of `Document` are stored as one; a document without id is given one. Up to 1,000
        documents or 64 MiB are one transaction, so that `docs` may be endless.

        Raises: BadDocument: one cannot be stored, or its label is no label. None of its transaction is stored then.
        """
        return sum(self._insert(chunk) for chunk in _chunks(_row(doc, self.split) for doc in docs))

    def _insert(self, rows: list["_Row"]) -> int:
        with self._connections.use() as connection:
            connection.execute("BEGIN IMMEDIATE")  # the write lock first: positions are given under it
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
        """Return a document, or for a slice a `DocumentArray`. Raises: IndexError."""
        if isinstance(index, slice):
            return DocumentArray(self[position] for position in range(*index.indices(len(self))))
        position = operator.index(index)
        if position < 0:
            position += len(self)
        rows = self._select("SELECT document FROM documents WHERE split = ? AND position = ?", self.split, position)
        if not rows:
            raise IndexError(f"Index {index} is out of range: split {self.split!r} has {len(self)} documents.")
        return _decoded(Document, DocProto.FromString(rows[0][0]))

    def __iter__(self) -> Iterator[Document]:
        """Iterate in order, in constant memory, over the documents that are there now."""
        pages = self._pages("document", len(self), _PAGE)
        return (_decoded(Document, DocProto.FromString(document)) for (document,) in pages)

    def __contains__(self, doc: object) -> bool:
        """Whether a document, or one of this id, is in this split."""
        id = doc if isinstance(doc, str) else getattr(doc, "id", None)
        return bool(id) and bool(self._select("SELECT 1 FROM documents WHERE id = ? AND split = ?", id, self.split))

    def ids(self) -> Iterator[str]:
        """Iterate over the ids in order, without decoding documents."""
        return (id for (id,) in self._pages("id", len(self), _ROWS_PAGE))

    def labels(self) -> Iterator[LabelRow]:
        """Iterate over the labels in order, without decoding documents."""
        return map(LabelRow._make, self._pages("id, label, matches", len(self), _ROWS_PAGE))

    def sorts(self) -> Sorts:
        """Count the sorts of documents, without decoding them."""
        rows = self._select(
            "SELECT CASE WHEN matches > 0 THEN 'sessions' WHEN label IS NULL THEN 'unlabelled' ELSE 'labelled' END"
            " AS sort, count(*), id, min(position) FROM documents WHERE split = ? GROUP BY sort",  # id of the minimum
            self.split,
        )
        return _sorts({sort: count for sort, count, _, _ in rows}, {sort: id for sort, _, id, _ in rows})

    def known_ids(self, ids: Iterable[str]) -> set[str]:
        """Return those of `ids` that the file has already, in any split."""
        wanted = iter(ids)
        known: set[str] = set()
        while chunk := list(islice(wanted, 500)):
            marks = ",".join("?" * len(chunk))
            known.update(id for (id,) in self._select(f"SELECT id FROM documents WHERE id IN ({marks})", *chunk))
        return known

    def _select(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        with self._connections.use() as connection:
            return connection.execute(query, values).fetchall()

    def _pages(self, columns: str, length: int, size: int) -> Iterator[tuple[Any, ...]]:
        """Yield rows of positions 0 to `length`. No statement stays open between pages: it would stop checkpoints."""
        query = f"SELECT {columns} FROM documents WHERE split = ? AND position >= ? AND position < ? ORDER BY position"
        for start in range(0, length, size):
            yield from self._select(query, self.split, start, min(start + size, length))

    def close(self) -> None:
        """Close the file in all threads, once what they are doing with it is done. Closing again does nothing."""
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
        self._connections = _Connections(self.path)

    def __repr__(self) -> str:
        return f"DocumentArrayMemmap({str(self.path)!r}, split={self.split!r})"


def label_rows(docs: Iterable[Any]) -> Iterator[LabelRow]:
    """Iterate over the labels of any documents. Raises: BadDocument: a label is no label."""
    if isinstance(docs, DocumentArrayMemmap):
        return docs.labels()
    return (LabelRow(doc.id, label_of(doc) if has_label(doc) else None, len(doc.matches or ())) for doc in docs)


def sorts_of(docs: Iterable[Any]) -> Sorts:
    """Count the sorts of any documents. Raises: BadDocument: a label is no label."""
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
    """Return any document as a `Document`, its matches as `Match`es, with Python's scalars for numpy's in tags."""
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
    DocProto.FromString(payload)  # protobuf writes deeper nesting than it reads: what is stored can be read
    return payload


def _decoded(cls: type[Any], proto: Any) -> Any:
    """Do what `cls.from_protobuf` does, without the schema it builds anew for each id and default `matches`."""
    fields: dict[str, Any] = {}
    for name, node in proto.data.items():
        kind = node.WhichOneof("content")
        if kind in ("text", "blob"):
            fields[name] = getattr(node, kind)
        elif kind == "doc_array":
            fields[name] = DocList[Match](_decoded(Match, match) for match in node.doc_array.docs)
        elif kind is not None:
            fields[name] = cls._get_content_from_node_proto(node, name)
    return cls(**fields)


class _Connection(sqlite3.Connection):
    """A connection that can be referred to weakly: it closes when its thread ends."""


class _Connections:
    """One connection a thread to one file, opened when first used; none is open across a fork.

    SQLite forbids to use, or even to close, a connection in a child that was opened in its parent, and its locks
    would be wrong in one opened beside it. So all are closed before a fork, and opened again by who needs them.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._closed = False
        self._local = threading.local()
        self._open: weakref.WeakSet[_Connection] = weakref.WeakSet()
        self._in_child()
        with _forking:
            _all_connections.add(self)

    @contextmanager
    def use(self) -> Iterator[sqlite3.Connection]:
        """Lend this thread's connection. Not to be nested: a fork or `close` waits for the end of each."""
        with self._changed:
            self._changed.wait_for(lambda: not self._paused)
            if self._closed:
                raise WorkspaceError(f"This DocumentArrayMemmap of {self._path} was closed. Make another to go on.")
            self._users += 1
        try:
            with _explained(self._path):
                yield self._mine()
        finally:
            with self._changed:
                self._users -= 1
                self._changed.notify_all()

    def _mine(self) -> sqlite3.Connection:
        connection: _Connection | None = getattr(self._local, "connection", None)
        if connection is None or connection not in self._open:
            connection = self._local.connection = _connect(self._path, "rw")
            self._open.add(connection)
        return connection

    def close(self) -> None:
        self.pause()
        self._closed = True
        self.resume()

    def pause(self) -> None:
        """Close all connections once nobody uses one, and lend none until `resume`."""
        with self._changed:
            self._changed.wait_for(lambda: not self._paused)
            self._paused = True
            self._changed.wait_for(lambda: not self._users)
        for connection in list(self._open):
            connection.close()
        self._open.clear()

    def resume(self) -> None:
        with self._changed:
            self._paused = False
            self._changed.notify_all()

    def _in_child(self) -> None:
        self._changed = threading.Condition()  # a new one: a thread that the fork left behind may hold the old
        self._paused = False
        self._users = 0


_forking = threading.Lock()
_all_connections: weakref.WeakSet[_Connections] = weakref.WeakSet()


def _before_fork() -> None:
    _forking.acquire()
    for connections in list(_all_connections):
        connections.pause()


def _after_fork_in_parent() -> None:
    for connections in list(_all_connections):
        connections.resume()
    _forking.release()


def _after_fork_in_child() -> None:
    for connections in list(_all_connections):
        connections._in_child()
    _forking.release()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        if "not a database" in str(error):
            message = f"{path} is not a file of documents. Move it away, or name another."
        else:
            message = (
                f"{path} cannot be used ({error}). See that it and its folder can be written and the disk has room."
            )
        raise WorkspaceError(message) from error


def _connect(path: Path, mode: str) -> _Connection:
    """Open an existing file (`mode` rw) or make it (rwc), and check that it is ours or empty."""
    connection = sqlite3.connect(
        f"{path.as_uri()}?mode={mode}",
        uri=True,
        timeout=_BUSY_SECONDS,
        isolation_level=None,  # transactions are written out
        check_same_thread=False,  # `close` closes those of other threads
        factory=_Connection,
    )
    try:
        connection.execute("PRAGMA synchronous = FULL")  # a commit is on the disk when it returns
        connection.execute("PRAGMA wal_autocheckpoint = 4000")  # pages, 16 MB
        connection.execute("PRAGMA journal_size_limit = 67108864")
        _check_version(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _check_version(connection: sqlite3.Connection, path: Path) -> None:
    ((application,),) = connection.execute("PRAGMA application_id")
    ((version,),) = connection.execute("PRAGMA user_version")
    ((tables,),) = connection.execute("SELECT count(*) FROM sqlite_master")
    if tables and application != _APPLICATION_ID:
        raise WorkspaceError(f"{path} is another program's database. Move it away, or name another file.")
    if tables and version != _SCHEMA_VERSION:
        raise WorkspaceError(
            f"{path} has schema version {version}; this program reads {_SCHEMA_VERSION}. "
            "Open it with the version that wrote it, or name another file."
        )


def _create(path: Path) -> None:
    """Make the file and its folders, unless it is there."""
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = _connect(path, "rwc")
        try:
            if connection.execute("PRAGMA journal_mode").fetchone() != ("wal",):  # the last step below is not done
                connection.execute("BEGIN IMMEDIATE")  # another process may be making it too
                if not connection.execute("SELECT 1 FROM sqlite_master").fetchone():
                    connection.execute(_SCHEMA)
                    connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
                    connection.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
                connection.execute("COMMIT")
                connection.execute("PRAGMA journal_mode = WAL")
        finally:
            connection.close()
