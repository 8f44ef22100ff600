"""Things in lists that are neither long nor large."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def chunks(items: Iterable[T], *, most: int, enough_bytes: int, size_of: Callable[[T], int]) -> Iterator[list[T]]:
    """Yield the items in lists, in order. A list ends at `most` items, or with the one that makes it `enough_bytes`."""
    chunk: list[T] = []
    size = 0
    for item in items:
        chunk.append(item)
        size += size_of(item)
        if len(chunk) == most or size >= enough_bytes:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
