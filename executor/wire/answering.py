"""How a server of HTTP answers the requests under way before it ends. No Jina: our own door does without."""

import asyncio

from uvicorn import Server

GRACE_SECONDS = 5.0  # for the requests under way; new ones are refused meanwhile


async def answer_before_end(server: Server, *, websockets: bool = False) -> None:
    """Take no more requests. Return when those under way are answered, or were cut off after `GRACE_SECONDS`."""
    for listener in server.servers:
        listener.close()
    if not websockets:  # closes idle HTTP connections; it would cut off the answers of a websocket
        for connection in list(server.server_state.connections):
            connection.shutdown()
    if tasks := list(server.server_state.tasks):
        _, late = await asyncio.wait(tasks, timeout=GRACE_SECONDS)
        for task in late:  # otherwise Jina waits for ever for a client that watches a run
            task.cancel()
