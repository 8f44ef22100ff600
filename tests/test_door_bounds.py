"""What a client cannot do to the door: fill its memory, hold it up, or disturb other callers."""

import base64
import contextlib
import os
import socket
import time
from collections.abc import Iterator

import psutil
import pytest
import requests

from conftest import coloured, encoded
from doors import Opened, opened
from executor.web import bounds, server

URI = f"data:image/png;base64,{base64.b64encode(encoded(coloured(0))).decode()}"
MIB = 1 << 20


@pytest.fixture(scope="module")
def door(tmp_path_factory) -> Iterator[Opened]:
    with opened(tmp_path_factory.mktemp("bounds"), max_request_bytes=4 * MIB) as running:
        yield running


def connected(door: Opened) -> socket.socket:
    port = int(door.address.rpartition(":")[2])
    return socket.create_connection(("127.0.0.1", port), timeout=30)


def head(length: int, kind: str = "application/json") -> bytes:
    return f"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n".encode()


def answered(connection: socket.socket) -> bytes:
    """Return what comes until the other side closes."""
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(1 << 16):
            found += part
    return found


def serves(door: Opened) -> None:
    assert len(door.post("/embed", [{"uri": URI}]).json()["data"][0]["embedding"]) == 128


def test_a_body_that_says_it_is_enormous_is_refused_before_it_is_sent(door):
    with connected(door) as connection:
        connection.sendall(head(10 * 1024**3))
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 413 ")
    serves(door)


def test_an_endless_body_is_cut_off_and_takes_no_memory(door):
    before = psutil.Process().memory_info().rss

    def endless() -> Iterator[bytes]:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            sent.append(1)
            yield b"x" * MIB

    sent: list[int] = []
    with contextlib.suppress(requests.ConnectionError):  # it goes on sending instead of reading the answer
        assert door.send("/embed", endless(), "image/png").status_code == 413
    assert len(sent) < 1000  # else it ended because this test did
    assert psutil.Process().memory_info().rss - before < 100 * MIB
    serves(door)


def test_a_form_without_end_is_cut_off(door):
    part = b'--x\r\nContent-Disposition: form-data; name="i"; filename="a.png"\r\n\r\n' + b"y" * 1000 + b"\r\n"
    with contextlib.suppress(requests.ConnectionError):
        answer = door.send("/embed", (part for _ in range(100_000)), "multipart/form-data; boundary=x")
        assert answer.status_code == 413
    serves(door)


def test_a_body_that_trickles_is_a_408(door, monkeypatch):
    monkeypatch.setattr(bounds, "PATIENCE_SECONDS", 0.5)
    with connected(door) as connection:
        connection.sendall(head(1000))
        for _ in range(4):
            connection.sendall(b" ")
            time.sleep(0.1)
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 408 ")
    serves(door)


def test_a_header_that_trickles_is_closed(door, monkeypatch):
    monkeypatch.setattr(server, "HEADER_SECONDS", 0.3)
    with connected(door) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nX: ")
        assert answered(connection) == b""
    with connected(door) as connection:  # the second request of a connection, too
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
        connection.sendall(b"GET /healthz HTTP/1.1\r\nX: ")
        assert answered(connection) in (b"", b"{}")  # the rest of the first answer


def test_a_header_of_a_megabyte_is_a_400(door):
    with connected(door) as connection:
        with contextlib.suppress(OSError):  # it is closed while this is still sending
            connection.sendall(b"GET /healthz HTTP/1.1\r\nX: " + b"y" * MIB)
        found = answered(connection)
        assert found == b"" or found.startswith(b"HTTP/1.1 400 ")
    serves(door)


def test_idle_connections_disturb_nobody(door):
    connections = [connected(door) for _ in range(400)]
    try:
        serves(door)
    finally:
        for connection in connections:
            connection.close()


def test_no_part_of_an_answer_waits_for_the_acknowledgement_of_the_last(door):
    """asyncio, in whose loop this door is open, does not ask for that by itself, as uvloop does."""
    with connected(door) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        connection.recv(1 << 16)
        (accepted,) = [each.fd for each in psutil.Process().net_connections() if each.raddr == connection.getsockname()]
        with socket.socket(fileno=os.dup(accepted)) as at_the_door:
            assert at_the_door.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


def test_connections_beyond_the_limit_are_closed_and_those_within_are_served(door, monkeypatch):
    with requests.Session() as session:
        session.get(f"{door.address}/healthz", timeout=60)
        monkeypatch.setattr(server, "MAX_CONNECTIONS", 1)
        with connected(door) as connection:
            assert answered(connection) == b""
        assert session.get(f"{door.address}/healthz", timeout=60).status_code == 200


def test_a_client_that_leaves_in_the_middle_is_forgotten(door):
    body = b'{"data": [' + b",".join([b'{"uri": "%s"}' % URI.encode()] * 2000) + b"]}"
    for sent in (body[: len(body) // 2], body):
        with connected(door) as connection:
            connection.sendall(head(len(body)) + sent)
    deadline = time.monotonic() + 60
    while door.series()["finetuner_images_waiting"] and time.monotonic() < deadline:
        time.sleep(0.05)
    assert door.series()["finetuner_images_waiting"] == 0
    serves(door)


def test_all_bodies_together_are_bounded_and_a_caller_is_told_to_wait(door):
    half = 4 * MIB - 1000
    with connected(door) as one, connected(door) as two:
        for connection in (one, two):
            connection.sendall(head(4 * MIB) + b" " * half)
        deadline = time.monotonic() + 30
        while (answer := door.send("/embed", b" " * 10_000, "application/json")).status_code != 429:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert answer.headers["retry-after"] == "1"
        assert "try again in a moment" in answer.json()["detail"]
    deadline = time.monotonic() + 30
    while door.post("/embed", [{"uri": URI}]).status_code == 429:
        assert time.monotonic() < deadline
        time.sleep(0.05)
