"""What every door serves: a workspace, and everything that works on it."""

import asyncio
import functools
import threading
from pathlib import Path
from typing import Any

from .. import tracing
from ..compute.threads import Lanes
from ..images.libtiff import silence_libtiff
from ..lifecycle.feedback import Feedback, LabelsSaid
from ..lifecycle.processes import TrainerProcesses
from ..lifecycle.receiving import Receiver
from ..lifecycle.retraining import Retrainer
from ..lifecycle.supervisor import Supervisor
from ..models.versions import WorkspaceVersions, check_version, version_folder, version_names
from ..parameters import ExecutorOptions
from ..serving.comparing import is_worse
from ..serving.comparisons import Comparisons
from ..serving.embedder import Embedder
from ..serving.galleries import Galleries
from ..serving.gallery_places import GalleryPlaces
from ..serving.neighbours import KEPT_BYTES as VECTOR_BYTES
from ..serving.neighbours import Neighbours
from ..serving.publishing import Publisher
from ..serving.spaces import Spaces
from ..serving.thumbnails import KEPT_BYTES as THUMBNAIL_BYTES
from ..serving.thumbnails import Thumbnails
from ..store.cache import Cache
from ..store.lineage import lineage_of
from ..store.lock import WorkspaceLock
from ..store.published import Place
from ..store.runs import RunStore
from ..store.workspace import Workspace
from .gathering import Gatherings
from .measures import Measures
from .outward import places_of

RECEIVING_AT_ONCE = 32  # runs whose documents are stored at one time


class Service:
    """Receives documents, trains runs and serves models. There is one per workspace.

    Args: folder: the workspace folder. options: the executor's, with their roots resolved.
    Raises: WorkspaceError: the workspace is in use, or cannot be used.
    """

    def __init__(self, folder: Path, options: ExecutorOptions) -> None:
        silence_libtiff()
        self.folder, self.places = folder, places_of(folder, options)
        self._ending = threading.Event()
        workspace = Workspace(folder)
        self._lock = WorkspaceLock(workspace)
        with workspace.spending_reserve():  # opening a database takes a little room, which a full disk has not
            self.store = RunStore(workspace)
        self.policy = options.image_policy()
        self.role = options.role
        self.measures = Measures(self)
        self._versions = WorkspaceVersions(workspace, options, self.store.promoted)
        self.embedder = Embedder(self._versions, options, self.measures.batch_images.observe)
        self.spaces = Spaces(self._folder_of, functools.partial(version_names, workspace))
        self.comparisons = Comparisons(self.embedder)
        self.gatherings: Gatherings[Any, Any] = Gatherings()  # of /evaluate
        self.galleries = Galleries(self.store, self.policy)
        self.gallery_places = GalleryPlaces(self.policy.allowed_roots or (), folder)
        self.thumbnails = Thumbnails(
            Cache(workspace.thumbnails, THUMBNAIL_BYTES, self._run_numbers),
            self.policy,
            busy=lambda: bool(self.embedder.waiting),
        )
        self.neighbours = Neighbours(
            self.embedder, Cache(workspace.vectors, VECTOR_BYTES, self._run_numbers), self.policy
        )
        self.receiving = Lanes(RECEIVING_AT_ONCE)  # a lane for each run, so that none waits for another's disk
        wake = threading.Event()
        self.receiver = Receiver(self.store, options, wake=wake.set)
        self.labels_said = LabelsSaid(self.store, self.receiver.feedback, self.policy)
        self.feedback = Feedback(self.store, self.receiver.feedback, options, self.receiver.fault)
        trainers = TrainerProcesses(
            workspace,
            nice=options.trainer_nice,
            yields=options.trainer_yields,
            standby_seconds=options.standby_seconds,
            command=options.train_command,
            jobs=options.train_jobs,
        )
        self.supervisor = Supervisor(
            self.store,
            self.receiver,
            trainers,
            promote=self.serve,
            wake=wake,
            judged=lambda outcome: self.measures.promotions.labels(outcome).inc(),
        )
        self.retrainer = Retrainer(
            self.store,
            self.receiver.feedback,
            self.receiver,
            options,
            is_worse=functools.partial(
                is_worse,
                self.embedder,
                lineage=functools.partial(lineage_of, workspace),
                is_ended=self._ending.is_set,
            ),
            serve=self.serve,
        )
        self.store.finish_deletes()
        trainers.end_leftovers()
        with workspace.spending_reserve():
            self.receiver.go_on()
            self.supervisor.start()
        self.retrainer.start()
        self._publisher = self._start_publisher(options.publish_to)
        if self.role == "all":
            self.embedder.warm()

    def _folder_of(self, version: str) -> Path:
        """Return the folder of a version, without a look at whether it is whole. Raises: UnknownModel."""
        workspace = self.store.workspace
        if version == "base" and not workspace.base.is_dir():
            return self._versions.folder(version)
        return version_folder(workspace, version)

    def _start_publisher(self, place: str | None) -> Publisher | None:
        return None if place is None else Publisher(Place(place), self.store.promoted, self._versions.folder)

    def _run_numbers(self) -> set[int]:
        return {run.number for run in self.store.all()}

    async def forget(self, run: int) -> None:
        """Remove what was made of the documents of a deleted run. Args: run: its number."""
        await asyncio.to_thread(self.thumbnails.forget, run)
        await self.neighbours.forget(run)

    def served(self) -> str:
        """Return the version that is served now: `base` or a run."""
        return self.store.promoted()

    def served_since(self) -> str | None:
        """Return since when, ISO 8601; None: since ever."""
        return self.store.served_since()

    def degraded(self) -> list[str]:
        """Return what is wrong while it serves nevertheless, a sentence each."""
        trouble = None if self._publisher is None else self._publisher.trouble()
        return [] if trouble is None else [trouble]

    def serve(self, version: str) -> None:
        """Serve a version, `base` or a run, from now on. Raises: UnknownModel: there is no such version."""
        with tracing.span("promotion", {"finetuner.version": version}):
            self._serve(version)

    def _serve(self, version: str) -> None:
        if self.role == "train":
            check_version(self.store.workspace, version)
        else:
            self.embedder.version(version)  # loaded first, so that no request waits for it
        if version != "base":
            self.store.get(version)
        self.store.promote(version)
        if self._publisher is not None:
            self._publisher.publish()

    def close(self) -> None:
        """End the trainer and the threads, and let another service use the workspace."""
        self._ending.set()
        self.retrainer.stop()
        self.receiver.stop()
        self.supervisor.close()  # first of those that take long: its trainer needs the time to write a checkpoint
        self.retrainer.close()
        if self._publisher is not None:
            self._publisher.close()
        self.comparisons.close()
        self.neighbours.close()
        self.thumbnails.close()
        self.embedder.close()
        self.receiving.close()
        self.receiver.close()
        self.store.close()
        self._lock.release()
