"""`FinetunerExecutor`: Jina's door. Each method hands its documents to the endpoint of the same name.

No `from __future__ import annotations` here: Jina reads these annotations at run time. The methods are coroutines,
because Jina runs plain functions one at a time. Blocking work goes to threads.
"""

import json
import logging
from dataclasses import asdict, replace
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Any, Awaitable, Callable, Dict, Optional, Sequence

from docarray import DocList
from jina import Executor, requests

from . import tracing
from .compute.memory import keep_freed_memory
from .documents import (
    Comparison,
    Document,
    DocumentArray,
    Evaluation,
    Event,
    FeedbackStatus,
    RunQuery,
    RunStatus,
)
from .endpoints.health import readiness
from .endpoints.runs import coming, watch
from .endpoints.table import UNTOLD, call, open_service, writer_of
from .errors import FinetunerError
from .parameters import ExecutorOptions, parse_executor_options
from .web.app import make_app, traced
from .web.room import OwnRoom
from .web.server import Door
from .wire.ending import answer_before_the_end
from .wire.jina_private import hide_endpoints
from .wire.quiet import quieten
from .wire.refusals import Refusal, ease_gateways, extend_servers
from .wire.token import read_token, require

Params = Optional[Dict[str, Any]]  # parsed by hand: see `parameters.parse`

_log = logging.getLogger(__name__)
_KEPT_MEMORY = 2**29  # bytes: a batch of 64 pictures through the default model needs about so many
_JINA_ARGUMENTS = ("metas", "requests", "runtime_args", "workspace", "dynamic_batching")


class FinetunerExecutor(Executor):
    """Fine-tune an image embedding model in the background of a Flow, and serve it.

    Its options (`uses_with`) are those of `parameters.ExecutorOptions`.

    Raises: ConfigurationError: an option is unknown or wrong. WorkspaceError: the workspace cannot be used.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        jina_arguments = {name: kwargs.pop(name) for name in _JINA_ARGUMENTS if name in kwargs}
        super().__init__(*args, **jina_arguments)
        quieten()
        options = parse_executor_options(kwargs).with_roots()
        keep_freed_memory(_KEPT_MEMORY)
        self._token = read_token(options.token_file)
        self._trace()
        door = None if options.http_port is None else Door(options.http_host, options.http_port)
        self._service = open_service(Path(self.workspace).resolve(), options, copies=self._copies())
        if door is not None:
            door.open(traced(make_app(OwnRoom(self._service), options, self._token)))  # in Jina's event loop
            print(f"FinetunerExecutor serves HTTP on {door.address} (the page: {door.address}/ui/)", flush=True)
        answer_before_the_end(*([door.end] if door else []))
        extend_servers(self._token, options.max_request_bytes, options.cors_origins)
        hide_endpoints(UNTOLD)

    def _trace(self) -> None:
        """Make spans by Jina's tracing where that is on, else where the environment names a collector."""
        if self.tracer_provider is not None:
            tracing.use(self.tracer_provider)
        else:
            tracing.start("finetuner-executor")

    def _copies(self) -> int:
        """How many of this executor Jina starts: its replicas and shards."""
        return max(int(getattr(self.runtime_args, name, None) or 1) for name in ("replicas", "shards"))

    async def _call(self, path: str, docs: DocumentArray, parameters: Params) -> Sequence[Any]:
        """Call an endpoint. Every error becomes one sentence for the caller. Our bugs are logged with traceback."""
        try:
            require(self._token)
            with tracing.span_of_call(path):
                return await call(self._service, path, docs, parameters)
        except FinetunerError as error:
            raise Refusal(error) from None
        except Exception as error:
            _log.exception("An endpoint failed")
            raise Refusal.internal(error) from None

    @requests(on="/fit")
    async def fit(self, docs: DocumentArray, parameters: Params = None, **_: Any) -> DocList[RunStatus]:
        """Store documents durably in a run, and return its status."""
        return DocList[RunStatus](await self._call("/fit", docs, parameters))

    @requests(on="/status")
    async def status(self, docs: DocumentArray, parameters: Params = None, **_: Any) -> DocList[RunStatus]:
        """Return the status of one run, or of all, newest first."""
        return DocList[RunStatus](await self._call("/status", docs, parameters))

    @requests(on="/embed")
    async def embed(self, docs: DocumentArray, parameters: Params = None, **_: Any) -> DocumentArray:
        """Return the documents with their embeddings."""
        await self._call("/embed", docs, parameters)
        return docs

    @requests(on="/cancel")
    async def cancel(self, docs: DocumentArray, parameters: Params = None, **_: Any) -> DocList[RunStatus]:
        """Cancel a run that has not ended."""
        return DocList[RunStatus](await self._call("/cancel", docs, parameters))

    @requests(on="/delete")
    async def delete(self, docs: DocumentArray, parameters: Params = None, **_: Any) -> DocList[RunStatus]:
        """Remove an ended run with all its files; the answer is its last status."""
        return DocList[RunStatus](await self._call("/delete", docs, parameters))

    @requests(on="/promote")
    async def promote(self, docs: DocumentArray, parameters: Params = None, **_: Any) -> DocList[RunStatus]:
        """Serve another version from now on; the answer is the status of that run, or of all for `base`."""
        return DocList[RunStatus](await self._call("/promote", docs, parameters))

    @requests(on="/evaluate")
    async def evaluate(self, docs: DocumentArray, parameters: Params = None, **_: Any) -> DocList[Evaluation]:
        """Return the retrieval metrics of a version on labelled documents, or on a run's eval documents."""
        return DocList[Evaluation](await self._call("/evaluate", docs, parameters))

    @requests(on="/compare")
    async def compare(self, docs: DocumentArray, parameters: Params = None, **_: Any) -> DocList[Comparison]:
        """Compare two versions on the documents that prove a run, or on a folder."""
        return DocList[Comparison](await self._call("/compare", docs, parameters))

    @requests(on="/events")
    async def events(self, docs: DocumentArray, parameters: Params = None, **_: Any) -> DocList[Event]:
        """Return the history of a run, oldest first."""
        return DocList[Event](await self._call("/events", docs, parameters))

    @requests(on="/feedback")
    async def feedback(self, docs: DocumentArray, parameters: Params = None, **_: Any) -> DocList[FeedbackStatus]:
        """Store durably what users say of documents; the answer says what is kept in all."""
        return DocList[FeedbackStatus](await self._call("/feedback", docs, parameters))

    @requests(on="/galleries")
    async def galleries(self, docs: DocumentArray, parameters: Params = None, **_: Any) -> DocumentArray:
        """Return galleries that can be named: folders, parquet files and runs."""
        return DocumentArray(await self._call("/galleries", docs, parameters))

    @requests(on="/gallery")
    async def gallery(self, docs: DocumentArray, parameters: Params = None, **_: Any) -> DocumentArray:
        """Return a page of a gallery: its pictures are the matches of one document."""
        return DocumentArray(await self._call("/gallery", docs, parameters))

    @requests(on="/thumbnails")
    async def thumbnails(self, docs: DocumentArray, parameters: Params = None, **_: Any) -> DocumentArray:
        """Return small pictures of the documents, or of those of a run."""
        return DocumentArray(await self._call("/thumbnails", docs, parameters))

    @requests(on="/neighbours")
    async def neighbours(self, docs: DocumentArray, parameters: Params = None, **_: Any) -> DocumentArray:
        """Return the nearest pictures of a gallery for each document."""
        return DocumentArray(await self._call("/neighbours", docs, parameters))

    @requests(on="/words")
    async def words(self, docs: DocumentArray, parameters: Params = None, **_: Any) -> DocumentArray:
        """Return what feedback says of the documents, or what was said last."""
        return DocumentArray(await self._call("/words", docs, parameters))

    @requests(on="/labels")
    async def labels(self, docs: DocumentArray, parameters: Params = None, **_: Any) -> DocumentArray:
        """Return the labels that are in use."""
        return DocumentArray(await self._call("/labels", docs, parameters))

    @requests(on="/suggest")
    async def suggest(self, docs: DocumentArray, parameters: Params = None, **_: Any) -> DocumentArray:
        """Return the documents, or those of a gallery, whose labels would teach most, best first."""
        return DocumentArray(await self._call("/suggest", docs, parameters))

    @requests(on="/quarantined")
    async def quarantined(self, docs: DocumentArray, parameters: Params = None, **_: Any) -> DocumentArray:
        """Return the quarantined documents of a run, each with the reason and, where there is one, a thumbnail."""
        return DocumentArray(await self._call("/quarantined", docs, parameters))

    @requests(on="/report")
    async def report(self, docs: DocumentArray, parameters: Params = None, **_: Any) -> DocumentArray:
        """Return the report of a run as one document, whose `text` is a self-contained HTML page, or JSON."""
        return DocumentArray(await self._call("/report", docs, parameters))

    @requests(on="/watch")
    async def watch(self, doc: RunQuery, **_: Any) -> RunStatus:  # type: ignore[misc]  # Jina wants the item's class
        """Yield the status of a run whenever it changes, until the run has ended.

        It never raises, because a Flow's gateway would start the stream again. An error is sent as the last status.
        """
        try:
            require(self._token)
            async for status in watch(writer_of(self._service, "/watch"), doc.run):
                yield status
        except FinetunerError as error:
            yield RunStatus(run=doc.run or "", state="failed", error=str(error))
        except Exception as error:
            _log.exception("/watch failed")
            yield RunStatus(run=doc.run or "", state="failed", error=str(Refusal.internal(error)))

    @requests(on="/readyz")
    async def readyz(self, docs: DocumentArray, **_: Any) -> DocumentArray:
        """Tell the gateway how this executor stands."""
        return await self._tell(lambda: readiness(self._service))

    @requests(on="/metrics")
    async def metrics(self, docs: DocumentArray, **_: Any) -> DocumentArray:
        """Tell the gateway the figures of this executor."""
        return await self._tell(self._service.measures.exposition)

    @requests(on="/coming")
    async def coming(self, docs: DocumentArray, **_: Any) -> DocumentArray:
        """Hear from the gateway that requests to `/fit` are on their way: it sends them when they are whole."""
        return await self._tell(lambda: coming(self._service, docs))

    async def _tell(self, ask: Callable[[], Awaitable[Any]]) -> DocumentArray:
        """Return one document: its id is the executor's name, its `text` what was asked for."""
        try:
            require(self._token)
            told = await ask()
        except FinetunerError as error:
            raise Refusal(error) from None
        text = told.decode() if isinstance(told, bytes) else json.dumps(asdict(replace(told, executor=self._name)))
        return DocumentArray([Document(id=self._name, text=text)])

    @property
    def _name(self) -> str:
        """The name of this executor in its Flow; of replicas each has its own."""
        return str(getattr(self.runtime_args, "name", type(self).__name__))

    def close(self) -> None:
        """End the trainer and the threads. Jina calls it when the service ends."""
        self._service.close()
        tracing.end()


def _with_options(method: Any) -> Signature:
    """Return the signature of the constructor with every option by name: Jina warns of those that it does not name."""
    own = signature(method)
    before = [each for each in own.parameters.values() if each.kind is not Parameter.VAR_KEYWORD]
    options = [
        Parameter(name, Parameter.KEYWORD_ONLY, default=field.get_default(), annotation=field.annotation)
        for name, field in ExecutorOptions.model_fields.items()
    ]
    jinas = [each for each in own.parameters.values() if each.kind is Parameter.VAR_KEYWORD]
    return own.replace(parameters=[*before, *options, *jinas])


FinetunerExecutor.__init__.__signature__ = _with_options(  # type: ignore[attr-defined]  # Jina reads it, mypy forbids it
    FinetunerExecutor.__init__
)

ease_gateways()  # when the class is imported, because its Flow's gateway is a process without an executor
