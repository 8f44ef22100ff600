"""The documents of a run, tried while they arrive, and the datasets for training and evaluation that they become."""

import functools
import time
from collections.abc import Callable

import torch

from ..compute.ranks import Ranks
from ..errors import NotTrainable
from ..evaluation.eval_set import EvalSet
from ..evaluation.hold_out import split_off
from ..loading.augmentation import Augmentation, load_augmentation
from ..loading.cache import ImageCache
from ..loading.content import make_preprocess
from ..loading.datasets import kind_of
from ..models.model import EmbeddingModel
from ..store.run import Run, RunState
from ..store.runs import RunStore
from ..store.spool import DocumentArrayMemmap
from ..training.loop import Interrupted
from ..training.recipe import Task
from .decoding import Decoded

POLL_SECONDS = 0.05


class RunDocuments:
    """Both splits of a run's spool.

    Args: check: called now and then; raises what shall stop the work. warn: told what the run's history should say.
    """

    def __init__(
        self,
        store: RunStore,
        run: Run,
        model: EmbeddingModel,
        ranks: Ranks,
        *,
        check: Callable[[], None],
        warn: Callable[[str], None],
    ) -> None:
        self._store = store
        self._run = run
        self._ranks = ranks
        self._check = check
        self._warn = warn
        self._options = run.options
        self._configuration = run.configuration.options
        self._size = model.preprocessing.size
        self._train, self._eval = self._decoded("train", model), self._decoded("eval", model)

    def _decoded(self, split: str, model: EmbeddingModel) -> Decoded:
        cache = None
        if self._configuration.preprocess_fn is None:  # only the default loading is known to give the same each time
            size = model.preprocessing.size
            path = self._store.workspace.run_folder(self._run.name) / "images" / f"{split}-{size}"
            cache = ImageCache(size, path, max_bytes=self._configuration.max_cache_bytes, warn=self._warn)
        return Decoded(
            split,
            self._store,
            self._run.name,
            make_preprocess(self._configuration, model),
            cache,
            with_matches=self._options.kind in ("auto", "session"),
        )

    def receive(self) -> None:
        """Decode what arrives until the service says to train. Raises: Interrupted: the run has ended instead."""
        splits = (self._train, self._eval) if self._ranks.first else ()
        while True:
            self._check()
            state = self._store.get(self._run.name).state
            if state is RunState.TRAINING:
                return
            if state.ended:
                raise Interrupted
            advanced = [split.decode_next() for split in splits]
            if not any(advanced):
                time.sleep(POLL_SECONDS)

    def decode(self) -> None:
        """Decode what is left. Raises: NotTrainable: there are no documents to train on."""
        for split in (self._train, self._eval):
            split.bad_items = self._ranks.agree(functools.partial(self._rest_of, split))
        if not len(self._train.docs):
            raise NotTrainable("The run has no usable train documents; its problems say why.")

    def _rest_of(self, split: Decoded) -> set[int]:
        """Return the items that cannot be used."""
        while split.decode_next():
            self._check()
        return split.bad_items

    def kind(self) -> str:
        """The kind of dataset: as asked for, or as the train documents are."""
        return self._options.kind if self._options.kind != "auto" else kind_of(self._train.docs)

    def task(self, kind: str, device: torch.device, batch: int) -> Task:
        """What is trained on and measured on; without eval documents some of the others are held out, if so asked.

        Args: batch: images embedded at a time. Raises: NotTrainable: what was asked to be held out cannot be.
        """
        make_eval = functools.partial(EvalSet, device=device, batch=batch, ranks=self._ranks)
        dataset, items = self._train.dataset(kind)
        eval_set = None
        if len(self._eval.docs):
            eval_set = make_eval(*self._eval.dataset(self._eval_kind(self._eval.docs)), cache=self._eval.cache)
        elif self._options.val_split:
            items, held_out = split_off(dataset, items, self._options.val_split, self._options.seed)
            eval_set = make_eval(dataset, held_out, cache=self._train.cache)
        return Task(
            dataset=dataset,
            items=items,
            eval_set=eval_set,
            cache=self._train.cache,
            same_content=self._train.cache is not None,
            augment=self._augmentation(kind),
        )

    def counts(self, task: Task) -> tuple[int, int, int]:
        """The usable documents for training and for evaluation, and how many of the former were held out."""
        held_out = task.eval_set.documents if task.eval_set is not None and not len(self._eval.docs) else 0
        return len(self._train), len(self._eval), held_out

    def _augmentation(self, kind: str) -> Augmentation | None:
        """A `preprocess_fn` of the operator's augments by itself, unless a pipeline is configured too."""
        configured = self._configuration.augment
        if self._train.cache is None and configured is None and kind != "unlabeled":
            return None
        return load_augmentation(configured, kind, self._size)

    def _eval_kind(self, docs: DocumentArrayMemmap) -> str:
        """Labelled eval documents prove a model that was trained without labels, too."""
        if self._options.kind in ("class", "session"):
            return self._options.kind
        found = kind_of(docs)
        return "unlabeled" if self._options.kind == "unlabeled" and found == "session" else found
