"""What is behind our HTTP door in a gateway: all executors of a Flow, each with its turn."""

import asyncio
import base64
import json
import uuid
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from docarray import DocList
from fastapi import HTTPException
from jina.excepts import InternalNetworkError

from . import errors
from .documents import Comparison, Document, DocumentArray, RunStatus
from .endpoints.health import Readiness
from .endpoints.table import UNTOLD, not_here
from .web.pictures import Picture, fields_of
from .wire.jina_private import Models, models_of

KNOWN_BY = "/promote"  # no executor but ours is likely to have it
TELL_SECONDS = 1.0  # between two words to the executor that a request is still coming
AT_ONCE_SECONDS = 0.1  # a request that is here by then needs none
ANSWER_SECONDS = 5.0  # for an executor to say how it stands; one that is stopped would never do
UNREACHABLE = "No executor of this Flow answers: it has ended, or is being started. Try again, or start the Flow anew."
HANGS = (
    "The executor behind this gateway has not answered for {seconds:g} s: it is stopped (SIGSTOP, a debugger), or has "
    "too much to do. Continue it (SIGCONT), or try again; if that does not help, start the Flow anew."
)
_CLASSES = (
    errors.BadRequest,
    errors.Unauthorized,
    errors.NotFound,
    errors.Conflict,
    errors.LimitExceeded,
    errors.BadDocument,
    errors.Overloaded,
    errors.WorkspaceError,
)
_BY_STATUS: dict[int, type[errors.FinetunerError]] = {each.status: each for each in _CLASSES}


class FlowRoom:
    """Calls the executors of a Flow.

    Args: streamer: the gateway's, which raises refusals as HTTPException.
    """

    def __init__(self, streamer: Any) -> None:
        self._streamer = streamer

    @contextmanager
    def coming(self, run: str | None) -> Iterator[Callable[[str], None]]:
        """Tell the executor that a request comes, until it is here: the executor sees what is whole of it alone."""
        request = Picture(uuid.uuid4().hex)
        request.text = run

        def is_for(run: str) -> None:
            request.text = run

        telling = asyncio.ensure_future(self._tell(request))
        try:
            yield is_for
        finally:
            telling.cancel()

    async def _tell(self, request: Picture) -> None:
        await asyncio.sleep(AT_ONCE_SECONDS)
        while True:
            with suppress(errors.FinetunerError):  # whatever it is, the request itself is answered with it
                await self.call("/coming", [request], {})
            await asyncio.sleep(TELL_SECONDS)

    async def call(self, path: str, docs: Sequence[Any], parameters: dict[str, Any]) -> Sequence[Any]:
        """Call the endpoint of all executors that have it, in one request. Raises: FinetunerError."""
        if path in UNTOLD:
            return await self._ask_ours(path, docs, parameters)
        models = self._models(path)
        if path == "/evaluate" and docs and "run" not in parameters:
            parameters = {"total": len(docs), **parameters}  # this is all of them
        sent = DocList[models.given](models.given(**_given(doc)) for doc in docs)
        calling = self._streamer.stream_docs(
            sent,
            exec_endpoint=path,
            parameters=parameters,
            request_size=max(1, len(sent)),
            return_results=True,
            return_type=DocList[models.returned],
        )
        try:
            async for response in calling:
                return list(response.docs)
        except HTTPException as refused:
            raise _BY_STATUS.get(refused.status_code, errors.InternalError)(str(refused.detail)) from None
        except InternalNetworkError as error:
            raise errors.Unreachable(UNREACHABLE) from error
        raise errors.Unreachable(UNREACHABLE)

    async def _ask_ours(self, path: str, docs: Sequence[Any], parameters: dict[str, Any]) -> Sequence[Any]:
        """Call an endpoint that is none of the Flow's, but of our executor alone."""
        sent = DocList[Document](Document(**_given(doc)) for doc in docs)
        try:
            response = await self._streamer.ask_one(KNOWN_BY, path, sent, parameters)
        except HTTPException as refused:
            raise _BY_STATUS.get(refused.status_code, errors.InternalError)(str(refused.detail)) from None
        except InternalNetworkError as error:
            raise errors.Unreachable(UNREACHABLE) from error
        if response is None:
            raise errors.Unreachable(UNREACHABLE)
        response.document_array_cls = DocList[Comparison if path == "/compare" else Document]
        return list(response.docs)

    def _models(self, path: str) -> Models:
        models = models_of(self._streamer, path)
        if models is None:
            raise errors.NotFound(f"No executor of this Flow has an endpoint {path}.")
        return models

    async def watch(self, run: str | None) -> AsyncGenerator[RunStatus, None]:
        """Yield the status of a run whenever it changes. Raises: UnknownRun, Conflict: before the first.

        Over a stream the executor cannot refuse: it sends a status with the reason. So it is asked otherwise before.
        """
        given = self._models("/watch").given
        if (role := (await self._readiness()).role) == "serve":
            raise not_here(role, "/watch")
        if not await self.call("/status", DocumentArray(), {} if run is None else {"run": run}):
            raise errors.UnknownRun("There are no runs yet: post documents to /fit.")
        try:
            async for status, error in self._streamer.stream_doc(doc=given(run=run), exec_endpoint="/watch"):
                if error:
                    raise errors.InternalError(str(error))
                yield status
        except InternalNetworkError as error:
            raise errors.Unreachable(UNREACHABLE) from error

    async def readiness(self) -> Readiness:
        """Ask an executor, and say which; a Flow with replicas asks them in turn."""
        try:
            return await self._readiness()
        except errors.FinetunerError as error:
            return Readiness(False, "", None, [str(error)])

    async def _readiness(self) -> Readiness:
        return Readiness(**json.loads((await self._told("/readyz")).text))

    async def metrics(self) -> bytes:
        """Ask an executor for its figures; the first line says which."""
        answer = await self._told("/metrics")
        return f"# executor: {answer.id}\n{answer.text}".encode()

    async def _told(self, path: str) -> Any:
        """Return what an executor says of itself. Raises: Unreachable: none does, or not soon."""
        try:
            (answer,) = await asyncio.wait_for(self.call(path, DocumentArray(), {}), ANSWER_SECONDS)
        except asyncio.TimeoutError:
            raise errors.Unreachable(HANGS.format(seconds=ANSWER_SECONDS)) from None
        return answer


def _given(doc: Picture) -> dict[str, Any]:
    """Return the fields of a document that are set: the classes of a Flow have defaults for the others.

    Those classes take bytes for text, so a file is written in base64, as in JSON.
    """
    fields = _as_text(fields_of(doc))
    return fields | {"matches": [_as_text(match) for match in fields["matches"]]}


def _as_text(fields: dict[str, Any]) -> dict[str, Any]:
    given = {name: value for name, value in fields.items() if value is not None}
    if "buffer" in given and not given["buffer"].isascii():
        given["buffer"] = base64.b64encode(given["buffer"])
    return given
