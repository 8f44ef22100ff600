"""Lets the requests that are under way be answered when a process of Jina's is told to end.

Jina closes the executor, or the gateway's way to it, first and cuts off its gRPC calls then. Where it serves several
protocols, the first one to end takes the others' way as well. And its gateway waits for ever for a call whose requests
broke off.
"""

import asyncio
import time
from typing import Any

from grpc.aio import Server as GrpcServer
from jina.serve.runtimes.asyncio import AsyncNewLoopRuntime
from jina.serve.runtimes.servers.websocket import WebSocketServer
from jina.serve.stream import RequestStreamer
from uvicorn import Server as HttpServer

GRACE_SECONDS = 5.0  # for the requests under way; new ones are refused meanwhile

_jinas = AsyncNewLoopRuntime.async_teardown


def answer_before_the_end() -> None:
    """Let what Jina serves in this process answer before it is closed, for `GRACE_SECONDS` at most."""
    AsyncNewLoopRuntime.async_teardown = _teardown
    RequestStreamer.wait_floating_requests_end = _end_floating_requests


async def _teardown(runtime: Any) -> None:
    servers = getattr(runtime.server, "servers", [runtime.server])
    await asyncio.gather(*map(_answer, servers))
    await _jinas(runtime)


async def _answer(server: Any) -> None:
    """Take no more requests; return when those under way are answered, or cut off after the grace."""
    if isinstance(server.server, GrpcServer):
        await server.server.stop(GRACE_SECONDS)
    elif isinstance(server.server, HttpServer):
        await _answer_http(server.server, websockets=isinstance(server, WebSocketServer))


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


async def _end_floating_requests(streamer: Any) -> None:
    """Wait for the executors whose answers nobody waits for; Jina's own wait has no end.

    It counts every call as such a one, and one whose reading fails (a message that is malformed, a server that has
    been stopped) for good.
    """
    end = time.monotonic() + GRACE_SECONDS
    while streamer.total_num_floating_tasks_alive > 0 and time.monotonic() < end:
        await asyncio.sleep(0.01)
    streamer.total_num_floating_tasks_alive = 0  # each server of a gateway asks again
