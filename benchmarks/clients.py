"""An asyncio client in a process of its own: `python -m benchmarks.clients` measures what it is told on its input.

Jina's synchronous gRPC client lets one call through at a time in a whole process; this one does not.
"""

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.common import jpeg, textured

ROOT = Path(__file__).resolve().parent.parent
DIFFERENT = 32  # images; requests repeat them
BLOB_SIZE = 224


class ClientProcess:
    """The process. One measurement at a time."""

    def __enter__(self) -> "ClientProcess":
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.clients"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()

    def measure(
        self, port: int, *, form: str, images: int, concurrency: int, seconds: float
    ) -> tuple[float, list[float]]:
        """Post requests of so many images for so long; return images a second and each request's latency in seconds.

        Args: form: `jpeg` buffers of 640×480, or `blob`s, 224×224×3 uint8. concurrency: requests under way at a time.
        """
        wanted = {"port": port, "form": form, "images": images, "concurrency": concurrency, "seconds": seconds}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(wanted), file=self._process.stdin, flush=True)
        answer = next(line for line in self._process.stdout if line.startswith("{"))
        measured = json.loads(answer)
        return measured["rate"], measured["latencies"]


def contents(form: str) -> list[dict[str, Any]]:
    """The fields of the different documents."""
    if form == "jpeg":
        return [{"buffer": jpeg(textured(label, 0))} for label in range(DIFFERENT)]
    return [{"blob": textured(label, 0, BLOB_SIZE, BLOB_SIZE)} for label in range(DIFFERENT)]


async def measure(
    fields: list[dict[str, Any]], port: int, images: int, concurrency: int, seconds: float
) -> dict[str, Any]:
    """See `ClientProcess.measure`."""
    from docarray import DocList
    from jina import Client

    from executor.documents import Document

    latencies: list[float] = []
    done = 0
    began = time.perf_counter()

    async def worker(number: int) -> None:
        nonlocal done
        client = Client(host="127.0.0.1", port=port, asyncio=True)
        while time.perf_counter() - began < seconds:
            docs = DocList[Document](Document(**fields[(number + image) % len(fields)]) for image in range(images))
            sent = time.perf_counter()
            async for answer in client.post("/embed", docs, request_size=images, return_type=DocList[Document]):
                done += len(answer)
            latencies.append(time.perf_counter() - sent)

    await asyncio.gather(*(worker(number) for number in range(concurrency)))
    return {"rate": done / (time.perf_counter() - began), "latencies": latencies}


def main() -> None:
    """Answer each line of the input with a line."""
    known: dict[str, list[dict[str, Any]]] = {}
    for line in sys.stdin:
        wanted = json.loads(line)
        form = wanted.pop("form")
        if form not in known:
            known[form] = contents(form)
        print(json.dumps(asyncio.run(measure(known[form], **wanted))), flush=True)


if __name__ == "__main__":
    main()
