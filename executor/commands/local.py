"""A workspace without a service: to look at, or to train in."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

from ..documents import Document
from ..errors import BadRequest, ConfigurationError
from ..images.object_store import ALL_STORES
from ..lifecycle.status import status_of
from ..parameters import ExecutorOptions, parse_executor_options
from ..store.runs import RunStore
from ..store.spool import DocumentArrayMemmap
from ..store.workspace import Workspace
from .calling import Documents, batched

ALONE = {
    "receive_timeout": 10 * 365 * 86400.0,  # seconds: a run starts when it is told to, however slowly documents come
    "standby_seconds": 0.0,
    "trainer_yields": False,  # it has nobody to let go first
    "trainer_nice": 0,
}


def kept_options(workspace: Workspace, given: dict[str, Any]) -> ExecutorOptions:
    """Return options under which the base model of a workspace stays the one that it is.

    Args: given: the options that were asked for. Who runs a command may read every file that it names.
    Raises: ConfigurationError: an option is wrong, or contradicts the base model that there is.
    """
    options = parse_executor_options({"allow_remote_uris": True, **given})
    if not options.remote_prefixes:
        options = options.model_copy(update={"remote_prefixes": ALL_STORES})
    if not workspace.base.is_dir():
        return options
    from ..models.saving import read_settings

    kept = {name: value for name, value in read_settings(workspace.base)["config"].items() if value is not None}
    kept = {name: value for name, value in kept.items() if name in ("model", "input_size", "embedding_dim")}
    for name in kept.keys() & given.keys():
        if kept[name] != getattr(options, name):
            raise ConfigurationError(
                f"The workspace {workspace.root} has a base model with {name}={kept[name]!r}, not "
                f"{getattr(options, name)!r}; leave that option out, or name another workspace."
            )
    return options.model_copy(update=kept)


class Reader:
    """Reads the statuses in a workspace, beside a service or without one. See `Place`."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace

    def call(self, path: str, docs: Sequence[Document] = (), **parameters: Any) -> list[Any]:
        if path != "/status":
            raise BadRequest(f"{path} needs a service: name one with --service.")
        with closing(RunStore(self.workspace)) as store:  # opened anew, because it remembers what is served
            run = parameters.get("run")
            runs = store.all() if run is None else [store.get(run)]
            return [status_of(store, each, self._counts) for each in runs]

    def stream(self, path: str, docs: Documents, answered: Callable[[list[Any]], None], **parameters: Any) -> None:
        answered(self.call(path, **parameters))

    def _counts(self, run: str) -> tuple[int, int]:
        file = self.workspace.spool_file(run)
        if not file.exists():
            return 0, 0
        with DocumentArrayMemmap(file, split="train") as train, DocumentArrayMemmap(file, split="eval") as evaluation:
            return len(train), len(evaluation)

    def close(self) -> None:
        pass


class Trainer:
    """Everything that a service does in a workspace, in this process and without a port. See `Place`.

    Raises: WorkspaceError: a service works in the workspace.
    """

    def __init__(self, workspace: Workspace, given: dict[str, Any]) -> None:
        from ..endpoints.service import Service

        self.workspace = workspace
        self.options = kept_options(workspace, given).model_copy(update=ALONE)
        self._loop = asyncio.new_event_loop()
        self._service = Service(workspace.root, self.options)

    def call(self, path: str, docs: Sequence[Document] = (), **parameters: Any) -> list[Any]:
        from ..endpoints.table import call

        return list(self._loop.run_until_complete(call(self._service, path, docs, parameters)))

    def stream(self, path: str, docs: Documents, answered: Callable[[list[Any]], None], **parameters: Any) -> None:
        for batch in batched(docs):
            answered(self.call(path, batch, **parameters))

    def close(self) -> None:
        """End the trainer, which keeps a checkpoint, and let others use the workspace."""
        self._service.close()
        self._loop.run_until_complete(asyncio.sleep(0))  # what it has cancelled there ends
        self._loop.close()
