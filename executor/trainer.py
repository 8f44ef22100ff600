"""The trainer process: `python -m executor train --workspace FOLDER --run NAME`.

It starts while its run is still receiving, loads the model and decodes what has arrived, and begins to train once
the service has moved the run to `training`. It writes progress, checkpoints and the run's model; what becomes of the
run is for the service to decide, from the exit code and from what lies in the run's folder.
"""

import logging
import os
import signal
import sys
import threading
import time
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
from .errors import FinetunerError, NotTrainable
from .evaluation import EvalSet, Measured, verdict
from .loading import load_augmentation
from .memmap import DocumentArrayMemmap
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
from .runs import Progress, RunState, RunStore, TrainerExit, Workspace
from .training import Interrupted, Meter, NonFiniteLoss, Step, TrainState, train
from .versions import ensure_base

CHECKPOINT_SECONDS = 30.0  # within an epoch
EPOCH_SECONDS = 5.0  # shorter epochs share a checkpoint: what is lost is done again, with the same result
REPORT_SECONDS = 0.2
POLL_SECONDS = 0.05

_log = logging.getLogger(__name__)


def main(workspace: Path, name: str, *, tied: bool) -> int:
    """Train one run and return the exit code. `tied`: die when standard input ends, as it does with the service."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    if tied:
        threading.Thread(target=_die_with_the_service, name="tie", daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the service says when to stop
    store = RunStore(Workspace(workspace))
    trainer = Trainer(store, name)
    signal.signal(signal.SIGTERM, lambda *_: trainer.interrupt())
    try:
        trainer.run()
        return TrainerExit.SUCCEEDED
    except Interrupted:
        return TrainerExit.INTERRUPTED
    except FinetunerError as error:
        _log.exception("The run cannot go on")
        trainer.report(error=str(error))
        return TrainerExit.REFUSED
    except Exception as error:
        _log.exception("The trainer failed")
        trainer.report(error=f"{type(error).__name__}: {error}")
        return TrainerExit.CRASHED


def _die_with_the_service() -> None:
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGKILL)


class Trainer:
    """One run, from its spool to its model."""

    def __init__(self, store: RunStore, name: str) -> None:
        self._store = store
        self._run = store.get(name)
        self._folder = store.workspace.run(name)
        self._options = TrainingOptions.model_validate(self._run.options)
        self._configuration = ExecutorOptions.model_validate(self._run.configuration["options"])
        self._progress = Progress(phase="starting", epochs=self._options.epochs)
        self._interrupted = threading.Event()
        self._reported = 0.0
        self._saved = time.monotonic()

    def interrupt(self) -> None:
        """Stop after the present step, with a checkpoint."""
        self._interrupted.set()

    def report(self, **changes: Any) -> None:
        """Publish progress."""
        self._progress = replace(self._progress, **changes)
        self._store.report(self._run.name, self._progress)
        self._reported = time.monotonic()

    def run(self) -> None:
        """Do it all. Raises: Interrupted: asked to stop. FinetunerError: the run cannot be trained."""
        os.chdir(self._run.configuration["directory"])
        sys.path[:0] = self._run.configuration["path"]
        torch.set_num_threads(self._configuration.trainer_threads or os.cpu_count() or 1)
        device = choose_device(self._configuration)
        self.report(error=None, better=None, verdict=None, device=str(device))
        if self._options.base == "base":
            ensure_base(self._store.workspace, self._configuration)
        base = self._store.workspace.model(self._options.base)
        model = load_model(base, freeze=False, embedding_dim=self._options.embedding_dim)
        prepare_model(model, self._options)
        model.to(device)

        train_docs, eval_docs = self._decoded("train", model), self._decoded("eval", model)
        self._receive(train_docs, eval_docs)
        self.report(phase="loading")
        self._decode(train_docs)
        self._decode(eval_docs)
        if not len(train_docs.docs):
            raise NotTrainable("The run has no usable train documents; its problems say why.")
        kind = self._options.kind if self._options.kind != "auto" else kind_of(train_docs.docs)
        self.report(kind=kind)
        dataset, items = train_docs.dataset(kind)
        eval_set, held_out = None, 0
        if len(eval_docs.docs):
            eval_kind = self._eval_kind(eval_docs.docs)
            eval_set = EvalSet(*eval_docs.dataset(eval_kind), device=device, cache=eval_docs.cache)
        elif self._options.val_split:
            items, held = split_off(dataset, items, self._options.val_split, self._options.seed)
            eval_set = EvalSet(dataset, held, device=device, cache=train_docs.cache)
            held_out = eval_set.documents
        counts = (len(train_docs), len(eval_docs), held_out)
        self._train(model, base, dataset, items, eval_set, train_docs.cache, counts, device)

    def _decoded(self, split: str, model: EmbeddingModel) -> Decoded:
        cache = None
        if self._configuration.preprocess_fn is None:  # only the default loading is known to give the same each time
            size = model.preprocessing.size
            path = self._folder / "images" / f"{split}-{size}"
            cache = ImageCache(size, path, max_bytes=self._configuration.max_cache_bytes)
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

    def _decode(self, split: Decoded) -> None:
        while split.advance():
            self._check_interrupted()

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
        loader = make_loader(dataset, items, self._options, cache=cache, augment=augment)
        for note in loader.sampler.notes:
            self._store.event(self._run.name, "warning", note)
        inputs = example_inputs(model, dataset, int(items[0]), self._options.batch_size, cache, device)
        loss = make_loss(dataset, self._options, embedding_size(model, inputs), device)
        bf16 = self._choose_bf16(model, inputs, device)
        config = make_config(self._options, scratch=model.config.model == "default", bf16=bf16)
        before = self._evaluate(base, eval_set, device)
        metrics = {f"base/{name}": value for name, value in before.scores.mean().items()} if before else {}
        self.report(phase="training", metrics=metrics, steps=loader.sampler.steps(config.epochs))

        resume = load_checkpoint(self._store.workspace.checkpoints(self._run.name))
        meter = Meter()

        def on_step(step: Step) -> None:
            speed, left = meter.update(step)
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
            return eval_set.score(measured).mean()

        try:
            state = train(
                model,
                loss,
                loader,
                config,
                device=device,
                evaluate=None if before is None else evaluate,
                report=on_step,
                save=self._save,
                stop=self._interrupted.is_set,
                resume=resume,
            )
        except NonFiniteLoss as error:
            ids = list(dict.fromkeys(dataset.document(int(item)).id for item in error.items))
            self._store.event(self._run.name, "error", f"{error} Its documents: {', '.join(ids)}.")
            some = ", ".join(ids[:10]) + (f" and {len(ids) - 10} more" if len(ids) > 10 else "")
            raise NotTrainable(f"{error} Its documents: {some}.") from error
        finish_model(model, self._options)
        self.report(phase="evaluating", history=state.history, eta_seconds=0.0)
        after, sentence = None, reporting.UNPROVEN
        if before is not None and eval_set is not None:
            after = eval_set.measure(model)
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

    def _choose_bf16(self, model: EmbeddingModel, inputs: Any, device: torch.device) -> bool:
        """Measured once a run and written down, so that a resumed run goes on in the same precision."""
        chosen = self._folder / "precision"
        if not chosen.exists():
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
        due = time.monotonic() - self._saved >= (EPOCH_SECONDS if epoch_ended else CHECKPOINT_SECONDS)
        if due or self._interrupted.is_set():
            self.report(phase="saving")
            written = state()
            save_checkpoint(self._store.workspace.checkpoints(self._run.name), written, written.done)
            self._saved = time.monotonic()
