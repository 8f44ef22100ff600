"""The parameters of each endpoint and the options of the operator, each as a typed, frozen model.

Jina passes parameters as a plain dict. It turns integers into floats and adds its own keys (`__results__`). `parse`
undoes both and says what is wrong. We do not use the typed parameters that Jina offers: behind an HTTP gateway they
silently drop unknown keys.
"""

import functools
import re
import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from .errors import ConfigurationError, InvalidParameter
from .images.object_store import check_prefixes
from .images.policy import ImagePolicy

TOKEN_VARIABLE = "FINETUNER_TOKEN"  # environment variable with the bearer token that every call must present
DEFAULT_MAX_REQUEST_BYTES = 2**28
RESERVED_NAMES = ("base", "promoted")
# The losses for each kind. `losses.py` builds them; the names are also here, to refuse a wrong one without torch.
_BATCH_LOSSES = (
    "multi_similarity",
    "triplet",
    "contrastive",
    "ntxent",
    "supcon",
    "circle",
)
LOSS_NAMES = {
    "class": ("auto", "proxy_anchor_supcon", "proxy_anchor", "arcface", *_BATCH_LOSSES),
    "session": ("auto", "triplet", "contrastive"),
    "unlabeled": ("auto", *_BATCH_LOSSES),
}
DEVICE = re.compile(r"auto|(cpu|cuda|hip|hpu|ipu|maia|mps|mtia|privateuseone|vulkan|xla|xpu)(:\d+)?")
FUNCTION = re.compile(r"\w+(\.\w+)*:\w+(\.\w+)*")
ORIGIN = re.compile(
    r"(?P<origin>(?P<site>(?P<scheme>[a-z][a-z0-9+.-]*)://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\]))(?::(?P<port>[1-9]\d{0,4}))?)/?"
)
DEFAULT_PORTS = {"http": "80", "https": "443"}
RUN_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,63}")


def _whole(value: Any) -> Any:
    """Turn 3.0 into 3; refuse 3.5, '3' and true."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not float(value).is_integer():
        raise ValueError("must be a whole number")
    return int(value)


def _number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError("must be a number")
    return float(value)


def _run_name(value: Any) -> Any:
    if not isinstance(value, str) or not RUN_NAME.fullmatch(value):
        raise ValueError("must be 1 to 64 letters, digits, '-', '_' or '.', not beginning with '.'")
    return value


def _new_run_name(value: Any) -> Any:
    if value in RESERVED_NAMES:
        raise ValueError(f"must not be one of the reserved names {', '.join(RESERVED_NAMES)}")
    return _run_name(value)


def _names(value: Any) -> Any:
    """Turn a list of names, or a single name, into a tuple."""
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


def _as_tuple(value: Any) -> Any:
    """Turn a list, as JSON has it, into a tuple."""
    return tuple(value) if isinstance(value, list) else value


def _origins(value: Any) -> Any:
    """Web origins as browsers write them: in small letters, without the port that the scheme has anyway."""
    names = _names(value)
    if not isinstance(names, tuple):
        return names
    if "*" in names:
        raise ValueError("must name each site: with '*', a page of any site could do what whoever visits it may do")
    found = []
    for name in names:
        parts = ORIGIN.fullmatch(name.lower()) if isinstance(name, str) else None
        if parts is None:
            raise ValueError("must be of the form scheme://host or scheme://host:port, such as https://shop.example")
        found.append(parts["site"] if parts["port"] == DEFAULT_PORTS.get(parts["scheme"]) else parts["origin"])
    return tuple(found)


def _frozen(value: Any) -> Any:
    """Accept true, false, or names of layers."""
    names = _names(value)
    if not isinstance(value, bool) and not (isinstance(names, tuple) and all(isinstance(name, str) for name in names)):
        raise ValueError("must be true, false or names of layers")
    return names


def _loss_name(value: Any) -> Any:
    known = sorted({name for names in LOSS_NAMES.values() for name in names})
    if value not in known:
        raise ValueError(f"must be one of: auto, {', '.join(name for name in known if name != 'auto')}")
    return value


def _share(value: Any) -> Any:
    """`auto`, or a number."""
    if value == "auto":
        return value
    share = _number(value)
    if not 0 <= share < 1:
        raise ValueError("must be auto, or a number from 0 to below 1")
    return share


def _device(value: Any) -> Any:
    """`auto`, or the name of a torch device. Torch itself says later whether there is such a device here."""
    if isinstance(value, str) and not DEVICE.fullmatch(value):
        raise ValueError("must be auto, or a torch device such as cpu, cuda or cuda:1")
    return value


def _function_path(value: Any) -> Any:
    """The place of a function. It is imported where it is needed, because that may take long."""
    if isinstance(value, str) and not FUNCTION.fullmatch(value):
        raise ValueError("must be package.module:function")
    return value


def _check_command(line: str) -> None:
    """Raise ValueError unless `train_command` can be split into words, and its placeholders are known."""
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise ValueError(f"train_command cannot be split into words ({error}); close the quotation") from None
    known = ("{python}", "{job}", "{run}")
    unknown = sorted(set(re.findall(r"\{\w*\}", line)) - set(known))
    if unknown:
        raise ValueError(
            f"train_command has the placeholder {unknown[0]}; it may have {', '.join(known)}, and no shell reads it"
        )
    if not any("{job}" in word for word in words):
        raise ValueError("train_command must have {job}, the folder from which it trains and into which it writes")


Whole = Annotated[int, BeforeValidator(_whole)]
Number = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
Share = Annotated[Literal["auto"] | float, BeforeValidator(_share)]
Flag = Annotated[bool, Field(strict=True)]
RunName = Annotated[str, BeforeValidator(_run_name)]
NewRunName = Annotated[str, BeforeValidator(_new_run_name)]
Frozen = Annotated[bool | tuple[str, ...], BeforeValidator(_frozen)]
Names = Annotated[tuple[str, ...], BeforeValidator(_names)]
Text = Annotated[str, StringConstraints(strict=True, min_length=1)]
Device = Annotated[Text, BeforeValidator(_device)]
FunctionPath = Annotated[Text, BeforeValidator(_function_path)]
Origins = Annotated[tuple[str, ...], BeforeValidator(_origins)]
Positions = Annotated[tuple[Annotated[Whole, Field(ge=0)], ...], BeforeValidator(_as_tuple), Field(max_length=1000)]
RunNames = Annotated[tuple[RunName, ...], BeforeValidator(_names)]
Kind = Literal["auto", "class", "session", "unlabeled"]
Split = Literal["train", "eval"]


class _Parameters(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class TrainingOptions(_Parameters):
    """The options of a training run. Its first request sets them, and they are kept with the run."""

    kind: Kind = Field("auto", description="`class`, `session` or `unlabeled`; `auto` looks at the whole set")
    base: RunName = Field("base", description="the version to start from: `base`, `promoted`, or a run")
    documents_from: RunNames = Field(
        (), description="earlier runs whose train documents are trained on too, without sending them again"
    )
    feedback: Flag = Field(False, description="whether all feedback so far is trained on too; see `/feedback`")
    epochs: Annotated[Whole, Field(ge=1, le=100_000)] | None = Field(
        None,
        description="passes over the train documents; by default 10 for 1,000 images (the matches of sessions count, "
        "too), more for fewer (up to 30), and fewer for more (down to 3, but not below 10 for a model that is not "
        "pretrained)",
    )
    batch_size: Annotated[Whole, Field(ge=2, le=65_536)] = Field(64, description="images a step")
    learning_rate: Annotated[Number, Field(gt=0, le=10)] | None = Field(
        None,
        description="AdamW's peak rate; by default 1e-4 for a pretrained network, 1e-3 for one that is not, and where "
        "only a head or low-rank updates train",
    )
    weight_decay: Annotated[Number, Field(ge=0, le=1)] = Field(
        0.01, description="AdamW's decay, on matrices and kernels only"
    )
    warmup: Annotated[Number, Field(ge=0, lt=1)] = Field(
        0.1, description="share of the steps in which the rate rises; a cosine follows"
    )
    num_items_per_class: Annotated[Whole, Field(ge=1, le=65_536)] = Field(
        4, description="K of the P × K batch of class data"
    )
    seed: Annotated[Whole, Field(ge=0, lt=2**32)] = Field(0, description="of order, augmentation and dropout")
    loss: Annotated[str, BeforeValidator(_loss_name)] = Field(
        "auto", description="a loss by name; by default `proxy_anchor_supcon`, `contrastive` or `ntxent`, by the kind"
    )
    loss_options: dict[str, Any] = Field({}, description="arguments of the loss, checked by name")
    memory_size: Annotated[Whole, Field(ge=0, le=1_000_000)] = Field(
        0, description="embeddings of earlier batches that a batch is compared with too; at least batch_size"
    )
    micro_batch: Annotated[Whole, Field(ge=1)] | None = Field(
        None, description="images in memory at a time; the gradient stays that of the whole batch"
    )
    norm_statistics: Literal["auto", "fixed", "trained"] = Field(
        "auto",
        description="whether batch norms keep the mean and variance that they have (their weights train), or follow "
        "the batches; `auto`: `fixed` for a pretrained model, which the few classes of a batch would spoil",
    )
    backbone_rate: Annotated[Number, Field(ge=0, le=1)] = Field(
        1.0, description="learning rate of the backbone as a share of the head's"
    )
    ema: Annotated[Number, Field(ge=0, lt=1)] = Field(
        0.0, description="decay of a moving average of the weights, which is then the model; 0: off"
    )
    wise_ft: Annotated[Number, Field(gt=0, le=1)] = Field(
        1.0, description="share of the tuned weights in the final ones, the rest being the base's"
    )
    lora_rank: Annotated[Whole, Field(ge=0, le=1024)] = Field(
        0, description="train low-rank updates of a transformers backbone instead of its weights; 0: off"
    )
    freeze: Frozen = Field(False, description="true: the backbone; or names of its layers")
    feature_views: Annotated[Whole, Field(ge=0, le=1000)] | None = Field(
        None,
        description="augmented views of a document whose features are kept while the whole backbone is frozen; by "
        "default 4 where images are loaded the default way; 0: none, every image goes through the backbone every time",
    )
    embedding_dim: Annotated[Whole, Field(ge=2, le=16_384)] | None = Field(
        None, description="size of the embedding; a changed one puts a new projection head on the model"
    )
    hard_negatives: Annotated[Whole, Field(ge=0, le=100)] = Field(
        0,
        description="of session data: how many further negatives each session gets: the nearest pictures of other "
        "sessions that nobody has judged for it, as far as they are not likely to fit",
    )
    val_split: Share = Field(
        "auto",
        description="share of the train documents to hold out for the proof when no eval documents are given; `auto`: "
        "15 % of labelled documents or sessions, up to a third of few, none of fewer than 40",
    )
    patience: Annotated[Whole, Field(ge=0, le=100_000)] = Field(
        0,
        description="stop after so many epochs without a better mAP@R on the documents kept to choose by; 0: never",
    )
    trials: Annotated[Whole, Field(ge=1, le=100)] = Field(
        1,
        description="settings to try on short runs before the run trains with the best of them: learning rates, "
        "`norm_statistics`, strengths of the default augmentation, as far as they are not given; 1: the defaults",
    )
    promote: Literal["if_better", "always", "never"] = Field(
        "if_better",
        description="whether to serve the tuned model when the run has succeeded; `if_better`: only if it is proven "
        "better than the version served then",
    )
    promote_by: Literal["interval", "mean"] = Field(
        "interval",
        description="better means: the 95 % interval of the difference in mAP@R lies above 0; or just a higher mean",
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="`bf16`: mixed precision; `auto`: bf16 where that was measured to be faster"
    )

    @model_validator(mode="after")
    def _fit_together(self) -> "TrainingOptions":
        if self.wise_ft < 1 and self.lora_rank:
            raise ValueError("wise_ft mixes weights and lora_rank trains updates of them; use one of the two")
        if self.memory_size and self.memory_size < self.batch_size:
            raise ValueError(f"memory_size is {self.memory_size}, but a batch of {self.batch_size} has to fit into it")
        if self.kind != "auto" and self.loss not in LOSS_NAMES[self.kind]:
            known = ", ".join(LOSS_NAMES[self.kind])
            raise ValueError(f"the loss {self.loss!r} is not for {self.kind} data; choose one of: {known}.")
        return self


class FitParameters(TrainingOptions):
    """Parameters of `/fit`: the training options, and the run and split that the documents belong to."""

    run: NewRunName | None = Field(None, description="which run; by default the one now receiving, else a new one")
    split: Split = Field("train", description="`train` or `eval`")
    total: Annotated[Whole, Field(ge=1, le=2**53)] | None = Field(
        None, description="train documents to expect; then it starts"
    )
    start: Flag = Field(
        False, description="start with what is there, and with a corrected `total`; so does a request without documents"
    )

    def training_options(self) -> dict[str, Any]:
        """Return the training options that the caller has set, by name."""
        return {name: getattr(self, name) for name in self.model_fields_set & TrainingOptions.model_fields.keys()}


class FeedbackParameters(_Parameters):
    """Parameters of `/feedback`."""

    run: RunName | None = Field(
        None, description="the documents that come without an image are train documents of this run, by their ids"
    )


class StatusParameters(_Parameters):
    """Parameters of `/status`."""

    run: RunName | None = Field(None, description="one run; by default all, newest first")


class EmbedParameters(_Parameters):
    """Parameters of `/embed`."""

    model: RunName | None = Field(None, description="`base` or a run; by default the promoted version")
    matches: Flag = Field(False, description="embed the matches of the documents too")
    space: RunName | None = Field(
        None, description="a version: the vectors come in its space, by the map that was learned between the two"
    )
    dimensions: Annotated[Whole, Field(ge=1, le=16_384)] | None = Field(
        None, description="so many values: the first principal components; by default all, as the model gives them"
    )
    encoding: Literal["float", "int8", "binary"] = Field(
        "float", description="`int8`: by a scale of the version; `binary`: bits, eight to a byte"
    )

    @property
    def plain(self) -> bool:
        """Whether the vectors are wanted as the model gives them."""
        return self.space is None and self.dimensions is None and self.encoding == "float"


class CancelParameters(_Parameters):
    """Parameters of `/cancel`."""

    run: RunName = Field(description="the run to cancel")


class DeleteParameters(_Parameters):
    """Parameters of `/delete`."""

    run: RunName = Field(description="the run to delete, with its model and all its files")


class _OfGallery(_Parameters):
    """Which gallery is meant."""

    gallery: Text | None = Field(
        None, description="a folder of pictures below `allowed_roots`, or a parquet file of the bulk command"
    )
    run: RunName | None = Field(None, description="instead: the train documents of this run")


class SuggestParameters(_OfGallery):
    """Parameters of `/suggest`."""

    limit: Annotated[Whole, Field(ge=1, le=10_000)] = Field(20, description="at most so many documents")


class GalleriesParameters(_Parameters):
    """Parameters of `/galleries`."""

    limit: Annotated[Whole, Field(ge=1, le=1000)] = Field(100, description="at most so many")


class GalleryParameters(_OfGallery):
    """Parameters of `/gallery`."""

    offset: Annotated[Whole, Field(ge=0, le=2**53)] = Field(0, description="the number of the first picture")
    limit: Annotated[Whole, Field(ge=0, le=1000)] = Field(60, description="at most so many pictures")
    content: Flag = Field(
        False, description="whether to return pictures whole that were sent as bytes or arrays, not only their ids"
    )


class ThumbnailsParameters(_Parameters):
    """Parameters of `/thumbnails`."""

    side: Annotated[Whole, Field(ge=16, le=1024)] = Field(192, description="at most so many pixels a side")
    run: RunName | None = Field(None, description="instead of documents: the train documents of this run")
    positions: Positions = Field((), description="which of them, by their numbers from 0 on")
    wait: Annotated[Number, Field(ge=0, le=60)] | None = Field(
        None,
        description="seconds, by default as long as it takes; what is not made by then has no `uri`",
    )


class NeighboursParameters(_OfGallery):
    """Parameters of `/neighbours`."""

    limit: Annotated[Whole, Field(ge=1, le=1000)] = Field(30, description="at most so many for each document")


class WordsParameters(_Parameters):
    """Parameters of `/words`."""

    before: Annotated[Whole, Field(ge=1, le=2**53)] | None = Field(
        None, description="without documents: those said before the word with this number"
    )
    limit: Annotated[Whole, Field(ge=1, le=1000)] = Field(50, description="without documents: at most so many")
    content: Flag = Field(False, description="whether to return pictures whole that were sent as bytes or arrays")


class LabelsParameters(_Parameters):
    """Parameters of `/labels`."""

    limit: Annotated[Whole, Field(ge=1, le=100_000)] = Field(1000, description="at most so many, the most used first")


class EventsParameters(_Parameters):
    """Parameters of `/events`."""

    run: RunName = Field(description="the run whose history to return")
    after: Annotated[Whole, Field(ge=0)] = Field(0, description="the number of the last event that is known already")
    limit: Annotated[Whole, Field(ge=1, le=10_000)] = Field(100, description="at most so many events")


class QuarantinedParameters(_Parameters):
    """Parameters of `/quarantined`."""

    run: RunName = Field(description="the run whose quarantined documents to return")
    after: Annotated[Whole, Field(ge=0, le=2**53)] = Field(
        0, description="leave out those up to this number, which each has as `tags['number']`"
    )
    limit: Annotated[Whole, Field(ge=1, le=100)] = Field(20, description="at most so many")


class ReportParameters(_Parameters):
    """Parameters of `/report`."""

    run: RunName = Field(description="the run whose report to return")
    format: Literal["html", "json"] = Field("html", description="a page, or everything that the page says as JSON")


class PromoteParameters(_Parameters):
    """Parameters of `/promote`."""

    run: RunName = Field(description="the version to serve: a run, or `base`")


class EvaluateParameters(_Parameters):
    """Parameters of `/evaluate`."""

    model: RunName | None = Field(None, description="`base` or a run; by default the promoted version")
    run: RunName | None = Field(
        None, description="score on this run's eval documents, or those held out, instead of those sent"
    )
    total: Annotated[Whole, Field(ge=1, le=2**53)] | None = Field(
        None, description="documents in the set, where it arrives in several requests: scored as one when all are there"
    )


class CompareParameters(_Parameters):
    """Parameters of `/compare`."""

    first: RunName | None = Field(None, description="`base` or a run; by default the promoted version")
    second: RunName = Field(description="`base` or a run")
    run: RunName | None = Field(
        None,
        description="compare on this run's eval documents, or those held out; by default those of `second`, or of "
        "`first` where `second` is `base`",
    )
    gallery: Text | None = Field(
        None, description="compare on a folder below `allowed_roots` instead, with a folder of pictures for each label"
    )
    start: Flag = Field(True, description="whether to measure what nobody has measured yet")
    anew: Flag = Field(False, description="whether to measure again what has been measured, such as a changed folder")
    wait: Annotated[Number, Field(ge=0, le=3600)] = Field(
        600.0, description="seconds to wait for the figures; the measuring goes on afterwards, so ask again"
    )
    which: Literal["worse", "better", "same", "all"] = Field(
        "worse", description="the queries to return: those that got worse, the most so first, or others"
    )
    offset: Annotated[Whole, Field(ge=0)] = Field(0, description="pass over so many queries")
    limit: Annotated[Whole, Field(ge=0, le=200)] = Field(20, description="at most so many queries")
    query: Annotated[Whole, Field(ge=0)] | None = Field(
        None, description="instead: the query of this `number` alone, with what each version finds"
    )
    pictures: Flag = Field(False, description="whether each has a small picture, as a `data:` uri")


class KeepFeedback(_Parameters):
    """The rule by which feedback is thinned: what is more, or older, is removed, the oldest first."""

    documents: Annotated[Whole, Field(ge=1)] = Field(200_000, description="at most so many documents")
    bytes: Annotated[Whole, Field(ge=1)] = Field(20 * 2**30, description="of all documents together")
    days: Annotated[Number, Field(gt=0)] = Field(730.0, description="since it was said")


class Retrain(_Parameters):
    """When runs start by themselves, and whether they are undone by themselves."""

    every_documents: Annotated[Whole, Field(ge=1)] | None = Field(
        None, description="as soon as so many documents of feedback are new since the last run"
    )
    every_hours: Annotated[Number, Field(gt=0)] | None = Field(
        None, description="so long after the last run, if there is any new feedback"
    )
    retry_minutes: Annotated[Number, Field(gt=0)] = Field(
        10.0, description="the wait after a run that failed; it doubles with each further one, up to a day"
    )
    rollback: Flag = Field(
        True, description="serve the version before again, if later feedback proves the promoted one worse"
    )

    @model_validator(mode="after")
    def _due_at_some_time(self) -> "Retrain":
        if self.every_documents is None and self.every_hours is None:
            raise ValueError("give every_documents, every_hours, or both")
        return self


class ExecutorOptions(_Parameters):
    """The options that the operator sets in `uses_with`."""

    model: Text = Field(
        "default",
        description="`default` (pretrained), `small`, a transformers vision model (hub id or directory), or "
        "`package.module:factory`",
    )
    input_size: Annotated[Whole, Field(ge=16, le=4096)] | None = Field(
        None, description="side of the square the model sees, in pixels; by default the model's own"
    )
    embedding_dim: Annotated[Whole, Field(ge=2, le=16_384)] | None = Field(
        None, description="size of the embedding; by default the model's own"
    )
    freeze: Frozen = Field(False, description="default of the training option `freeze`")
    device: Device = Field("auto", description="a torch device; `auto`: CUDA where there is one, else the CPU")
    devices: Names | None = Field(
        None, description="the devices to train on, a process each, such as `cuda:0` and `cuda:1`; by default `device`"
    )
    preprocess_fn: FunctionPath | None = Field(
        None, description="`package.module:function`, from a document to an array, in place of the image loading"
    )
    augment: Text | dict[str, Any] | None = Field(
        None,
        description="an albumentations pipeline (its `to_dict`), or the path of its YAML or JSON file; `none`: off",
    )
    allowed_roots: Names | None = Field(
        None, description="directories that a path may lie in; by default the one the service was started in"
    )
    allow_remote_uris: Flag = Field(False, description="whether `http(s)://` uris are loaded")
    remote_prefixes: Names = Field(
        (),
        description="uris below which objects are loaded through fsspec, such as `s3://bucket/folder/` (extra `s3`); "
        "credentials are read from the environment",
    )
    token_file: Text | None = Field(
        None, description="file with the token that every call must present; or set `FINETUNER_TOKEN`"
    )
    http_port: Annotated[Whole, Field(ge=0, le=65_535)] | None = Field(
        None,
        description="port of the executor's own HTTP door; 0: a free one, which is printed; by default there is none",
    )
    http_host: Text = Field("127.0.0.1", description="address on which that door listens")
    cors_origins: Origins = Field(
        (),
        description="web origins whose pages may call over HTTP, such as `https://shop.example`: the scheme, the host, "
        "and the port if it is not the usual one",
    )
    metrics_token: Flag = Field(False, description="whether `/healthz`, `/readyz` and `/metrics` ask for the token too")
    tensorboard: Text | None = Field(
        None, description="folder that the history of each run is written to, for TensorBoard (extra `tracking`)"
    )
    receive_timeout: Annotated[Number, Field(gt=0)] = Field(
        5.0, description="seconds without a new train document after which a run starts"
    )
    fit_defaults: dict[str, Any] = Field({}, description="defaults of the options of `/fit`")
    keep_feedback: KeepFeedback = Field(
        KeepFeedback(), description="how much feedback is kept: `documents`, `bytes`, `days`"
    )
    retrain: Retrain | None = Field(
        None, description="runs that start by themselves: `every_documents`, `every_hours`; by default none do"
    )
    role: Literal["all", "train", "serve"] = Field(
        "all",
        description="`train`: everything but `/embed`; `serve`: a reader, which embeds with what a writer publishes, "
        "and of which there may be any number; `all`: train and serve",
    )
    publish_to: Text | None = Field(
        None, description="directory or fsspec url where each served version is published for readers"
    )
    serve_from: Text | None = Field(None, description="what a reader follows: the `publish_to` of the writer")
    train_command: Text | None = Field(
        None,
        description="command line that trains in place of a process of this machine, with `{job}` for the folder of "
        "the job, `{run}` for the run and `{python}` for this Python, such as "
        "`{python} -m torch.distributed.run --nproc-per-node 2 -m executor train --job {job}`; no shell reads it",
    )
    train_jobs: Text | None = Field(
        None,
        description="directory for the folders of such jobs, under one path on all machines that train, or a url for "
        "fsspec, such as `s3://bucket/jobs`; by default each lies in the folder of its run",
    )
    max_image_bytes: Annotated[Whole, Field(ge=1)] = Field(32 * 2**20, description="of an encoded image")
    max_image_pixels: Annotated[Whole, Field(ge=1)] = Field(64_000_000, description="of a decoded image")
    max_decoding_bytes: Annotated[Whole, Field(ge=1)] = Field(
        512 * 2**20,
        description="memory that the service, and the trainer, may take at one time to decode images, half of it for "
        "large ones; of those that need more than that half, one is decoded at a time",
    )
    max_document_bytes: Annotated[Whole, Field(ge=1)] = Field(
        64 * 2**20, description="of a document in `/fit`, its matches included"
    )
    max_request_bytes: Annotated[Whole, Field(ge=1)] = Field(
        DEFAULT_MAX_REQUEST_BYTES,
        description="of one request over gRPC or HTTP (Jina's client puts 100 documents into one, see its "
        "`request_size`); the gateway has a parameter of this name",
    )
    max_cache_bytes: Annotated[Whole, Field(ge=0)] = Field(
        8 * 2**30, description="of decoded images kept per run, and of features"
    )
    max_documents_per_run: Annotated[Whole, Field(ge=1)] = Field(
        10_000_000, description="train and eval, their matches and skipped ones"
    )
    max_open_runs: Annotated[Whole, Field(ge=1)] = Field(100, description="runs receiving, queued or training")
    fast_inference: Flag = Field(
        True,
        description="embed in bf16, by a traced graph, or both, where that is measured to be faster and gives the same "
        "(the graph's weights take up to as much memory again); false: always by the plain model in fp32, as "
        "`/evaluate` does",
    )
    index_tolerance: Annotated[Number, Field(ge=0, le=1)] = Field(
        0.02, description="loss of mAP@R for which an index need not be embedded anew: see `index_plan` in a status"
    )
    max_queued_images: Annotated[Whole, Field(ge=1)] = Field(
        4096,
        description="images waiting in `/embed` before it refuses more; of a caller at most 4 count, because callers "
        "take turns",
    )
    trainer_threads: Annotated[Whole, Field(ge=1)] | None = Field(
        None, description="torch threads of the trainer; by default one for each core that it may use"
    )
    trainer_yields: Flag = Field(
        True, description="let the trainer compute only where no other process wants to (Linux: SCHED_IDLE)"
    )
    trainer_stall_seconds: Annotated[Number, Field(ge=0)] = Field(
        60.0,
        description="seconds without progress and without computing (or ten times the slowest step, if that is longer) "
        "after which a trainer is killed and its run resumed; a third of it for one that is stopped; 0: never",
    )
    standby_seconds: Annotated[Number, Field(ge=0)] = Field(
        600.0, description="after a run, how long a next trainer waits with its imports done; 0: none does"
    )
    trainer_nice: Annotated[Whole, Field(ge=0, le=19)] = Field(10, description="niceness of the trainer process")

    @model_validator(mode="after")
    def _checked(self) -> "ExecutorOptions":
        parse(TrainingOptions, self.fit_defaults, where="fit_defaults")
        if (self.role == "serve") != (self.serve_from is not None):
            raise ValueError("a reader needs both: role must be serve, and serve_from the place that it follows")
        if self.role == "serve" and self.publish_to is not None:
            raise ValueError("publish_to is for the service that trains; a reader (role: serve) publishes nothing")
        if self.train_command is not None:
            _check_command(self.train_command)
        if self.role == "serve" and self.train_command is not None:
            raise ValueError("train_command is for the service that trains; a reader (role: serve) trains nothing")
        if self.train_jobs is not None and self.train_command is None:
            raise ValueError("train_jobs is the place for the jobs of train_command, which is not set")
        if self.devices is not None:
            if unknown := [name for name in self.devices if name == "auto" or not DEVICE.fullmatch(name)]:
                raise ValueError(f"devices has {unknown[0]!r}; each must be a torch device such as cuda:0")
            kinds = {name.split(":")[0] for name in self.devices}
            repeated = len(set(self.devices)) < len(self.devices) and kinds != {"cpu"}
            if len(kinds) != 1 or repeated:
                raise ValueError("devices must be of one kind, each named once, such as cuda:0 and cuda:1")
        return self

    def with_roots(self) -> "ExecutorOptions":
        """Return these options with the allowed roots resolved; by default the only root is the current directory."""
        roots = tuple(str(Path(root).resolve()) for root in (self.allowed_roots or (".",)))
        return self.model_copy(update={"allowed_roots": roots})

    def image_policy(self) -> ImagePolicy:
        """Return the policy for reading images that these options describe."""
        return ImagePolicy(
            allowed_roots=self.allowed_roots,
            allow_remote_uris=self.allow_remote_uris,
            remote_prefixes=self.remote_prefixes,
            max_image_bytes=self.max_image_bytes,
            max_image_pixels=self.max_image_pixels,
            max_decoding_bytes=self.max_decoding_bytes,
        )


P = TypeVar("P", bound=BaseModel)


def parse(model: type[P], values: dict[str, Any] | None, *, where: str) -> P:
    """Check `values` and return them as a `model`.

    Args: where: the endpoint (`/fit`) or the setting, for the message.
    Raises: InvalidParameter: a value is unknown or has the wrong type; the message names it and lists what is accepted.
    """
    given = {
        key: value
        for key, value in (values or {}).items()
        if not key.startswith("__") and (value is not None or key not in model.model_fields)
    }
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise InvalidParameter(_explain(model, error, where)) from None


def parse_executor_options(values: dict[str, Any]) -> ExecutorOptions:
    """Return `uses_with` as options. Raises: ConfigurationError: an option is unknown or has the wrong type."""
    try:
        options = parse(ExecutorOptions, values, where="the executor")
    except InvalidParameter as error:
        raise ConfigurationError(str(error)) from None
    if options.tensorboard is not None and find_spec("tensorboard") is None:
        raise ConfigurationError(
            "The option tensorboard needs a package that is not here: pip install 'finetuner-executor[tracking]'."
        )
    if options.remote_prefixes:
        check_prefixes(options.remote_prefixes)
    return options


_PLAINER = {
    "Input should be": "must be",
    "a valid boolean": "true or false",
    "a valid dictionary": "an object of names and values",
    "a valid tuple": "a list of names",
    " or instance of Retrain": "",
    " or instance of KeepFeedback": "",
    "a valid string": "a string",
    "String should have at least 1 character": "must not be empty",
}


@functools.cache
def texts_of(model: type[BaseModel]) -> frozenset[str]:
    """The names of the parameters that want a text and nothing else. Found once: a schema takes 9 ms to make."""
    found = set()
    for name, schema in model.model_json_schema()["properties"].items():
        if {each.get("type") for each in schema.get("anyOf", [schema])} - {"null"} == {"string"}:
            found.add(name)
    return frozenset(found)


def meant_by(model: type[BaseModel], name: str, text: str) -> Any:
    """Return the value that a text in a query or on a command line stands for.

    That is the text itself if the parameter wants one or it is no JSON, else its JSON.
    """
    if name in texts_of(model):
        return text
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


def _explain(model: type[BaseModel], error: ValidationError, where: str) -> str:
    errors = error.errors(include_url=False)
    first = next((each for each in errors if each["type"] == "extra_forbidden"), errors[0])  # likely a misspelt name
    path = [str(part) for part in first["loc"]]
    below = _accepted_below(model, path[0]) if len(path) > 1 else []
    name = ".".join(path) if below else "".join(path[:1])
    accepted = ", ".join(below or model.model_fields)
    if first["type"] == "extra_forbidden":
        return f"{where} has no parameter {_shown(name)}; it accepts: {accepted}."
    if first["type"] == "missing":
        return f"{where} needs the parameter {name!r}; it accepts: {accepted}."
    reason = first["msg"].removeprefix("Value error, ")
    for pydantics, plain in _PLAINER.items():
        reason = reason.replace(pydantics, plain)
    if not name:
        return f"{where}: {reason}"
    return f"Parameter {name!r} of {where} is {_shown(first['input'])}, but {reason}. It accepts: {accepted}."


def _accepted_below(model: type[BaseModel], name: str) -> list[str]:
    """The fields of the model that is the value of field `name`; none if the value is no model."""
    annotation = model.model_fields[name].annotation
    inner = (each for each in (annotation, *get_args(annotation)) if isinstance(each, type) and not get_args(each))
    return [field for each in inner if issubclass(each, BaseModel) for field in each.model_fields]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
