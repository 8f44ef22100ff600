"""What a command makes of a service's refusals: whose fault they are, and when it asks again."""

import json
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from executor import errors
from executor.__main__ import main
from executor.commands import calling
from executor.documents import Document

Answer = tuple[int, dict[str, str], Any]
GOOD: Answer = (200, {}, {"data": []})
BUSY = "Too many images wait; try again in a few seconds."


@pytest.fixture
def answers() -> list[Answer]:
    """What the service answers, one after the other; the last one for ever."""
    return [GOOD]


@pytest.fixture
def url(answers: list[Answer]) -> Iterator[str]:
    """A service that answers what a test says."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            status, headers, content = answers.pop(0) if len(answers) > 1 else answers[0]
            self.send_response(status)
            body = json.dumps(content).encode()
            for name, value in {**headers, "content-length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that a command has waited; it does not really."""
    seconds: list[float] = []
    monkeypatch.setattr(calling, "time", SimpleNamespace(sleep=seconds.append))
    return seconds


def test_a_service_that_is_busy_is_asked_again_when_it_says_so(
    url: str, answers: list[Answer], waited: list[float]
) -> None:
    answers[:] = [
        (429, {"Retry-After": "3"}, {"detail": BUSY}),
        (503, {"Retry-After": "86400"}, {"detail": BUSY}),
        (503, {"Retry-After": "Sun, 29 Nov 2026 10:00:00 GMT"}, {"detail": BUSY}),
        GOOD,
    ]
    place = calling.connect(url)
    assert place.call("/status") == []
    place.close()
    assert waited == [3.0, calling.LONGEST_WAIT, calling.WAITS[2]]


@pytest.mark.parametrize(
    ("status", "kind", "code", "tries"),
    [
        (400, errors.BadRequest, 2, 1),
        (404, errors.NotFound, 2, 1),
        (409, errors.Conflict, 2, 1),
        (413, errors.LimitExceeded, 1, 1),
        (422, errors.BadRequest, 2, 1),
        (429, errors.Overloaded, 1, 5),
        (500, errors.InternalError, 1, 1),
        (503, errors.NotReady, 1, 5),
        (504, errors.InternalError, 1, 1),
    ],
)
def test_the_status_says_whose_fault_it_is(
    url: str,
    answers: list[Answer],
    waited: list[float],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    status: int,
    kind: type[errors.FinetunerError],
    code: int,
    tries: int,
) -> None:
    answers[:] = [(status, {}, {"detail": BUSY})]
    place = calling.connect(url)
    with pytest.raises(errors.FinetunerError) as refused:
        place.call("/embed", [Document(uri="https://x.example/1.jpg")])
    place.close()
    assert (type(refused.value), str(refused.value)) == (kind, BUSY)
    assert len(waited) == tries - 1
    monkeypatch.setattr(sys, "argv", ["executor", "runs", "--service", url])
    assert main() == code
    assert capsys.readouterr().err == f"{BUSY}\n"


def test_embed_goes_on_after_a_service_was_busy(
    url: str, answers: list[Answer], waited: list[float], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "all.txt").write_text("https://x.example/1.jpg")
    embedded = {"id": "https://x.example/1.jpg", "embedding": [1.0], "tags": {"finetuner_space": "s"}}
    answers[:] = [GOOD, (503, {}, {"detail": BUSY}), (200, {}, {"data": [embedded]})]
    out = tmp_path / "out.parquet"
    monkeypatch.setattr(
        sys, "argv", ["executor", "embed", str(tmp_path / "all.txt"), "--service", url, "--to", str(out)]
    )
    assert main() == 0
    assert out.exists()
    assert waited == [1.0]


@pytest.mark.parametrize(
    ("arguments", "kind", "tries"),
    [
        ([BUSY, "Overloaded"], errors.Overloaded, 5),
        ([BUSY, "WorkspaceError"], errors.NotReady, 5),
        ([BUSY, "UnknownRun"], errors.NotFound, 1),
        ([BUSY, "InvalidParameter"], errors.BadRequest, 1),
        ([BUSY, "OutOfMemory"], errors.InternalError, 1),
        ([BUSY], errors.InternalError, 1),  # of no class of ours
    ],
)
def test_over_grpc_the_class_of_the_error_says_the_same(
    waited: list[float],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    kind: type[errors.FinetunerError],
    tries: int,
) -> None:
    asked: list[str] = []

    class Client:
        def __init__(self, **_: Any) -> None:
            pass

        def post(self, path: str, docs: Any, *, on_error: Callable[[Any], None], **_: Any) -> None:
            asked.append(path)
            status = SimpleNamespace(description=BUSY, exception=SimpleNamespace(args=arguments))
            on_error(SimpleNamespace(header=SimpleNamespace(status=status)))

    monkeypatch.setattr("jina.Client", Client)
    with pytest.raises(errors.FinetunerError) as refused:
        calling.connect("grpc://127.0.0.1:9").call("/status")
    assert (type(refused.value), str(refused.value)) == (kind, BUSY)
    assert (len(asked), len(waited)) == (tries, tries - 1)


def test_an_answer_without_a_sentence_is_not_repeated_at_length(
    url: str, answers: list[Answer], waited: list[float]
) -> None:
    """As of Jina's gateway, which answers with the request where it does not reach the executor."""
    answers[:] = [(504, {}, {"data": ["x" * 10_000]})]
    place = calling.connect(url)
    with pytest.raises(errors.InternalError) as refused:
        place.call("/status")
    place.close()
    assert len(str(refused.value)) < 250
