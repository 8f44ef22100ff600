"""A Flow served by a command, as a user would start it."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import requests

# Threads of torch that wait for each other sleep, so that tests do not starve on a busy machine.
PATIENT = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}


@contextlib.contextmanager
def served_by(
    command: Sequence[str | Path], folder: Path, http_port: int, environment: dict[str, str] | None = None
) -> Iterator[None]:
    """Start a command in a folder, go on when the Flow answers over HTTP, and end it as Ctrl-C would."""
    with open(folder / "flow.log", "w") as log:
        process = subprocess.Popen(command, cwd=folder, env=PATIENT | (environment or {}), stdout=log, stderr=log)
    try:
        wait_until_served(http_port, process)
        yield
    except ChildProcessError as error:
        raise AssertionError((folder / "flow.log").read_text()[-4000:]) from error
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def wait_until_served(http_port: int, process: subprocess.Popen[bytes], seconds: float = 120.0) -> None:
    """Return when a Flow answers over HTTP. Raises: ChildProcessError: its process has ended."""
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(requests.ConnectionError):
            if requests.get(f"http://127.0.0.1:{http_port}/dry_run", timeout=60).ok:
                return
        if process.poll() is not None:
            raise ChildProcessError(f"it ended with exit code {process.returncode}")
        if time.monotonic() > deadline:
            raise TimeoutError(f"nothing answers on port {http_port}")
        time.sleep(0.1)
