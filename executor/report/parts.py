"""The parts of a report, small values that JSON keeps. Texts are not trusted."""

import math
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, ConfigDict, PlainSerializer, PlainValidator
from pydantic.dataclasses import dataclass

from .pictures import decoded, encoded

CONFIG = ConfigDict(arbitrary_types_allowed=True)

# (H, W, 3) uint8; kept as a thumbnail: PNG, base64.
Picture = Annotated[
    np.ndarray,
    PlainValidator(lambda value: decoded(value) if isinstance(value, str) else value),
    PlainSerializer(encoded, when_used="json"),
]
# JSON has no word for what is not finite, such as a loss that was lost.
Measurement = Annotated[
    float,
    BeforeValidator(lambda value: math.nan if value is None else value),
    PlainSerializer(lambda value: value if math.isfinite(value) else None, when_used="json"),
]
# An id may hold half a surrogate pair, which no file can.
Text = Annotated[
    str, BeforeValidator(lambda value: value.encode(errors="replace").decode() if isinstance(value, str) else value)
]


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Interval:
    """A mean, and the 95 % confidence interval of it."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Change:
    """One metric before and after: of the version that the tuned model is measured against, and of the tuned model."""

    before: Interval
    after: Interval


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Outcomes:
    """How many queries have a better, the same and a worse mAP@R after the run."""

    better: int
    same: int
    worse: int


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Neighbour:
    """A document that a query found.

    Attributes:
        image: (H, W, 3) uint8; None: the content is no image, and the caption stands for it.
        caption: What to call it: its label, or its id.
        fits: Whether it belongs to the query; None: not known, and not marked.
        name: Which document it is: the name of its file, or its id; empty if the caption says so already.
    """

    image: Picture | None
    caption: Text
    fits: bool | None
    name: Text = ""


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Query:
    """A query and its nearest neighbours before and after the run, nearest first.

    Attributes:
        image: (H, W, 3) uint8, or None.
        worst: Chosen because the tuned model does worse on it; false: part of the random sample.
        name: As of a `Neighbour`.
    """

    image: Picture | None
    caption: Text
    before: list[Neighbour]
    after: list[Neighbour]
    worst: bool = False
    name: Text = ""


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class ClassChange:
    """The mAP@R of a class's queries before and after."""

    label: Text
    queries: int
    before: float
    after: float


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Confusion:
    """Two classes whose queries find each other.

    Attributes:
        before, after: queries of either class with a document of the other among the first places that count.
        query, found: an example by the tuned model.
    """

    labels: tuple[Text, Text]
    before: int
    after: int
    query: Neighbour
    found: Neighbour


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Suspect:
    """A document whose label may be wrong.

    Attributes:
        caption: its given label. suggested: the label of its neighbours.
        margin: the share of the neighbours' votes by which it leads, in (0, 1].
        part: `train`, `held out` or `eval`.
        id: of the document; empty: a report of an earlier release. given, proposed: both labels, as they are written.
    """

    image: Picture | None
    caption: Text
    name: Text
    suggested: Text
    margin: float
    part: str
    id: Text = ""
    given: int | Text | None = None
    proposed: int | Text | None = None


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class LabelErrors:
    """What the neighbours of the documents say of the labels.

    Attributes:
        checked: documents. accuracy: share of them whose neighbours by the untrained model agree with the label.
        extent: what `found` counts: `all` that are outvoted, the `surest` of them, or `none`, as little is known.
        suspects: the first of those found, most certain first.
    """

    checked: int
    accuracy: float
    extent: Literal["all", "surest", "none"]
    found: int
    suspects: list[Suspect]


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Tried:
    """A setting that was tried on short runs.

    Attributes: settings: by name; JSON values. epochs: of its longest short run. score: mAP@R after that.
    """

    settings: dict[Text, Any]
    epochs: int
    score: Measurement
    chosen: bool


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class IndexWay:
    """What can be done with an index of the vectors of the version served before.

    Attributes:
        name: `nothing`, `map queries`, `map index` or `embed anew`.
        value: mAP@R; None: it is impossible, because the vectors have another size.
        loss: against `embed anew`, query by query. unseen: mAP@R on the classes held out whole, if there are any.
    """

    name: str
    value: Interval | None
    loss: Interval | None
    unseen: Interval | None
    advised: bool


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class SmallVectorForm:
    """A form of the tuned version's vectors, and what it loses.

    Attributes:
        size: bytes a vector. value: mAP@R. difference, low, high: against plain vectors, query by query.
        rescored: whether what the bits found is ordered by plain vectors.
    """

    dimensions: int
    encoding: str
    size: int
    value: float
    difference: float
    low: float
    high: float
    rescored: bool


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class ModelFacts:
    """The model. Sizes in pixels; `image_side` is the usual shorter side of the images that were sent, if known."""

    name: Text
    input_size: int
    crop: bool
    parameters: int
    embedding_size: int
    image_side: int | None = None
