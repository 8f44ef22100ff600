"""`/watch`: the statuses of a run as they change, over gRPC and as server-sent events."""

import asyncio
import functools
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest
import requests
from jina import Client

from conftest import images
from executor.documents import RunQuery, RunStatus
from serving import Service

pytestmark = pytest.mark.flow

STATES = ["receiving", "queued", "training", "succeeded"]


Seen = Callable[[RunStatus], object]


def over_grpc(service: Service, run: str | None, seen: Seen) -> None:
    """Tell `seen` all statuses streamed to Jina's client."""

    async def watch() -> None:
        client = Client(host="127.0.0.1", port=service.ports["grpc"], protocol="grpc", asyncio=True)
        async for status in client.stream_doc(on="/watch", inputs=RunQuery(run=run), return_type=RunStatus):
            seen(status)

    asyncio.run(watch())


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


def over_http(service: Service, run: str | None, seen: Seen) -> None:
    """Tell `seen` all statuses streamed as server-sent events; the stream has to say that it ends."""
    query = {} if run is None else {"run": run}
    url = f"http://127.0.0.1:{service.ports['http']}/watch"
    with requests.get(url, params=query, stream=True, timeout=100) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        for name, data in events(response):
            if name == "update":
                seen(RunStatus(**json.loads(data)))
    assert name == "end"


Watcher = Callable[[Service, str | None, Seen], None]
WATCHERS = [pytest.param(over_grpc, id="grpc"), pytest.param(over_http, id="http")]


def watched_by(watcher: Watcher, service: Service, run: str) -> list[RunStatus]:
    """All that is streamed of a run."""
    statuses: list[RunStatus] = []
    watcher(service, run, statuses.append)
    return statuses


def watched_meanwhile(
    service: Service, run: str, watchers: Sequence[Watcher], then: Callable[[], object]
) -> list[list[RunStatus]]:
    """What each watcher saw of a run, with which something happened once all had seen something of it."""
    statuses: list[list[RunStatus]] = [[] for _ in watchers]
    threads = [
        threading.Thread(target=watcher, args=(service, run, found.append))
        for watcher, found in zip(watchers, statuses, strict=True)
    ]
    for thread in threads:
        thread.start()
    while not all(statuses) and all(thread.is_alive() for thread in threads):
        time.sleep(0.02)
    then()
    for thread in threads:
        thread.join()
    return statuses


@pytest.fixture(scope="module")
def watched(service: Service) -> dict[str, list[RunStatus]]:
    """What two clients saw, one of each protocol, of the same run from receiving to its end."""
    service.post("/fit", images(24), returns=RunStatus, run="watched", epochs=30)
    start = functools.partial(service.post, "/fit", returns=RunStatus, run="watched")
    grpc, http = watched_meanwhile(service, "watched", [over_grpc, over_http], start)
    return {"grpc": grpc, "http": http}


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
    (status,) = watched_by(watcher, service, "watched")
    assert status.state == "succeeded"


@pytest.mark.parametrize("watcher", WATCHERS)
def test_an_unknown_run_yields_one_last_status_with_the_error(service: Service, watcher: Watcher) -> None:
    (status,) = watched_by(watcher, service, "nobody")
    assert status.error is not None
    assert status.error.startswith("There is no run 'nobody'")


def test_a_cancelled_run_ends_its_streams(service: Service, run: str) -> None:
    service.post("/fit", images(6), returns=RunStatus, run=run)
    for statuses in watched_meanwhile(service, run, [over_grpc, over_http], lambda: service.cancel(run)):
        assert statuses[-1].state == "cancelled"


def test_a_client_that_goes_away_harms_nobody(service: Service, run: str) -> None:
    service.post("/fit", images(6), returns=RunStatus, run=run)
    url = f"http://127.0.0.1:{service.ports['http']}/watch"
    with requests.get(url, params={"run": run}, stream=True, timeout=30) as response:
        assert next(events(response))[0] == "update"
    service.cancel(run)
    assert watched_by(over_grpc, service, run)[-1].state == "cancelled"
