"""Sets of documents that arrive in several requests, as Jina cuts a call, and are answered as one."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

from ..errors import BadRequest

PATIENCE_SECONDS = 30.0  # without a further request of a set
T = TypeVar("T")
A = TypeVar("A")


class _Set(Generic[T, A]):
    def __init__(self) -> None:
        self.parts: dict[object, T] = {}  # by the request that brought it
        self.documents = 0
        self.timer: asyncio.TimerHandle | None = None
        self.answer: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        self.answer.add_done_callback(lambda answer: answer.cancelled() or answer.exception())  # somebody has seen it


class Gatherings(Generic[T, A]):
    """Brings the parts of each set together. For one event loop."""

    def __init__(self) -> None:
        self._open: dict[Hashable, _Set[T, A]] = {}

    async def join(
        self, key: Hashable, part: T, documents: int, total: int, finish: Callable[[list[T]], Awaitable[A]]
    ) -> A:
        """Wait for the other parts of a set and return what `finish` makes of all; each request gets the same.

        Args: key: what the requests of a set have in common. documents: in this part. total: in the set.
        Raises: BadRequest: more documents came than `total`, or too few. Whatever `finish` raises.
        """
        found, request = self._open.setdefault(key, _Set()), object()
        found.parts[request] = part
        found.documents += documents
        if found.timer is not None:
            found.timer.cancel()
        if found.documents < total:
            loop = asyncio.get_running_loop()
            found.timer = loop.call_later(PATIENCE_SECONDS, self._give_up, key, found, total)
            try:
                return await asyncio.shield(found.answer)
            except asyncio.CancelledError:  # its caller has gone, and may send it again
                if self._open.get(key) is found:
                    found.documents -= documents
                    del found.parts[request]
                raise
        del self._open[key]
        try:
            if found.documents > total:
                raise BadRequest(
                    f"{found.documents} documents came, and total is {total}; give the number of the whole set."
                )
            found.answer.set_result(await finish(list(found.parts.values())))
        except BaseException as error:
            broken_off = BadRequest("Another request of this set was broken off; send all of them again.")
            found.answer.set_exception(error if isinstance(error, Exception) else broken_off)
            raise
        return found.answer.result()

    def _give_up(self, key: Hashable, found: _Set[T, A], total: int) -> None:
        del self._open[key]
        found.answer.set_exception(
            BadRequest(
                f"{found.documents} of {total} documents came, and no more for {PATIENCE_SECONDS:g} s, so nothing is "
                "scored. Send all of them again, at the same time."
            )
        )
