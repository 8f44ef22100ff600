"""What every door serves: a workspace, and everything that works on it."""

import threading
from pathlib import Path
from typing import Any

from ..lifecycle.processes import TrainerProcesses
from ..lifecycle.receiving import Receiver
from ..lifecycle.supervisor import Supervisor
from ..parameters import ExecutorOptions
from ..serving.embedder import Embedder
from ..store.lock import WorkspaceLock
from ..store.runs import RunStore
from ..store.workspace import Workspace
from .gathering import Gatherings
from .measures import Measures


class Service:
    """Receives documents, trains runs and serves models. There is one per workspace.

    Args: folder: the workspace folder. options: the executor's, with their roots resolved.
    Raises: WorkspaceError: the workspace is in use, or cannot be used.
    """

    def __init__(self, folder: Path, options: ExecutorOptions) -> None:
        workspace = Workspace(folder)
        self._lock = WorkspaceLock(workspace)
        self.store = RunStore(workspace)
        self.measures = Measures(self)
        self.embedder = Embedder(workspace, options, self.store.promoted, self.measures.batch_images.observe)
        self.gatherings: Gatherings[Any, Any] = Gatherings()  # of /evaluate
        wake = threading.Event()
        self.receiver = Receiver(self.store, options, wake=wake.set)
        trainers = TrainerProcesses(
            workspace,
            nice=options.trainer_nice,
            yields=options.trainer_yields,
            standby_seconds=options.standby_seconds,
        )
        self.supervisor = Supervisor(
            self.store,
            self.receiver,
            trainers,
            promote=self.serve,
            wake=wake,
            judged=lambda outcome: self.measures.promotions.labels(outcome).inc(),
        )
        self.store.finish_deletes()
        self.receiver.go_on()
        self.supervisor.start()
        self.embedder.warm()

    def serve(self, version: str) -> None:
        """Serve a version, `base` or a run, from now on. Raises: UnknownModel: there is no such version."""
        self.embedder.version(version)  # loaded first, so that no request waits for it
        if version != "base":
            self.store.get(version)
        self.store.promote(version)

    def close(self) -> None:
        """End the trainer and the threads, and let another service use the workspace."""
        self.supervisor.close()
        self.embedder.close()
        self.receiver.close()
        self.store.close()
        self._lock.release()
