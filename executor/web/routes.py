"""A route for each endpoint, `/watch`, health and metrics."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import asdict
from typing import Any, TypeVar

from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse

from ..documents import RunStatus
from ..endpoints.table import ENDPOINTS
from ..errors import BadRequest, FinetunerError
from . import answers
from .bounds import Bodies, Body, Early, came_whole
from .calls import JSON, LINES, Call, lines, media_type, query_of, read_call
from .pictures import as_json
from .room import Room

WITH_PICTURES = ("/fit", "/embed", "/evaluate", "/feedback")  # take forms and JSON lines too
SAID_OF_READINESS = ("ready", "served", "space", "degraded", "executor")
SILENCE_SECONDS = 15.0  # of `/watch`, before a comment shows that it is still there

Handler = Callable[[Request], Awaitable[Response]]
T = TypeVar("T")


def endpoint(room: Room, bodies: Bodies, path: str) -> Handler:
    """Return the route of an endpoint."""
    model = ENDPOINTS[path].parameters

    async def handle(request: Request) -> Response:
        with bodies.open(request) as body:
            if path == "/fit":
                with room.coming(request.query_params.get("run")) as is_for:
                    return await fit(request, body, is_for)
            return await answered(request, await read_call(request, body, model, pictures=path in WITH_PICTURES))

    async def fit(request: Request, body: Body, is_for: Callable[[str], None]) -> Response:
        if media_type(request) in LINES:
            found = await _fit_lines(room, request, body, model, is_for)
            return answers.answer({"data": as_json(found)})
        call = await read_call(request, body, model, pictures=True)
        if isinstance(run := call.parameters.get("run"), str):
            is_for(run)
        return await answered(request, call)

    async def answered(request: Request, call: Call) -> Response:
        found = await unless_gone(request, room.call(path, call.docs, call.parameters))
        if media_type(request) not in ("", JSON, *LINES):
            _leave_out_files(found)
        return answers.answer({"data": as_json(found)})

    return refusing(handle)


def _leave_out_files(docs: Sequence[Any]) -> None:
    """Answer a file with its embedding alone: it did not come as text, and would not be read as text."""
    for doc in docs:
        if hasattr(doc, "buffer"):
            doc.buffer = None


async def _fit_lines(
    room: Room, request: Request, body: Body, model: type[BaseModel], is_for: Callable[[str], None]
) -> Any:
    """Store the documents of a body that may be larger than memory, a part after the other, in one run.

    Args: is_for: is told the run.
    Raises: whatever is wrong; the message says how many documents were stored before that.
    """
    parameters = query_of(request, model)
    start, stored, found = parameters.pop("start", False), 0, None
    try:
        async for part in lines(body, kept=False):
            found = await room.call("/fit", part, parameters)
            parameters["run"] = found[0].run
            is_for(found[0].run)
            stored += len(part)
        if start or found is None:
            found = await room.call("/fit", [], parameters | {"start": start})
    except FinetunerError as error:
        if not stored:
            raise
        raise type(error)(
            f"{error} The {stored} documents before it are stored in run {parameters['run']!r}."
        ) from error
    return found


def watch(room: Room) -> Handler:
    """Return the route that follows a run by server-sent events, in the form of Jina's."""

    async def handle(request: Request) -> Response:
        if unknown := set(request.query_params) - {"run"}:
            raise BadRequest(f"/watch has no parameter {min(unknown)[:60]!r}; it accepts: run.")
        run = request.query_params.get("run")
        statuses = room.watch(run)
        first = await anext(statuses)  # before the answer begins: an unknown run is a 404
        return StreamingResponse(_events(first, statuses, run), media_type="text/event-stream")

    return refusing(handle)


async def _events(first: RunStatus, statuses: AsyncGenerator[RunStatus, None], run: str | None) -> AsyncIterator[bytes]:
    yield _update(first)
    async with aclosing(statuses):
        try:
            async for status in _with_silence(statuses):
                yield b": still there\r\n\r\n" if status is None else _update(status)
        except Exception as error:  # the answer has begun, so it ends as Jina's doors end it
            sentence = str(answers.understood(error))
            yield _update(RunStatus(run=run or first.run, state="failed", error=sentence))
    yield b"event: end\r\n\r\n"


async def _with_silence(statuses: AsyncIterator[RunStatus]) -> AsyncIterator[RunStatus | None]:
    """Yield the statuses, and None whenever there was none for `SILENCE_SECONDS`."""
    following = asyncio.ensure_future(anext(statuses, None))
    try:
        while True:
            done, _ = await asyncio.wait([following], timeout=SILENCE_SECONDS)
            if not done:
                yield None
                continue
            if (status := following.result()) is None:
                return
            yield status
            following = asyncio.ensure_future(anext(statuses, None))
    finally:
        following.cancel()
        await asyncio.wait([following])


def _update(status: RunStatus) -> bytes:
    return b"event: update\r\ndata: " + answers.encode(as_json([status])[0]) + b"\r\n\r\n"


async def healthz(_: Request) -> Response:
    """The process answers."""
    return answers.answer({})


def readyz(room: Room) -> Handler:
    """Return the route that says whether the served model answers."""

    async def handle(_: Request) -> Response:
        readiness = asdict(await room.readiness())
        found = {name: readiness[name] for name in SAID_OF_READINESS if name != "executor" or readiness[name]}
        return answers.answer(found, 200 if found["ready"] else 503)

    return refusing(handle)


def metrics(room: Room) -> Handler:
    """Return the route with the figures for Prometheus."""

    async def handle(_: Request) -> Response:
        return Response(await room.metrics(), media_type=CONTENT_TYPE_LATEST)

    return refusing(handle)


def refusing(handle: Handler, refusal: Callable[[Exception], Response] = answers.refusal) -> Handler:
    """Return a handler that answers errors. Args: refusal: makes the answer."""

    async def handled(request: Request) -> Response:
        try:
            return await handle(request)
        except ClientDisconnect:
            return Response(status_code=499)  # nobody reads it
        except Exception as error:
            response = refusal(error)
            return response if request.method == "GET" or came_whole(request) else Early(response, request)

    return handled


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """Await work on a request whose body was read. Raises: ClientDisconnect: its client has gone; work is cancelled."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait([task, gone], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait([task])


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
