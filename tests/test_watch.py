"""`/watch`: the statuses of a run as they change, over gRPC and as server-sent events."""

import asyncio
import itertools
import json
import threading
from collections.abc import Callable, Iterator

import pytest
import requests
from jina import Client

from conftest import coloured
from executor import Document, DocumentArray
from executor.documents import RunQuery, RunStatus
from serving import Service

STATES = ["receiving", "queued", "training", "succeeded"]


def over_grpc(service: Service, run: str | None) -> list[RunStatus]:
    """All statuses streamed to Jina's client."""

    async def watch() -> list[RunStatus]:
        client = Client(host="127.0.0.1", port=service.ports["grpc"], protocol="grpc", asyncio=True)
        stream = client.stream_doc(on="/watch", inputs=RunQuery(run=run), return_type=RunStatus)
        return [status async for status in stream]

    return asyncio.run(watch())


def events(response: requests.Response) -> Iterator[tuple[str, str]]:
    """The server-sent events of a response, each (event, data)."""
    name, data = "message", ""
    for line in response.iter_lines(decode_unicode=True):
        if not line:
            if name != "message" or data:
                yield name, data
            name, data = "message", ""
        elif line.startswith("event:"):
            name = line.removeprefix("event:").strip()
        elif line.startswith("data:"):
            data = line.removeprefix("data:").strip()


def over_http(service: Service, run: str | None) -> list[RunStatus]:
    """All statuses streamed as server-sent events; the stream has to say that it ends."""
    query = {} if run is None else {"run": run}
    url = f"http://127.0.0.1:{service.ports['http']}/watch"
    with requests.get(url, params=query, stream=True, timeout=100) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        received = list(events(response))
    assert received[-1][0] == "end"
    return [RunStatus(**json.loads(data)) for name, data in received if name == "update"]


WATCHERS = [pytest.param(over_grpc, id="grpc"), pytest.param(over_http, id="http")]
Watcher = Callable[[Service, str | None], list[RunStatus]]


@pytest.fixture(scope="module")
def watched(service: Service) -> dict[str, list[RunStatus]]:
    """What two clients saw, one of each protocol, of the same run from receiving to its end."""
    docs = DocumentArray(
        Document(id=f"d{number}", blob=coloured(number % 3, number), tags={"finetuner_label": number % 3})
        for number in range(24)
    )
    service.post("/fit", docs, returns=RunStatus, run="watched", epochs=30)
    seen: dict[str, list[RunStatus]] = {}

    def watch(name: str, watcher: Watcher) -> None:
        seen[name] = watcher(service, "watched")

    threads = [
        threading.Thread(target=watch, args=arguments) for arguments in (("grpc", over_grpc), ("http", over_http))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return seen


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_the_stream_ends_with_the_run_and_its_last_status_is_the_end(
    watched: dict[str, list[RunStatus]], protocol: str
) -> None:
    *earlier, last = watched[protocol]
    assert last.state == "succeeded", last.error
    assert last.ended_at
    assert all(status.ended_at is None for status in earlier)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_the_statuses_of_the_stream_are_of_that_run_and_in_the_legal_order(
    watched: dict[str, list[RunStatus]], protocol: str
) -> None:
    statuses = watched[protocol]
    assert {status.run for status in statuses} == {"watched"}
    positions = [STATES.index(status.state) for status in statuses]
    assert positions == sorted(positions)
    assert statuses[0].state == "receiving"


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_status_is_streamed_when_something_has_changed(watched: dict[str, list[RunStatus]], protocol: str) -> None:
    statuses = watched[protocol]
    assert len(statuses) >= 4
    assert all(one != other for one, other in itertools.pairwise(statuses))


@pytest.mark.parametrize("watcher", WATCHERS)
def test_watching_an_ended_run_yields_its_status_once(
    service: Service, watched: dict[str, list[RunStatus]], watcher: Watcher
) -> None:
    (status,) = watcher(service, "watched")
    assert status.state == "succeeded"


@pytest.mark.parametrize("watcher", WATCHERS)
def test_an_unknown_run_yields_one_last_status_with_the_error(service: Service, watcher: Watcher) -> None:
    (status,) = watcher(service, "nobody")
    assert status.error is not None
    assert status.error.startswith("There is no run 'nobody'")


@pytest.mark.parametrize("watcher", WATCHERS)
def test_a_cancelled_run_ends_its_streams(
    service: Service, labelled: Callable[..., DocumentArray], watcher: Watcher
) -> None:
    name = f"cancelled-{watcher.__name__}"
    service.post("/fit", labelled(6), returns=RunStatus, run=name, total=6, epochs=100_000)
    canceller = threading.Timer(1.0, service.http, ("/cancel",), {"run": name})
    canceller.start()
    assert watcher(service, name)[-1].state == "cancelled"
    canceller.join()


def test_a_client_that_goes_away_harms_nobody(service: Service, labelled: Callable[..., DocumentArray]) -> None:
    service.post("/fit", labelled(6), returns=RunStatus, run="left", total=6, epochs=100_000)
    url = f"http://127.0.0.1:{service.ports['http']}/watch"
    with requests.get(url, params={"run": "left"}, stream=True, timeout=30) as response:
        assert next(events(response))[0] == "update"
    service.post("/cancel", returns=RunStatus, run="left")
    assert over_grpc(service, "left")[-1].state == "cancelled"
