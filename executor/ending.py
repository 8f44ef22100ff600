"""Lets the calls that are under way be answered when a gRPC server of Jina's is told to end."""

from typing import Any

from jina.serve.runtimes.servers.grpc import GRPCServer

GRACE_SECONDS = 5.0  # for the calls under way; new ones are refused meanwhile


def answer_before_the_end() -> None:
    """Let the gRPC servers of this process stop gracefully; Jina's own closes the executor first and then cuts them."""
    if getattr(GRPCServer.shutdown, "is_ours", False):
        return
    jinas = GRPCServer.shutdown

    async def shutdown(self: Any) -> None:
        if (server := getattr(self, "server", None)) is not None:
            await server.stop(grace=GRACE_SECONDS)
        await jinas(self)

    shutdown.is_ours = True  # type: ignore[attr-defined]
    GRPCServer.shutdown = shutdown
