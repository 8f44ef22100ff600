"""The page: how fast a gallery of 100,000 pictures is shown, and what open pages cost `/embed`.

The gallery has 100,000 names of 200 different pictures (hard links, 640×480 JPEG): the service knows pictures by their
paths, so it makes a thumbnail for each name; only the disk has less to do than with 100,000 files. The service is
`python -m executor serve` in its own process, with the default model, and nothing trains.

A page of 60 is measured over HTTP as a browser asks for it (the page, then the thumbnails that it does not bring along,
by six connections), and in Chromium, from the click to the last of its 60 pictures, on a screen that is high enough to
show them all. Places in the gallery are random: `new` pages were never shown before, `again` is the same one once more.
`scrolled` is the time from the moment when a page of the endless gallery comes into sight to its last picture.

p99 of `/embed`: one caller after the other's answer, raw JPEGs over HTTP, in turns without and with ten open pages: two
each of the runs, a gallery, a picture with its neighbours, what to label next and what was said. The browsers of ten
people are not on the service's cores, so a client asks for all that they ask for and holds their streams. With `turned`
it asks for every page anew every ten seconds, as by ten people at once. `in Chromium here` are the same ten pages in a
browser on the same cores. The last line is the p99 with ten open pages as a share of that without.

Chromium is that of the system, and playwright that of the extras (`./scripts/test --extra` installs it).
"""

import contextlib
import http.client
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

from benchmarks.common import jpeg, median, options, print_headline, print_machine, print_table, seconds_of, textured

ROOT = Path(__file__).resolve().parent.parent
SHOWN = 60  # pictures of a page
CONNECTIONS = 6  # of a browser to one host
TALL = 4000  # pixels of a screen that shows a whole page
DIFFERENT = 200  # pictures
TURNED_SECONDS = 10.0
LIMIT_MS = 300.0
SETTLE_SECONDS = 3.0  # until open pages have drawn what they show
LOOK_SECONDS = 0.5  # at a page, before the next: meanwhile the browser fetches what is below


class Sizes(NamedTuple):
    """How much is measured. Attributes: calls: of `/embed` in a turn. turns: of each of the three."""

    pictures: int
    pages: int
    calls: int
    turns: int


FULL, QUICK, TINY = Sizes(100_000, 30, 1500, 4), Sizes(100_000, 8, 300, 2), Sizes(300, 2, 20, 1)


def main() -> None:
    """Measure and print."""
    arguments = options(__doc__).parse_args()
    sizes = TINY if arguments.tiny else QUICK if arguments.quick else FULL
    print_machine()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_gallery(folder / "gallery", sizes.pictures)
        with served(folder) as port:
            print(
                f"the gallery is listed in {seconds_of(lambda: get(port, page_at(folder, 0))):.2f} s the first time\n"
            )
            rows = [("over HTTP", *over_http(port, folder, sizes))]
            with browser() as chromium:
                if chromium is not None:
                    rows.append(("in Chromium", *in_browser(chromium, port, folder, sizes)))
                    rows.append(("in Chromium, scrolled", *scrolled(chromium, port, folder, sizes)))
                print_table(("ms for a page of 60", "new", "longest", "again", "longest"), rows)
                print(f"wanted: at most {LIMIT_MS:g}\n")
                print_headline("p99_with_ten_pages", beside_embed(chromium, port, folder, sizes))


def write_gallery(folder: Path, count: int) -> None:
    """Write the names of the gallery, a thousand to a folder."""
    first: list[Path] = []
    for number in range(count):
        file = folder / f"{number // 1000:03}" / f"{number:06}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        if number < DIFFERENT:
            file.write_bytes(jpeg(textured(number % 20, number)))
            first.append(file)
        else:
            file.hardlink_to(first[number % len(first)])


@contextlib.contextmanager
def served(folder: Path) -> Iterator[int]:
    """Serve the folder, and give the port."""
    command = [sys.executable, "-m", "executor", "serve", "--workspace", "workspace", "--http-port", "0"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        assert process.stdout is not None
        found = next(filter(None, (re.search(r"at http://[\w.]+:(\d+);", line) for line in process.stdout)))
        port = int(found[1])
        while get(port, "/readyz")[0] != 200:
            time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait(60)


def get(port: int, path: str, connection: http.client.HTTPConnection | None = None) -> tuple[int, bytes]:
    """GET a path, by a connection that is open or by one of its own."""
    connection = connection or http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    connection.request("GET", path)
    answer = connection.getresponse()
    return answer.status, answer.read()


def page_at(folder: Path, offset: int) -> str:
    """The address of a page of the gallery."""
    return f"/ui/label?{urlencode({'of': folder / 'gallery', 'offset': offset})}"


def places(sizes: Sizes) -> list[int]:
    """Where the pages begin that are measured: different for each way of measuring."""
    return random.Random(time.time_ns()).sample(range(0, sizes.pictures - SHOWN, SHOWN), sizes.pages)


# a page of 60 ---------------------------------------------------------------------------------------------------------


def over_http(port: int, folder: Path, sizes: Sizes) -> tuple[float, ...]:
    """The page and its thumbnails by as many connections as a browser opens."""
    local = threading.local()

    def fetch(path: str) -> bytes:
        if not hasattr(local, "connection"):
            local.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        status, body = get(port, path, local.connection)
        assert status == 200, body
        return body

    def show(offset: int) -> None:
        text = pool.submit(fetch, page_at(folder, offset)).result().decode()
        pictures = re.findall(r'<img class="picture" src="([^"]+)"', text)
        assert len(pictures) == SHOWN, len(pictures)
        apart = (each.replace("&amp;", "&") for each in pictures if not each.startswith("data:"))
        list(pool.map(fetch, apart))

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        return both(show, sizes)


def both(show: Callable[[int], float | None], sizes: Sizes) -> tuple[float, ...]:
    """Median and maximum in ms of new pages, and of the same ones again.

    Args: show: shows the page at an offset, and returns the seconds that this took; None: as long as the call.
    """
    times: list[list[float]] = []
    offsets = places(sizes)
    for _ in range(2):
        times.append([])
        for offset in offsets:
            began = time.perf_counter()
            found = show(offset)
            times[-1].append(1000 * (time.perf_counter() - began if found is None else found))
    return tuple(figure for part in times for figure in (median(part), max(part)))


ALL_SHOWN = "() => document.querySelectorAll('#gallery img').length >= 60 && " + (
    "[...document.querySelectorAll('#gallery img')].slice(0, 60).every((each) => each.complete && each.naturalWidth)"
)


def in_browser(chromium: Any, port: int, folder: Path, sizes: Sizes) -> tuple[float, ...]:
    """From the start of the navigation to the last of 60 pictures, by the browser's own clock."""
    context = chromium.new_context(base_url=f"http://127.0.0.1:{port}", viewport={"width": 1280, "height": TALL})
    page = context.new_page()

    def show(offset: int) -> float:
        page.goto(page_at(folder, offset), wait_until="commit")
        page.wait_for_function(ALL_SHOWN, polling="raf")
        seconds = float(page.evaluate("performance.now()")) / 1000
        time.sleep(LOOK_SECONDS)
        return seconds

    found = both(show, sizes)
    context.close()
    return found


SCROLL = """async (pages) => {
    const gallery = document.getElementById("gallery"), times = [];
    for (let number = 1; number <= pages; number++) {
        while (gallery.children.length <= number) {
            scrollBy({ top: 400, behavior: "instant" });
            await new Promise(requestAnimationFrame);
        }
        const page = gallery.children[number], began = performance.now();
        page.scrollIntoView({ behavior: "instant" });
        const shown = () => page.children.length && [...page.querySelectorAll("img")].every((each) => {
            const place = each.getBoundingClientRect();
            return place.top > innerHeight || place.bottom < 0 || (each.complete && each.naturalWidth);
        });
        while (!shown()) await new Promise(requestAnimationFrame);
        times.push(performance.now() - began);
    }
    return times;
}"""


def scrolled(chromium: Any, port: int, folder: Path, sizes: Sizes) -> tuple[float, ...]:
    """From the moment when a page comes into sight to the last of its pictures that can be seen; down, and again."""
    context = chromium.new_context(base_url=f"http://127.0.0.1:{port}", viewport={"width": 1280, "height": 900})
    page, first = context.new_page(), min(places(sizes))
    figures: list[float] = []
    for _ in range(2):
        page.goto(page_at(folder, first))
        times = page.evaluate(SCROLL, min(sizes.pages, (sizes.pictures - first) // SHOWN - 1))
        figures += [median(times), max(times)] if times else [float("nan")] * 2
    context.close()
    return tuple(figures)


# beside /embed -------------------------------------------------------------------------------------------------------


def beside_embed(chromium: Any, port: int, folder: Path, sizes: Sizes) -> float:
    """Return the p99 of `/embed` with ten open pages as a share of that without."""
    found: dict[str, list[float]] = {"no pages": [], "ten open": [], "ten, turned": [], "ten in Chromium here": []}
    embed_gallery(port, folder / "gallery" / "000")
    embed_times(port, sizes.calls // 4)
    for _ in range(sizes.turns):
        found["no pages"] += embed_times(port, sizes.calls)
        with ten_visitors(port, folder) as turn:
            found["ten open"] += embed_times(port, sizes.calls)
            found["ten, turned"] += embed_times(port, sizes.calls, turn)
        if chromium is not None:
            with ten_pages(chromium, port, folder):
                found["ten in Chromium here"] += embed_times(port, sizes.calls)
    rows = [(name, median(times), at(times, 0.99), max(times)) for name, times in found.items() if times]
    print_table(("ms of a call of /embed", "median", "p99", "longest"), rows)
    return at(found["ten open"], 0.99) / at(found["no pages"], 0.99)


def embed_gallery(port: int, folder: Path) -> None:
    """Wait until a gallery is embedded, as it is when a page asks for neighbours in it for the first time."""
    asked = {"data": [{"uri": str(folder / "000001.jpg")}], "parameters": {"gallery": str(folder), "limit": 1}}
    while True:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=120)) as connection:
            connection.request("POST", "/neighbours", json.dumps(asked), {"Content-Type": "application/json"})
            if json.loads(connection.getresponse().read())["data"][0]["tags"]["finetuner_done"]:
                return


def at(times: list[float], share: float) -> float:
    """A quantile."""
    return sorted(times)[min(len(times) - 1, int(share * len(times)))]


def embed_times(port: int, calls: int, turn: Callable[[], None] = lambda: None) -> list[float]:
    """The ms of so many calls, one after the other, in another process.

    Args: turn: called again and again meanwhile.
    """
    program = [sys.executable, "-c", _CALLER, str(port), str(calls)]
    with subprocess.Popen(program, stdout=subprocess.PIPE, cwd=ROOT, text=True) as caller:
        while caller.poll() is None:
            turn()
            with contextlib.suppress(subprocess.TimeoutExpired):
                caller.wait(0.2)
        assert caller.stdout is not None
        times: list[float] = json.loads(caller.stdout.read())
    return times


_CALLER = """
import http.client, json, sys, time
from benchmarks.common import jpeg, textured
port, calls = map(int, sys.argv[1:])
bodies = [jpeg(textured(number, number)) for number in range(20)]
connection, times = http.client.HTTPConnection("127.0.0.1", port, timeout=120), []
for number in range(calls):
    began = time.perf_counter()
    connection.request("POST", "/embed", bodies[number % len(bodies)], {"Content-Type": "image/jpeg"})
    answer = connection.getresponse()
    assert answer.status == 200, answer.read()
    answer.read()
    times.append(1000 * (time.perf_counter() - began))
print(json.dumps(times))
"""


def ten_addresses(folder: Path) -> list[str]:
    """Two each of five kinds of pages."""
    gallery = folder / "gallery"
    small = {"of": gallery / "000", "uri": gallery / "000" / "000001.jpg"}
    return 2 * [
        "/ui/",
        f"/ui/label?{urlencode({'of': gallery})}",
        f"/ui/label?{urlencode(small)}",
        f"/ui/suggest?{urlencode({'of': gallery / '000'})}",
        "/ui/label/said",
    ]


@contextlib.contextmanager
def ten_visitors(port: int, folder: Path) -> Iterator[Callable[[], None]]:
    """Ask for ten pages and hold their streams, as browsers elsewhere do; give a function that turns one when due."""
    addresses = ten_addresses(folder)
    streams: list[http.client.HTTPConnection] = []
    last, turned = time.monotonic(), 0

    def visit(address: str) -> str:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=120)) as connection:
            text = get(port, address, connection)[1].decode()
            for each in re.findall(r'<img class="picture" src="(/[^"]+)"', text):
                get(port, each.replace("&amp;", "&"), connection)
        return text

    def turn() -> None:
        nonlocal last, turned
        if time.monotonic() - last > TURNED_SECONDS / len(addresses):
            last, address = time.monotonic(), addresses[turned % len(addresses)]
            is_of_gallery = address == addresses[1]
            visit(page_at(folder, random.randrange(0, 240, SHOWN)) if is_of_gallery else address)
            turned += 1

    try:
        for address in addresses:
            if live := re.search(r'data-live="([^"]+)"', visit(address)):
                stream = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
                stream.request("GET", live[1])
                streams.append(stream)
        time.sleep(SETTLE_SECONDS)
        yield turn
    finally:
        for stream in streams:
            stream.close()


@contextlib.contextmanager
def ten_pages(chromium: Any, port: int, folder: Path) -> Iterator[None]:
    """Open the ten pages in Chromium."""
    context = chromium.new_context(base_url=f"http://127.0.0.1:{port}", viewport={"width": 1280, "height": 900})
    for address in ten_addresses(folder):
        context.new_page().goto(address)
    context.pages[3].wait_for_selector(".suggestion, #waiting:not(:has(a))", timeout=300_000)
    time.sleep(SETTLE_SECONDS)
    try:
        yield
    finally:
        context.close()


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    """A headless Chromium; None, with a word why, if there is none."""
    executable = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    sys.path += [str(each) for each in ROOT.glob(".venv-extras/lib/python3*/site-packages")]
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        executable = None
    if executable is None:
        print("Without Chromium and playwright only HTTP is measured.\n")
        yield None
        return
    with sync_playwright() as playwright:
        arguments = ["--disable-dev-shm-usage", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
        running = playwright.chromium.launch(executable_path=executable, args=arguments)
        yield running
        running.close()


if __name__ == "__main__":
    main()
