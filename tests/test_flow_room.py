"""A Flow behind our HTTP door, without the Flow: a service in this process has the place of its executors."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import HTTPException
from starlette.testclient import TestClient

from desk import documents
from executor import flow_room
from executor.documents import Document, RunQuery, RunStatus
from executor.endpoints.health import readiness
from executor.endpoints.runs import watch
from executor.endpoints.table import call, open_service, writer_of
from executor.errors import FinetunerError
from executor.flow_room import FlowRoom
from executor.parameters import ExecutorOptions, FitParameters, parse_executor_options
from executor.web.app import make_app
from serving import QUICK


class Executors:
    """In the place of the streamer of a gateway, as `executor.gateway` hands it out."""

    def __init__(self, service: Any) -> None:
        self.service = service
        self.hang = False
        self._endpoints_models_map = {
            "/status": {"input": Document, "output": RunStatus},
            "/watch": {"input": RunQuery, "output": RunStatus},
        }

    async def stream_docs(self, docs: Any, *, exec_endpoint: str, parameters: Any, **_: Any) -> AsyncIterator[Any]:
        try:
            yield SimpleNamespace(docs=await call(self.service, exec_endpoint, docs, parameters))
        except FinetunerError as error:
            raise HTTPException(error.status, str(error)) from None

    async def ask_one(self, known_by: str, path: str, docs: Any, parameters: Any) -> Any:
        if self.hang:
            await asyncio.Event().wait()
        assert path == "/readyz"
        return SimpleNamespace(docs=[Document(text=json.dumps(asdict(await readiness(self.service))))])

    async def stream_doc(self, doc: RunQuery, exec_endpoint: str) -> AsyncIterator[tuple[RunStatus, None]]:
        try:
            async for status in watch(writer_of(self.service, exec_endpoint), doc.run):
                yield status, None
        except FinetunerError as error:
            yield RunStatus(run=doc.run or "", state="failed", error=str(error)), None


@pytest.fixture
def options(request: pytest.FixtureRequest, tmp_path: Path) -> ExecutorOptions:
    return parse_executor_options(QUICK | {"receive_timeout": 1000.0} | getattr(request, "param", {})).with_roots()


@pytest.fixture
def executors(options: ExecutorOptions, tmp_path: Path) -> Iterator[Executors]:
    with closing(open_service(tmp_path / "workspace", options)) as service:
        yield Executors(service)


@pytest.fixture
def gateway(executors: Executors, options: ExecutorOptions) -> Iterator[TestClient]:
    with TestClient(make_app(FlowRoom(executors), options, None)) as client:
        yield client


def test_a_run_that_there_is_not_is_refused_before_a_stream_begins(gateway: TestClient) -> None:
    for path, said in (("/watch?run=zz", "There is no run 'zz'"), ("/watch", "There are no runs yet")):
        answer = gateway.get(path)
        assert (answer.status_code, answer.json()["detail"].startswith(said)) == (404, True), answer.text


def test_a_run_is_followed_by_its_name_or_as_the_newest(gateway: TestClient, executors: Executors) -> None:
    executors.service.supervisor.close()  # nobody shall train it
    executors.service.receiver.receive(documents(), FitParameters(run="a"))
    executors.service.supervisor.cancel("a")
    for path in ("/watch?run=a", "/watch"):
        answer = gateway.get(path)
        assert (answer.status_code, answer.text.count('"state":"cancelled"')) == (200, 1), answer.text


@pytest.mark.parametrize("options", [{"role": "serve", "serve_from": "/nowhere"}], indirect=True)
def test_readers_have_no_run_to_follow_and_say_who_has(gateway: TestClient) -> None:
    answer = gateway.get("/watch?run=a")
    assert answer.status_code == 409
    assert "call the service that trains for /watch" in answer.json()["detail"]


def test_an_executor_that_hangs_is_not_ready_and_has_no_figures(
    gateway: TestClient, executors: Executors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow_room, "ANSWER_SECONDS", 0.1)
    executors.hang = True
    for path in ("/readyz", "/metrics", "/watch"):
        answer = gateway.get(path)
        assert (answer.status_code, "has not answered for 0.1 s" in answer.text) == (503, True), answer.text
    assert gateway.get("/readyz").json()["ready"] is False
