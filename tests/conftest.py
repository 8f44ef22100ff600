"""Fixtures that several test files share."""

import os

os.environ.setdefault("JINA_OPTOUT_TELEMETRY", "1")
# With small matrices threads mostly wait for each other: they cost more than they gain, above all on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Where there are more threads all the same, in programs that tests start, they sleep soon when they have to wait.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

import io
import re
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import needs
from browsing import chromium, page, shop, visitors  # noqa: F401  (fixtures)
from desk import Clock, Desk, opened
from executor import Document, DocumentArray
from executor.compute.memory import not_collecting
from executor.documents import RunStatus
from executor.lifecycle import deadlines
from progress import Progress
from serving import Service, served

# Files that take longest. They begin first: else one of them goes on when all others are done.
_LONG = ("benchmarks", "commands", "demo", "distributed", "elsewhere", "hostile", "readme", "trials", "trust")
COLOURS = ((200, 40, 40), (40, 200, 40), (40, 40, 200), (200, 200, 40))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--extra", action="store_true", help="run the group `extra` too: ./scripts/test --extra does")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[object]:
    """What is imported here stays. To look through it for garbage takes each worker seconds, meanwhile and later."""
    with not_collecting():
        return (yield)


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # else this is a worker, whose tests are counted by who started it
        config.pluginmanager.register(Progress())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem.removeprefix("test_") not in _LONG)
    if not config.getoption("extra"):
        elsewhere = pytest.mark.skip(reason="needs more than .venv has: ./scripts/test --extra")
        for item in items:
            if item.get_closest_marker("extra"):
                item.add_marker(elsewhere)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    needs.now(item)
    try:
        return (yield)
    finally:
        needs.now(None)


@pytest.fixture(autouse=True)
def as_loud_as_before() -> Iterator[None]:
    """A command quietens Jina by an environment variable, for its process. Here that is the tests', and goes on."""
    level = os.environ.get("JINA_LOG_LEVEL")
    yield
    os.environ.pop("JINA_LOG_LEVEL", None)
    if level is not None:
        os.environ["JINA_LOG_LEVEL"] = level


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One Flow for all tests that want no other; their runs have names of their own. No run starts by waiting."""
    with served(tmp_path_factory.mktemp("service"), receive_timeout=1000.0, fast_inference=True) as running:
        _shared.append(running)
        yield running
        _shared.clear()


_shared: list[Service] = []


@pytest.fixture(scope="module", autouse=True)
def nothing_is_left() -> Iterator[None]:
    """After a file no run of the shared Flow is open, and `base` is served."""
    yield
    for service in _shared:
        for status in service.post("/status", returns=RunStatus):
            if status.ended_at is None:
                service.cancel(status.run)
        service.post("/promote", returns=RunStatus, run="base")


@pytest.fixture
def run(service: Service, request: pytest.FixtureRequest) -> Iterator[str]:
    """A name for a run, which is cancelled after the test."""
    name = f"{request.path.stem.removeprefix('test_')[:12]}-{request.node.name[-48:]}"
    name = re.sub(r"[^\w-]", "-", name, flags=re.ASCII)
    yield name
    service.cancel(name)


@pytest.fixture(scope="module")
def busy(service: Service) -> Iterator[str]:
    """A run that holds the trainer and does nothing, so that the others stay queued while a file is tested."""
    name = f"busy-{uuid.uuid4().hex}"
    service.post("/fit", images(4), returns=RunStatus, run=name, total=4)
    service.wait(name, until=lambda status: status.state == "training")
    for trainer in service.trainers():
        trainer.suspend()
    yield name
    service.cancel(name)


def coloured(label: int, seed: int = 0, size: int = 24) -> np.ndarray:
    """Return an image, (size, size, 3) uint8, in the colour of its label, with noise."""
    noise = np.random.default_rng([label, seed]).integers(-40, 40, (size, size, 3))
    return np.clip(np.asarray(COLOURS[label % len(COLOURS)]) + noise, 0, 255).astype(np.uint8)


def encoded(image: np.ndarray, form: str = "PNG") -> bytes:
    """Return the image as the bytes of a file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, form)
    return buffer.getvalue()


def images(count: int, classes: int = 3, prefix: str = "d", first_seed: int = 0, size: int = 24) -> DocumentArray:
    """Documents with labels 0 … classes-1 in turn and their images as `blob`; ids begin with `prefix`."""
    return DocumentArray(
        Document(
            id=f"{prefix}{number}",
            blob=coloured(number % classes, first_seed + number, size),
            tags={"finetuner_label": number % classes},
        )
        for number in range(count)
    )


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock by which runs wait for further documents."""
    clock = Clock()
    monkeypatch.setattr(deadlines, "time", clock)
    return clock


@pytest.fixture
def make_desk(tmp_path: Path, clock: Clock) -> Iterator[Callable[..., Desk]]:
    """Make a receiver on the workspace of this test."""
    yield from opened(Desk, tmp_path / "workspace")


@pytest.fixture
def desk(make_desk: Callable[..., Desk]) -> Desk:
    """What the `make_desk` of a file makes."""
    return make_desk()


@pytest.fixture
def labelled() -> Callable[..., DocumentArray]:
    """Make documents with an image as `blob` and labels 0 … classes-1 in turn: see `images`."""
    return images


@pytest.fixture
def image_files(tmp_path: Path) -> Callable[[int], list[Path]]:
    """Write `count` PNG files and return their paths."""

    def make(count: int) -> list[Path]:
        paths = [tmp_path / f"{number}.png" for number in range(count)]
        for number, path in enumerate(paths):
            path.write_bytes(encoded(coloured(number % 3, number)))
        return paths

    return make


@pytest.fixture
def importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], str]]:
    """A function that writes a module, so that it can be imported during the test, and returns its name."""
    names: list[str] = []

    def write(name: str, code: str) -> str:
        (tmp_path / f"{name}.py").write_text(code)
        monkeypatch.syspath_prepend(tmp_path)
        names.append(name)
        return name

    yield write
    for name in names:
        sys.modules.pop(name, None)
