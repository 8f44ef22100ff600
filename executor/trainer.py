"""The trainer process: `python -m executor train --workspace FOLDER --run NAME`.

It starts while its run is still receiving, loads the model and decodes what has arrived, and begins to train once
the service has moved the run to `training`. It writes progress, checkpoints and the run's model; what becomes of the
run is for the service to decide, from the exit code and from what lies in the run's folder.
"""

import functools
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from . import reporting
from .cache import ImageCache
from .checkpoints import load_checkpoint, save_checkpoint
from .datasets import ClassDataset, Dataset, kind_of
from .decoding import Decoded
from .device import choose_device
from .distributed import Ranks, ranks_of_environment
from .errors import FinetunerError, NotTrainable, OutOfMemory, WorkspaceError
from .evaluation import BATCH, EvalSet, Measured, verdict
from .features import FILL_BATCH, Filling, choose_trained
from .files import is_full, unwritable
from .launching import OtherRanks
from .loading import load_augmentation
from .memmap import DocumentArrayMemmap
from .memory import MicroBatch, is_out_of_memory
from .models import EmbeddingModel, load_model, save_model
from .parameters import ExecutorOptions, TrainingOptions
from .precision import choose_bf16
from .preprocessing import make_preprocess
from .recipe import (
    embedding_size,
    example_inputs,
    finish_model,
    make_config,
    make_loader,
    make_loss,
    prepare_model,
    split_off,
)
from .runs import Progress, RunState, RunStore, TrainerExit
from .training import Interrupted, Meter, NonFiniteLoss, Step, TrainState, train
from .versions import ensure_base
from .workspace import Workspace

CHECKPOINT_SECONDS = 30.0  # within an epoch
EPOCH_SECONDS = 5.0  # shorter epochs share a checkpoint: what is lost is done again, with the same result
REPORT_SECONDS = 0.2
POLL_SECONDS = 0.05

_log = logging.getLogger(__name__)


def main(workspace: Path, name: str, *, others: OtherRanks) -> int:
    """Train one run and return the exit code. Args: others: the ranks this process has started."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the service says when to stop
    store = RunStore(Workspace(workspace))
    trainer = Trainer(store, name, ranks_of_environment(), others)
    signal.signal(signal.SIGTERM, lambda *_: trainer.interrupt())
    try:
        trainer.run()
        return TrainerExit.SUCCEEDED
    except Interrupted:
        return TrainerExit.INTERRUPTED
    except Exception as error:
        _log.exception("The run cannot go on")
        traceback.clear_frames(error.__traceback__)  # they hold what memory may be needed for
        if not isinstance(error, FinetunerError) and not is_out_of_memory(error):
            others.end_with_the_failed()
        return trainer.give_up(error)


class Trainer:
    """One run, from its spool to its model."""

    def __init__(self, store: RunStore, name: str, ranks: Ranks, others: OtherRanks) -> None:
        self._store = store
        self._ranks = ranks
        self._others = others
        self._run = store.get(name)
        self._folder = store.workspace.run(name)
        self._options = TrainingOptions.model_validate(self._run.options)
        self._configuration = ExecutorOptions.model_validate(self._run.configuration["options"])
        self._progress = Progress(phase="starting", epochs=self._options.epochs)
        self._interrupted = threading.Event()
        self._history: dict[str, list[float]] | None = None  # per epoch, as the loop keeps it
        self._reported = 0.0
        self._saved = time.monotonic()
        self._done = store.workspace.latest_step(name)
        self._micro_batch = MicroBatch(
            self._options.micro_batch,
            -(-self._options.batch_size // ranks.count),
            file=store.workspace.micro_batch(name),
            say=lambda note: store.event(name, "warning", note),  # of any rank
        )

    def interrupt(self) -> None:
        """Stop after the present step, with a checkpoint."""
        self._interrupted.set()

    def report(self, **changes: Any) -> None:
        """Publish progress, if this is the first rank. Where it cannot be written now, the next report has it too."""
        if not self._ranks.first:
            return
        self._progress = replace(self._progress, **changes)
        try:
            self._store.report(self._run.name, self._progress)
        except WorkspaceError as error:
            _log.warning("Progress is not written: %s", error)
        self._reported = time.monotonic()

    def tell(self, kind: str, message: str) -> None:
        """Append to the run's history, if this is the first rank. That it cannot be written now ends no run."""
        if not self._ranks.first:
            return
        try:
            self._store.event(self._run.name, kind, message)
        except WorkspaceError:
            _log.exception("The history lacks: %s: %s", kind, message)

    def warn(self, note: str) -> None:
        """Append a warning to the run's history."""
        self.tell("warning", note)

    def give_up(self, error: Exception) -> TrainerExit:
        """Say why the run cannot go on here, and return whether another attempt may."""
        if is_out_of_memory(error):
            try:
                self._micro_batch.halve(self._done)
                return TrainerExit.OUT_OF_MEMORY
            except OutOfMemory as hopeless:
                error = hopeless
        if is_full(error) and isinstance(error, OSError):
            error = unwritable("a file of the run", self._folder, error)
        if isinstance(error, WorkspaceError):
            self.report(error=str(error))
            return TrainerExit.UNWRITABLE
        refused = isinstance(error, FinetunerError)
        if refused and not self._ranks.first:  # only this rank knows
            self._store.report(self._run.name, replace(self._store.progress(self._run.name), error=str(error)))
        self.report(error=str(error) if refused else f"{type(error).__name__}: {error}")
        return TrainerExit.REFUSED if refused else TrainerExit.CRASHED

    def run(self) -> None:
        """Do it all. Raises: Interrupted: asked to stop. FinetunerError: the run cannot be trained."""
        os.chdir(self._run.configuration["directory"])
        sys.path[:0] = self._run.configuration["path"]
        here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        torch.set_num_threads(self._configuration.trainer_threads or max(1, (os.cpu_count() or 1) // here))
        if self._ranks.first:
            self._store.workspace.remove_leftovers(self._run.name)
        device = choose_device(self._configuration)
        self.report(error=None, better=None, verdict=None, device=str(device))
        if self._options.base == "base":
            ensure_base(self._store.workspace, self._configuration)
        base = self._store.workspace.model(self._options.base)
        model = load_model(base, freeze=False, embedding_dim=self._options.embedding_dim)
        prepare_model(model, self._options)
        model.to(device)

        train_docs, eval_docs = self._decoded("train", model), self._decoded("eval", model)
        self._receive(*((train_docs, eval_docs) if self._ranks.first else ()))
        self._others.release_port()
        self._ranks.join(device)
        self.report(phase="loading")
        for split in (train_docs, eval_docs):
            split.bad_items = self._ranks.agree(functools.partial(self._decode, split))
        if not len(train_docs.docs):
            raise NotTrainable("The run has no usable train documents; its problems say why.")
        kind = self._options.kind if self._options.kind != "auto" else kind_of(train_docs.docs)
        self.report(kind=kind)
        dataset, items = train_docs.dataset(kind)
        eval_set, held_out = None, 0
        if len(eval_docs.docs):
            eval_kind = self._eval_kind(eval_docs.docs)
            eval_set = self._eval_set(*eval_docs.dataset(eval_kind), eval_docs.cache, device)
        elif self._options.val_split:
            items, held = split_off(dataset, items, self._options.val_split, self._options.seed)
            eval_set = self._eval_set(dataset, held, train_docs.cache, device)
            held_out = eval_set.documents
        counts = (len(train_docs), len(eval_docs), held_out)
        self._train(model, base, dataset, items, eval_set, train_docs.cache, counts, device)
        self._ranks.leave()

    def _eval_set(self, dataset: Dataset, items: np.ndarray, cache: ImageCache | None, device: torch.device) -> EvalSet:
        batch = self._at_a_time(BATCH)
        return EvalSet(dataset, items, device=device, cache=cache, batch=batch, ranks=self._ranks)

    def _decoded(self, split: str, model: EmbeddingModel) -> Decoded:
        cache = None
        if self._configuration.preprocess_fn is None:  # only the default loading is known to give the same each time
            size = model.preprocessing.size
            path = self._folder / "images" / f"{split}-{size}"
            cache = ImageCache(size, path, max_bytes=self._configuration.max_cache_bytes, warn=self.warn)
        return Decoded(
            split,
            self._store,
            self._run.name,
            make_preprocess(self._configuration, model),
            cache,
            with_matches=self._options.kind in ("auto", "session"),
        )

    def _eval_kind(self, docs: DocumentArrayMemmap) -> str:
        """Labelled eval documents prove a model that was trained without labels, too."""
        if self._options.kind in ("class", "session"):
            return self._options.kind
        found = kind_of(docs)
        return "unlabeled" if self._options.kind == "unlabeled" and found == "session" else found

    def _receive(self, *splits: Decoded) -> None:
        """Decode what arrives until the service says to train."""
        while True:
            self._check_interrupted()
            state = self._store.get(self._run.name).state
            if state is RunState.TRAINING:
                return
            if state.ended:
                raise Interrupted
            advanced = [split.advance() for split in splits]
            if not any(advanced):
                time.sleep(POLL_SECONDS)

    def _decode(self, split: Decoded) -> set[int]:
        """Return the items that cannot be used."""
        while split.advance():
            self._check_interrupted()
        return split.bad_items

    def _at_a_time(self, items: int) -> int:
        """So many images, or fewer where earlier attempts have shown that memory does not suffice."""
        return min(items, self._micro_batch.at(self._done) or items)

    def _check_interrupted(self) -> None:
        if self._interrupted.is_set():
            raise Interrupted

    def _train(
        self,
        model: EmbeddingModel,
        base: Path,
        dataset: Dataset,
        items: np.ndarray,
        eval_set: EvalSet | None,
        cache: ImageCache | None,
        counts: tuple[int, int, int],
        device: torch.device,
    ) -> None:
        augment = None
        if cache is not None or self._configuration.augment is not None or dataset.kind == "unlabeled":
            augment = load_augmentation(self._configuration.augment, dataset.kind, model.preprocessing.size)
        loader = make_loader(dataset, items, self._options, cache=cache, augment=augment, ranks=self._ranks)
        for note in loader.sampler.notes:
            self.warn(note)
        count = self._at_a_time(self._options.batch_size)
        inputs = example_inputs(model, dataset, int(items[0]), count, cache, device)
        loss = make_loss(dataset, self._options, embedding_size(model, inputs), device)
        bf16 = self._ranks.agree(lambda: self._choose_bf16(model, inputs, device))
        config = make_config(self._options, scratch=model.config.model == "default", bf16=bf16)
        before = self._evaluate(base, eval_set, device)
        metrics = {f"base/{name}": value for name, value in before.scores.mean().items()} if before else {}
        self.report(phase="training", metrics=metrics, steps=loader.sampler.steps(config.epochs))

        trained = choose_trained(
            model,
            loader,
            config,
            self._options.feature_views if self._ranks.alone else 0,  # each rank would fill the same cache
            same_content=cache is not None,
            device=device,
            max_bytes=self._configuration.max_cache_bytes,
            folder=self._folder / "features",
            at_once=self._at_a_time(FILL_BATCH),
            say=self.warn,
            filled=self._on_features,
        )
        resume = load_checkpoint(self._store.workspace.checkpoints(self._run.name))
        meter = Meter()

        def on_step(step: Step) -> None:
            self._done = step.done
            speed, left = meter.update(step)
            self._history = step.history
            if time.monotonic() - self._reported >= REPORT_SECONDS or step.done == step.total:
                self.report(
                    phase="training",
                    epoch=step.epoch + 1,
                    step=step.done,
                    loss=step.loss,
                    images_per_second=speed,
                    eta_seconds=left,
                    history=step.history,
                )

        def evaluate(measured: nn.Module) -> dict[str, float]:
            self.report(phase="evaluating")
            assert eval_set is not None
            return eval_set.score(trained.whole(measured)).mean()

        try:
            state = train(
                trained.model,
                loss,
                trained.loader,
                trained.config,
                device=device,
                evaluate=None if before is None else evaluate,
                report=on_step,
                save=self._save,
                stop=self._interrupted.is_set,
                resume=resume,
                micro_batch=self._micro_batch if trained.backbone is None else None,
                ranks=self._ranks,
            )
        except NonFiniteLoss as error:
            ids = list(dict.fromkeys(dataset.document(int(item)).id for item in error.items))
            self.tell("error", f"{error} Its documents: {', '.join(ids)}.")
            some = ", ".join(ids[:10]) + (f" and {len(ids) - 10} more" if len(ids) > 10 else "")
            raise NotTrainable(f"{error} Its documents: {some}.") from error
        finish_model(model, self._options)
        self.report(phase="evaluating", history=state.history, eta_seconds=0.0)
        after, sentence = None, reporting.UNPROVEN
        if before is not None and eval_set is not None:
            after = eval_set.measure(model)
        if not self._ranks.first:
            return
        if before is not None and after is not None:
            better, sentence = verdict(before.scores, after.scores, by=self._options.promote_by)
            metrics |= {f"tuned/{name}": value for name, value in after.scores.mean().items()}
            self.report(metrics=metrics, better=better, verdict=sentence)
        self.report(phase="saving")
        save_model(model, self._store.workspace.model(self._run.name))
        reporting.write(
            self._store,
            self._run,
            kind=dataset.kind,
            classes=len(dataset.classes) if isinstance(dataset, ClassDataset) else None,
            counts=counts,
            history=state.history,
            device=str(device),
            eval_set=eval_set,
            before=before,
            after=after,
            verdict=sentence,
        )
        self._store.report(self._run.name, self._progress)  # the service decides by it: this one must be written

    def _on_features(self, filling: Filling) -> None:
        self._check_interrupted()  # what has been computed is kept
        if filling.done == filling.total:
            self.tell("features", str(filling))
        if time.monotonic() - self._reported >= REPORT_SECONDS:
            speed = filling.done / filling.seconds
            self.report(phase="loading", images_per_second=speed, eta_seconds=(filling.total - filling.done) / speed)

    def _choose_bf16(self, model: EmbeddingModel, inputs: Any, device: torch.device) -> bool:
        """Measured once a run and written down, so that a resumed run goes on in the same precision."""
        chosen = self._folder / "precision"
        if not chosen.exists() or not chosen.read_text():  # empty: its writer was killed, before any step
            bf16 = choose_bf16(self._options.precision, model, inputs, device)
            chosen.write_text("bf16" if bf16 else "fp32")
        return chosen.read_text() == "bf16"

    def _evaluate(self, base: Path, eval_set: EvalSet | None, device: torch.device) -> Measured | None:
        """Measure the version that the run starts from; None if there is nothing to measure on."""
        if eval_set is None:
            return None
        self.report(phase="evaluating")
        measured = eval_set.measure(load_model(base).to(device))
        scores = measured.scores
        if scores.queries == 0:
            self._store.event(
                self._run.name,
                "warning",
                f"None of the {scores.skipped} eval documents can be a query: each needs another one that fits it.",
            )
            return None
        return measured

    def _save(self, state: Callable[[], TrainState], epoch_ended: bool) -> None:
        if epoch_ended:
            self._tell_epoch(state().history if self._history is None else self._history)
        due = time.monotonic() - self._saved >= (EPOCH_SECONDS if epoch_ended else CHECKPOINT_SECONDS)
        if due or self._interrupted.is_set():
            self.report(phase="saving")
            written = state()
            try:
                save_checkpoint(self._store.workspace.checkpoints(self._run.name), written, written.done)
            except WorkspaceError as error:
                self.warn(f"{error} The run goes on; what it does until the next checkpoint is not safe yet.")
            self._saved = time.monotonic()

    def _tell_epoch(self, history: dict[str, list[float]]) -> None:
        values = ", ".join(f"{name} {series[-1]:.4g}" for name, series in history.items())
        self.tell("epoch", f"epoch {len(history['loss'])} of {self._options.epochs}: {values}")
