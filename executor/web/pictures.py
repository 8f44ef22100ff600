"""Documents as this door reads them: plain objects with the fields of `Document`, checked without pydantic."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from docarray.typing import ID

from ..documents import DEEPEST, Matches, content_of, protobuf_of
from ..errors import BadDocument, BadRequest

_TEXTS = ("id", "uri", "text")
_NUMBERS = "biuf"  # kinds of numpy's types


class Picture:
    """A document with the fields of `Document`, and its `matches` of the same class.

    Attributes:
        id, uri, text: str or None. buffer: bytes or None. blob, embedding: arrays or None. tags: dict.
    """

    __slots__ = ("blob", "buffer", "embedding", "id", "matches", "tags", "text", "uri")

    def __init__(
        self,
        id: str | None = None,
        uri: str | None = None,
        buffer: bytes | None = None,
        tags: dict[str, Any] | None = None,
    ) -> None:
        self.id = id
        self.uri = uri
        self.buffer = buffer
        self.text: str | None = None
        self.blob: Any = None
        self.embedding: Any = None
        self.tags: dict[str, Any] = {} if tags is None else tags
        self.matches: list[Picture] = []

    @property
    def content(self) -> Any:
        """The first of `blob`, `text` and `buffer` that is set, or None."""
        return content_of(self)

    @property
    def is_plain(self) -> bool:
        """Whether it can be stored without making a `Document` of it, which costs more than all the rest."""
        return self.blob is None and self.embedding is None and not self.matches

    def to_protobuf(self) -> Any:
        """Return the protobuf of the `Document` with these fields. It must be plain and have an id."""
        fields = {"id": ID(self.id), "uri": self.uri, "blob": None, "buffer": self.buffer, "text": self.text}
        return protobuf_of({**fields, "tags": self.tags, "embedding": None, "matches": Matches()})

    def load_uri_to_image_blob(self) -> "Picture":
        """Read `uri` (or `buffer`) into `blob`, as `Document.load_uri_to_image_blob` does, for a `preprocess_fn`."""
        from ..images.reading import load_uri_to_image_blob

        self.blob = load_uri_to_image_blob(self)
        return self


def pictures_of(values: Any, where: str = "data") -> list[Picture]:
    """Return the documents of a JSON array. Raises: BadDocument: one is wrong; the message says where and how."""
    if not isinstance(values, list):
        raise BadDocument(f"{where} must be a list of documents, not {_shown(values)}.")
    return [picture_of(value, f"{where}[{number}]") for number, value in enumerate(values)]


def picture_of(value: Any, where: str, *, is_match: bool = False) -> Picture:
    """Return one document of JSON. Fields that a document does not have are ignored, as over Jina's HTTP."""
    if not isinstance(value, dict):
        raise BadDocument(f"{where} must be an object with the fields of a document, not {_shown(value)}.")
    picture = Picture()
    for name in _TEXTS:
        setattr(picture, name, _text(value, name, where))
    buffer = _text(value, "buffer", where)
    picture.buffer = None if buffer is None else buffer.encode()
    picture.blob = _array(value, "blob", where)
    picture.embedding = _array(value, "embedding", where)
    picture.tags = _tags(value, where)
    if not is_match and (matches := value.get("matches")) is not None:
        if not isinstance(matches, list):
            raise BadDocument(f"{where}.matches must be a list of documents, not {_shown(matches)}.")
        picture.matches = [
            picture_of(match, f"{where}.matches[{number}]", is_match=True) for number, match in enumerate(matches)
        ]
    return picture


def _text(fields: dict[str, Any], name: str, where: str) -> str | None:
    value = fields.get(name)
    if value is None or isinstance(value, str):
        return value
    raise BadDocument(f"{where}.{name} must be a text, not {_shown(value)}.")


def _tags(fields: dict[str, Any], where: str) -> dict[str, Any]:
    value = fields.get("tags")
    if value is None:
        return {}
    if isinstance(value, dict):
        check_depth(value, f"{where}.tags")
        return value
    raise BadDocument(f"{where}.tags must be an object of names and values, not {_shown(value)}.")


def check_depth(value: Any, where: str, depth: int = 0) -> None:
    """Raise BadRequest if a value is nested deeper than can be stored, or answered."""
    if depth > DEEPEST:
        raise BadRequest(f"{where} must not be nested deeper than {DEEPEST} levels.")
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        check_depth(inner, where, depth + 1)


def _array(fields: dict[str, Any], name: str, where: str) -> np.ndarray | None:
    value = fields.get(name)
    if value is None:
        return None
    try:
        array = np.asarray(value) if isinstance(value, list) else None
    except (ValueError, OverflowError):  # rows of different lengths, or an integer beyond 64 bits
        array = None
    if array is None or array.dtype.kind not in _NUMBERS:
        raise BadDocument(
            f"{where}.{name} must be an array of numbers, nested lists of equal length, not {_shown(value)}."
        )
    return array


def _shown(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (RecursionError, ValueError):
        text = type(value).__name__
    return text if len(text) <= 60 else f"{text[:57]}..."


def as_json(documents: Sequence[Any]) -> list[Any]:
    """Return documents of any class as what `answers.encode` takes: the same fields as in Jina's HTTP answers."""
    return [fields_of(doc) if isinstance(doc, Picture) else doc.model_dump() for doc in documents]


def fields_of(picture: Picture) -> dict[str, Any]:
    """Return all fields of a document, and of its matches, by name."""
    fields = {name: getattr(picture, name) for name in ("id", "uri", "blob", "buffer", "text", "tags", "embedding")}
    fields["matches"] = [fields_of(match) for match in picture.matches]
    return fields
