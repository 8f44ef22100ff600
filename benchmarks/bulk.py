"""A folder of photographs in, vectors out: `fit` and `embed` of the command line.

    .venv/bin/python -m benchmarks.bulk [--quick] [--model small]

Measured on JPEG files on disk of 640×480 pixels:

- `embed`: the rows per second from a folder into a parquet file, without imports and the loading of the model. Its
  limit is what must be computed, at its best and one after the other: decoding all files by a thread for each core,
  and the fastest admitted forward pass on all cores, in batches of 64.
- `fit`: the files per second from a folder into a service's `/fit` over gRPC. Its peer is Jina's own client, which
  sends documents that have the files in memory.
- memory: the peak of a process that embeds a list of the same files, and of a list ten times as long.
"""

import asyncio
import functools
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from docarray import DocList
from jina import Client

from benchmarks.common import (
    median,
    options,
    print_headline,
    print_machine,
    print_table,
    seconds_of,
    spread,
    write_jpegs,
)
from benchmarks.serving import ROOT, Served
from executor.bulk.embedding import VersionEmbedder, embed_rows
from executor.bulk.parts import Output
from executor.commands.calling import Place, connect
from executor.commands.sending import loaded
from executor.compute.cores import usable_cores
from executor.documents import DocumentArray, RunStatus
from executor.models.versions import WorkspaceVersions, ensure_base
from executor.parameters import ExecutorOptions
from executor.serving.embedder import Embedder
from executor.serving.pipeline import largest_batch
from executor.sources import documents, rows
from executor.store.runs import RunStore
from executor.store.workspace import Workspace

MEASURE_MEMORY = """
import resource, sys
from executor.__main__ import main
code = main()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, flush=True)
"""


def limit(folder: Path, workspace: Workspace, given: ExecutorOptions) -> float:
    """Return the seconds of decoding all files and, after that, of all forward passes."""
    embedder = Embedder(WorkspaceVersions(workspace, given, lambda: "base"), given)
    version = embedder.version("base")
    docs = list(documents(folder, labelled=False))
    with ThreadPoolExecutor(usable_cores()) as pool:
        began = time.perf_counter()
        images = list(pool.map(version.preprocess, docs, chunksize=8))
        decoding = time.perf_counter() - began
    size = largest_batch(version.device, torch.get_num_threads())
    batches = [torch.from_numpy(np.stack(images[start : start + size])) for start in range(0, len(images), size)]

    def forward() -> None:
        for batch in batches:
            version.embed(batch)

    embedder.close()
    return decoding + seconds_of(forward)


def ours(folder: Path, workspace: Workspace, given: ExecutorOptions, out: Path) -> float:
    """Return the seconds from the folder into a complete file."""
    embedder = VersionEmbedder(workspace.root, given, "base")
    output = Output(out, {})

    def whole() -> None:
        output.join(asyncio.run(embed_rows(rows(folder, labelled=False), embedder, output, lambda count: None)))

    seconds = seconds_of(whole)
    embedder.close()
    return seconds


def by_client(client: Client, docs: DocumentArray, run: str) -> None:
    """Send documents that have their files already."""
    client.post("/fit", docs, parameters={"run": run}, request_size=100, return_type=DocList[RunStatus])


def by_command(place: Place, files: Path, run: str) -> None:
    """Read the files while they are sent, as the command does."""
    docs = (loaded(doc) for doc in documents(files, labelled=False))
    place.stream("/fit", docs, lambda answer: None, run=run)


def sent(folder: Path, files: Path, rounds: int) -> dict[str, list[float]]:
    """Return the seconds that all files take into `/fit`, by who sends them."""
    seconds: dict[str, list[float]] = defaultdict(list)
    with Served("ours", folder, model="small", input_size=32, receive_timeout=3600.0) as served:
        place, client = connect(f"grpc://127.0.0.1:{served.port}"), Client(host="127.0.0.1", port=served.port)
        for number in range(rounds):
            ready = DocumentArray(loaded(doc) for doc in documents(files, labelled=False))
            seconds["peer"].append(seconds_of(functools.partial(by_client, client, ready, f"peer-{number}")))
            seconds["fit"].append(seconds_of(functools.partial(by_command, place, files, f"fit-{number}")))
            for who in ("peer", "fit"):
                place.call("/cancel", run=f"{who}-{number}")
    return seconds


def peak(folder: Path, files: Path, workspace: Workspace, times: int) -> float:
    """Return the peak memory in MiB of embedding the files so many times."""
    uris = folder / f"{times}.txt"
    uris.write_text("\n".join(str(file) for _ in range(times) for file in sorted(files.iterdir())))
    command = ["embed", uris, "--workspace", workspace.root, "--to", folder / f"{times}.parquet"]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE_MEMORY, *map(str, command)], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return float(done.stdout.split()[-1])


def main() -> None:
    """Measure, and print the figures."""
    parser = options(__doc__)
    parser.add_argument("--model", default="default", help="`default` or `small`")
    arguments = parser.parse_args()
    count, rounds = (2000, 5) if not arguments.quick else (300, 2)
    if arguments.tiny:
        count, rounds, arguments.model = 30, 1, "small"
    print_machine()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_jpegs(folder / "files", count, 10)
        given = ExecutorOptions(model=arguments.model, input_size=32 if arguments.tiny else None)
        workspace = Workspace(folder / "workspace")
        RunStore(workspace).close()
        ensure_base(workspace, given)
        seconds: dict[str, list[float]] = defaultdict(list)
        for number in range(rounds):
            seconds["limit"].append(limit(folder / "files", workspace, given))
            seconds["embed"].append(ours(folder / "files", workspace, given, folder / f"{number}.parquet"))
        seconds |= sent(folder, folder / "files", rounds)
        rates = {who: count / median(values) for who, values in seconds.items()}
        print_table(
            ("", "images/s", "seconds", "of its limit or peer"),
            [
                (who, rates[who], spread(seconds[who]), rates[who] / rates[other])
                for who, other in (("limit", "limit"), ("embed", "limit"), ("peer", "peer"), ("fit", "peer"))
            ],
        )
        few, many = (peak(folder, folder / "files", workspace, times) for times in (1, 10))
        print(f"peak memory of embed: {few:.0f} MiB for {count} rows, {many:.0f} MiB for {10 * count}\n")
        print_headline("embed_of_limit", median(seconds["limit"]) / median(seconds["embed"]))


if __name__ == "__main__":
    main()
