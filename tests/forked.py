"""Processes that are forked from one that has imported what they need: half of the start of a Flow is imports.

Each worker of pytest has one such process, the *fork server* of Python's multiprocessing. It starts no thread and opens
nothing. What is forked from it is a process like any other: in a session of its own, with its own directory and
environment, ended by signals.
"""

import contextlib
import functools
import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

_forks = multiprocessing.get_context("forkserver")


@functools.cache
def _start_fork_server() -> None:
    """It finds what it shall import by PYTHONPATH alone, and says nothing if it does not find it."""
    here = Path(__file__).parent
    places = os.pathsep.join([str(here), str(here.parent), os.environ.get("PYTHONPATH", "")])
    with mock.patch.dict(os.environ, PYTHONPATH=places):
        _forks.set_forkserver_preload(["imported_once"])
        forkserver.ensure_running()


class Forked:
    """A process that runs `function(*arguments, ready)`, where `ready` is a function to call without arguments.

    It ends with this process, in whatever way that ends, and its children with it.

    Args: log: what it prints is appended to this file.
    """

    def __init__(
        self, function: Callable[..., None], *arguments: Any, directory: Path, environment: dict[str, str], log: Path
    ) -> None:
        _start_fork_server()
        self._told, its = _forks.Pipe()
        self._process = _forks.Process(
            target=_run, args=(function, arguments, its, str(directory), environment, str(log))
        )
        self._process.start()
        its.close()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    def becomes_ready(self) -> bool:
        """Wait until it says that it is ready; return whether it did before it ended."""
        with contextlib.suppress(EOFError, ConnectionResetError):
            return bool(self._told.recv())
        return False

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs; minus the number of the signal that killed it."""
        return self._process.exitcode

    def wait(self, seconds: float | None = None) -> int:
        """Wait until it has ended and return the exit code. Raises: subprocess.TimeoutExpired: it runs on."""
        self._process.join(seconds)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired(self._process.name, seconds or 0)
        return code

    def send_signal(self, how: signal.Signals) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, how)

    def close(self) -> None:
        """Free what belongs to it here. It has ended."""
        self._told.close()


def _run(
    function: Callable[..., None],
    arguments: tuple[Any, ...],
    parent: Connection,
    directory: str,
    environment: dict[str, str],
    log: str,
) -> None:
    importlib.import_module("imported_once")  # fails here if it has failed in the fork server, which says nothing then
    os.setsid()
    multiprocessing.set_start_method("fork", force=True)  # else its processes would be forked from a server, too
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(directory)
    sys.path[:0] = environment.get("PYTHONPATH", "").split(os.pathsep)
    printed = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(printed, stream)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    function(*arguments, lambda: parent.send(True))


def _end_with(parent: Connection) -> None:
    """Kill this session when the tests have ended, in whatever way: then their end of the pipe is closed."""
    with contextlib.suppress(EOFError, OSError):
        parent.recv()
    os.killpg(0, signal.SIGKILL)
