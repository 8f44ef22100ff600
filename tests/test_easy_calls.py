"""Calls through Jina's own gateways: a body without documents, and the error at the end of a websocket."""

import asyncio
import gc
import logging
import os
import subprocess
import sys
import weakref
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jina.helper
import pytest
from fastapi import Body, FastAPI
from jina.proto import jina_pb2
from jina.serve.runtimes.gateway.websocket_fastapi_app import get_fastapi_app
from jina.types.request.data import DataRequest
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

import executor.service  # noqa: F401  (imported as whoever makes a Flow of the class imports it)
from executor.wire import refusals
from forked import Forked
from without_us import fork_with_jina_before_us

JSON = [(b"content-type", b"application/json")]


def gateway() -> FastAPI:
    """The app of a gateway of Jina's, as far as it matters: a body with `data` is required."""
    app = FastAPI()

    @app.post("/status")
    async def status(body: dict[str, list[Any]] = Body()) -> dict[str, Any]:  # noqa: B008
        return {"data": body["data"]}

    return jina.helper.extend_rest_interface(app)


def called(app: Any, body: bytes, headers: list[tuple[bytes, bytes]]) -> tuple[int, bytes]:
    """Post to /status, and return the status and the body of the answer."""
    scope = {"type": "http", "method": "POST", "path": "/status", "query_string": b"", "headers": headers}
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent)


@pytest.mark.parametrize("body", [b"", b"{}", b'{"data": null}', b'{"data": []}'])
@pytest.mark.parametrize("headers", [[], JSON], ids=["of no type", "json"])
def test_a_call_without_documents_needs_no_data_and_without_a_body_no_type(body, headers):
    if body == b'{"data": []}' and not headers:
        pytest.skip("who sends a body says what it is")
    assert called(gateway(), body, headers) == (200, b'{"data":[]}')


def test_a_body_of_the_wrong_form_is_refused_in_a_sentence():
    status, answer = called(gateway(), b'{"data": 3}', JSON)
    assert (status, b"The request has the wrong form at body.data" in answer) == (422, True)


EASED = """
import fastapi, jina.helper
from docarray.base_doc.mixins import io
app = jina.helper.extend_rest_interface(fastapi.FastAPI())
print([each.cls.__name__ for each in app.user_middleware], io._type_to_protobuf(2**40).float == 2**40, flush=True)
os._exit(0)
"""
FIRST_OURS = """
import os, sys
import executor; from jina import Flow
if child := os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.process
def test_a_gateway_is_forked_eased_though_its_program_has_imported_us_before_jina():
    root = Path(__file__).parents[1]
    command = [sys.executable, "-c", FIRST_OURS + EASED]
    told = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120, check=True)
    assert told.stdout == "['LastErrorFirst', 'OptionalData'] True\n"


@pytest.mark.process
def test_a_gateway_is_forked_eased_though_its_program_has_imported_jina_before_us(tmp_path):
    environment = dict(os.environ) | {"PYTHONPATH": str(Path(__file__).parents[1])}
    program = Forked(fork_with_jina_before_us, EASED, directory=tmp_path, environment=environment, log=tmp_path / "log")
    program.becomes_ready()
    assert program.wait(120) == 0
    program.close()
    assert (tmp_path / "log").read_text() == "['LastErrorFirst', 'OptionalData'] True\n"


def answer_of(code: int) -> bytes:
    """The bytes of an answer of Jina's with documents."""
    answer = jina_pb2.DataRequestProto()
    answer.header.status.code = code
    answer.data.docs.docs.add()
    return answer.SerializeToString()


@pytest.mark.parametrize(
    ("answers", "waits"),
    [
        ([jina_pb2.StatusProto.SUCCESS], False),
        ([jina_pb2.StatusProto.SUCCESS, jina_pb2.StatusProto.ERROR], True),
        ([], False),
    ],
)
def test_a_websocket_stays_open_for_a_moment_after_an_error(answers, waits, monkeypatch):
    monkeypatch.setattr(refusals, "LOOK_SECONDS", 1000.0)

    async def app(_: Any, __: Any, send: Any) -> None:
        for code in answers:
            await send({"type": "websocket.send", "bytes": answer_of(code)})

    async def ends() -> bool:
        call = refusals.LastErrorFirst(app)({"type": "websocket"}, no_message, no_message)
        task = asyncio.ensure_future(call)
        for _ in range(10):
            await asyncio.sleep(0)
        ended = task.done()
        task.cancel()
        return ended

    async def no_message(_: Any = None) -> None:
        pass

    assert asyncio.run(ends()) is not waits


class Echo:
    """A streamer that sends each request back."""

    async def rpc_stream(self, request_iterator: AsyncIterator[DataRequest]) -> AsyncIterator[DataRequest]:
        async for request in request_iterator:
            yield request

    async def close(self) -> None:
        pass


@pytest.fixture
def by_websocket() -> TestClient:
    """A client of Jina's own gateway by websocket."""
    app = get_fastapi_app(streamer=Echo(), logger=logging.getLogger("jina"), tracing=False)
    return TestClient(jina.helper.extend_rest_interface(app))


def request() -> bytes:
    message = jina_pb2.DataRequestProto()
    message.header.exec_endpoint = "/status"
    return message.SerializeToString()


@pytest.mark.parametrize(
    ("kinds", "message", "reason"),
    [
        (["bytes"], b"", "no request of Jina's"),
        (["bytes"], b"\xff\xff", "no request of Jina's"),
        (["bytes"], "{}", "messages are binary"),
        (["json"], request(), "the subprotocol is `bytes`"),
        ([], request(), "the subprotocol is `bytes`"),
    ],
)
def test_a_websocket_whose_message_is_no_request_is_told_why_it_ends(by_websocket, kinds, message, reason):
    with by_websocket.websocket_connect("/", subprotocols=kinds) as connection:
        (connection.send_text if isinstance(message, str) else connection.send_bytes)(message)
        with pytest.raises(WebSocketDisconnect) as ended:
            connection.receive_bytes()
    assert ended.value.code == 1003
    assert reason in ended.value.reason
    assert len(ended.value.reason.encode()) <= 123  # the longest that a frame can carry


@pytest.mark.parametrize("end", [bytes(True), b"\xff", None], ids=["its last word", "no request", "it hangs up"])
def test_a_websocket_that_has_ended_is_forgotten(by_websocket, end, monkeypatch):
    made = []
    begin = WebSocket.__init__

    def noted(self: WebSocket, *arguments: Any, **named: Any) -> None:
        made.append(weakref.ref(self))
        begin(self, *arguments, **named)

    monkeypatch.setattr(WebSocket, "__init__", noted)
    with by_websocket.websocket_connect("/", subprotocols=["bytes"]) as connection:
        connection.send_bytes(request())
        assert DataRequest(connection.receive_bytes()).header.exec_endpoint == "/status"
        if end is not None:
            connection.send_bytes(end)
    gc.collect()
    assert made
    assert [each for each in made if each() is not None] == []
