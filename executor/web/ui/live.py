"""The runs as they change, asked for once for all open pages together: more pages cost the service no more."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from ...documents import RunStatus
from ...endpoints.health import Readiness
from ...errors import FinetunerError
from ..answers import understood
from ..room import Room

BUSY_SECONDS = 1.0  # between two questions while a run is on its way,
IDLE_SECONDS = 3.0  # and while none is
SHARE = 20  # at least so many times as long as the answer takes, so that many runs are asked for less often
SILENCE_SECONDS = 15.0  # before a comment shows that the stream is still there
RETRY_MILLISECONDS = 2000  # that a browser waits before it comes back

Parts = dict[str, str]  # markup by the id of the element that shows it; what is empty is left as it is


class Snapshot(NamedTuple):
    """How things stand. `trouble`: why nothing is known; then the rest is empty."""

    runs: list[RunStatus]
    service: Readiness | None = None
    trouble: str | None = None

    def run(self, name: str) -> RunStatus | None:
        """The status of a run; None: there is no such run."""
        return next((run for run in self.runs if run.run == name), None)


class Live:
    """Asks for all runs while somebody follows them."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._followers = 0
        self._asking: asyncio.Task[None] | None = None
        self._seen: Snapshot | None = None
        self._begun = self._answered = 0  # how many questions were
        self._news = asyncio.Event()  # replaced after each answer
        self._hurry = asyncio.Event()

    async def follow(self) -> AsyncGenerator[Snapshot | None, None]:
        """Yield how things stand from now on, whenever that has changed, and None if nothing is new for a while."""
        self._followers += 1
        before = self._begun  # what was asked before may miss what its caller has just done
        self._hurry.set()
        if self._asking is None:
            self._asking = asyncio.get_running_loop().create_task(self._ask_again())
        shown, told = None, time.monotonic()
        try:
            while True:
                news = self._news
                if self._answered > before and self._seen is not shown:
                    shown, told = self._seen, time.monotonic()
                    yield shown
                elif time.monotonic() - told > SILENCE_SECONDS:
                    told = time.monotonic()
                    yield None
                await news.wait()
        finally:
            self._followers -= 1
            if not self._followers and self._asking is not None:
                self._asking.cancel()
                self._asking = None

    async def _ask_again(self) -> None:
        while True:
            self._hurry.clear()
            self._begun += 1
            number, began = self._begun, time.monotonic()
            found = await self._ask()
            took = time.monotonic() - began
            self._answered = number
            if found != self._seen:
                self._seen = found
            self._news.set()
            self._news = asyncio.Event()
            is_busy = any(run.ended_at is None for run in found.runs)
            pause = max(BUSY_SECONDS if is_busy else IDLE_SECONDS, SHARE * took)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._hurry.wait(), pause)

    async def _ask(self) -> Snapshot:
        try:
            service = await self._room.readiness()
            return Snapshot(list(await self._room.call("/status", [], {})), service)
        except Exception as error:
            return Snapshot([], trouble=str(understood(error)))


def stream(request: Request, live: Live, parts: Callable[[Snapshot], Parts]) -> Response:
    """Return the answer that tells a page, by server-sent events, which of its parts have changed.

    Args: parts: makes the parts of the page; it may raise FinetunerError, which is told.
    """
    if request.method == "HEAD":  # a page asks whether it may come back
        return Response()
    return StreamingResponse(
        _events(live, parts),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


async def _events(live: Live, parts: Callable[[Snapshot], Parts]) -> AsyncIterator[str]:
    shown: Parts = {}
    yield f"retry: {RETRY_MILLISECONDS}\n\n"
    async with aclosing(live.follow()) as snapshots:
        async for snapshot in snapshots:
            if snapshot is None:
                yield ": still there\n\n"
            elif snapshot.trouble is not None:
                yield _event("trouble", snapshot.trouble)
            else:
                try:
                    found = await asyncio.to_thread(parts, snapshot)
                except FinetunerError as error:
                    yield _event("gone", str(error))
                    return
                changed = {name: markup for name, markup in found.items() if shown.get(name) != markup}
                shown = found
                yield _event("parts", changed)


def _event(name: str, value: object) -> str:
    return f"event: {name}\ndata: {json.dumps(value)}\n\n"
