"""Runs a computation in a thread that ends right after it.

Every thread that computes starts OpenMP threads, and they last as long as it does. Once there are more of them than
cores, they sleep while they wait for work, and a single image takes twice as long. So only the embedder's own thread
stays.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def in_brief_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function in a new thread. Return what it returns, or raise what it raises."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(function, *args, **kwargs).result()
