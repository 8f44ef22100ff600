"""Serve a Flow by a command, as a user would."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import requests

import needs

# For programs that train as they do by default. Beside other tests each of their two threads mostly waits for the other
# one, which waits for a core: that took twice the processor time.
ONE_CORE = {"LOKY_MAX_CPU_COUNT": "1"}
ENVIRONMENT = {**os.environ, "PYTHONUNBUFFERED": "1"} | ONE_CORE


@contextlib.contextmanager
def served_by(
    command: Sequence[str | Path],
    folder: Path,
    http_port: int,
    environment: dict[str, str] | None = None,
    health: str = "/dry_run",
) -> Iterator[None]:
    """Start a command in a folder, wait until its Flow is ready, and end it at last as Ctrl-C would.

    Args: health: the path at `http_port` that says whether it is; by default that of Jina's gateway.
    """
    needs.serving()
    log_file = folder / "flow.log"
    with open(log_file, "w") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=ENVIRONMENT | (environment or {}),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        wait_until_served(http_port, process, health=health)
        while "ready to serve" not in log_file.read_text():  # Jina does not survive Ctrl-C while it starts
            time.sleep(0.05)
        yield
    except ChildProcessError as error:
        _wait_for_the_others(process.pid)
        raise AssertionError(log_file.read_text()[-20_000:]) from error
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise


def _wait_for_the_others(group: int, seconds: float = 20.0) -> None:
    """Wait until all processes of a group have ended: what one of them has to say may come after the first has."""
    deadline = time.monotonic() + seconds
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(group, 0)
            time.sleep(0.1)


def wait_until_served(
    http_port: int, process: subprocess.Popen[Any], seconds: float = 120.0, health: str = "/dry_run"
) -> None:
    """Wait until a Flow answers over HTTP. Raises: ChildProcessError: its process has ended. TimeoutError: too late."""
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(requests.ConnectionError):
            if requests.get(f"http://127.0.0.1:{http_port}{health}", timeout=60).ok:
                return
        if process.poll() is not None:
            raise ChildProcessError(f"it ended with exit code {process.returncode}")
        if time.monotonic() > deadline:
            raise TimeoutError(f"nothing answers on port {http_port}")
        time.sleep(0.1)
