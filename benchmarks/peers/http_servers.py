"""A server over HTTP in its own process: infinity on a model folder, or our own door."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil

from benchmarks.common import free_port
from benchmarks.peers.environments import error_line, python_of

ENVIRONMENT = "infinity"
STARTING_SECONDS = 180.0
ROOT = Path(__file__).resolve().parents[2]


class HttpServer:
    """The server on a free port; `with` waits until it takes connections.

    Args: command: that starts it, but for the port. log: file for its output.

    Attributes: port: that it listens on. process: its process, which may have children.
    """

    def __init__(self, command: list[str], log: Path) -> None:
        self.port = free_port()
        self._log = log
        environment = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "PYTHONPATH": str(ROOT)}
        with open(log, "w") as output:
            self._process = subprocess.Popen(
                [*command, str(self.port)],
                cwd=log.parent,
                env=os.environ | environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.process = psutil.Process(self._process.pid)

    def __enter__(self) -> "HttpServer":
        began = time.monotonic()
        while not self._serves():
            if self._process.poll() is not None or time.monotonic() - began > STARTING_SECONDS:
                self.__exit__()
                raise RuntimeError(f"{self._log.stem} did not start: {error_line(self._log.read_text())}")
            time.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(60)

    def _serves(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


def infinity(model: Path, log: Path) -> HttpServer:
    """Start infinity with the torch engine on a folder of a CLIP model, under the name `clip`."""
    python = python_of(ENVIRONMENT)
    assert python is not None
    settings = ["--model-id", str(model), "--served-model-name", "clip", "--host", "127.0.0.1"]
    settings += ["--engine", "torch", "--device", "cpu", "--no-bettertransformer", "--port"]
    return HttpServer([str(python.with_name("infinity_emb")), "v2", *settings], log)


def our_door(model: Path, log: Path) -> HttpServer:
    """Start `python -m executor serve`, which needs no Flow."""
    workspace = ["--workspace", str(log.parent / "door"), "--model", str(model), "--http-port"]
    return HttpServer([sys.executable, "-m", "executor", "serve", *workspace], log)
