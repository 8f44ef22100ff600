"""Calls through Jina's own gateways: a body without documents, and the error at the end of a websocket."""

import asyncio
from typing import Any

import jina.helper
import pytest
from fastapi import Body, FastAPI
from jina.proto import jina_pb2

import executor.service  # noqa: F401  (imported as whoever makes a Flow of the class imports it)
from executor.wire import refusals

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
