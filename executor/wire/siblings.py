"""Lets a gateway end when an executor of its Flow could not start. Jina's own waits ten minutes for it, and says so."""

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable
from typing import TypeVar

import psutil

LOOK_SECONDS = 0.5

T = TypeVar("T")


class ExecutorEnded(RuntimeError):
    """A process of the Flow has ended while the gateway waited for it."""


async def unless_one_ends(setup: Awaitable[T], *, told_to_end: Callable[[], bool]) -> T:
    """Await `setup`. Raises: ExecutorEnded: another process of this Flow, or this one by a signal, is to end first."""
    others = _siblings()
    task = asyncio.ensure_future(setup)
    while not (await asyncio.wait({task}, timeout=LOOK_SECONDS))[0]:
        if told_to_end() or any(map(_has_ended, others)):
            task.cancel()
            raise ExecutorEnded("An executor of this Flow could not start; what it has said before this is why.")
    return task.result()


def _siblings() -> list[psutil.Process]:
    """The other processes that this one's parent has forked: Jina forks one for each part of a Flow."""
    with contextlib.suppress(psutil.Error):
        me = psutil.Process()
        parent = me.parent()
        if parent is not None and parent.cmdline() == me.cmdline():
            return [each for each in parent.children() if each.pid != os.getpid() and _words(each) == me.cmdline()]
    return []


def _words(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error):
        words: list[str] = process.cmdline()
        return words
    return []


def _has_ended(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    return True
