"""Readers in a Flow behind one gateway, under steady traffic, while what they follow changes in every way.

    .venv/bin/python -m benchmarks.readers [--readers 4] [--callers 2] [--quick]

Four readers (`role: serve`, `replicas: 4`) follow a directory. Callers send /embed without a pause. Meanwhile a version
is promoted, one comes half-written, one is damaged, both are mended, the first is promoted again (a rollback), and the
directory is gone for a while. Every answer is checked: each document has an embedding, all of one answer are of one
version, and each picture has the vector that this version gave it before.

For each change there is a row: how long until all readers serve what they should, and what the callers got meanwhile.
The last line is the number of answers that failed, were mixed or had another vector than before.
"""

import contextlib
import io
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from docarray import DocList
from jina import Client, Flow

from benchmarks.common import options, print_headline, print_machine, print_table, textured
from executor import Document, DocumentArray, RunStatus
from executor.documents import ERROR_TAG, MODEL_TAG, SPACE_TAG
from executor.models.building import build_model
from executor.models.model import ModelConfig
from executor.models.saving import save_model, space_of
from executor.store.published import POINTER, Place

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = 6  # in a request
SIDE = 32
MEANWHILE = 4.0  # seconds in which nothing shall change
CLOSE = 1e-5


@dataclass
class Traffic:
    """What callers got. Attributes: vectors: of each space, those of the first answer."""

    answers: int = 0
    failed: list[str] = field(default_factory=list)
    mixed: int = 0
    other: int = 0
    vectors: dict[str, np.ndarray] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def wrong(self) -> int:
        return len(self.failed) + self.mixed + self.other

    def note(self, docs: DocumentArray) -> None:
        """Check an answer."""
        errors = [doc.tags[ERROR_TAG] for doc in docs if ERROR_TAG in doc.tags]
        versions = {(doc.tags.get(MODEL_TAG), doc.tags.get(SPACE_TAG)) for doc in docs}
        with self.lock:
            self.answers += 1
            if errors:
                self.failed.append(errors[0])
            elif len(versions) != 1:
                self.mixed += 1
            else:
                ((_, space),) = versions
                found = np.stack([doc.embedding for doc in docs])
                self.other += not np.allclose(found, self.vectors.setdefault(space, found), atol=CLOSE)

    def ask(self, port: int, ended: threading.Event) -> None:
        """Send requests until it is ended."""
        client = Client(host="127.0.0.1", port=port)
        docs = DocumentArray(Document(blob=textured(number, 0, SIDE, SIDE)) for number in range(DOCUMENTS))
        while not ended.is_set():
            try:
                self.note(client.post("/embed", docs, return_type=DocumentArray))
            except Exception as error:  # whatever it is, a caller sees it
                with self.lock:
                    self.failed.append(str(error))


class Shop:
    """The directory that readers follow, written as a writer does, and as one does that breaks off."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "shop"
        self.place = Place(str(self.folder))
        self.versions = {}
        for seed, name in enumerate(("base", "first", "second", "third")):
            self.versions[name] = folder / "writer" / name
            save_model(build_model(ModelConfig(model="small", input_size=SIDE, seed=seed)), self.versions[name])

    def space(self, version: str) -> str:
        return space_of(self.versions[version])

    def publish(self, version: str) -> None:
        self.place.publish(version, self.space(version), self.versions[version])

    def publish_badly(self, version: str, spoil: Callable[[Path], object]) -> None:
        """Publish a version of which a file is spoilt before `served.json` names it."""
        before = (self.folder / POINTER).read_bytes()
        self.publish(version)
        named = (self.folder / POINTER).read_bytes()
        (self.folder / POINTER).write_bytes(before)  # at once: a reader looks once a second
        spoil(self.folder / "versions" / self.space(version) / "weights.safetensors")
        (self.folder / POINTER).write_bytes(named)


def spaces(client: Client, readers: int) -> set[str]:
    """Return what the readers serve: they take turns."""
    found = set()
    for _ in range(2 * readers):
        (status,) = client.post("/status", return_type=DocList[RunStatus])
        found.add(status.space)
    return found


def damage(weights: Path) -> None:
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)


def changes(shop: Shop) -> list[tuple[str, Callable[[], object], str, bool]]:
    """Return the changes: a name, what is done, which version shall be served then, and whether that is another."""
    away = shop.folder.with_name("away")
    return [
        ("promotion", lambda: shop.publish("first"), "first", True),
        ("half-written version", lambda: shop.publish_badly("second", Path.unlink), "first", False),
        ("it is whole", lambda: shop.publish("second"), "second", True),
        ("damaged version", lambda: shop.publish_badly("third", damage), "second", False),
        ("it is mended", lambda: shop.publish("third"), "third", True),
        ("rollback", lambda: shop.publish("base"), "base", True),
        ("the store is gone", lambda: shop.folder.rename(away), "base", False),
        ("it is back, with a promotion", lambda: (away.rename(shop.folder), shop.publish("first")), "first", True),
    ]


def main() -> None:
    """Measure and print."""
    parser = options(__doc__)
    parser.add_argument("--readers", type=int, default=4)
    parser.add_argument("--callers", type=int, default=2)
    arguments = parser.parse_args()
    print_machine()
    with tempfile.TemporaryDirectory() as folder:
        shop = Shop(Path(folder))
        shop.publish("base")
        reading = {"role": "serve", "serve_from": str(shop.folder), "fast_inference": False}
        flow = Flow(host="127.0.0.1").add(
            uses=str(ROOT / "config.yml"),
            uses_with=reading,
            workspace=str(Path(folder) / "workspace"),
            replicas=arguments.readers,
        )
        with contextlib.redirect_stdout(io.StringIO()):
            flow.start()
        try:
            measure(shop, flow.port, arguments.readers, arguments.callers, 1.0 if arguments.quick else MEANWHILE)
        finally:
            flow.close()


def measure(shop: Shop, port: int, readers: int, callers: int, meanwhile: float) -> None:
    """Make all changes under traffic, and print what came of them."""
    client, traffic, ended = Client(host="127.0.0.1", port=port), Traffic(), threading.Event()
    wait_for(client, readers, shop.space("base"))
    threads = [threading.Thread(target=traffic.ask, args=(port, ended)) for _ in range(callers)]
    for thread in threads:
        thread.start()
    rows = []
    for name, change, version, other in changes(shop):
        answers, wrong, began = traffic.answers, traffic.wrong, time.perf_counter()
        change()
        took: float | str = "-"
        if other:
            took = wait_for(client, readers, shop.space(version)) - began
        else:
            time.sleep(meanwhile)
            assert spaces(client, readers) == {shop.space(version)}, "a reader serves what it should not"
        rows.append([name, version, took, traffic.answers - answers, traffic.wrong - wrong])
    ended.set()
    for thread in threads:
        thread.join()
    print_table(["change", "served then", "seconds until all do", "answers", "wrong"], rows)
    failed, mixed, other = len(traffic.failed), traffic.mixed, traffic.other
    print(f"{traffic.answers} answers: {failed} failed, {mixed} mixed, {other} with another vector than before\n")
    for reason in sorted(set(traffic.failed))[:3]:
        print(f"failed: {reason}\n")
    print_headline("wrong_answers", traffic.wrong)


def wait_for(client: Client, readers: int, space: str) -> float:
    """Wait until all readers serve a space. Return when."""
    while True:
        with contextlib.suppress(Exception):  # at the start they have nothing yet
            if spaces(client, readers) == {space}:
                return time.perf_counter()
        time.sleep(0.02)


if __name__ == "__main__":
    main()
