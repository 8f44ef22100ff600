"""What follows a training: the tuned model is measured, judged and saved with its map, and the report is written.

The service then decides what becomes of the model.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from ..compute.ranks import Ranks
from ..models.model import EmbeddingModel
from ..models.saving import save_model, space_of
from ..models.versions import load_version
from ..report.parts import LabelErrors
from ..store.run import Run
from ..store.runs import RunStore
from ..training.recipe import Outcome, Task
from .index_learning import LearnedIndex, Served, learn_index, measure_index
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
        served = self._load_served(self._ranks.agree(self._store.served_now), trained)
        self._progress.report(phase="evaluating")
        label_errors = self._check_labels(trained)
        index = self._learn_index(trained, served)
        if not self._ranks.first:
            return
        judgement = self._judge(trained, served)
        if index is not None and index.plan is not None:
            judgement = replace(judgement, verdict=f"{judgement.verdict} {index.plan.sentence()}")
        self._tell(judgement, served.version)
        folder = self._store.workspace.model_folder(self._run.name)
        save_model(trained.model, folder, beside=None if index is None else index.write)
        plan = {} if index is None or index.plan is None else index.plan.as_status()
        self._progress.report(space=space_of(folder), index_plan=plan)
        write_report(
            self._store,
            self._run,
            trained.model,
            trained.task,
            trained.outcome,
            judgement,
            counts=trained.data.counts(trained.task),
            device=str(trained.device),
            served=served.version,
            before=served.measured,
            label_errors=label_errors,
            copies=trained.data.copies(),
            index=index,
        )
        self._progress.conclude()

    def _load_served(self, version: str, trained: Trained) -> Served:
        """Load the version that is served now, and measure it on the documents of the proof, if there are any."""
        workspace, eval_set = self._store.workspace, trained.task.eval_set
        self._store.wait_for(version)
        model = load_version(workspace, self._run.configuration.options, version).to(trained.device)
        measured = trained.outcome.before
        if eval_set is not None and version != self._run.options.base:
            measured = trained.data.eval_set_for(model, eval_set).measure(model)
        return Served(version=version, space=space_of(workspace.model_folder(version)), model=model, measured=measured)

    def _learn_index(self, trained: Trained, served: Served) -> LearnedIndex | None:
        task, after = trained.task, trained.outcome.after
        learned = learn_index(
            trained.data.trained_items(task, trained.device, trained.batch),
            task.choose_set,
            served,
            trained.model,
            prepared_for=trained.data.eval_set_for,
            check=self._check,
            alone=self._ranks.alone,
            first=self._ranks.first,
        )
        if learned is None or task.eval_set is None or served.measured is None or after is None:
            return learned
        return measure_index(
            learned,
            task.eval_set,
            served.measured,
            after,
            tolerance=self._run.configuration.options.index_tolerance,
            unseen=trained.data.parts.whole_classes,
        )

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

    def _judge(self, trained: Trained, served: Served) -> Judgement:
        options, task = self._run.options, trained.task
        documents, given, _ = trained.data.counts(task)
        return judge(
            task,
            trained.outcome,
            served.measured,
            served_version=served.version,
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
