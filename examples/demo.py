"""Fine-tune through a real Flow, and see what it does to the nearest neighbours.

The images are scikit-learn's handwritten digits, or your own photographs in class folders. Run it by ./scripts/demo,
whose --help names the options. All that it writes lies in digits-demo/ or photos-demo/.
"""

import argparse
import asyncio
import contextlib
import io
import signal
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from docarray import DocList
from jina import Client, Flow
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, track
from rich.table import Table
from sklearn.datasets import load_digits

from examples.neighbours import draw_neighbours
from executor import Document, DocumentArray
from executor.documents import Evaluation, RunQuery, RunStatus

ROOT = Path(__file__).resolve().parent.parent
HELD_OUT = 400  # digits
MEASURED_SHARE = 0.25  # of the photographs of a class
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
METRICS = {"recall@1": "recall_at_1", "mAP@R": "mean_average_precision_at_r"}
FLOW = """\
jtype: Flow
with:
  protocol: [grpc, http]
  port: [{grpc}, {http}]
  host: 127.0.0.1
executors:
  - name: finetuner
    uses: {root}/config.yml
    workspace: {output}/workspace
    uses_with:
      model: {model}
      trainer_nice: 0
      trainer_yields: false # what else keeps the machine busy does not hold it up; a search in use has the default
      allowed_roots: [{roots}]
"""
# Digits have few pixels: the small network, which starts from nothing, suits them. Photographs get the default one.
SMALL = "small\n      input_size: 32\n      trainer_threads: 1"

console = Console()


@dataclass(frozen=True)
class Images:
    """What the demonstration trains on, and what it measures on: no run sees these.

    Attributes: model: the option and what belongs to it. options: of `/fit`. root: a folder that may be read.
    """

    train: DocumentArray
    held_out: DocumentArray
    model: str
    root: Path
    options: dict[str, Any] = field(default_factory=dict)


def main() -> None:
    """Serve, train, compare."""
    options = parse_options()
    output = (options.output or Path("photos-demo" if options.photos else "digits-demo")).resolve()
    output.mkdir(parents=True, exist_ok=True)
    if options.photos:
        images = photographs(options.photos.resolve(), quick=options.quick)
    else:
        images = digits(output, quick=options.quick)
    held_out = images.held_out
    ports = [options.port + 1, options.port] if options.port else free_ports(2)
    flow_file = output / "flow.yml"
    flow_file.write_text(
        FLOW.format(grpc=ports[0], http=ports[1], root=ROOT, output=output, roots=images.root, model=images.model)
    )

    console.print(f"[bold]Starting the Flow[/] of {flow_file}")
    with served(flow_file):
        client = Client(port=ports[0])
        run = fit(client, images)
        status = asyncio.run(watch(ports[0], run))
        if status.state != "succeeded":
            sys.exit(f"Run {run} {status.state}: {status.error}")
        compare(client, held_out, run)
        picture = draw_neighbours(output / "neighbours.png", *(embed(client, held_out, of) for of in ("base", run)))
    console.print(f"\nThe proof, on images that the run held out: {status.verdict}\n", highlight=False)
    console.print(f"Nearest neighbours before and after: [bold]{picture}[/]\n", soft_wrap=True, highlight=False)
    print_next_steps(flow_file, ports[1], next(doc.uri for doc in held_out if doc.uri), run)


def digits(output: Path, *, quick: bool) -> Images:
    """Write the digits, and hold the last ones out."""
    docs = write_digits(output / "images", count=1000 if quick else None)
    return Images(docs[:-HELD_OUT], docs[-HELD_OUT:], SMALL, output, {"epochs": 6})


def photographs(folder: Path, *, quick: bool) -> Images:
    """Read a folder of class folders; the last quarter of each class, by the names of its files, is held out.

    By name and not by chance, because photographs that follow each other often show the same moment. If the folder has
    `train` and `test`, each with class folders, `test` is held out.
    """
    options = {"epochs": 1} if quick else {}
    if all((folder / part).is_dir() for part in ("train", "test")):
        train, held_out = labelled(folder / "train"), labelled(folder / "test")
        known = {doc.tags["finetuner_label"] for doc in train}
        held_out = DocumentArray(doc for doc in held_out if doc.tags["finetuner_label"] in known)
        return Images(train, held_out, "default", folder, options)
    train, held_out = DocumentArray(), DocumentArray()
    for _, group in groupby(labelled(folder), key=lambda doc: doc.tags["finetuner_label"]):
        of_class = list(group)
        count = round(len(of_class) * (1 - MEASURED_SHARE))
        train += of_class[:count]
        held_out += of_class[count:]
    return Images(train, held_out, "default", folder, options)


def labelled(folder: Path) -> DocumentArray:
    """Return a document for each image in the class folders, labelled by its folder."""
    files = sorted(file for file in folder.glob("*/*") if file.suffix.lower() in SUFFIXES)
    if len({file.parent for file in files}) < 2:
        sys.exit(f"{folder} needs a folder of images for each of at least two classes, such as {folder}/cat/1.jpg.")
    return DocumentArray(
        Document(id=str(file.relative_to(folder)), uri=str(file), tags={"finetuner_label": file.parent.name})
        for file in files
    )


def write_digits(folder: Path, count: int | None) -> DocumentArray:
    """Write each digit as a PNG file; return documents that carry it as `uri`, `buffer` and `blob` in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    known = load_digits()
    docs = DocumentArray()
    for number in np.random.default_rng(0).permutation(len(known.target))[:count]:
        pixels = (255 - known.images[number] * 15.9).astype(np.uint8)  # 16 shades, dark on light
        image = Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC).convert("RGB")
        file = folder / f"{number:04d}.png"
        image.save(file)
        contents = {"uri": str(file)}, {"buffer": file.read_bytes()}, {"blob": np.asarray(image)}
        label = int(known.target[number])
        docs.append(Document(id=file.stem, tags={"finetuner_label": label}, **contents[len(docs) % 3]))
    return docs


@contextlib.contextmanager
def served(flow_file: Path) -> Iterator[None]:
    """Serve a Flow, without the banner that it prints, and end all its processes whatever happens."""
    flow = Flow.load_config(str(flow_file))
    signals: list[int] = []
    for each in (signal.SIGINT, signal.SIGTERM):  # one that came while the Flow starts would leave processes behind
        signal.signal(each, lambda number, _: signals.append(number))
    with contextlib.redirect_stdout(io.StringIO()):
        flow.start()
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, lambda number, _: sys.exit(128 + number))
    try:
        if signals:
            sys.exit(128 + signals[0])
        yield
    finally:
        flow.close()


def fit(client: Client, images: Images) -> str:
    """Stream the documents to a new run, which holds some of them out to prove its model; return its name."""
    statuses = client.post(
        "/fit",
        track(images.train, f"Sending {len(images.train)} documents to /fit", console=console),
        parameters={"total": len(images.train)} | images.options,
        return_type=DocList[RunStatus],
    )
    return statuses[0].run


async def watch(port: int, run: str) -> RunStatus:
    """Show the progress of a run until it ends; return its last status."""
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[figures]}"), TimeElapsedColumn()
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(run, figures="")
        client = Client(port=port, asyncio=True)
        async for status in client.stream_doc("/watch", RunQuery(run=run), return_type=RunStatus):
            figures = f"epoch {status.epoch} of {status.epochs}"
            if status.loss is not None:
                figures += f"  loss {status.loss:.2f}  {status.images_per_second or 0:.0f} images/s"
            what = f"{run}: {status.phase or status.state}"
            progress.update(task, total=status.steps or None, completed=status.step, description=what, figures=figures)
    return status


def compare(client: Client, held_out: DocumentArray, run: str) -> None:
    """Print the retrieval metrics of both models on images that no run has seen."""
    before, after = (
        client.post(
            "/evaluate",
            held_out,
            parameters={"model": model, "total": len(held_out)},  # its requests are scored as one set
            return_type=DocList[Evaluation],
        )[0]
        for model in ("base", run)
    )
    table = Table(title=f"{before.queries} held-out images of seen classes", min_width=44)
    for heading in ("metric", "before", "after"):
        table.add_column(heading, justify="left" if heading == "metric" else "right")
    for heading, name in METRICS.items():
        table.add_row(heading, f"{before.metrics[name]:.3f}", f"[bold]{after.metrics[name]:.3f}[/]")
    console.print(table)


def embed(client: Client, docs: DocumentArray, model: str) -> DocumentArray:
    """Return the documents with the embeddings of one model version."""
    found = client.post("/embed", docs, parameters={"model": model}, return_type=DocumentArray)
    answers = {doc.id: doc for doc in found}  # the requests of a call may come back in another order
    return DocumentArray(answers[doc.id] for doc in docs)


def print_next_steps(flow_file: Path, port: int, image: str, run: str) -> None:
    """Print commands to paste one after the other."""
    jina = Path(sys.executable).with_name("jina")
    post = "curl -s -H 'Content-Type: application/json' -d"
    url = f"http://127.0.0.1:{port}"
    console.print("[bold]Next, serve it again[/] (the first line, left running) [bold]and ask it[/] (the others):")
    for line in (
        f"{jina} flow --uses {flow_file}",
        f"{post} '{{\"data\": []}}' {url}/status",
        f'{post} \'{{"data": [{{"uri": "{image}"}}]}}\' {url}/embed',
        f'{post} \'{{"data": [], "parameters": {{"run": "base"}}}}\' {url}/promote  # roll back',
        f'{post} \'{{"data": [], "parameters": {{"run": "{run}"}}}}\' {url}/promote  # and forward',
    ):
        console.print(f"  {line}", soft_wrap=True, markup=False, highlight=False)


def free_ports(count: int) -> list[int]:
    """Return ports that nothing listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__)
    parser.add_argument("--photos", type=Path, help="your photographs, in a folder for each class, in place of digits")
    parser.add_argument(
        "--output", type=Path, help="folder for all that is written; by default digits-demo or photos-demo"
    )
    parser.add_argument("--port", type=int, help="HTTP port, gRPC has the one after it; by default free ones")
    parser.add_argument("--quick", action="store_true", help="fewer digits, or one epoch of photographs")
    return parser.parse_args()


if __name__ == "__main__":
    main()
