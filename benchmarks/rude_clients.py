"""What clients that behave badly cost our HTTP door and its other callers.

    .venv/bin/python -m benchmarks.rude_clients [--quick]

The service is `python -m executor serve` with the model `small`, in its own process. A polite caller asks for one
embedding after the other, a raw JPEG of 640×480 each, in turns alone and beside one kind of rude clients, which are a
process of their own on the same cores. A row says what the rude ones were answered (a status, `closed` without one, or
`still open` after the window), by how much the memory of the service rose at most meanwhile, and the polite caller's
p50 and p99 beside its p99 alone. If one of its calls fails, the program does too. The last line is the worst p99 as a
multiple of that alone. What is sent costs processor time as well, which is the rude clients' own, not the door's: the
share that they took of a core is in the table.
"""

import contextlib
import json
import multiprocessing
import resource
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.common import jpeg, options, print_headline, print_machine, print_table, textured
from benchmarks.embed import Cell, Traffic
from benchmarks.http_clients import client as http_client
from benchmarks.http_clients import encoded_request
from benchmarks.peers.http_servers import HttpServer, our_door

MIB = 1 << 20
ONE = Traffic("jpeg", 1, 1)
Rude = Callable[[int, float], str]  # of a port and the time when the window ends; returns what it was answered


def head(kind: str, length: int | None) -> bytes:
    """Return the beginning of a request. Args: length: of its body; None: it comes in chunks."""
    size = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    return f"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\n{size}\r\n\r\n".encode()


def answer(connection: socket.socket, end: float) -> str:
    """Wait until the window ends for an answer; return its status."""
    connection.settimeout(max(0.01, end - time.monotonic()))
    try:
        found = connection.recv(MIB)
    except TimeoutError:
        return "still open"
    except ConnectionError:
        return "closed"
    return found.split(b" ")[1].decode() if found.startswith(b"HTTP/1.1 ") else "closed"


def sending(first: bytes, part: bytes) -> Rude:
    """A client that sends `first`, and then `part` again and again."""

    def rude(port: int, end: float) -> str:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(first)
            connection.settimeout(1.0)
            while time.monotonic() < end:
                try:
                    connection.sendall(part)
                except TimeoutError:
                    continue  # the door does not read on: it waits
                except ConnectionError:
                    return answer(connection, end)
            return "still open"

    return rude


def trickling(port: int, end: float) -> str:
    """A body of which a byte comes each second."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(head("image/jpeg", 100_000))
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(1.0, left))
            with contextlib.suppress(OSError):
                connection.sendall(b"x")
        return answer(connection, end)


def idle(port: int, end: float) -> str:
    """A connection on which nothing comes."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        return answer(connection, end)


def asking(request: bytes) -> Rude:
    """A client that sends a request and reads its answer."""

    def rude(port: int, end: float) -> str:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            with contextlib.suppress(ConnectionError):  # it is refused while this is still sending
                connection.sendall(request)
            return answer(connection, end)

    return rude


def leaving(port: int, end: float) -> str:
    """A client that is gone before its hundred pictures are embedded."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(HUNDRED)
    return "left"


PICTURES = [{"buffer": jpeg(textured(label, 0))} for label in range(4)]
HUNDRED = encoded_request(PICTURES, "jpeg", 100, 0)
PART = b'--x\r\nContent-Disposition: form-data; name="i"; filename="a.jpg"\r\n\r\n' + b"y" * MIB + b"\r\n"
CHUNK = b"100000\r\n" + b"x" * MIB + b"\r\n"
# The kinds: how many clients at a time, and one of them. One that has been answered comes again until the window ends.
KINDS: dict[str, tuple[int, Rude]] = {
    "a body that says it has 10 GB": (4, asking(head("image/jpeg", 10 * 1024 * MIB))),
    "a body without end": (4, sending(head("image/jpeg", None), CHUNK)),
    "a form without end": (
        4,
        sending(head("multipart/form-data; boundary=x", None), b"%x\r\n%s\r\n" % (len(PART), PART)),
    ),
    "a body that trickles": (200, trickling),
    "1,000 open connections": (1000, idle),
    "a header of 1 MB": (4, asking(b"GET /healthz HTTP/1.1\r\nX: " + b"y" * MIB + b"\r\n\r\n")),
    "a wrong content type": (4, asking(head("application/pdf", 4) + b"%PDF")),
    "a hundred pictures, and nobody waits": (1, leaving),
}


def behave(kind: str, port: int, seconds: float, told: Connection) -> None:
    """Be rude for some seconds, in a process of its own; tell what was answered, and the processor time it took."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    count, rude = KINDS[kind]
    found: Counter[str] = Counter()
    end = time.monotonic() + seconds

    def again_and_again() -> None:
        while time.monotonic() < end:
            try:
                found[rude(port, end)] += 1
            except OSError as error:  # it was not even let in
                found[type(error).__name__] += 1
            time.sleep(0.01)

    threads = [threading.Thread(target=again_and_again) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    told.send((dict(found), time.process_time() / seconds))


@contextlib.contextmanager
def watched(server: HttpServer) -> Iterator[list[float]]:
    """Read the memory of a server all the time; the list has MB."""
    seen = [server.process.memory_info().rss / 1e6]
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.05):
            seen.append(server.process.memory_info().rss / 1e6)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


def main() -> None:
    """Measure and print."""
    arguments = options(__doc__).parse_args()
    seconds = 0.5 if arguments.tiny else 5.0 if arguments.quick else 30.0
    print_machine()
    rows: list[tuple[object, ...]] = []
    ratios = []
    with contextlib.ExitStack() as running:
        folder = Path(running.enter_context(tempfile.TemporaryDirectory()))
        client = running.enter_context(http_client())
        server = running.enter_context(our_door(Path("small"), folder / "door.log"))
        client.measure(server.port, **ONE._asdict(), seconds=min(seconds, 5.0))  # warms up
        for kind in KINDS:
            alone, beside = Cell(), Cell()
            alone.add(*client.measure(server.port, **ONE._asdict(), seconds=seconds / 2))
            told, tells = multiprocessing.Pipe(duplex=False)
            process = multiprocessing.get_context("fork").Process(
                target=behave, args=(kind, server.port, seconds, tells)
            )
            with watched(server) as memory:
                process.start()
                beside.add(*client.measure(server.port, **ONE._asdict(), seconds=seconds))
                answers, took = told.recv()
                process.join()
            p99, p99_alone = beside.percentile(99), alone.percentile(99)
            ratios.append(p99 / p99_alone)
            said = ", ".join(f"{name} × {count}" for name, count in sorted(answers.items()))
            rows.append(
                (kind, KINDS[kind][0], said, max(memory) - memory[0], took, beside.percentile(50), p99, p99_alone)
            )
            print(json.dumps([kind, said]), flush=True)
    print()
    columns = ("rude clients", "at a time", "were answered", "memory, MB", "their share of a core")
    print_table((*columns, "p50 beside them, ms", "p99", "p99 alone"), rows)
    print_headline("worst_p99_of_alone", max(ratios))


if __name__ == "__main__":
    main()
