"""`FinetunerExecutor`: the endpoints. Each parses its parameters, calls one thing, and returns documents.

No `from __future__ import annotations` here: Jina reads these annotations at run time. The endpoints are
coroutines, because Jina runs plain functions one at a time; what blocks goes to threads.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import wraps
from pathlib import Path
from typing import Any, Dict, Optional

from docarray import DocList
from jina import Executor, requests

from .documents import Document, DocumentArray, Evaluation, Event, RunQuery, RunStatus
from .errors import FinetunerError
from .lifecycle.processes import TrainerProcesses
from .lifecycle.receiving import Receiver
from .lifecycle.status import status_of
from .lifecycle.supervisor import Supervisor
from .parameters import (
    CancelParameters,
    DeleteParameters,
    EmbedParameters,
    EvaluateParameters,
    EventsParameters,
    FitParameters,
    PromoteParameters,
    ReportParameters,
    StatusParameters,
    parse,
    parse_executor_options,
)
from .report import contents as reporting
from .serving.embedder import Embedder
from .serving.evaluate import evaluate
from .store.lock import WorkspaceLock
from .store.run import Run
from .store.runs import RunStore
from .store.workspace import Workspace
from .wire.ending import answer_before_the_end
from .wire.refusals import Refusal, extend_servers
from .wire.token import read_token, require

WATCH_SECONDS = 0.2
Params = Optional[Dict[str, Any]]  # parsed by hand: see `parameters.parse`

_log = logging.getLogger(__name__)
_JINA_ARGUMENTS = ("metas", "requests", "runtime_args", "workspace", "dynamic_batching")


def endpoint(function: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Turn every error into one sentence for the caller; ours keep their traceback in the service's log."""

    @wraps(function)
    async def guarded(self: "FinetunerExecutor", *args: Any, **kwargs: Any) -> Any:
        try:
            require(self._token)
            return await function(self, *args, **kwargs)
        except FinetunerError as error:
            raise Refusal(error) from None
        except Exception as error:
            _log.exception("An endpoint failed")
            raise Refusal.internal(error) from None

    return guarded


class FinetunerExecutor(Executor):
    """Fine-tune an image embedding model in the background of a Flow, and serve it.

    Its options (`uses_with`) are those of `parameters.ExecutorOptions`.

    Raises: ConfigurationError: an option is unknown or wrong. WorkspaceError: the workspace cannot be used.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        jina_arguments = {name: kwargs.pop(name) for name in _JINA_ARGUMENTS if name in kwargs}
        super().__init__(*args, **jina_arguments)
        options = parse_executor_options(kwargs).with_roots()
        self._token = read_token(options.token_file)
        workspace = Workspace(Path(self.workspace).resolve())
        self._workspace_lock = WorkspaceLock(workspace)  # `_lock` is Jina's
        self._store = RunStore(workspace)
        self._embedder = Embedder(workspace, options, self._store.promoted)
        self._supervisor = Supervisor(
            self._store,
            TrainerProcesses(
                workspace,
                nice=options.trainer_nice,
                yields=options.trainer_yields,
                standby_seconds=options.standby_seconds,
            ),
            receive_timeout=options.receive_timeout,
            queue=lambda run: self._receiver.queue(run),
            delete=lambda run: self._receiver.delete(run),
            promote=self._serve,
        )
        self._receiver = Receiver(
            self._store,
            options,
            arrived=self._supervisor.arrived,
            start_soon=self._supervisor.start_soon,
            options_changed=self._supervisor.warm_again,
        )
        self._store.finish_deletes()
        self._receiver.go_on()
        self._supervisor.start()
        self._embedder.warm()
        answer_before_the_end()
        extend_servers(self._token)

    @requests(on="/fit")
    @endpoint
    async def fit(self, docs: DocumentArray, parameters: Params = None, **_: Any) -> DocList[RunStatus]:
        """Append documents to a run, durably, and return its status."""
        run = await asyncio.to_thread(self._receiver.receive, docs, parse(FitParameters, parameters, where="/fit"))
        return await self._statuses(run)

    @requests(on="/status")
    @endpoint
    async def status(self, docs: DocumentArray, parameters: Params = None, **_: Any) -> DocList[RunStatus]:
        """Return the status of one run, or of all, newest first."""
        return await self._statuses(parse(StatusParameters, parameters, where="/status").run)

    @requests(on="/embed")
    @endpoint
    async def embed(self, docs: DocumentArray, parameters: Params = None, **_: Any) -> DocumentArray:
        """Return the documents with their embeddings."""
        wanted = parse(EmbedParameters, parameters, where="/embed")
        await self._embedder.embed(docs, model=wanted.model, matches=wanted.matches)
        return docs

    @requests(on="/cancel")
    @endpoint
    async def cancel(self, docs: DocumentArray, parameters: Params = None, **_: Any) -> DocList[RunStatus]:
        """Cancel a run that has not ended."""
        run = parse(CancelParameters, parameters, where="/cancel").run
        await asyncio.to_thread(self._supervisor.cancel, run)
        await asyncio.to_thread(self._receiver.release, run)
        return await self._statuses(run)

    @requests(on="/delete")
    @endpoint
    async def delete(self, docs: DocumentArray, parameters: Params = None, **_: Any) -> DocList[RunStatus]:
        """Delete a run that has ended, with all its files; the answer is its last status."""
        run = parse(DeleteParameters, parameters, where="/delete").run
        last = await self._statuses(run)
        await asyncio.to_thread(self._supervisor.delete, run)
        await asyncio.to_thread(self._embedder.forget, run)
        return last

    @requests(on="/promote")
    @endpoint
    async def promote(self, docs: DocumentArray, parameters: Params = None, **_: Any) -> DocList[RunStatus]:
        """Serve another version from now on; the answer is the status of that run, or of all for `base`."""
        version = parse(PromoteParameters, parameters, where="/promote").run
        await asyncio.to_thread(self._serve, version)
        return await self._statuses(None if version == "base" else version)

    @requests(on="/evaluate")
    @endpoint
    async def evaluate(self, docs: DocumentArray, parameters: Params = None, **_: Any) -> DocList[Evaluation]:
        """Return the retrieval metrics of a version on labelled documents, or on a run's eval documents."""
        wanted = parse(EvaluateParameters, parameters, where="/evaluate")
        return DocList[Evaluation]([await evaluate(self._embedder, self._store, docs, wanted)])

    @requests(on="/events")
    @endpoint
    async def events(self, docs: DocumentArray, parameters: Params = None, **_: Any) -> DocList[Event]:
        """Return the history of a run, oldest first."""
        wanted = parse(EventsParameters, parameters, where="/events")
        run = await asyncio.to_thread(self._store.get, wanted.run)
        found = await asyncio.to_thread(self._store.events, run.name, wanted.after, wanted.limit)
        return DocList[Event](
            Event(run=run.name, number=number, at=at, kind=kind, message=message) for number, at, kind, message in found
        )

    @requests(on="/report")
    @endpoint
    async def report(self, docs: DocumentArray, parameters: Params = None, **_: Any) -> DocumentArray:
        """Return the report of a run as one document, whose `text` is a self-contained HTML page."""
        run = parse(ReportParameters, parameters, where="/report").run
        return DocumentArray([Document(id=run, text=await asyncio.to_thread(reporting.read, self._store, run))])

    @requests(on="/watch")
    async def watch(self, doc: RunQuery, **_: Any) -> RunStatus:  # type: ignore[misc]  # Jina wants the item's class
        """Yield the status of a run whenever it changes, until the run has ended.

        It never raises, because a Flow's gateway would start the stream again: an error is a last status.
        """
        try:
            require(self._token)
            shown = None
            run = await asyncio.to_thread(self._watched, doc.run)
            while True:
                status = await asyncio.to_thread(self._status, run.name)
                if status != shown:
                    yield status
                    shown = status
                if status.ended_at is not None:
                    return
                await asyncio.sleep(WATCH_SECONDS)
        except FinetunerError as error:
            yield RunStatus(run=doc.run or "", state="failed", error=str(error))
        except Exception as error:
            _log.exception("/watch failed")
            yield RunStatus(run=doc.run or "", state="failed", error=str(Refusal.internal(error)))

    def close(self) -> None:
        """End the trainer and the threads. Jina calls it when the service ends."""
        self._supervisor.close()
        self._embedder.close()
        self._receiver.close()
        self._store.close()
        self._workspace_lock.release()

    def _serve(self, version: str) -> None:
        self._embedder.version(version)  # loaded first, so that no request waits for it
        if version != "base":
            self._store.get(version)
        self._store.promote(version)

    async def _statuses(self, run: str | None) -> DocList[RunStatus]:
        return DocList[RunStatus](await asyncio.to_thread(self._list_statuses, run))

    def _list_statuses(self, name: str | None) -> list[RunStatus]:
        runs = self._store.all() if name is None else [self._store.get(name)]
        return [status_of(self._store, run, self._receiver.counts) for run in runs]

    def _status(self, name: str) -> RunStatus:
        return self._list_statuses(name)[0]

    def _watched(self, name: str | None) -> Run:
        """The run to watch; without a name the newest."""
        if name is None and (runs := self._store.all()):
            return runs[0]
        return self._store.get(name or "")
