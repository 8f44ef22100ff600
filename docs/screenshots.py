"""Take a picture of every page at `/ui/`: narrow and wide, light and dark.

    .venv-extras/bin/python -m docs.screenshots FOLDER

The environment is that of the group `extra` of the tests (`./scripts/test --extra` makes it), and a Chromium must be on
the PATH. A service is started in a folder of its own, with pictures that a program has drawn, labels, two runs and a
comparison. `--for-docs` also writes those three that stand in docs/page.md.
"""

import argparse
import contextlib
import html
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks import shapes

ROOT = Path(__file__).resolve().parent.parent
SCREENS = [(width, colour) for width in (360, 1280) for colour in ("light", "dark")]
LABELS = ("brick", "cork", "felt", "linen", "slate", "tweed")
EACH = 40  # pictures of a label
SIDE = 96  # of a picture, in pixels; it is drawn at twice that, so that it has less noise
IN_DOCS = {  # of each page: the file, the element that comes first, and the height of what is seen
    "run": ("page-run.png", "body", 960),
    "compare": ("page-compare.png", "#outcome", 1520),
    "label": ("page-label.png", "body", 1000),
}
COLOURS = 128  # in those
OPTIONS = [
    *("--model", "small", "--input-size", "48", "--trainer-nice", "0", "--trainer-yields", "false"),
    *("--fit-defaults", '{"epochs": 12}'),
]


class Service:
    """A service with pictures, and what the pages show of it. Attributes: pages: the path of each page, by its name."""

    def __init__(self, folder: Path, address: str) -> None:
        self.folder = folder
        self.address = address

    def call(self, path: str, data: Any = (), **parameters: Any) -> list[dict[str, Any]]:
        body = json.dumps({"data": list(data), "parameters": parameters}).encode()
        request = urllib.request.Request(self.address + path, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=600) as answer:
            found: list[dict[str, Any]] = json.loads(answer.read())["data"]
        return found

    def train(self, run: str, docs: list[dict[str, Any]], **parameters: Any) -> None:
        """Train a run and wait for its end."""
        self.call("/fit", docs, run=run, total=len(docs), **parameters)
        while not (status := self.call("/status", run=run)[0])["ended_at"]:
            print(f"{run}: {status['state']} {status['phase'] or ''} {status['step']}/{status['steps']}", flush=True)
            time.sleep(5)
        print(f"{run}: {status['verdict'] or status['error']}", flush=True)


@contextlib.contextmanager
def served(folder: Path) -> Iterator[Service]:
    """Start a service in a folder, and end it."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    command = [sys.executable, "-m", "executor", "serve", "--http-port", str(port), *OPTIONS]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=folder, env=environment) as process:
        service = Service(folder, f"http://127.0.0.1:{port}")
        try:
            wait_for(service, process)
            yield service
        finally:
            process.send_signal(signal.SIGTERM)


def wait_for(service: Service, process: "subprocess.Popen[bytes]") -> None:
    while process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{service.address}/readyz"):
            return
        time.sleep(0.2)
    sys.exit("The service did not start.")


def fill(service: Service) -> None:
    """Draw pictures, train two runs on them, label some, compare."""
    kinds = shapes.classes(len(LABELS))
    drawn, numbers = shapes.make(kinds, EACH, seed=1, size=2 * SIDE)
    docs = []
    for place, (picture, number) in enumerate(zip(drawn, numbers.tolist(), strict=True)):
        file = service.folder / "shop" / LABELS[number] / f"{LABELS[number]}-{place % EACH:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).reduce(2).save(file)
        label = LABELS[(number + 1) % len(LABELS)] if place in (17, 66) else LABELS[number]  # two are wrong
        docs.append({"id": file.name, "uri": str(file), "tags": {"finetuner_label": label}})
    (service.folder / "new").mkdir()
    for place, picture in enumerate(shapes.make(kinds, 12, seed=2, size=2 * SIDE)[0]):
        Image.fromarray(picture).reduce(2).save(service.folder / "new" / f"new-{place:02}.png")
    broken = service.folder / "shop" / "felt" / "felt-40.png"
    broken.write_bytes(b"no picture")
    docs.append({"id": broken.name, "uri": str(broken), "tags": {"finetuner_label": "felt"}})
    service.train("spring", docs[::2], epochs=3, promote="always")
    service.train("summer", docs, promote="never")
    service.call("/compare", first="spring", second="summer")
    service.call("/feedback", [session(service, docs, number) for number in range(12)])


def session(service: Service, docs: list[dict[str, Any]], number: int) -> dict[str, Any]:
    """What a user said: one picture fits, another one does not."""
    matches = [
        {"uri": docs[number * 3 + other]["uri"], "tags": {"finetuner_label": fits}}
        for other, fits in ((1, 1), (90, -1))
    ]
    return {"id": f"search-{number}", "uri": str(service.folder / "new" / f"new-{number:02}.png"), "matches": matches}


def pages(service: Service) -> dict[str, str]:
    """The path of each page, by its name."""
    versions = "first=spring&second=summer"
    query = service.call("/compare", first="spring", second="summer", which="better", limit=1)[0]["queries"][0][
        "number"
    ]
    gallery = f"/ui/label?of={service.folder}/new"
    with urllib.request.urlopen(service.address + gallery) as answer:
        label = html.unescape(re.findall(r'<a class="cell" href="([^"]+)"', answer.read().decode())[5])
    return {
        "runs": "/ui/",
        "run": "/ui/runs/summer",
        "left-out": "/ui/runs/summer/left-out",
        "events": "/ui/runs/summer/events",
        "promote": "/ui/runs/summer/promote",
        "start": "/ui/start",
        "label": label,
        "label-gallery": gallery,
        "label-choose": "/ui/label",
        "label-said": "/ui/label/said",
        "label-train": "/ui/label/train",
        "suggest": f"/ui/suggest?of={service.folder}/new&wait=yes",
        "compare": f"/ui/compare?{versions}",
        "compare-query": f"/ui/compare/query?{versions}&number={query}",
        "nothing": "/ui/nothing",
    }


def main() -> None:
    """Serve, fill, look."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the pictures go")
    parser.add_argument("--for-docs", action="store_true", help="write those of docs/page.md, too")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, served(Path(folder)) as service, browser() as chromium:
        fill(service)
        for name, path in pages(service).items():
            for width, colour in SCREENS:
                shoot(chromium, service.address + path, width, colour, options.folder / f"{name}-{width}-{colour}.png")
            if options.for_docs and name in IN_DOCS:
                shoot_for_docs(chromium, service.address + path, *IN_DOCS[name])


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    """A headless Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        running = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=sandbox)
        yield running
        running.close()


def shoot(chromium: Any, address: str, width: int, colour: str, file: Path) -> None:
    """Write the picture of a whole page."""
    page = opened(chromium, address, width, 820, colour)
    page.screenshot(path=file, full_page=True)
    page.close()
    print(file, flush=True)


def shoot_for_docs(chromium: Any, address: str, name: str, first: str, height: int) -> None:
    """Write the picture of a part of a page, as a small file. Args: first: the selector of what is at its top."""
    page = opened(chromium, address, 1100, height, "light")
    page.locator(first).first.evaluate("each => scrollTo(0, each.getBoundingClientRect().top + scrollY - 24)")
    page.wait_for_timeout(500)
    with Image.open(io.BytesIO(page.screenshot())) as picture:
        picture.convert("RGB").quantize(COLOURS).save(ROOT / "docs" / name, optimize=True)
    page.close()


def opened(chromium: Any, address: str, width: int, height: int, colour: str) -> Any:
    """Open a page, with all that is loaded when it comes into view."""
    page = chromium.new_page(viewport={"width": width, "height": height}, color_scheme=colour, reduced_motion="reduce")
    answer = page.goto(address)
    if answer.status >= 400 and not address.endswith("/nothing"):
        sys.exit(f"{address} answers {answer.status}: {page.inner_text('main')}")
    for place in range(0, min(20_000, page.evaluate("document.documentElement.scrollHeight")), height):
        page.evaluate(f"scrollTo(0, {place})")
        page.wait_for_timeout(60)
    page.evaluate("scrollTo(0, 0)")
    page.wait_for_timeout(700)
    return page


if __name__ == "__main__":
    main()
