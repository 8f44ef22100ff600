"""How much a request may bring, and how slowly: bodies are bounded each and together, and a trickle is cut off."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..errors import LimitExceeded, Overloaded, TooSlow

TOGETHER = 2  # so many of the largest bodies may be in memory at once
PATIENCE_SECONDS = 20.0  # for a body, however small,
SLOWEST = 64 * 1024  # and a second more for each so many bytes
DRAINED_BYTES = 64 << 20  # of a body that is refused: a client that still sends reads no answer
DRAINED_SECONDS = 2.0

T = TypeVar("T")


class Bodies:
    """What the bodies of all requests under way may take.

    Args: largest: bytes of one body. name: the option that sets it, for the messages.
    """

    def __init__(self, largest: int, name: str = "max_request_bytes") -> None:
        self.largest = largest
        self._name = name
        self._held = 0

    def open(self, request: Request) -> "Body":
        """Return the body of a request. Raises: LimitExceeded: it says itself that it is too large."""
        if int(request.headers.get("content-length", 0)) > self.largest:
            raise self.too_large()
        return Body(self, request)

    def too_large(self) -> LimitExceeded:
        return LimitExceeded(
            f"The body has more than {self.largest} bytes, which is {self._name}; send fewer documents at a time, or "
            "raise that option of the executor."
        )

    def hold(self, size: int) -> None:
        """Count bytes that are kept. Raises: Overloaded: all bodies together have too many."""
        if self._held + size > TOGETHER * self.largest and self._held:
            raise Overloaded("The requests under way bring more than fits into memory; try again in a moment.")
        self._held += size

    def release(self, size: int) -> None:
        self._held -= size


class Body:
    """The body of one request. What it brings counts as held until the end of the `with` block."""

    def __init__(self, bodies: Bodies, request: Request) -> None:
        self._bodies = bodies
        self._request = request
        self._held = 0

    def __enter__(self) -> "Body":
        return self

    def __exit__(self, *_: object) -> None:
        self._bodies.release(self._held)

    async def chunks(self, *, kept: bool = True) -> AsyncIterator[bytes]:
        """Yield the body as it comes.

        Args: kept: whether the caller keeps all of it. Else it may be endless, as far as its size is concerned.
        Raises: LimitExceeded, Overloaded: it is too large. TooSlow: it trickles. ClientDisconnect: its client has gone.
        """
        loop, stream = asyncio.get_running_loop(), self._request.stream()
        received, waited = 0, 0.0
        while True:
            began = loop.time()
            try:
                chunk = await _within(PATIENCE_SECONDS + received / SLOWEST - waited, anext(stream))
            except StopAsyncIteration:
                self._request.state.came_whole = True
                return
            except asyncio.TimeoutError:
                raise TooSlow(
                    f"The body came too slowly: {received} bytes in {waited + loop.time() - began:.0f} s; send it "
                    "again over a faster connection, or in parts."
                ) from None
            waited += loop.time() - began
            received += len(chunk)
            if kept and received > self._bodies.largest:
                raise self._bodies.too_large()
            if kept and chunk:
                self._bodies.hold(len(chunk))
                self._held += len(chunk)
            yield chunk

    async def read(self) -> bytes:
        """Return all of it. Raises: as `chunks`."""
        parts = [chunk async for chunk in self.chunks() if chunk]
        return parts[0] if len(parts) == 1 else b"".join(parts)


async def _within(seconds: float, work: Awaitable[T]) -> T:
    """Await something in this task, for so long at most. `asyncio.wait_for` would make a task for each chunk.

    Raises: asyncio.TimeoutError.
    """
    task, expired = asyncio.current_task(), False

    def expire() -> None:
        nonlocal expired
        expired = True
        if task is not None:
            task.cancel()

    timer = asyncio.get_running_loop().call_later(seconds, expire)
    try:
        return await work
    except asyncio.CancelledError:
        if not expired:
            raise
        if uncancel := getattr(task, "uncancel", None):  # from Python 3.11 on
            uncancel()
        raise asyncio.TimeoutError from None
    finally:
        timer.cancel()


class Early(Response):
    """An answer to a request that is still being sent. The connection is closed after it.

    It is sent at once. Then a little of the rest is read: a client that still sends reads no answer.
    """

    def __init__(self, refusal: Response, request: Request) -> None:
        super().__init__(refusal.body, refusal.status_code)
        self.raw_headers = [*refusal.raw_headers, (b"connection", b"close")]
        self._request = request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        if "expect" not in self._request.headers:  # else its client waits for a sign, and reading would be that sign
            with contextlib.suppress(asyncio.TimeoutError, ClientDisconnect, RuntimeError):  # the last: nothing is left
                await asyncio.wait_for(self._read_on(), DRAINED_SECONDS)
        await send({"type": "http.response.body", "body": b""})

    async def _read_on(self) -> None:
        size = 0
        async for chunk in self._request.stream():
            size += len(chunk)
            if size > DRAINED_BYTES:
                return


def came_whole(request: Request) -> bool:
    """Whether the body of a request was read to its end."""
    return getattr(request.state, "came_whole", False)
