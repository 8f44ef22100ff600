"""Train only the head: the features of the frozen backbone are computed once and kept.

If images are augmented, several views of each document are kept. View k of item i depends only on (seed, i, k). The
choice of views for a batch depends only on (seed, epoch), so that a resumed run sees the same views.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..errors import WorkspaceError
from ..loading.batches import Batch, collate
from ..loading.cache import FeatureCache
from ..loading.content import item_content
from ..loading.forward import compute_embeddings
from ..loading.loader import Loader, ahead
from ..models.backbones import Backbone
from ..models.model import EmbeddingModel
from .config import TrainConfig

DEFAULT_VIEWS = 4  # views kept of each document, if its images are augmented
FILL_BATCH = 128  # images that go through the backbone at a time


@dataclass(frozen=True)
class Filling:
    """How many of the features that an epoch needs are computed."""

    done: int
    total: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.done} features of the frozen backbone were computed in {self.seconds:.1f} s."


class FeatureLoader(Loader):
    """The batches of another loader, with features, (B, features) float32, in place of images.

    Before the first batch of an epoch, all features that it needs and that are not kept yet are computed.

    Args:
        features: row item × kept_views + v is view v of an item. at_once: images that go through the backbone at a
            time. say: called once with a message if the disk is full. filled: called with the progress after each
            batch through the backbone.
    """

    def __init__(
        self,
        loader: Loader,
        model: EmbeddingModel,
        features: FeatureCache,
        *,
        kept_views: int,
        at_once: int,
        device: torch.device,
        bf16: bool,
        say: Callable[[str], None],
        filled: Callable[[Filling], None],
    ) -> None:
        super().__init__(
            loader.dataset,
            loader.sampler,
            cache=loader.cache,
            augment=loader.augment,
            views=loader.views,
            seed=loader.seed,
        )
        self.features = features
        self._model = model
        self.kept_views = kept_views
        self._at_once = at_once
        self._device = device
        self._bf16 = bf16
        self._say = say
        self._filled = filled
        self._full = False  # the disk is full: features that are not kept are computed whenever they are needed

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Yield the batches of one epoch from number `first` on."""
        batches = [np.tile(items, self.views) for items in self.sampler.batches(epoch)[first:]]
        rows = [self._rows(epoch, items) for items in batches]
        if batches:
            self._fill(np.concatenate(rows))
        for items, wanted in zip(batches, rows, strict=True):
            labels = torch.from_numpy(self.dataset.labels[items])
            yield Batch(torch.from_numpy(self._vectors(wanted)), labels, items)

    def _rows(self, epoch: int, items: np.ndarray) -> np.ndarray:
        """Return the rows for `items`. The view of an item changes every epoch, and also if a batch repeats it."""
        turn, start = divmod(epoch, self.kept_views)
        order = np.random.default_rng([self.seed, turn]).permutation(self.kept_views)
        rows: np.ndarray = items * self.kept_views + order[(start + occurrences(items)) % self.kept_views]
        return rows

    def _fill(self, rows: np.ndarray) -> None:
        missing = rows[:0] if self._full else self.features.missing(rows)
        began, done = time.monotonic(), 0
        parts = [missing[start : start + self._at_once] for start in range(0, len(missing), self._at_once)]
        for part, inputs in ahead((part, self._inputs(part)) for part in parts):
            try:
                self.features.put(part, self._extract(inputs))
            except WorkspaceError as error:
                self._full = True
                return self._say(f"{error} Features that are not kept are computed whenever they are needed.")
            done += len(part)
            self._filled(Filling(done, len(missing), time.monotonic() - began))

    def _vectors(self, rows: np.ndarray) -> np.ndarray:
        missing = self.features.missing(rows)
        if not len(missing):
            return self.features.get(rows)
        computed = self._extract(self._inputs(missing))
        absent = np.isin(rows, missing)
        vectors = np.empty((len(rows), computed.shape[1]), np.float32)
        vectors[absent] = computed[np.searchsorted(missing, rows[absent])]
        vectors[~absent] = self.features.get(rows[~absent])
        return vectors

    def _inputs(self, rows: np.ndarray) -> Any:
        contents = []
        for row in rows:
            item, view = divmod(int(row), self.kept_views)
            content = item_content(self.dataset, item, self.cache)
            if self.augment is not None:
                self.augment.seed(int(np.random.SeedSequence([self.seed, item, view]).generate_state(1)[0]))
                content = self.augment(content)
            contents.append(content)
        return collate(contents, self.dataset.collate_fn)

    @torch.inference_mode()
    def _extract(self, inputs: Any) -> np.ndarray:
        through = self._model.extract_features
        features = compute_embeddings(self._model, inputs, self._device, bf16=self._bf16, through=through)
        extracted: np.ndarray = features.cpu().numpy()
        return extracted


@dataclass(frozen=True)
class Trainee:
    """The module that a run trains and its batches: a model on images, or only its head on kept features."""

    model: nn.Module
    loader: Loader
    config: TrainConfig
    backbone: EmbeddingModel | None = None  # the model that the head belongs to; None: `model` is the whole model

    @property
    def kept_views(self) -> int:
        """The views of each document whose features are kept; 0: none, the images are trained on."""
        return self.loader.kept_views if isinstance(self.loader, FeatureLoader) else 0

    def whole(self, measured: nn.Module) -> nn.Module:
        """Return `measured` (`model` or an average of it) as a model that takes images. Nothing is copied."""
        return measured if self.backbone is None else with_head(self.backbone, measured.head)

    def close(self) -> None:
        """Close the feature files and remove temporary ones."""
        if isinstance(self.loader, FeatureLoader):
            self.loader.features.close()


def choose_trainee(
    model: nn.Module,
    loader: Loader,
    config: TrainConfig,
    asked_views: int | None,
    *,
    same_content: bool,
    device: torch.device,
    max_bytes: int,
    folder: Path | None = None,
    at_once: int = FILL_BATCH,
    say: Callable[[str], None],
    filled: Callable[[Filling], None],
) -> Trainee:
    """Return the head alone to train if features can be kept, else the whole `model`.

    Args:
        asked_views: the option `feature_views`.
        same_content: whether a document's content is the same each time; if not, features are kept only when asked for.
        max_bytes: limit for the features. If all views would take more, fewer are kept, or none.
        folder: where the features are kept; None: a temporary folder. at_once: images that go through the backbone at
            a time. say: called with a sentence for each wish that cannot be met.
        filled: called with the progress of computing features.
    """
    everything = Trainee(model, loader, config)
    if asked_views == 0 or (asked_views is None and not same_content):
        return everything
    if not (isinstance(model, EmbeddingModel) and model.is_backbone_frozen):
        if asked_views is not None:
            say("feature_views has no effect: the backbone is not frozen, or not all of it.")
        return everything
    of_one_view = len(loader.dataset) * model.features * 4
    wanted = 1
    if loader.augment is not None or not same_content:
        wanted = max(asked_views or DEFAULT_VIEWS, loader.views)  # if a batch has an item twice, its views must differ
    views = min(wanted, max_bytes // of_one_view)
    if views < min(wanted, loader.views):
        say("The features of the frozen backbone are not kept: they would take more than max_cache_bytes.")
        return everything
    if views < wanted:
        say(f"The features of {views} views of each document are kept, not {wanted}: max_cache_bytes allows no more.")
    path = None if folder is None else folder / _key(model, loader, views, config.bf16)
    features = FeatureCache(len(loader.dataset) * views, model.features, path)
    on_features = FeatureLoader(
        loader,
        model,
        features,
        kept_views=views,
        at_once=min(at_once, config.micro_batch or at_once),
        device=device,
        bf16=config.bf16,
        say=say,
        filled=filled,
    )
    # A head is too small to gain anything from mixed precision or from batches in parts.
    return Trainee(head_of(model), on_features, replace(config, bf16=False, micro_batch=None), model)


def head_of(model: EmbeddingModel) -> EmbeddingModel:
    """Return the model without its backbone, (B, features) -> (B, D). The head is the same, not a copy."""
    return _assembled(model, Backbone(module=nn.Identity(), preprocessing=model.preprocessing), model.head)


def with_head(model: EmbeddingModel, head: Any) -> EmbeddingModel:
    """Return the model with another head. Nothing is copied."""
    backbone = Backbone(module=model.backbone, preprocessing=model.preprocessing, options=model.options)
    return _assembled(model, backbone, head)


def occurrences(items: np.ndarray) -> np.ndarray:
    """Return for each of `items` (n,) how often it has occurred before."""
    order = np.argsort(items, kind="stable")
    ranked = items[order]
    starts = np.searchsorted(ranked, ranked)
    found = np.empty(len(items), int)
    found[order] = np.arange(len(items)) - starts
    return found


def _assembled(model: EmbeddingModel, backbone: Backbone, head: nn.Linear | None) -> EmbeddingModel:
    assembled = EmbeddingModel(backbone, model.config, features=model.features, normalise=model.normalise)
    assembled.head, assembled.dim = head, model.dim
    return assembled


def _key(model: EmbeddingModel, loader: Loader, views: int, bf16: bool) -> str:
    """Return a hash of all that features depend on, except the documents of the run."""
    digest = hashlib.sha256()
    for name, tensor in model.backbone.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    settings = {
        "preprocessing": asdict(model.preprocessing),
        "options": dict(model.options),
        "augment": None if loader.augment is None else loader.augment.describe(),
        "kind": loader.dataset.kind,
        "seed": loader.seed,
        "views": views,
        "bf16": bf16,
    }
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:32]
