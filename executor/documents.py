"""The documents that clients send (`Document`, `RunQuery`) and get (`Document`, `RunStatus`, `Evaluation`, `Event`).

No `from __future__ import annotations` here: Jina reads these annotations at run time. Use only literal
defaults, because a `default_factory` makes a field required behind the HTTP gateway.
"""

import reprlib
import uuid
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, Dict, List, Optional, Union

import numpy as np
from docarray import BaseDoc, DocList
from docarray.proto import DocProto
from docarray.typing import ID, NdArray
from pydantic import Field, ValidationInfo, field_validator, model_validator

from .docarray_private import ID_TYPE, LARGEST_INTEGER, TOO_LARGE, fill_integer, node_of, value_of
from .errors import BadDocument, MissingLabel, brief

_OURS = ("uri", "blob", "buffer", "text", "tags")
DEEPEST = 100  # levels of tags; deeper ones cannot be sent or stored

LABEL_TAG = "finetuner_label"
MODEL_TAG = "finetuner_model"
SPACE_TAG = "finetuner_space"  # embeddings of equal spaces may be compared, others not
MAPPED_TAG = "finetuner_mapped_from"  # the space that a mapped embedding came from
ERROR_TAG = "finetuner_error"
WITHDRAWN_TAG = "finetuner_withdrawn"  # in `/feedback`: true takes back what was said under this id
SOURCE_TAG = "finetuner_source"  # `feedback`, on documents that came in by `/feedback`
REASON_TAG = "finetuner_reason"  # why `/suggest` suggests a document
POSITION_TAG = "finetuner_position"  # the number of a picture in its gallery
SIMILARITY_TAG = "finetuner_similarity"  # how near a neighbour is: the cosine
COUNT_TAG = "finetuner_count"  # how many there are
EMBEDDED_TAG = "finetuner_embedded"  # how many pictures of a gallery were looked at for neighbours so far
DONE_TAG = "finetuner_done"  # whether those are all
SORT_TAG = "finetuner_sort"  # what a gallery is: `folder`, `parquet` or `run`
WORD_TAG = "finetuner_word"  # the number of a word of feedback: later words have higher ones
SAID_TAG = "finetuner_said_at"  # when it was said: ISO 8601, UTC
GROUP_TAG = "finetuner_group"  # documents of one group never prove what others of it have taught

_TYPES_OF_EMBEDDINGS = (np.float32, np.int8, np.uint8)
_BESIDE = {"label", "labels", "class", "category", "target"}  # where people put a label by mistake

# Fields of the documents that Jina and DocArray bring along, and not of ours.
_FOREIGN = frozenset(("tensor", "url", "bytes_", "chunks"))
_USE_OURS = "it lacks the fields of ours: make it with `from executor import Document`"

_PLAIN = {str: "text", bytes: "blob", bool: "boolean", int: "integer", float: "float"}


def _fill(node: Any, value: Any) -> None:
    """Set a node as docarray would. The class of a value alone tells the types that nearly every document has."""
    kind = type(value)
    if value is None:
        return
    if kind is int:
        fill_integer(node, value)
    elif kind in _PLAIN:
        setattr(node, _PLAIN[kind], value)
    elif kind is ID:
        node.text, node.type = value, ID_TYPE
    elif kind is dict and value and all(type(key) is str and type(item) in _PLAIN for key, item in value.items()):
        for key, item in value.items():
            _fill(node.dict.data[key], item)
    elif isinstance(value, DocList) and not value:
        node.doc_array.SetInParent()
    else:
        node.CopyFrom(node_of(value))


def protobuf_of(fields: Mapping[str, Any]) -> Any:
    """Return the protobuf of a document with these fields. It is docarray's own, but made faster.

    Raises: whatever docarray raises for a value that has no place in a protobuf.
    """
    proto = DocProto()
    for name, value in fields.items():
        _fill(proto.data[name], value)
    return proto


def _or_null(schema: Dict[str, Any]) -> None:
    """Let a field be null in the schema, by which Jina's gateway checks what it is sent."""
    kind = {name: schema.pop(name) for name in ("type", "items", "additionalProperties") if name in schema}
    schema["anyOf"] = [kind, {"type": "null"}]


class Match(BaseDoc):
    """A document without matches of its own: a candidate within a session.

    Attributes:
        uri: Where the image is: a path, `file://`, `http(s)://`, `data:`, or what lies below `remote_prefixes`.
        blob: The image as an array: H×W×3, H×W×1 or H×W (grayscale) or H×W×4 (RGBA), uint8, or float in [0, 1].
        buffer: The encoded image file (JPEG, PNG, WebP, …).
        text: Content for a custom `preprocess_fn`.
        tags: Any values; `tags['finetuner_label']` is the label.
        embedding: float32, shape (D,); int8, or uint8 with eight bits each, if that was asked for.
    """

    uri: Optional[str] = None
    blob: Optional[NdArray] = None
    buffer: Optional[bytes] = None
    text: Optional[str] = None
    tags: Dict[str, Any] = Field({}, json_schema_extra=_or_null)
    embedding: Optional[NdArray] = None

    @field_validator("tags", mode="before")
    @classmethod
    def _null_is_none(cls, tags: Any) -> Any:
        """Take null for no tags: clients in other languages send it."""
        return {} if tags is None else tags

    @field_validator("embedding", mode="after")
    @classmethod
    def _of_its_type(cls, embedding: Any, info: ValidationInfo) -> Any:
        """Give an embedding its type back: JSON has none, so that Jina's client makes float64 or int64 of it."""
        if embedding is None or embedding.dtype in _TYPES_OF_EMBEDDINGS:
            return embedding
        space = str((info.data.get("tags") or {}).get(SPACE_TAG, ""))
        kinds = {"int8": np.int8, "binary": np.uint8} if embedding.dtype.kind in "iu" else {}
        return embedding.astype(kinds.get(space.rpartition("/")[2], np.float32))

    @property
    def content(self) -> Union[np.ndarray, str, bytes, None]:
        """The first of `blob`, `text` and `buffer` that is set, or None."""
        return content_of(self)

    def to_protobuf(self) -> Any:
        """Do what docarray does, but faster: docarray tries a dozen types for each value, even an absent one."""
        try:
            return protobuf_of(vars(self))
        except Exception:  # docarray's own error says which field it is
            return super().to_protobuf()

    @classmethod
    def from_protobuf(cls, pb_msg: Any) -> Any:
        """Do what docarray does, but faster: docarray builds a new schema for each default `id` and `matches`."""
        fields: Dict[str, Any] = {}
        if "uri" not in pb_msg.data and (foreign := _FOREIGN & pb_msg.data.keys()):
            raise BadDocument(f"A document has the field {min(foreign)!r} of Jina's or DocArray's own; {_USE_OURS}.")
        for name, node in pb_msg.data.items():
            kind = node.WhichOneof("content")
            if kind in ("text", "blob"):
                fields[name] = getattr(node, kind)
            elif kind == "doc_array" and name == "matches":
                fields[name] = Matches(Match.from_protobuf(match) for match in node.doc_array.docs)
            elif kind is not None and name in cls.model_fields:
                fields[name] = value_of(cls, node, name)
        return cls(**fields)

    def load_uri_to_image_blob(self) -> "Match":
        """Read `uri` (or `buffer`) into `blob` as H×W×3 uint8 RGB, upright by its EXIF orientation.

        Returns: the document itself.
        Raises: BadDocument: it cannot be read as an image, or the configuration does not allow its location.
        """
        from .images.reading import load_uri_to_image_blob

        self.blob = load_uri_to_image_blob(self)
        return self


def _matches_or_null(schema: Dict[str, Any]) -> None:
    """The same for matches. DocArray fails on a reference here, so their schema is written out."""
    schema["items"] = Match.model_json_schema()
    _or_null(schema)


Matches = DocList[Match]  # once: to name the class takes longer than to make an empty list of it


class Document(Match):
    """A `Match` that may have `matches`: the candidates of its session, labelled 1 or -1."""

    matches: DocList[Match] = Field(DocList[Match](), json_schema_extra=_matches_or_null)

    @model_validator(mode="before")
    @classmethod
    def _own_matches(cls, values: Any) -> Any:
        """Give each document an empty list of its own: copying the default costs a third of a millisecond."""
        if isinstance(values, dict):
            for name in _BESIDE & values.keys():
                warnings.warn(
                    f"A Document has no field {name!r}, so what is given there is lost: a label belongs into "
                    f"tags[{LABEL_TAG!r}].",
                    stacklevel=2,
                )
            if values.get("matches") is None:
                return {**values, "matches": Matches()}
        return values

    @field_validator("matches", mode="before")
    @classmethod
    def _without_further_matches(cls, matches: Any) -> Any:
        """Accept a plain list and `Document`s: only the fields of a `Match` are kept."""
        if isinstance(matches, Iterable) and not isinstance(matches, (DocList, str, bytes, dict)):
            matches = list(matches)
        if isinstance(matches, (list, DocList)) and any(isinstance(match, Document) for match in matches):
            fields = Match.model_fields
            return Matches(
                Match(**{name: getattr(match, name) for name in fields}) if isinstance(match, Document) else match
                for match in matches
            )
        return matches


DocumentArray = DocList[Document]


class RunQuery(BaseDoc):
    """The one input document of `/watch`: it names the run."""

    run: Optional[str] = None

    @field_validator("run", mode="before")
    @classmethod
    def _as_text(cls, run: Any) -> Any:
        """Turn a value that is not text into a name that no run has: if Jina cannot start a stream, it says nothing."""
        return run if run is None or isinstance(run, str) else reprlib.repr(run)

    @classmethod
    def from_protobuf(cls, pb_msg: Any) -> Any:
        """Take what cannot be read for a name that no run has, for the same reason."""
        try:
            return super().from_protobuf(pb_msg)
        except Exception as error:
            return cls(run=f"({brief(error)})")


class Problem(BaseDoc):
    """A quarantined document: its `id`, and why it was not used."""

    reason: str = ""


class RunStatus(BaseDoc):
    """The state of one run. Times are ISO 8601 in UTC; durations are in seconds.

    Attributes:
        state: receiving, queued, training, succeeded, failed or cancelled.
        phase: While training: starting, loading, training, evaluating or saving.
        train_documents: Received for training; duplicates and quarantined documents not counted.
        skipped: Quarantined documents; `problems` lists the first 20 of them.
        metrics: `base/<metric>`, `served/<metric>` and `tuned/<metric>` on the same documents, each in [0, 1].
        history: One list per measured value, one entry per epoch.
        promoted: Whether this run's model is the one now served.
        model: The version now served: `base` or a run's name.
        space: What the embeddings of the run's own model have as `tags['finetuner_space']`; None: it has no model yet.
        index_plan: What to do with an index of the vectors of the version `from`, which was served when the model was
            measured: the mAP@R of `nothing`, `map queries`, `map index` and `embed anew`, each [mean, low, high], and
            the `advice`. A way that is impossible has an empty list. All is empty without a proof.
        verdict: Why the model was promoted or not, in words.
        warnings: What a person should know before trusting the model, most important first.
        error: Why the run failed.
        attempts: How often a trainer was started for it.
        disk_bytes: How much disk the run's folder takes: documents, images, checkpoints, model, report. A whole number,
            but a float, because docarray's integers end at 2 GiB.
        sources: How many train documents came from elsewhere than `/fit`: `feedback`, or the name of an earlier run.
        automatic: The number of this automatic run among those that were judged; 0: a caller started the run.
        level: The chance with which this automatic run may be promoted though it is no better.
        events: How many events its history has: `/events` with `after` set to an earlier count returns the new ones.
    """

    run: str = ""
    state: str = "receiving"
    phase: Optional[str] = None
    kind: str = "auto"
    train_documents: int = 0
    eval_documents: int = 0
    skipped: int = 0
    problems: DocList[Problem] = DocList[Problem]()
    epoch: int = 0
    epochs: int = 0
    step: int = 0
    steps: int = 0
    loss: Optional[float] = None
    images_per_second: Optional[float] = None
    eta_seconds: Optional[float] = None
    metrics: Dict[str, float] = {}
    history: Dict[str, List[float]] = {}
    promoted: bool = False
    model: str = "base"
    space: Optional[str] = None
    index_plan: Dict[str, Any] = {}
    verdict: Optional[str] = None
    warnings: List[str] = []
    error: Optional[str] = None
    attempts: int = 0
    device: Optional[str] = None
    disk_bytes: float = 0.0
    sources: Dict[str, float] = {}
    automatic: int = 0
    level: Optional[float] = None
    events: int = 0
    created_at: Optional[str] = None
    started_at: Optional[str] = None
    ended_at: Optional[str] = None


class FeedbackStatus(BaseDoc):
    """What one request of `/feedback` has stored, and what is kept in all. Times are ISO 8601 in UTC.

    Attributes:
        stored: Documents of this request whose word counts now, withdrawals included.
        total: Documents kept, withdrawn ones not counted: `sessions` and `labelled` ones.
        since_last_run: Words that say something new since the last run that was trained on feedback.
        last_run: That run.
        skipped: Documents of this request that cannot be used; `problems` lists the first 20 of them.
        disk_bytes: How much disk the documents take; a whole number, as in `RunStatus`.
        oldest: When the oldest word that is kept was said.
        thinned: Documents that were removed so far because `keep_feedback` allows no more or no older ones.
        next_run: When an automatic run begins, in words.
        budget_spent: How much of the chance of a false promotion the automatic runs have spent; the budget is 0.025.
    """

    stored: int = 0
    total: int = 0
    since_last_run: int = 0
    sessions: int = 0
    labelled: int = 0
    last_run: Optional[str] = None
    skipped: int = 0
    problems: DocList[Problem] = DocList[Problem]()
    disk_bytes: float = 0.0
    oldest: Optional[str] = None
    thinned: int = 0
    next_run: str = ""
    budget_spent: float = 0.0


class Evaluation(BaseDoc):
    """Retrieval metrics of one model version: how many `queries` were scored, how many `skipped`."""

    model: str = ""
    metrics: Dict[str, float] = {}
    queries: int = 0
    skipped: int = 0


class ComparedQuery(BaseDoc):
    """A query of a comparison.

    Attributes:
        number: By which to ask for it. name: Of its file, or its id. label: Empty for the query of a session.
        first, second: Its mAP@R by each version.
        picture: A small `data:` uri, if pictures were asked for and it can be read.
    """

    number: int = 0
    name: str = ""
    label: str = ""
    first: float = 0.0
    second: float = 0.0
    picture: str = ""


class FoundDocument(BaseDoc):
    """A document that a query finds: whether it `fits`, that is belongs to the query. Else as a `ComparedQuery`."""

    name: str = ""
    label: str = ""
    fits: bool = False
    picture: str = ""


class Comparison(BaseDoc):
    """Two versions on the same documents. Figures are of the whole set; `queries` is a part of them.

    Attributes:
        first, second: The versions. on: The documents, in words.
        state: `unknown`: nobody has measured them; `measuring`; or `done`. Without `done` there are no figures.
        done, total: Pictures that were embedded so far, each by both versions.
        kind: `class` or `session`.
        metrics: `first/<metric>`, `second/<metric>` and `difference/<metric>` (second minus first, query by query),
            each [mean, low, high] with the 95 % interval.
        better, same, worse: Queries whose mAP@R rose, stayed and fell from the first version to the second.
        verdict: What that proves, in words.
        skipped: Documents that could not be embedded by both, or not be scored as queries.
        warnings: What a person should know before trusting the figures.
        matching: Of how many queries `queries` is a part.
        found_first, found_second: For a single query, what each version finds, nearest first.
    """

    first: str = ""
    second: str = ""
    on: str = ""
    state: str = "unknown"
    done: int = 0
    total: int = 0
    kind: str = ""
    metrics: Dict[str, List[float]] = {}
    better: int = 0
    same: int = 0
    worse: int = 0
    verdict: str = ""
    skipped: int = 0
    warnings: List[str] = []
    matching: int = 0
    queries: DocList[ComparedQuery] = DocList[ComparedQuery]()
    found_first: DocList[FoundDocument] = DocList[FoundDocument]()
    found_second: DocList[FoundDocument] = DocList[FoundDocument]()


class Event(BaseDoc):
    """One entry of a run's history: `number` counts from 1, `at` is ISO 8601 in UTC, `kind` and `message` say what."""

    run: str = ""
    number: int = 0
    at: str = ""
    kind: str = ""
    message: str = ""


Label = Union[int, str]


def normalise_label(value: Any) -> Label:
    """Return the label as int or str: `1`, `1.0` and `True` are one label, `'1'` is another.

    Some clients and gateways turn integers into floats, so an integral float counts as the integer.

    Raises: BadDocument: the value is neither an integer nor a string.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, (bool, int, np.integer, np.bool_)):
        return _exact(int(value))
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        return _exact(int(value))
    raise BadDocument(
        f"tags['{LABEL_TAG}'] is {reprlib.repr(value)}, of type {type(value).__name__}; "
        "a label is an integer or a string"
    )


def _exact(label: int) -> int:
    if abs(label) > LARGEST_INTEGER:
        raise BadDocument(f"tags['{LABEL_TAG}'] is beyond 2**53, which not every client can send; write it as a string")
    return label


def label_of(doc: Any) -> Label:
    """Return the normalised label of `doc`.

    Raises: MissingLabel (a KeyError): there is no `tags['finetuner_label']`. BadDocument: it is of a wrong type.
    """
    value = doc.tags.get(LABEL_TAG)
    if value is None:
        raise MissingLabel(
            f"Document {brief(doc.id)!r} has no tags['{LABEL_TAG}']; give every document its label there."
        )
    return normalise_label(value)


def has_label(doc: Any) -> bool:
    """Whether `doc` carries the label tag at all (a null counts as absent)."""
    return doc.tags.get(LABEL_TAG) is not None


def group_of(doc: Any) -> Optional[str]:
    """Return the group of `doc` as text, None without one. As with labels, `1` and `1.0` are one, `'1'` is another."""
    value = doc.tags.get(GROUP_TAG)
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        value = int(value)
    return None if value is None else repr(value.item() if isinstance(value, np.generic) else value)


def check_integers(value: Any, depth: int = 0) -> None:
    """Raise BadDocument if there is an integer beyond 2**53 among `value`, the tags of a document."""
    if type(value) is int:
        if abs(value) > LARGEST_INTEGER:
            raise BadDocument(TOO_LARGE)
    elif isinstance(value, (dict, list, tuple, set)) and depth < DEEPEST:
        for item in value.values() if isinstance(value, dict) else value:
            check_integers(item, depth + 1)


def check_ours(doc: Any) -> None:
    """Raise BadDocument if `doc` is no document, or one of Jina's or DocArray's own classes."""
    name = type(doc).__name__
    if not hasattr(doc, "id"):
        raise BadDocument(f"A {name} is not a document; give objects with the fields of `executor.Document`")
    if type(doc).__module__.startswith("docarray.") or not any(hasattr(doc, field) for field in _OURS):
        raise BadDocument(f"A {name} cannot be used, because {_USE_OURS}")


def content_of(doc: Any) -> Union[np.ndarray, str, bytes, None]:
    """The first of `blob`, `text` and `buffer` that is set, or None, for any class of documents."""
    return next((value for value in (doc.blob, doc.text, doc.buffer) if value is not None), None)


def same_picture(doc: Any) -> Document:
    """Return a document with the same content: who embeds a document changes it."""
    return Document(id=doc.id, uri=doc.uri, buffer=doc.buffer, blob=doc.blob, text=doc.text)


def with_id(doc: Any) -> Any:
    """Give `doc` an id if it came without one, as documents through an HTTP Flow do."""
    if not doc.id:
        doc.id = uuid.uuid4().hex
    return doc


def with_ids(docs: Iterable[Any]) -> None:
    """Give an id to each document, and each of its matches, that came without one."""
    for doc in docs:
        for part in (doc, *(doc.matches or ())):
            with_id(part)
