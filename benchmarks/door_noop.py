"""Our HTTP door with nothing behind it: `python -m benchmarks.door_noop DIMENSIONS` prints its port and serves.

What it costs is what the door costs: reading requests, making documents of them, and encoding answers.
"""

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import uvloop

from executor.parameters import ExecutorOptions
from executor.web.app import make_app
from executor.web.server import Door

ROOT = Path(__file__).resolve().parent.parent


class NoRoom:
    """Gives every document the same embedding, whatever it holds."""

    def __init__(self, dimensions: int) -> None:
        self._embedding = np.random.default_rng(0).standard_normal(dimensions).astype(np.float32)

    async def call(self, path: str, docs: Sequence[Any], parameters: dict[str, Any]) -> Sequence[Any]:
        """Answer a call."""
        for doc in docs:
            doc.embedding = self._embedding
            doc.tags.update(finetuner_model="base", finetuner_space="0" * 12)
        return docs


async def serve(dimensions: int) -> None:
    """Serve until killed."""
    door = Door("127.0.0.1", 0)
    door.open(make_app(NoRoom(dimensions), ExecutorOptions(), None))
    print(door.port, flush=True)
    await asyncio.Event().wait()


class ServedNoOp:
    """The no-op in its own process. Attributes: port: of its door."""

    def __init__(self, process: "subprocess.Popen[str]", port: int) -> None:
        self._process = psutil.Process(process.pid)
        self.port = port

    def cpu(self) -> float:
        """Return the processor time that it has taken so far, in seconds."""
        times = self._process.cpu_times()
        return float(times.user + times.system)


@contextlib.contextmanager
def served(dimensions: int) -> Iterator[ServedNoOp]:
    """Serve the no-op."""
    command = [sys.executable, "-m", "benchmarks.door_noop", str(dimensions)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield ServedNoOp(process, int(process.stdout.readline()))
        finally:
            process.kill()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
