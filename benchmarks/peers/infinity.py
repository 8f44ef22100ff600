"""Start infinity's server on a model folder, and measure it with a client in asyncio, like ours."""

import asyncio
import base64
import os
import socket
import subprocess
import time
from pathlib import Path

import aiohttp

from benchmarks.clients import contents
from benchmarks.peers.environments import error_line, python_of

ENVIRONMENT = "infinity"
STARTING_SECONDS = 180.0


class Infinity:
    """The server over HTTP on a free port, in its own process; `with` waits until it serves.

    Args: model: folder of a CLIP model. log: file for its output.
    """

    def __init__(self, model: Path, log: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._log = log
        python = python_of(ENVIRONMENT)
        assert python is not None
        settings = ["--model-id", str(model), "--served-model-name", "clip", "--port", str(self.port)]
        settings += ["--host", "127.0.0.1", "--engine", "torch", "--device", "cpu", "--no-bettertransformer"]
        with open(log, "w") as output:
            self._process = subprocess.Popen(
                [str(python.with_name("infinity_emb")), "v2", *settings],
                cwd=log.parent,
                env=os.environ | {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"},
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def __enter__(self) -> "Infinity":
        began = time.monotonic()
        while not self._serves():
            if self._process.poll() is not None or time.monotonic() - began > STARTING_SECONDS:
                self.__exit__()
                raise RuntimeError(f"infinity did not start: {error_line(self._log.read_text())}")
            time.sleep(0.2)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(60)

    def _serves(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def measure(self, images: int, concurrency: int, seconds: float) -> tuple[float, list[float]]:
        """Measure as `ClientProcess.measure` does, with the JPEG files in data uris."""
        return asyncio.run(_measure(self.port, images, concurrency, seconds))


async def _measure(port: int, images: int, concurrency: int, seconds: float) -> tuple[float, list[float]]:
    encoded = [base64.b64encode(fields["buffer"]).decode() for fields in contents("jpeg")]
    uris = [f"data:image/jpeg;base64,{text}" for text in encoded]
    latencies: list[float] = []
    done = 0

    async def worker(number: int, session: aiohttp.ClientSession, began: float) -> None:
        nonlocal done
        while time.perf_counter() - began < seconds:
            chosen = [uris[(number + image) % len(uris)] for image in range(images)]
            sent = time.perf_counter()
            async with session.post(
                "/embeddings", json={"model": "clip", "modality": "image", "input": chosen}
            ) as answer:
                answer.raise_for_status()
                done += len((await answer.json())["data"])
            latencies.append(time.perf_counter() - sent)

    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
        began = time.perf_counter()
        await asyncio.gather(*(worker(number, session, began) for number in range(concurrency)))
        return done / (time.perf_counter() - began), latencies
