"""A row of a source: a document, or why there is none; and which columns of a table have what."""

import datetime
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..docarray_private import LARGEST_INTEGER
from ..documents import GROUP_TAG, LABEL_TAG, Document, normalise_label
from ..errors import BadDocument, ConfigurationError

_EVAL_NAMES = ("eval", "evaluation", "val", "valid", "validation", "dev", "test", "testing")
SPLITS: dict[str, Literal["train", "eval"]] = {"train": "train", "training": "train"}
SPLITS.update(dict.fromkeys(_EVAL_NAMES, "eval"))


@dataclass(frozen=True)
class Row:
    """One row of a source.

    Attributes:
        document: with a `uri` or a `buffer`, and its tags; where there is a `problem` it may have neither.
        split: which part of the data it is for.
        problem: why it cannot be used, or None.
    """

    document: Document
    split: Literal["train", "eval"] = "train"
    problem: str | None = None


@dataclass(frozen=True)
class Columns:
    """Which column of a table has what. One that is None is looked for by its usual name, and may be missing.

    Names that differ from those of a table in capital letters alone are taken for these, if one column alone is meant.

    Attributes:
        uri: the picture: a uri, the bytes of a file, or both in a struct. label, group: tags of the document.
        split: `train` or `eval`. id: the document's id, else its uri.
    """

    uri: str | None = None
    label: str | None = None
    group: str | None = None
    split: str | None = None
    id: str | None = None

    def found_in(self, there: list[str], place: Path) -> "Columns":
        """Return the names with those that are missing left out.

        Raises: ConfigurationError: a column that was named, or that of the pictures, is missing, or there are several.
        """
        named: dict[str, str | None] = {}
        for name, value in vars(self).items():
            if value is None:
                continue
            named[name] = _first_there((value,), there)
            if named[name] is None:
                raise ConfigurationError(
                    f"{place} has no column {value!r} (--{name}-column); its columns are: {', '.join(there) or 'none'}."
                )
        usual = {name: _first_there(names, there) for name, names in USUAL.items()}
        found = Columns(**{**usual, **named})
        for name, column in vars(found).items():
            if column is not None and there.count(column) > 1:
                raise ConfigurationError(
                    f"{place} has {there.count(column)} columns {column!r}; rename those that are not the {name}."
                )
        if found.uri is None:
            raise ConfigurationError(
                f"{place} has no column {USUAL['uri'][0]!r}; name that of the pictures with --uri-column. Its columns "
                f"are: {', '.join(there) or 'none'}."
            )
        return found


USUAL = {
    "uri": ("uri", "image", "path", "file", "filename", "url"),
    "label": ("label",),
    "group": ("group",),
    "split": ("split",),
    "id": ("id",),
}


def _first_there(names: tuple[str, ...], there: list[str]) -> str | None:
    """Return the first column that has one of some names; if there is none, the first without regard to case."""
    for name in names:
        if name in there:
            return name
    for name in names:
        alike = [each for each in there if each.strip().casefold() == name.casefold()]
        if len(alike) == 1:
            return alike[0]
    return None


def values_of(batch: Any) -> list[dict[str, Any]]:
    """Return the rows of a batch of pyarrow's. Times in nanoseconds become text: Python has none that are as exact."""
    for place, field_of in enumerate(batch.schema):
        if str(field_of.type).startswith(("timestamp[ns", "time64[ns", "duration[ns")):
            batch = batch.set_column(place, field_of.name, batch.column(place).cast("string"))
    found: list[dict[str, Any]] = batch.to_pylist()
    return found


@dataclass
class RowMaker:
    """Makes rows of a table's values.

    Args: place: the table; its folder is where relative paths begin. labelled: whether every row must have a label.
        label_names: what the numbers in the column of labels stand for, if they stand for names.
    """

    place: Path
    columns: Columns
    labelled: bool
    label_names: list[str] = field(default_factory=list)

    def row(self, number: int, values: dict[str, Any], split: Literal["train", "eval"] = "train") -> Row:
        """Return the row with this number, counted from 1."""
        tags: dict[str, Any] = {}
        doc = Document(id=f"{self.place.name}:{number}")
        try:
            self._picture(doc, values[self.columns.uri or ""], number)
            if self.columns.id is not None and not _empty(values[self.columns.id]):
                doc.id = str(_plain(values[self.columns.id]))
            if self.columns.split is not None:
                split = self._split(values[self.columns.split])
            if self.columns.label is not None:
                try:
                    tags[LABEL_TAG] = self._label(values[self.columns.label])
                except BadDocument:
                    if self.labelled:
                        raise
            if self.columns.group is not None and not _empty(values[self.columns.group]):
                tags[GROUP_TAG] = _plain(values[self.columns.group])
        except BadDocument as error:
            return Row(doc, split, f"row {number}: {error}")
        doc.tags = tags
        return Row(doc, split)

    def left_out(self, number: int, why: str) -> Row:
        """Return the row with this number as one that cannot be used."""
        return Row(Document(id=f"{self.place.name}:{number}"), problem=f"row {number}: {why}")

    def _picture(self, doc: Document, value: Any, number: int) -> None:
        if isinstance(value, dict):  # as Hugging Face keeps pictures
            doc.buffer, value = value.get("bytes"), value.get("path")
        if isinstance(value, bytes):
            doc.buffer, value = value, None
        if not _empty(value) and not isinstance(value, str):
            raise BadDocument(f"the picture is of type {type(value).__name__}, but must be a uri or bytes")
        if isinstance(value, str) and value.strip():
            value = value.strip()
            doc.id = value if len(value) < 1000 else doc.id  # not a whole picture as a data: uri
            doc.uri = None if doc.buffer else self._absolute(value)
        if not doc.uri and not doc.buffer:
            raise BadDocument(f"there is no picture in the column {self.columns.uri!r}")

    def _absolute(self, uri: str) -> str:
        """Return a path beside the table as an absolute one; one that is not there may be meant from here."""
        if "://" in uri or uri.startswith(("data:", "file:", "/")):
            return uri
        beside = os.path.join(self.place.parent, uri)
        return os.path.abspath(beside if os.path.exists(beside) or not os.path.exists(uri) else uri)

    def _label(self, value: Any) -> int | str:
        number = value if self.label_names and isinstance(value, int) else None
        if _empty(value) or number == -1:  # so a dataset of Hugging Face says that there is none
            raise BadDocument(f"the label in the column {self.columns.label!r} is empty")
        if number is not None and not 0 <= number < len(self.label_names):
            raise BadDocument(
                f"the label in the column {self.columns.label!r} is {number}, but the dataset names "
                f"{len(self.label_names)} labels, counted from 0"
            )
        if number is not None:
            return self.label_names[number]
        return normalise_label(value if isinstance(value, (list, dict)) else _plain(value))

    def _split(self, value: Any) -> Literal["train", "eval"]:
        if str(value).strip().lower() in SPLITS:
            return SPLITS[str(value).strip().lower()]
        raise BadDocument(f"the split in the column {self.columns.split!r} is {value!r}, but must be train or eval")


def _plain(value: Any) -> Any:
    """Return what a cell has as a tag can hold it: text in the place of what has no form in JSON or in protobuf."""
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    if isinstance(value, (str, float)) or (isinstance(value, int) and abs(value) <= LARGEST_INTEGER):
        return value
    return str(value)


def _empty(value: Any) -> bool:
    """Whether a cell has nothing; NaN is how tables of numbers say that."""
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (isinstance(value, str) and not value.strip())
