"""A client over HTTP in its own process: `python -m benchmarks.http_clients` reads what to measure.

It calls our door, and with the form `infinity` a server of that name. It does what `wrk` does, and costs about as
little: requests are encoded before it starts, sockets are raw, and of an answer it reads the length alone. One request
of each kind is checked.
"""

import base64
import itertools
import json
import selectors
import socket
import sys
import time
from dataclasses import dataclass, field
from typing import Any

from benchmarks.clients import DIFFERENT, ClientProcess, contents

MODULE = "benchmarks.http_clients"


def client() -> ClientProcess:
    """Return the client process. It measures as a `ClientProcess` does, and takes `port` as that of a door.

    The form `infinity` stands for JPEG files as data uris, in the words of infinity's API.
    """
    return ClientProcess(MODULE)


def encoded_request(fields: list[dict[str, Any]], form: str, images: int, first: int) -> bytes:
    """Return a whole request: to /embed one JPEG as it is, several, and arrays, as JSON; to infinity always JSON."""
    chosen = [fields[number % len(fields)] for number in range(first, first + images)]
    path, kind = "/embed", "application/json"
    if form == "infinity":
        uris = [_as_json(each)["uri"] for each in chosen]
        path, body = "/embeddings", json.dumps({"model": "clip", "modality": "image", "input": uris}).encode()
    elif images == 1 and form == "jpeg":
        kind, body = "image/jpeg", chosen[0]["buffer"]
    else:
        body = json.dumps({"data": [_as_json(each) for each in chosen]}).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + bytes(body)


def _as_json(fields: dict[str, Any]) -> dict[str, Any]:
    if "buffer" in fields:
        return {"uri": "data:image/jpeg;base64," + base64.b64encode(fields["buffer"]).decode()}
    return {"blob": fields["blob"].tolist()}


@dataclass
class Connection:
    """One caller: it sends a request when the last is answered. `left` is what of the answer is still to come."""

    socket: socket.socket
    sent: float = 0.0
    left: int | None = None
    head: bytearray = field(default_factory=bytearray)

    def send(self, request: bytes) -> None:
        """Send a request."""
        self.left, self.sent = None, time.perf_counter()
        self.socket.sendall(request)

    def receive(self) -> bool:
        """Read what has come; return whether the answer is complete. Raises: RuntimeError: it is a refusal."""
        part = self.socket.recv(1 << 20)
        if not part:
            raise RuntimeError("the door has closed the connection")
        if self.left is None:
            self.head += part
            head, end, body = bytes(self.head).partition(b"\r\n\r\n")
            if not end:
                return False
            if b" 200 " not in head.split(b"\r\n")[0]:
                raise RuntimeError(f"a request failed: {bytes(self.head[:500])!r}")
            self.left = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]) - len(body)
            self.head.clear()
        else:
            self.left -= len(part)
        return self.left == 0


def measure(
    fields: list[dict[str, Any]], form: str, port: int, images: int, concurrency: int, seconds: float
) -> dict[str, Any]:
    """Measure as `ClientProcess.measure` describes; also return the processor time of this process, `cpu`."""
    requests = itertools.cycle(encoded_request(fields, form, images, first) for first in range(0, DIFFERENT, images))
    latencies: list[float] = []
    selector = selectors.DefaultSelector()
    connections = [Connection(socket.create_connection(("127.0.0.1", port))) for _ in range(concurrency)]
    began, used = time.perf_counter(), time.process_time()
    for connection in connections:
        selector.register(connection.socket, selectors.EVENT_READ, connection)
        connection.send(next(requests))
    busy = concurrency
    while busy:
        for key, _ in selector.select():
            connection = key.data
            if connection.receive():
                now = time.perf_counter()
                latencies.append(now - connection.sent)
                if now - began < seconds:
                    connection.send(next(requests))
                else:
                    busy -= 1
    took, used = time.perf_counter() - began, time.process_time() - used
    for connection in connections:
        connection.socket.close()
    return {"rate": images * len(latencies) / took, "latencies": latencies, "cpu": used / (images * len(latencies))}


def main() -> None:
    """Read a measurement from each line of the input and print its result as a line."""
    known: dict[str, list[dict[str, Any]]] = {}
    for line in sys.stdin:
        wanted = json.loads(line)
        form = wanted["form"]
        if form not in known:
            known[form] = contents("jpeg" if form == "infinity" else form)
        print(json.dumps(measure(known[form], **wanted)), flush=True)


if __name__ == "__main__":
    main()
