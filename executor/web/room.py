"""What is behind the door: a service in this process. Behind a gateway it is a Flow: see `gateway.py`."""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from ..documents import RunStatus
from ..endpoints import table
from ..endpoints.health import Readiness, readiness
from ..endpoints.reader import Reader
from ..endpoints.runs import watch
from ..endpoints.service import Service


class Room(Protocol):
    """What answers the calls of a door."""

    async def call(self, path: str, docs: Sequence[Any], parameters: dict[str, Any]) -> Sequence[Any]:
        """Call an endpoint. Raises: FinetunerError: the message says what was wrong."""

    def coming(self, run: str | None) -> AbstractContextManager[Callable[[str], None]]:
        """While a request to `/fit` comes, no run starts without its documents.

        Args: run: the one it names; None: that is not known yet. Yields: a function that is told it.
        """

    def watch(self, run: str | None) -> AsyncGenerator[RunStatus, None]:
        """Yield the status of a run whenever it changes. Raises: UnknownRun: before the first."""

    async def readiness(self) -> Readiness:
        """Whether the served model answers, and what else is wrong."""

    async def metrics(self) -> bytes:
        """The figures, in the text format of Prometheus. Raises: FinetunerError: they cannot be had."""


class OwnRoom:
    """A service in this process, without Jina and docarray on the way."""

    def __init__(self, service: Service | Reader) -> None:
        self._service = service

    async def call(self, path: str, docs: Sequence[Any], parameters: dict[str, Any]) -> Sequence[Any]:
        return await table.call(self._service, path, docs, parameters)

    def coming(self, run: str | None) -> AbstractContextManager[Callable[[str], None]]:
        return (
            nullcontext(lambda run: None) if isinstance(self._service, Reader) else self._service.receiver.coming(run)
        )

    def watch(self, run: str | None) -> AsyncGenerator[RunStatus, None]:
        return watch(table.writer_of(self._service, "/watch"), run)

    async def readiness(self) -> Readiness:
        return await readiness(self._service)

    async def metrics(self) -> bytes:
        return await self._service.measures.exposition()
