"""One document as a row of a spool: checked, encoded, and with the digests that tell a repeated document from another.

Two documents of one split with the same id are the same if their content is: `uri`, `blob`, `buffer` and `text`. What
is said of the content are the label, the group, and the matches with theirs. The ids of matches say nothing: a client
that gives none gets new ones each time.
"""

import struct
from hashlib import sha256  # faster than others where the processor has it
from typing import Any, NamedTuple

import numpy as np
from docarray import BaseDoc
from docarray.proto import DocProto
from google.protobuf.message import DecodeError, EncodeError
from pydantic import ValidationError

from ..documents import (
    LABEL_TAG,
    Document,
    Label,
    Match,
    Matches,
    check_integers,
    check_ours,
    group_of,
    has_label,
    label_of,
    with_id,
)
from ..errors import BadDocument, brief

MAX_BYTES = 999_000_000  # a row in SQLite may have 10**9 bytes at most
_DIGEST = 16  # bytes
_CONTENT = ("uri", "blob", "buffer", "text")
_UNSTORABLE = (ValueError, TypeError, AttributeError, RecursionError, DecodeError, EncodeError)


class Identity(NamedTuple):
    """What a document is told from others by. Attributes: content, said: digests, see above."""

    id: str
    content: bytes
    said: bytes

    @property
    def key(self) -> str:
        """All of it as one short text."""
        return sha256(self.content + self.said + self.id.encode("utf-8", "surrogatepass")).hexdigest()[: 2 * _DIGEST]


class Row(NamedTuple):
    """The columns of a document in the order in which they are inserted."""

    id: str
    split: str
    label: Label | None
    matches: int
    content: bytes
    said: bytes
    document: bytes


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

    @classmethod
    def of(cls, counts: dict[str, int], examples: dict[str, str]) -> "Sorts":
        """Return these counts, with 0 for the sorts that do not occur."""
        labelled, sessions, unlabelled = (counts.get(sort, 0) for sort in ("labelled", "sessions", "unlabelled"))
        return cls(labelled, sessions, unlabelled, examples)


def identity_of(doc: Any) -> Identity:
    """Return the identity of any document with an id. Nothing is checked."""
    said = sha256()
    said.update(_said(doc))
    for match in doc.matches or ():
        said.update(content_digest(match) + _said(match))
    return Identity(str(doc.id), content_digest(doc), said.digest()[:_DIGEST])


def content_digest(doc: Any) -> bytes:
    """Return a digest of `uri`, `blob`, `buffer` and `text`: what a document shows."""
    digest = sha256()
    for name in _CONTENT:
        value = getattr(doc, name, None)
        if value is None:
            continue
        if isinstance(value, np.ndarray):
            name = f"{name} {value.dtype.str} {value.shape}"
            value = value.tobytes()
        elif isinstance(value, str):
            value = value.encode("utf-8", "surrogatepass")
        digest.update(f"{name}\n".encode() + struct.pack(">Q", len(value)))
        digest.update(value)
    return digest.digest()[:_DIGEST]


def _said(doc: Any) -> bytes:
    try:
        label = label_of(doc) if has_label(doc) else None
    except BadDocument:
        label = repr(doc.tags.get(LABEL_TAG))
    said = repr((label, group_of(doc))).encode("utf-8", "surrogatepass")
    return struct.pack(">Q", len(said)) + said


def row_of(doc: Any, split: str) -> Row:
    """Return any document as a row. It gets an id if it has none.

    Raises: BadDocument: it cannot be stored; the message names it.
    """
    check_ours(doc)
    id = with_id(doc).id
    try:
        document = doc if _is_plain(doc) else _converted(doc)
        label = label_of(document) if has_label(document) else None
        for part in (document, *document.matches):
            check_integers(part.tags)
        payload = _payload(document)
        identity = identity_of(document)
        return Row(str(id), split, label, len(document.matches), identity.content, identity.said, payload)
    except BadDocument as error:
        raise BadDocument(f"Document {brief(id)!r}: {error}") from error


def _is_plain(doc: Any) -> bool:
    """Whether a document can be encoded as it is: one of ours, or a plain one of our door's."""
    if isinstance(doc, BaseDoc):
        return isinstance(doc, Document) and all(type(match) is Match for match in doc.matches)
    return getattr(doc, "is_plain", False)


def as_document(doc: Any) -> Document:
    """Return any document as a `Document`, itself if it is one. Raises: BadDocument: it has no such form."""
    return doc if isinstance(doc, Document) and _is_plain(doc) else _converted(doc)


def _converted(doc: Any) -> Document:
    """Convert any document to a `Document`, its matches to `Match`es, and numpy's scalars in tags to Python's."""
    try:
        matches = Matches(Match(**_fields(match)) for match in getattr(doc, "matches", None) or ())
        return Document(**_fields(doc), matches=matches)
    except ValidationError as error:
        first = error.errors()[0]
        raise BadDocument(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def _fields(doc: Any) -> dict[str, Any]:
    check_ours(doc)
    fields = {name: getattr(doc, name, None) for name in Match.model_fields}
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
    except _UNSTORABLE:  # often something that only a conversion makes fit
        try:
            return _encoded(_converted(document))
        except _UNSTORABLE as error:
            raise BadDocument(
                f"it cannot be stored ({brief(error.args[-1] if error.args else error)}). Tags hold strings, numbers, "
                "booleans, arrays, and lists and dicts of those, up to 32 deep"
            ) from error


def _encoded(document: Document) -> bytes:
    for part in (document, *document.matches):
        if any(array is not None and array.dtype.hasobject for array in (part.blob, part.embedding)):
            raise ValueError("an array of Python objects")
    payload: bytes = document.to_protobuf().SerializeToString()
    if len(payload) > MAX_BYTES:
        raise ValueError(f"{len(payload)} bytes; a document holds {MAX_BYTES}")
    DocProto.FromString(payload)  # protobuf writes deeper nesting than it can read: try it
    return payload
