"""Computing in a thread that ends at once.

OpenMP counts the threads of all threads that have computed and are still there. Once there are more than cores, none
of them waits for work awake any more, and a single image takes twice as long: so only the embedder's own thread stays.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def in_brief_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return what the function returns, or raise what it raises."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(function, *args, **kwargs).result()
