"""How much a client may send at a time over HTTP, and how long it may take: a real server, with a tiny app."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from fastapi import FastAPI
from uvicorn import Config, Server

from executor.errors import ConfigurationError
from executor.gateway import FinetunerGateway
from executor.wire import limits
from executor.wire.limits import BodyLimit, ImpatientProtocol

LIMIT = 1000
SHORT = 0.3


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    app = FastAPI()

    @app.post("/size")
    async def size(body: dict[str, Any]) -> int:
        return len(body["data"])

    @app.post("/slow")
    def slow() -> str:
        time.sleep(2 * SHORT)
        return "done"

    app.add_middleware(BodyLimit, max_request_bytes=LIMIT)
    with contextlib.closing(socket.socket()) as listening:
        listening.bind(("127.0.0.1", 0))
        server = Server(Config(app, http=ImpatientProtocol, log_level="error", timeout_keep_alive=1))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield listening.getsockname()[1]
        server.should_exit = True
        thread.join()


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HEADER_SECONDS", "BODY_SECONDS"):
        monkeypatch.setattr(limits, name, SHORT)


def body(size: int) -> bytes:
    return b'{"data": "' + b"x" * (size - 12) + b'"}'


def post(port: int, data: Any, path: str = "/size") -> requests.Response:
    headers = {"Content-Type": "application/json"}
    return requests.post(f"http://127.0.0.1:{port}{path}", data=data, headers=headers, timeout=30)


def said(port: int, *parts: bytes) -> bytes:
    """Send bytes over a connection of its own, and return all that is answered until it is closed."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        for part in parts:
            connection.sendall(part)
            time.sleep(0.05)
        answer = b""
        while more := connection.recv(4096):
            answer += more
        return answer


@pytest.mark.parametrize("form", [lambda data: data, lambda data: iter([data])], ids=["announced", "chunked"])
def test_a_body_of_the_largest_size_is_taken_and_one_that_is_larger_is_a_413(port, form):
    assert post(port, form(body(LIMIT))).json() == LIMIT - 12
    answer = post(port, form(body(LIMIT + 1)))
    assert answer.status_code == 413
    assert answer.json()["detail"] == (
        "The request has 1001 bytes or more and max_request_bytes is 1000; send fewer documents at a time, "
        "or raise that option."
    )


def test_a_body_that_is_announced_as_too_large_is_not_waited_for(port):
    head = b"POST /size HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 999999\r\n\r\n"
    assert said(port, head).startswith(b"HTTP/1.1 413 ")


@pytest.mark.usefixtures("hurried")
def test_a_body_that_stops_is_a_408(port):
    head = b"POST /size HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 500\r\n"
    assert said(port, head + b"Connection: close\r\n\r\n", body(100)).startswith(b"HTTP/1.1 408 ")


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("parts", [(), (b"POST /si",), (b"POST /size HTTP/1.1\r\n", b"Host: x\r\n")])
def test_a_connection_that_does_not_say_what_it_wants_is_ended(port, parts):
    assert said(port, *parts) == b""


@pytest.mark.usefixtures("hurried")
def test_so_is_one_that_stops_in_its_second_request(port):
    request = b"POST /slow HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
    answer = said(port, request, request[:10])
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b'"done"')


@pytest.mark.usefixtures("hurried")
def test_an_answer_may_take_longer_than_a_request(port):
    assert post(port, b"", "/slow").json() == "done"


@pytest.mark.parametrize("limit", ["1 MB", 0, 2.5, True])
def test_a_limit_of_the_gateway_that_is_none_is_refused(limit: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"max_request_bytes of the gateway is .* 1 or more"):
        FinetunerGateway(max_request_bytes=limit)
