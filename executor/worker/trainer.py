"""The trainer process: `python -m executor train --workspace FOLDER --run NAME`, or `--job FOLDER` elsewhere.

It starts while its run is still receiving. It loads the model, decodes the documents that have arrived, and begins to
train when the service has moved the run to `training`. It writes progress, checkpoints and the model. The service then
decides what becomes of the run: it looks at the exit code and into the run's folder.
"""

import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from .. import tracing
from ..compute.cores import usable_cores
from ..compute.device import choose_device
from ..compute.memory import is_out_of_memory
from ..compute.ranks import Ranks, ranks_of_environment
from ..errors import ConfigurationError, FinetunerError, OutOfMemory, WorkspaceError
from ..evaluation.eval_set import BATCH, Measured
from ..images.libtiff import silence_libtiff
from ..models.model import EmbeddingModel
from ..models.saving import load_model
from ..models.versions import ensure_base
from ..store.files import full_folder, is_full, unwritable
from ..store.run import KILLED_FOR_MEMORY, TrainerExit
from ..store.runs import RunStore
from ..training.features import Filling
from ..training.loop import Interrupted, Meter, Step
from ..training.micro_batch import TOO_LITTLE_MEMORY, MicroBatch
from ..training.parts import prepare_model
from ..training.recipe import Keeping, fine_tune
from ..training.state import TrainState
from ..training.watching import Watcher
from .checkpoints import CheckpointWriter, load_checkpoint
from .conclusion import Conclusion, Trained
from .other_ranks import OtherRanks
from .progress import ProgressWriter
from .run_documents import RunDocuments
from .time_left import TimeLeft

CHECKPOINT_SECONDS = 30.0  # between checkpoints within an epoch
GONE = (
    "The directory that the service was in when this run was created is gone: uris that are relative paths cannot be "
    "read. Other documents can."
)
EPOCH_SECONDS = 5.0  # shorter epochs share a checkpoint; lost epochs are trained again, with the same result

_log = logging.getLogger(__name__)


def main(store: RunStore, name: str, *, others: OtherRanks) -> int:
    """Train one run and return the exit code. Args: others: the ranks this process has started."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    silence_libtiff()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches us too, but the service says when to stop
    ranks = ranks_of_environment()
    if ranks.first:
        _trace()
    trainer = Trainer(store, name, ranks, others)
    signal.signal(signal.SIGTERM, lambda *_: trainer.interrupt())
    try:
        trainer.run()
        return TrainerExit.SUCCEEDED
    except Interrupted:
        return TrainerExit.INTERRUPTED
    except Exception as error:
        _log.exception("The run cannot go on")
        traceback.clear_frames(error.__traceback__)  # they keep tensors in memory
        if not isinstance(error, FinetunerError) and not is_out_of_memory(error):
            others.end_with_the_failed()
        return trainer.give_up(error)
    finally:
        trainer.end()
        tracing.end()


def _trace() -> None:
    try:
        tracing.start("finetuner-trainer")
    except ConfigurationError as error:  # the service has refused that; elsewhere a run goes on without spans
        _log.warning("%s", error)


class Trainer(Watcher):
    """One run, from its spool to its model."""

    def __init__(self, store: RunStore, name: str, ranks: Ranks, others: OtherRanks) -> None:
        self._store = store
        self._ranks = ranks
        self._others = others
        self._run = store.get(name)
        self._folder = store.workspace.run_folder(name)
        self._options = self._run.options
        self._configuration = self._run.configuration.options
        self._progress = ProgressWriter(store, self._run, ranks)
        self._interrupted = threading.Event()
        self._history: dict[str, list[float]] | None = None  # one list per value, one entry per epoch
        self._meter = Meter()
        self._left: TimeLeft | None = None
        self._evaluating = 0.0  # since when
        self._saved = time.monotonic()
        self._checkpoints = CheckpointWriter(store.workspace.checkpoint_folder(name), self._not_saved)
        self._done = store.workspace.latest_step(name)
        self._micro_batch = MicroBatch(
            self._options.micro_batch,
            -(-self._options.batch_size // ranks.count),
            file=store.workspace.micro_batch_file(name),
            say=self._note,
        )

    def interrupt(self) -> None:
        """Stop after this step and write a checkpoint."""
        self._interrupted.set()
        self._others.expect_to_stop()

    def end(self) -> None:
        """End what is reported of this run."""
        self._progress.end()

    def give_up(self, error: Exception) -> TrainerExit:
        """Report why this process cannot go on. The exit code says whether another attempt may help."""
        if is_out_of_memory(error):
            try:
                self._micro_batch.halve(self._done)
                return TrainerExit.OUT_OF_MEMORY
            except OutOfMemory as hopeless:
                error = hopeless
        if is_full(error) and isinstance(error, OSError):
            error = unwritable("a file of the run", full_folder(error, self._folder), error)
        if isinstance(error, WorkspaceError):
            self._progress.report(error=str(error))
            return TrainerExit.UNWRITABLE
        if isinstance(error, FinetunerError):
            self._progress.refuse(str(error))
            return TrainerExit.REFUSED
        self._progress.report(error=f"{type(error).__name__}: {error}")
        return TrainerExit.CRASHED

    def run(self) -> None:
        """Train the run. Raises: Interrupted: it was told to stop. FinetunerError: the run cannot be trained."""
        self._enter()
        if self._ranks.first:
            self._note_kernel_kills()
        device = choose_device(self._configuration)
        self._progress.report(error=None, better=None, verdict=None, device=str(device))
        model = self._load_model().to(device)
        data = RunDocuments(
            self._store,
            self._run,
            model,
            self._ranks,
            check=self._check_interrupted,
            warn=self._progress.warn,
            beat=self._progress.beat,
        )
        data.receive()
        self._others.release_port()
        self._ranks.join(device)
        self._micro_batch.reload()  # the first rank may have changed it
        self._progress.report(phase="loading")
        data.decode()
        kind = data.kind()
        self._progress.report(kind=kind)
        task = data.task(kind, device, self._at_a_time(BATCH))
        served_too = self._store.served_now() != self._options.base
        self._left = TimeLeft(task, evaluations=1 + served_too)
        outcome = fine_tune(
            model,
            task,
            self._options,
            device=device,
            watcher=self,
            micro_batch=self._micro_batch,
            max_cache_bytes=self._configuration.max_cache_bytes,
            base=lambda: load_model(self._base),
            ranks=self._ranks,
            keeping=Keeping(
                folder=self._folder,
                done=self._done,
                resume=lambda: load_checkpoint(self._store.workspace.checkpoint_folder(self._run.name)),
                save=self._save,
                stop=self._is_told_to_stop,
            ),
        )
        conclusion = Conclusion(self._store, self._run, self._ranks, self._progress, check=self._check_together)
        batch = self._at_a_time(BATCH)
        conclusion.draw(Trained(model=model, data=data, task=task, outcome=outcome, device=device, batch=batch))
        self._ranks.leave()

    def _enter(self) -> None:
        """Use the working directory and search path of the service, and as many threads as are allowed."""
        try:
            os.chdir(self._run.configuration.directory)
        except OSError:  # the workspace is served from elsewhere by now
            if self._ranks.first:
                self._note(GONE)
        sys.path[:0] = self._run.configuration.path
        here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        torch.set_num_threads(self._configuration.trainer_threads or max(1, usable_cores() // here))
        if self._ranks.first:
            self._store.workspace.remove_leftovers(self._run.name)

    def _note_kernel_kills(self) -> None:
        """Halve the parts of a batch once for each attempt that the kernel has killed since the last halving.

        Raises: OutOfMemory: the kernel killed an attempt that had only one image in memory.
        """
        kills = 0
        for _, _, kind, message in self._store.events(self._run.name, limit=-1):
            if kind == KILLED_FOR_MEMORY:
                kills += 1
            elif message.startswith(TOO_LITTLE_MEMORY):
                kills = 0
        for _ in range(kills):
            self._micro_batch.halve(self._done)

    def _load_model(self) -> EmbeddingModel:
        if self._options.base == "base":
            ensure_base(self._store.workspace, self._configuration, say=self._note)
        model = load_model(self._base, freeze=False, embedding_dim=self._options.embedding_dim)
        prepare_model(model, self._options)
        return model

    def _note(self, note: str) -> None:
        """Append a warning of any rank to the run's history."""
        self._store.event(self._run.name, "warning", note)

    @property
    def _base(self) -> Path:
        """The folder of the version that the run starts from."""
        return self._store.workspace.model_folder(self._options.base)

    def _at_a_time(self, items: int) -> int:
        """Return `items`, or fewer if earlier attempts ran out of memory."""
        return min(items, self._micro_batch.at(self._done) or items)

    def _check_interrupted(self) -> None:
        if self._interrupted.is_set():
            raise Interrupted

    def _check_together(self) -> None:
        """Stop all ranks if one is told to stop. They compute something together."""
        self._progress.beat()
        if self._progress.is_due:
            self._progress.report()
        if self._is_told_to_stop():
            raise Interrupted

    def _is_told_to_stop(self) -> bool:
        """Whether a rank is told to stop; then so is this one, and it keeps what it has. All ranks ask at once."""
        told = self._ranks.any(self._interrupted.is_set())
        if told:
            self.interrupt()
        return told

    # what the recipe tells ----------------------------------------------------------------------------------------

    def say(self, sentence: str) -> None:
        self._progress.warn(sentence)

    def evaluating(self) -> None:
        self._evaluating = time.monotonic()
        self._progress.report(phase="evaluating")

    def begin(self, before: Measured | None, epochs: int, steps: int) -> None:
        self._meter = Meter()
        if self._left is not None and before is not None:
            self._left.evaluated(time.monotonic() - self._evaluating)
        metrics = {f"base/{name}": value for name, value in before.scores.mean().items()} if before else {}
        self._progress.report(phase="training", metrics=metrics, epochs=epochs, steps=steps)
        self._progress.epochs_begin()

    def filled(self, filling: Filling) -> None:
        self._progress.beat()
        self._check_interrupted()  # the features that are computed are kept on disk
        if filling.done == filling.total:
            self._progress.tell("features", str(filling))
        if self._progress.is_due:
            speed = filling.done / filling.seconds
            left = (filling.total - filling.done) / speed
            left += self._after_steps(0.0)
            self._progress.report(phase="loading", images_per_second=speed, eta_seconds=left)

    def trying(self, number: int, count: int, images_per_second: float) -> None:
        self._progress.beat()
        if self._progress.is_due:  # epoch, step and the time left are of the run itself, which has not begun
            self._progress.report(phase="training", images_per_second=images_per_second, eta_seconds=None)

    def tried(self, sentence: str) -> None:
        self._progress.tell("trial", sentence)

    def stepped(self, step: Step) -> None:
        self._progress.beat()
        self._done = step.done
        self._history = step.history
        speed, left = self._meter.update(step)
        if self._progress.is_due or step.done == step.total:
            self._progress.report(
                phase="training",
                epoch=step.epoch + 1,
                step=step.done,
                loss=step.loss,
                images_per_second=speed,
                eta_seconds=left + self._after_steps(speed),
                history=step.history,
            )

    def ended(self, history: dict[str, list[float]]) -> None:
        self._checkpoints.wait()
        self._progress.expect_end(self._after_steps(self._progress.now.images_per_second or 0.0))
        self._progress.report(phase="evaluating", history=history)

    def _after_steps(self, images_per_second: float) -> float:
        return 0.0 if self._left is None else self._left.after_steps(images_per_second)

    def lost(self, sentence: str) -> None:
        self._progress.tell("error", sentence)

    # what is kept -------------------------------------------------------------------------------------------------

    def _save(self, state: Callable[[], TrainState], epoch_ended: bool) -> None:
        if epoch_ended:
            self._progress.tell_epoch(state().history if self._history is None else self._history)
        due = time.monotonic() - self._saved >= (EPOCH_SECONDS if epoch_ended else CHECKPOINT_SECONDS)
        if due or self._interrupted.is_set():
            if self._ranks.first:  # all have the same state, and the same folder
                self._progress.report(phase="saving")
                self._checkpoints.write(state())
            self._saved = time.monotonic()
        if self._interrupted.is_set():
            self._checkpoints.wait()

    def _not_saved(self, error: WorkspaceError) -> None:
        self._progress.warn(f"{error} The run goes on; what it does until the next checkpoint is not safe yet.")
