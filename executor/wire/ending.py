"""Answers the requests under way when a Jina process is told to end.

Jina first closes the executor, or the gateway's connection to it, and then cuts off its gRPC calls. If a process serves
several protocols, the first server to end closes that connection for the others, too. And Jina's gateway waits for ever
for a call whose requests broke off.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from grpc.aio import Server as GrpcServer
from uvicorn import Server as HttpServer

from ..tracing import shut_down
from .answering import GRACE_SECONDS, answer_before_end
from .jina_private import (
    WebSocketServer,
    before_teardown,
    library_server,
    replace_end_of_tracing,
    replace_wait_for_floating_requests,
)


def answer_before_the_end(*also: Callable[[], Awaitable[None]]) -> None:
    """Make the servers of this process answer their requests before they close, within `GRACE_SECONDS`.

    A collector of traces that is not there holds up none of them.

    Args: also: what ends other servers of this process, at the same time.
    """

    async def answer_all(servers: list[Any]) -> None:
        await asyncio.gather(*map(_answer, servers), *(end() for end in also))

    before_teardown(answer_all)
    replace_end_of_tracing(shut_down)
    replace_wait_for_floating_requests(_wait_a_little)


async def _answer(server: Any) -> None:
    """Take no more requests. Return when those under way are answered, or were cut off after `GRACE_SECONDS`."""
    library = library_server(server)
    if isinstance(library, GrpcServer):
        await library.stop(GRACE_SECONDS)
    elif isinstance(library, HttpServer):
        await answer_before_end(library, websockets=isinstance(server, WebSocketServer))


async def _wait_a_little(some_are_left: Callable[[], bool]) -> None:
    end = time.monotonic() + GRACE_SECONDS
    while some_are_left() and time.monotonic() < end:
        await asyncio.sleep(0.01)
