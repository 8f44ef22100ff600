"""Callers in one event loop that record every request they make: by Jina's client, or by HTTP at our own door.

Of Jina they use the asyncio client, because its synchronous gRPC client allows only one call at a time in a process.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import aiohttp
from docarray import DocList
from jina import Client

from benchmarks.common import textured
from executor.documents import Document, DocumentArray, RunStatus

TIMEOUT = 120.0  # seconds; then a request counts as failed
PAUSE = 0.1
LARGEST = 4  # images in the largest request to /embed


class Request(NamedTuple):
    """One request, with its begin and end by `time.monotonic`; `error` is None if the answer was right."""

    endpoint: str
    began: float
    ended: float
    error: str | None


class RequestFailed(Exception):
    """A request got no answer, or a wrong one."""


class Caller:
    """One client, which makes one request at a time.

    Args: record: every request is added to it. pause: seconds between the requests of a steady caller.
    """

    def __init__(self, port: int, record: list[Request], pause: float = PAUSE) -> None:
        self._client = Client(host="127.0.0.1", port=port, asyncio=True)
        self._client.logger.logger.setLevel(logging.CRITICAL)  # failures are in the record
        # Otherwise all clients of a process share connections: after one is refused, all wait, longer each time.
        self._client.args.grpc_channel_options = [("grpc.use_local_subchannel_pool", 1)]
        self._record = record
        self._pause = pause

    async def post(
        self,
        endpoint: str,
        docs: Any = None,
        *,
        returns: Any = RunStatus,
        fault: Callable[[list[Any]], str | None] = lambda answers: None if answers else "an empty answer",
        **parameters: Any,
    ) -> list[Any]:
        """Call an endpoint.

        Args: fault: returns what is wrong with an answer, or None.
        Raises: RequestFailed: there was no answer, or a wrong one.
        """
        began = time.monotonic()
        try:
            answers = await asyncio.wait_for(self._answers(endpoint, docs, returns, parameters), TIMEOUT)
            error = fault(answers)
        except Exception as failure:
            error = f"{type(failure).__name__}: {_reason(failure)}"
        if error is not None:
            self._record.append(Request(endpoint, began, time.monotonic(), error))
            raise RequestFailed(f"{endpoint}: {error}")
        self._record.append(Request(endpoint, began, time.monotonic(), None))
        return answers

    async def _answers(self, endpoint: str, docs: Any, returns: Any, parameters: dict[str, Any]) -> list[Any]:
        responses = self._client.post(
            endpoint, docs, parameters=parameters, request_size=100, return_type=DocList[returns]
        )
        return [doc async for response in responses for doc in response]

    async def embed_steadily(self) -> None:
        """Embed one to four images again and again until cancelled; record failed requests and go on."""
        for number in range(10**9):
            images = [textured(number + image, 0, 32, 32) for image in range(1 + number % LARGEST)]
            docs = DocumentArray(Document(blob=image) for image in images)
            await self._try("/embed", docs, returns=Document, fault=partial(fault_of, count=len(docs)))

    async def ask_steadily(self) -> None:
        """Ask for the status of all runs again and again until cancelled; record failed requests and go on."""
        while True:
            await self._try("/status", fault=lambda answers: None)  # no answer is fine: at first there are no runs

    async def _try(self, endpoint: str, docs: Any = None, **options: Any) -> None:
        with contextlib.suppress(RequestFailed):  # the record has it
            await self.post(endpoint, docs, **options)
        await asyncio.sleep(self._pause)


class DoorCaller(Caller):
    """The same by HTTP at the door of a service with the option `http_port`. Each request has its own connection."""

    def __init__(self, port: int, record: list[Request], pause: float = PAUSE) -> None:
        super().__init__(port, record, pause)
        self._door = f"http://127.0.0.1:{port}"

    async def _answers(self, endpoint: str, docs: Any, returns: Any, parameters: dict[str, Any]) -> list[Any]:
        call = {"data": [_as_json(doc) for doc in docs or ()], "parameters": parameters}
        async with aiohttp.ClientSession() as session, session.post(self._door + endpoint, json=call) as response:
            answer = await response.json()
        if response.status != 200:
            raise RequestFailed(str(answer.get("detail", answer)))
        return [returns(**fields) for fields in answer["data"]]


def _as_json(doc: Document) -> dict[str, Any]:
    return {"id": doc.id, "blob": doc.blob.tolist(), "tags": doc.tags}


async def end(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancel tasks until all have ended: a task that gets its answer just then misses the first cancellation."""
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=1)


def fault_of(answers: list[Any], count: int) -> str | None:
    """Say what is wrong with the answer of /embed to `count` images, if anything is."""
    if len(answers) != count:
        return f"{len(answers)} documents came back, not {count}"
    if any(doc.embedding is None for doc in answers):
        return "a document came back without embedding"
    versions = {doc.tags.get("finetuner_model") for doc in answers}
    return f"the response mixes versions: {versions}" if len(versions) > 1 else None


def _reason(failure: Exception) -> str:
    """Return the service's message if there is one, else the exception's."""
    status = getattr(failure.args[0] if failure.args else None, "status", None)
    return str(getattr(status, "description", failure)).split("\n", 1)[0]
