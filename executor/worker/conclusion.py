"""What follows a training: the tuned model is measured, judged and saved, and the report is written.

The service then decides what becomes of the model.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..compute.ranks import Ranks
from ..evaluation.eval_set import Measured
from ..models.model import EmbeddingModel
from ..models.saving import save_model, space_of
from ..models.versions import load_version
from ..report.parts import LabelErrors
from ..store.run import Run
from ..store.runs import RunStore
from ..training.recipe import Outcome, Task
from .judgement import Judgement, judge, why_unproven
from .label_check import check_labels
from .progress import ProgressWriter
from .reporting import write_report
from .run_documents import RunDocuments


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A training that has ended. Attributes: batch: images embedded at a time."""

    model: EmbeddingModel
    data: RunDocuments
    task: Task
    outcome: Outcome
    device: torch.device
    batch: int


class Conclusion:
    """Concludes one run. Args: check: called now and then by all ranks at once; raises to stop the work."""

    def __init__(
        self, store: RunStore, run: Run, ranks: Ranks, progress: ProgressWriter, *, check: Callable[[], None]
    ) -> None:
        self._store = store
        self._run = run
        self._ranks = ranks
        self._progress = progress
        self._check = check

    def draw(self, trained: Trained) -> None:
        """Do it all. Every rank calls this; only the first judges and writes. Raises: what `check` raises."""
        version = self._ranks.agree(self._store.served_now)
        served = self._measure_served(version, trained)
        self._progress.report(phase="evaluating")
        label_errors = self._check_labels(trained)
        if not self._ranks.first:
            return
        judgement = self._judge(trained, served, version)
        self._tell(judgement, version)
        folder = self._store.workspace.model_folder(self._run.name)
        save_model(trained.model, folder)
        self._progress.report(space=space_of(folder))
        write_report(
            self._store,
            self._run,
            trained.model,
            trained.task,
            trained.outcome,
            judgement,
            counts=trained.data.counts(trained.task),
            device=str(trained.device),
            served=version,
            before=served,
            label_errors=label_errors,
            copies=trained.data.copies(),
        )
        self._progress.conclude()

    def _measure_served(self, version: str, trained: Trained) -> Measured | None:
        """Measure the version that is served now on the documents of the proof; None if there are none."""
        eval_set = trained.task.eval_set
        if eval_set is None or version == self._run.options.base:
            return trained.outcome.before
        model = load_version(self._store.workspace, self._run.configuration.options, version).to(trained.device)
        return trained.data.eval_set_for(model, eval_set).measure(model)

    def _check_labels(self, trained: Trained) -> LabelErrors | None:
        return check_labels(
            trained.data.labelled_parts(trained.task, trained.device, trained.batch),
            load_version(self._store.workspace, self._run.configuration.options, "base"),
            trained.model,
            prepared_for=trained.data.eval_set_for,
            check=self._check,
            device=trained.device,
            ranks=self._ranks,
        )

    def _judge(self, trained: Trained, served: Measured | None, version: str) -> Judgement:
        options, task = self._run.options, trained.task
        documents, given, _ = trained.data.counts(task)
        return judge(
            task,
            trained.outcome,
            served,
            served_version=version,
            whole_classes=trained.data.parts.whole_classes,
            promote_by=options.promote_by,
            chance=self._run.configuration.level,
            unproven=why_unproven(task, options.val_split, documents, given=given > 0),
            noticed=trained.data.noticed(),
        )

    def _tell(self, judgement: Judgement, served: str) -> None:
        """Publish the judgement. The service decides by it."""
        for warning in judgement.warnings:
            self._progress.warn(warning)
        self._progress.report(
            metrics=self._progress.now.metrics | judgement.metrics,
            better=judgement.better,
            served=served,
            verdict=judgement.verdict,
            warnings=judgement.warnings,
        )
        self._progress.report(phase="saving")
