"""A real Chromium before a real service, for the tests of the page, and what every test of a page has to hold.

Both are started once and shared by all files. The group `extra` has playwright and axe-core in its environment; the
browser itself is the system's. Pictures are drawn by `benchmarks/shapes.py`: what differs between their labels is the
texture, so that a model has something to learn.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from PIL import Image

import needs
from extras import PYTHON
from serving import ROOT, free_ports

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
LABELS = ("brick", "linen", "slate")
EACH = 20  # pictures of a label
FIRST = "spring"  # the run that is there already
SERIOUS = ("serious", "critical")  # what axe-core calls a fault that keeps somebody from using a page
WAIT = 20_000  # milliseconds that an element has to appear, on a busy machine


class Shop:
    """A service in its own process, as `python -m executor serve` starts it, with pictures and one trained run.

    Attributes: address: of its door. pictures: a folder with a folder of pictures for each label. loose: one with
        pictures that nobody has labelled.
    """

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self.pictures = folder / "pictures"
        self.loose = folder / "loose"
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        (port,) = free_ports(1)
        self.address = f"http://127.0.0.1:{port}"
        self._port = port

    def start(self) -> "Shop":
        """Start it and wait until it answers."""
        needs.serving()
        command = [sys.executable, "-m", "executor", "serve", "--http-port", str(self._port), *SMALL, *self._options]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        with open(self.folder / "log", "ab") as log:
            self._process = subprocess.Popen(command, cwd=self.folder, env=environment, stdout=log, stderr=log)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(requests.ConnectionError):
                if requests.get(f"{self.address}/readyz", timeout=20).status_code == 200:
                    return self
            time.sleep(0.05)
        raise RuntimeError(f"The service did not start: {(self.folder / 'log').read_text()[-3000:]}")

    def end(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End it."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(60)

    def restart(self) -> None:
        """Kill it and start it again, at the same address."""
        self.end(signal.SIGKILL)
        self.start()

    def call(self, path: str, data: Any = (), **parameters: Any) -> list[Any]:
        """Call an endpoint and return what it answers."""
        answer = requests.post(self.address + path, json={"data": list(data), "parameters": parameters}, timeout=60)
        assert answer.ok, answer.text
        return list(answer.json()["data"])

    def wait(self, run: str, seconds: float = 120) -> Any:
        """Wait until a run has ended, and return its status."""
        deadline = time.monotonic() + seconds
        while (status := self.call("/status", run=run)[0])["ended_at"] is None:
            assert time.monotonic() < deadline, status
            time.sleep(0.1)
        assert status["state"] == "succeeded", status
        return status


SMALL = [
    *("--model", "small", "--input-size", "32", "--trainer-nice", "0", "--trainer-yields", "false"),
    *("--trainer-threads", "1", "--standby-seconds", "600", "--fit-defaults", '{"epochs": 3, "batch_size": 12}'),
]


def write_pictures(folder: Path, each: int = EACH, size: int = 64, labels: tuple[str, ...] = LABELS) -> None:
    """Write pictures as PNG files: `folder/<label>/<number>.png`, each a little different."""
    for place, picture in enumerate(_drawn(len(labels), each, 1, size)):
        label = folder / labels[place // each]
        label.mkdir(parents=True, exist_ok=True)
        picture.save(label / f"{place % each:02}.png")


def write_loose(folder: Path, each: int = 4, size: int = 64) -> None:
    """Write pictures of the same labels, into one folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for place, picture in enumerate(_drawn(len(LABELS), each, 2, size)):
        picture.save(folder / f"loose-{place:02}.png")


def _drawn(labels: int, each: int, seed: int, size: int) -> Iterator[Image.Image]:
    """The pictures of the first label, then those of the second one, and so on."""
    from benchmarks import shapes

    drawn, _ = shapes.make(shapes.classes(labels), each, seed, size)
    yield from map(Image.fromarray, drawn)


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A service with pictures, and the run `spring`, which has learned from them. `base` is served."""
    running = Shop(tmp_path_factory.mktemp("shop"))
    write_pictures(running.pictures)
    write_loose(running.loose)
    try:
        running.start()
        train(running, FIRST, promote="never")
        yield running
    finally:
        running.end()


def train(shop: Shop, run: str, **parameters: Any) -> Any:
    """Train a run on the pictures of a shop, and return its status when it has ended."""
    docs = [
        {"id": f"{path.parent.name}/{path.name}", "uri": str(path), "tags": {"finetuner_label": path.parent.name}}
        for path in sorted(shop.pictures.glob("*/*.png"))
    ]
    shop.call("/fit", docs, run=run, total=len(docs), **parameters)
    return shop.wait(run)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A headless Chromium, of the system."""
    executable = next((found for name in NAMES if (found := shutil.which(name))), None)
    if executable is None:
        reason = "There is no Chromium on the PATH; on Debian and Ubuntu: apt-get install chromium."
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    with _playwright() as playwright:
        # Root may have no sandbox, and a container has little shared memory.
        arguments = ["--disable-dev-shm-usage", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
        running = playwright.chromium.launch(executable_path=executable, args=arguments)
        yield running
        running.close()


def _playwright() -> Any:
    """Return playwright of the environment of the extras. Its packages come last: they stand for none of ours."""
    (packages,) = PYTHON.parent.parent.glob("lib/python3*/site-packages")
    if str(packages) not in sys.path:
        sys.path.append(str(packages))
    from playwright.sync_api import sync_playwright

    return sync_playwright()


class Watched:
    """All that a page asked for and complained of.

    Attributes: requests: the addresses. complaints: what it wrote to the console as an error, and exceptions.
        allowed: parts of complaints that a test expects.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.allowed: list[str] = []

    def follow(self, context: Any) -> None:
        """Note what the pages of a browser's context do."""
        context.on("request", lambda request: self.requests.append(request.url))
        context.on("console", lambda said: self.complaints.append(said.text) if said.type == "error" else None)
        context.on("weberror", lambda error: self.complaints.append(str(error.error)))

    def check(self) -> None:
        """No request has left the machine, and nothing went wrong: a breach of the policy is such a complaint."""
        assert not [each for each in self.requests if not each.startswith((f"{self.address}/", "data:", "blob:"))]
        unexpected = [each for each in self.complaints if not any(part in each for part in self.allowed)]
        assert not unexpected


@pytest.fixture
def visitors(chromium: Any, shop: Shop) -> Iterator[Callable[..., Any]]:
    """A function that opens a page of a new visitor, without cookies. Args: width, colour: of the screen."""
    opened: list[tuple[Any, Watched]] = []

    def visit(width: int = 1280, colour: str = "light", **options: Any) -> Any:
        watched = Watched(shop.address)
        context = chromium.new_context(
            base_url=shop.address, viewport={"width": width, "height": 900}, color_scheme=colour, **options
        )
        context.set_default_timeout(WAIT)
        watched.follow(context)
        opened.append((context, watched))
        page = context.new_page()
        page.watched = watched
        return page

    yield visit
    for context, _ in opened:
        context.close()
    for _, watched in opened:
        watched.check()


@pytest.fixture
def page(visitors: Callable[..., Any]) -> Any:
    """A page of a visitor with a screen of 1280 pixels."""
    return visitors()


def assert_usable(page: Any) -> None:
    """axe-core finds no serious fault on a page, and nothing hangs over its right edge."""
    from axe_playwright_python.sync_playwright import Axe

    found = [each for each in Axe().run(page).response["violations"] if each["impact"] in SERIOUS]
    assert not found, [(each["id"], each["help"], [node["html"][:200] for node in each["nodes"]]) for each in found]
    width = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert width[0] <= width[1], f"the page is {width[0]} pixels wide on a screen of {width[1]}"
