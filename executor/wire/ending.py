"""Lets the requests that are under way be answered when a process of Jina's is told to end.

Jina closes the executor, or the gateway's way to it, first and cuts off its gRPC calls then. Where it serves several
protocols, the first one to end takes the others' way as well. And its gateway waits for ever for a call whose requests
broke off.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any

from grpc.aio import Server as GrpcServer
from uvicorn import Server as HttpServer

from .jina_private import WebSocketServer, before_teardown, library_server, replace_wait_for_floating_requests

GRACE_SECONDS = 5.0  # for the requests under way; new ones are refused meanwhile


def answer_before_the_end() -> None:
    """Let what Jina serves in this process answer before it is closed, for `GRACE_SECONDS` at most."""
    before_teardown(_answer_all)
    replace_wait_for_floating_requests(_wait_a_little)


async def _answer_all(servers: list[Any]) -> None:
    await asyncio.gather(*map(_answer, servers))


async def _answer(server: Any) -> None:
    """Take no more requests; return when those under way are answered, or cut off after the grace."""
    library = library_server(server)
    if isinstance(library, GrpcServer):
        await library.stop(GRACE_SECONDS)
    elif isinstance(library, HttpServer):
        await _answer_http(library, websockets=isinstance(server, WebSocketServer))


async def _answer_http(server: HttpServer, websockets: bool) -> None:
    for listener in server.servers:
        listener.close()
    if not websockets:  # whose answers this would cut off; of HTTP it closes the connections that are idle
        for connection in list(server.server_state.connections):
            connection.shutdown()
    if tasks := list(server.server_state.tasks):
        _, late = await asyncio.wait(tasks, timeout=GRACE_SECONDS)
        for task in late:  # else Jina would wait for ever, for one who watches a run
            task.cancel()


async def _wait_a_little(some_are_left: Callable[[], bool]) -> None:
    end = time.monotonic() + GRACE_SECONDS
    while some_are_left() and time.monotonic() < end:
        await asyncio.sleep(0.01)
