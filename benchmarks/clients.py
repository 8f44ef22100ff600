"""A client in its own process: `python -m benchmarks.clients` reads on its input what to measure.

It shares the cores with the service that it measures, so it must cost little. Therefore it does not use Jina's client,
but speaks Jina's gRPC protocol itself, encodes all requests before it starts, and checks only the last answers.
"""

import asyncio
import itertools
import json
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc.aio

from benchmarks.common import jpeg, textured

ROOT = Path(__file__).resolve().parent.parent
DIFFERENT = 32  # different images, which the requests repeat
BLOB_SIZE = 224
UNLIMITED = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


class ClientProcess:
    """The client process. It makes one measurement at a time. Args: module: what it runs.

    Attributes: cpu: the processor time for each image of the last measurement, in seconds, if the module tells it.
    """

    def __init__(self, module: str = "benchmarks.clients") -> None:
        self._module = module
        self.cpu = 0.0

    def __enter__(self) -> "ClientProcess":
        self._process = subprocess.Popen(
            [sys.executable, "-m", self._module],
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
        """Post requests for some seconds; return images per second and the latency of each request in seconds.

        Args: form: `jpeg` buffers of 640×480, or `blob`s, 224×224×3 uint8. images: in a request. concurrency: requests
            at the same time.
        """
        wanted = {"port": port, "form": form, "images": images, "concurrency": concurrency, "seconds": seconds}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(wanted), file=self._process.stdin, flush=True)
        answer = next(line for line in self._process.stdout if line.startswith("{"))
        measured = json.loads(answer)
        self.cpu = measured.get("cpu", 0.0)
        return measured["rate"], measured["latencies"]


def contents(form: str) -> list[dict[str, Any]]:
    """Return the fields of each different document."""
    if form == "jpeg":
        return [{"buffer": jpeg(textured(label, 0))} for label in range(DIFFERENT)]
    return [{"blob": textured(label, 0, BLOB_SIZE, BLOB_SIZE)} for label in range(DIFFERENT)]


def encoded_request(fields: list[dict[str, Any]], images: int, first: int) -> bytes:
    """Return an encoded request to /embed with `images` documents, from number `first` on."""
    from docarray import DocList
    from jina.types.request.data import DataRequest

    from executor.documents import Document

    request = DataRequest()
    request.header.exec_endpoint = "/embed"
    request.document_array_cls = DocList[Document]
    request.data.docs = DocList[Document](
        Document(**fields[number % len(fields)]) for number in range(first, first + images)
    )
    data: bytes = request.proto.SerializePartialToString()
    return data


def check(answer: bytes) -> None:
    """Check an answer. Raises: RuntimeError: the service refused the request."""
    from jina.proto import jina_pb2

    status = jina_pb2.DataRequestProto.FromString(answer).header.status
    if status.code == jina_pb2.StatusProto.ERROR:
        raise RuntimeError(f"a request failed: {status.description}")


async def measure(
    fields: list[dict[str, Any]], port: int, images: int, concurrency: int, seconds: float
) -> dict[str, Any]:
    """Measure as `ClientProcess.measure` describes."""
    latencies: list[float] = []
    requests = itertools.cycle(encoded_request(fields, images, first) for first in range(0, DIFFERENT, images))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=UNLIMITED) as channel:
        embed = channel.unary_unary("/jina.JinaSingleDataRequestRPC/process_single_data")
        check(await embed(next(requests)))
        began = time.perf_counter()

        async def caller() -> None:
            answer = b""
            while time.perf_counter() - began < seconds:
                sent = time.perf_counter()
                answer = await embed(next(requests))
                latencies.append(time.perf_counter() - sent)
            check(answer)

        await asyncio.gather(*(caller() for _ in range(concurrency)))
        took = time.perf_counter() - began
    return {"rate": images * len(latencies) / took, "latencies": latencies}


def main() -> None:
    """Read a measurement from each line of the input and print its result as a line."""
    known: dict[str, list[dict[str, Any]]] = {}
    for line in sys.stdin:
        wanted = json.loads(line)
        form = wanted.pop("form")
        if form not in known:
            known[form] = contents(form)
        print(json.dumps(asyncio.run(measure(known[form], **wanted))), flush=True)


if __name__ == "__main__":
    main()
