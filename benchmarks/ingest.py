"""Measure documents per second of `/fit`, against an Executor that does nothing, and its time by part and its memory.

    .venv/bin/python -m benchmarks.ingest [--quick]

Measured: one gRPC client posts requests of 100 documents. They have a path as `uri`, or a JPEG of 20 KB as `buffer`.
Every answered request is synced to disk. The limit is the same calls to an Executor with the same schema that stores
nothing, so 1.0 is the best ratio. The first request starts the run's trainer, as always. The trainer decodes documents
while more are sent, at its usual low priority. All targets take turns; figures are medians.

Our own HTTP door gets the same documents: those with a path as JSON lines, all in one call; those with an image as the
files of forms of 1000. Beside the latter stands the disk: the same bytes, appended to a file, synced every 100 images.

Time by part: the parts are called one by one in this process, in milliseconds for 100 documents. The rest of the time
goes to the client and the network.

Memory: the resident set of the service and of the trainer after a number of documents with a `uri`, and the peak of the
trainer until its first steps. Jina's client sends up to `prefetch` requests ahead, by default 1000, and their documents
wait in the service. Other rows therefore send fewer ahead.
"""

import http.client
import itertools
import json
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docarray import DocList
from jina import Client

from benchmarks.common import (
    free_port,
    jpeg,
    median,
    options,
    print_headline,
    print_machine,
    print_table,
    seconds_of,
    spread,
    textured,
)
from benchmarks.serving import Served
from executor.documents import Document, DocumentArray, RunStatus
from executor.lifecycle.receiving import Receiver
from executor.parameters import ExecutorOptions, FitParameters
from executor.store.runs import RunStore
from executor.store.spool import DocumentArrayMemmap
from executor.store.workspace import Workspace

REQUEST = 100
FORM = 1000  # files in a form
PREFETCH = 1000  # Jina's own default
BOUNDARY = "5f2c8e"
CLASSES = 32
SMALL = 32  # pixels; small, because we do not measure decoding here
BUFFER_BYTES = 20_000
_numbers = itertools.count()


def uri_documents(count: int, paths: list[str]) -> Iterator[Document]:
    """Yield documents with a path."""
    for number in itertools.islice(_numbers, count):
        yield Document(uri=paths[number % len(paths)], tags={"finetuner_label": number % CLASSES})


def buffer_documents(count: int, images: list[bytes]) -> Iterator[Document]:
    """Yield documents with an encoded image."""
    for number in itertools.islice(_numbers, count):
        yield Document(buffer=images[number % len(images)], tags={"finetuner_label": number % CLASSES})


def large_jpegs() -> list[bytes]:
    """Return JPEG images of about `BUFFER_BYTES` each."""
    quality = next(
        quality for quality in range(95, 5, -5) if len(jpeg(textured(0, 0, 320, 240), quality)) <= BUFFER_BYTES
    )
    return [jpeg(textured(label, 0, 320, 240), quality) for label in range(CLASSES)]


class Caller:
    """A client of one Flow."""

    def __init__(self, served: Served) -> None:
        self._client = Client(host="127.0.0.1", port=served.port)

    def post(self, endpoint: str, docs: Any = None, *, prefetch: int = PREFETCH, **parameters: Any) -> Any:
        """Call an endpoint that answers with statuses."""
        return self._client.post(
            endpoint,
            docs,
            request_size=REQUEST,
            prefetch=prefetch,
            parameters=parameters,
            return_type=DocList[RunStatus],
        )

    def rate(self, docs: list[Document], run: str) -> float:
        """Return documents per second into a run that already receives."""
        return len(docs) / seconds_of(lambda: self.post("/fit", DocumentArray(docs), run=run))


class DoorCaller:
    """A client of our HTTP door. It encodes its requests while it is measured, as a client of Jina does."""

    def __init__(self, port: int) -> None:
        self._port = port

    def rate(self, docs: list[Document], run: str) -> float:
        """Return documents per second into a run that already receives."""
        return len(docs) / seconds_of(lambda: self._send(docs, run))

    def _send(self, docs: list[Document], run: str) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port)
        for kind, body in json_lines(docs) if docs[0].uri else forms(docs):
            connection.request("POST", f"/fit?run={run}", body, {"Content-Type": kind})
            answer = connection.getresponse()
            text = answer.read()
            if answer.status != 200:
                raise RuntimeError(f"the door answers {answer.status}: {text[:500]!r}")
        connection.close()


def json_lines(docs: list[Document]) -> Iterator[tuple[str, bytes]]:
    """Yield the one request that sends documents with a path: its content type and body."""
    lines = (json.dumps({"uri": doc.uri, "tags": doc.tags}) for doc in docs)
    yield "application/x-ndjson", "\n".join(lines).encode()


def forms(docs: list[Document]) -> Iterator[tuple[str, bytes]]:
    """Yield the requests that send documents with an image: content types and bodies."""
    for start in range(0, len(docs), FORM):
        parts = []
        for doc in docs[start : start + FORM]:
            named = f'name="label:{doc.tags["finetuner_label"]}"; filename="{next(_numbers)}.jpg"'
            parts.append(f"--{BOUNDARY}\r\nContent-Disposition: form-data; {named}\r\n\r\n".encode())
            parts += [doc.buffer or b"", b"\r\n"]
        yield f"multipart/form-data; boundary={BOUNDARY}", b"".join([*parts, f"--{BOUNDARY}--\r\n".encode()])


class Disk:
    """What the disk allows: the images alone, appended to a file, which is synced as often as requests are answered."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "disk"

    def rate(self, docs: list[Document], run: str) -> float:
        """Return images per second."""
        return len(docs) / seconds_of(lambda: self._write(docs))

    def _write(self, docs: list[Document]) -> None:
        with open(self._file, "ab") as file:
            for start in range(0, len(docs), REQUEST):
                file.write(b"".join(doc.buffer or b"" for doc in docs[start : start + REQUEST]))
                file.flush()
                os.fsync(file.fileno())
        self._file.unlink()


def compare(
    folder: Path, sorts: dict[str, Any], count: int, rounds: int, service: dict[str, Any]
) -> tuple[dict[str, list[float]], list[Any]]:
    """Return documents per second by "sort, target", and the rows of the table. Args: service: its options."""
    rates: dict[str, list[float]] = defaultdict(list)
    door = free_port()
    ours, noop = Served("ours", folder, http_port=door, **service), Served("noop", folder)
    with ours, noop:
        for sort, make in sorts.items():
            flow = Caller(ours)
            callers: dict[str, Any] = {"no-op": Caller(noop), "/fit": flow, "/fit, our door": DoorCaller(door)}
            if sort != "uri":
                callers["the disk"] = Disk(folder)
            run = sort.split()[0]
            for caller in callers.values():
                caller.rate(list(make(REQUEST)), run)  # connects and starts the run
            for _ in range(rounds):
                for target, caller in callers.items():
                    rates[f"{sort}, {target}"].append(caller.rate(list(make(count)), run))
            flow.post("/cancel", run=run)
    rows = []
    for sort in sorts:
        limit = median(rates[f"{sort}, no-op"])
        through_flow = median(rates[f"{sort}, /fit"])
        for name in [name for name in rates if name.startswith(f"{sort}, ")]:
            rate = median(rates[name])
            rows.append((name, rate, spread(rates[name]), rate / limit, rate / through_flow))
    return rates, rows


def quiet(folder: Path) -> dict[str, Any]:
    """Return options for a service that keeps receiving until it is told to start."""
    return {"model": "small", "input_size": SMALL, "allowed_roots": [str(folder)], "receive_timeout": 3600.0}


def breakdown(folder: Path, make: Any, repeats: int) -> dict[str, float]:
    """Return milliseconds for the documents of one request, by part."""
    store = RunStore(Workspace(folder / "pieces"))
    executor = ExecutorOptions.model_validate(quiet(folder)).with_roots()
    receiver = Receiver(store, executor)
    receiver.receive(DocumentArray(make(1)), FitParameters(run="pieces"))
    spool = DocumentArrayMemmap(folder / "pieces" / "spool.sqlite")
    spent: dict[str, list[float]] = defaultdict(list)

    def timed(piece: str, function: Any) -> None:
        spent[piece].append(1000 * seconds_of(function))

    for _ in range(repeats):
        docs = DocumentArray(make(REQUEST))
        proto = docs.to_protobuf()
        timed("serialise (client)", docs.to_protobuf)
        timed("deserialise", lambda proto=proto: DocumentArray.from_protobuf(proto))
        timed("validate", lambda docs=docs: [receiver.fault(doc, "auto", "train") for doc in docs])
        timed("encode and insert, synced", lambda docs=docs: spool.extend(docs))
        docs = DocumentArray(make(REQUEST))
        timed("all of `receive`", lambda docs=docs: receiver.receive(docs, FitParameters(run="pieces")))
    spool.close()
    receiver.close()
    store.close()
    return {piece: median(values) for piece, values in spent.items()}


def memory(
    folder: Path, paths: list[str], counts: list[tuple[int, int]], patience: float, service: dict[str, Any]
) -> list[tuple[object, ...]]:
    """Return a row with the memory in MB for each (number of documents, requests sent ahead)."""
    rows: list[tuple[object, ...]] = []
    for count, prefetch in counts:
        with tempfile.TemporaryDirectory(dir=folder) as place, Served("ours", Path(place), **service) as ours:
            caller = Caller(ours)
            executor = ours.executor_pid()
            before = resident(executor)
            docs = uri_documents(count, paths)
            caller.post("/fit", docs, prefetch=prefetch, run="memory", epochs=1000, kind="class")
            after = resident(executor)
            trainer = next(child for child in children(executor) if "--run=" in command(child))
            caller.post("/fit", run="memory")
            wait_for_steps(caller, patience)
            rows.append((count, prefetch, before, after, resident(trainer), resident(trainer, "VmHWM")))
            caller.post("/cancel", run="memory")
    return rows


def wait_for_steps(caller: Caller, patience: float) -> None:
    """Wait until the run has made its first steps."""
    deadline = time.monotonic() + patience
    while (status := caller.post("/status", run="memory")[0]).step == 0:
        if status.ended_at is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the run is {status.state} ({status.phase}): {status.error}")
        time.sleep(0.5)


def resident(pid: int, field: str = "VmRSS") -> float:
    """Return the memory of a process in MB; `VmHWM` is its peak."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


def children(pid: int) -> list[int]:
    """Return the processes that a process has started."""
    return [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]


def command(pid: int) -> str:
    """Return the command line of a process."""
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")


def main() -> None:
    """Measure and print."""
    arguments = options(__doc__).parse_args()
    count, rounds, repeats = 5000, 5, 50
    counts = [(10_000, PREFETCH), (200_000, PREFETCH), (10_000, 10), (1_000_000, 10)]
    if arguments.quick:
        count, rounds, repeats, counts = 1000, 3, 20, [(1000, PREFETCH), (10_000, PREFETCH)]
    if arguments.tiny:
        count, rounds, repeats, counts = 200, 1, 3, [(200, PREFETCH)]
    print_machine()
    with tempfile.TemporaryDirectory(prefix="finetuner-") as name:
        folder = Path(name).resolve()
        # Nothing is embedded here. A start is shorter if it does not measure how to do that fastest.
        service = quiet(folder) | ({"fast_inference": False} if arguments.tiny else {})
        paths = []
        for label in range(CLASSES):
            paths.append(str(folder / f"{label}.jpg"))
            Path(paths[-1]).write_bytes(jpeg(textured(label, 0, SMALL, SMALL)))
        images = large_jpegs()
        sorts = {
            "uri": lambda count: uri_documents(count, paths),
            f"buffer of {len(images[0]) // 1000} KB": lambda count: buffer_documents(count, images),
        }
        rates, rows = compare(folder, sorts, count, rounds, service)
        print(f"Requests of {REQUEST}, {count} documents a call, {rounds} rounds:\n")
        print_table(("documents", "documents/s", "range", "of the no-op", "of the Flow's /fit"), rows)
        print(f"Milliseconds for {REQUEST} documents:\n")
        pieces = {sort: breakdown(folder / sort.split()[0], make, repeats) for sort, make in sorts.items()}
        names = list(next(iter(pieces.values())))
        print_table(("piece", *pieces), [(name, *(piece[name] for piece in pieces.values())) for name in names])
        print("Memory in MB:\n")
        columns = (
            "documents",
            "requests ahead",
            "service before",
            "service after",
            "trainer at its first steps",
            "trainer's peak",
        )
        print_table(columns, memory(folder, paths, counts, 600 + max(counts)[0] / 100, service))
    print_headline("fit_of_noop_uri", median(rates["uri, /fit"]) / median(rates["uri, no-op"]))


if __name__ == "__main__":
    main()
