"""Callers take turns, in queues and in fetching."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from executor import Document, DocumentArray
from executor.compute.turns import Turns
from executor.errors import BadDocument
from executor.images import remote
from executor.images.policy import ImagePolicy
from executor.loading.content import ModelImages
from executor.loading.fetches import MOST, MOST_OF_A_HOST, Fetch, Fetches
from executor.models.preprocessing import Preprocessing
from executor.worker.decoding import Decoded
from workshop import Workshop

pytestmark = pytest.mark.compute


def taken(turns: Turns[str], count: int) -> str:
    return "".join(turns.take() or "" for _ in range(count))


def test_callers_are_served_in_turn_and_each_in_its_order():
    turns: Turns[str] = Turns()
    turns.put("one", "abcd")
    turns.put("two", "xy")
    turns.put("one", "ef")
    assert taken(turns, 8) == "axbycdef"


def test_a_newcomer_has_its_turn_after_one_item_of_each_other():
    turns: Turns[str] = Turns()
    turns.put("one", "a" * 1000)
    turns.put("two", "b" * 1000)
    assert taken(turns, 3) == "aba"
    turns.put("three", "c")
    assert "c" in taken(turns, 3)


def test_callers_whose_item_does_not_fit_keep_their_turn():
    turns: Turns[str] = Turns()
    turns.put("one", "a1")
    turns.put("two", "2b")
    assert turns.take(fits=str.isdigit) == "2"
    assert turns.take(fits=str.isdigit) is None
    assert taken(turns, 3) == "ab1"


def test_nothing_is_waited_for_while_something_waits_that_does_not_fit():
    turns: Turns[str] = Turns()
    turns.put("one", "a")
    assert turns.take(fits=str.isdigit) is None


def test_taking_from_an_empty_queue_ends_with_its_timeout():
    assert Turns().take(timeout=0.01) is None
    assert Turns().take(timeout=0) is None


def test_who_waits_is_woken_by_an_item():
    turns: Turns[str] = Turns()
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(turns.take)
        turns.put("one", "a")
        assert waiting.result(60) == "a"


def test_a_full_queue_lets_putting_wait():
    turns: Turns[str] = Turns(most=2)
    turns.put("one", "ab")
    with ThreadPoolExecutor(1) as thread:
        putting = thread.submit(turns.put, "one", "c")
        with pytest.raises(TimeoutError):
            putting.result(0.1)
        assert taken(turns, 1) == "a"
        putting.result(60)
    assert taken(turns, 2) == "bc"


def test_what_waits_in_a_closed_queue_can_be_taken_and_then_it_ends():
    turns: Turns[str] = Turns(most=1)
    turns.put("one", "a")
    turns.close()
    turns.put("one", "b")
    assert [turns.take(), turns.take(), turns.take()] == ["a", "b", None]


# --- fetching --------------------------------------------------------------------------------------------------------

POLICY = ImagePolicy(allow_remote_uris=True, remote_timeout=60)


class Server(ThreadingHTTPServer):
    """Answers with the path that was asked for, once its gate is open; counts who waits there."""

    request_queue_size = 256

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.gate, self.arrived = threading.Event(), threading.Condition()
        self.waiting = self.most = 0
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def uri(self, name: object, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.server_address[1]}/{name}"

    def wait_for(self, count: int) -> bool:
        with self.arrived:
            return self.arrived.wait_for(lambda: self.waiting >= count, 60)


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        with self.server.arrived:
            self.server.waiting += 1
            self.server.most = max(self.server.most, self.server.waiting)
            self.server.arrived.notify_all()
        self.server.gate.wait(60)
        with self.server.arrived:
            self.server.waiting -= 1
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.path.encode())

    def log_message(self, *_args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A slow server; loopback stands in for a public address."""
    monkeypatch.setitem(remote.fetch.__kwdefaults__, "forbidden", lambda address: False)
    running = Server()
    yield running
    running.gate.set()
    running.shutdown()
    running.server_close()


class Arrivals:
    """Notes what was fetched, in order, and gives each place back."""

    def __init__(self, fetches: Fetches) -> None:
        self.bodies: list[bytes | BadDocument | None] = []
        self.callers: list[object] = []
        self._fetches = fetches
        self._changed = threading.Condition()

    def __call__(self, fetch: Fetch) -> None:
        with self._changed:
            self.bodies.append(fetch.body)
            self.callers.append(fetch.caller)
            self._changed.notify_all()
        self._fetches.finish(fetch)

    def wait_for(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.bodies) >= count, 60)


@pytest.fixture
def fetches() -> Iterator[Fetches]:
    running = Fetches()
    yield running
    running.close()


def test_one_caller_takes_half_of_a_host_and_the_next_half_of_the_rest(server: Server, fetches: Fetches) -> None:
    arrivals = Arrivals(fetches)
    for number in range(3 * MOST):
        fetches.start(Fetch("first", server.uri(number), POLICY, arrivals))
    assert server.wait_for(MOST_OF_A_HOST // 2)
    fetches.start(Fetch("second", server.uri("second"), POLICY, arrivals))
    assert server.wait_for(MOST_OF_A_HOST // 2 + 1)
    assert server.waiting == MOST_OF_A_HOST // 2 + 1
    server.gate.set()
    arrivals.wait_for(3 * MOST + 1)
    assert server.most <= MOST_OF_A_HOST
    assert sorted(map(bytes, arrivals.bodies)) == sorted(
        [b"/second", *(f"/{number}".encode() for number in range(3 * MOST))]
    )


def test_there_is_a_bound_for_all_hosts_together(server: Server, fetches: Fetches) -> None:
    arrivals = Arrivals(fetches)
    for caller in range(20):
        for number in range(MOST):
            fetches.start(Fetch(caller, server.uri(number, f"127.0.0.{1 + number % 8}"), POLICY, arrivals))
    assert server.wait_for(MOST // 2)
    server.gate.set()
    arrivals.wait_for(20 * MOST)
    assert server.most <= MOST


def test_a_body_holds_its_place_until_it_is_decoded(server: Server, fetches: Fetches) -> None:
    server.gate.set()
    kept: list[Fetch] = []
    changed = threading.Condition()

    def keep(fetch: Fetch) -> None:
        with changed:
            kept.append(fetch)
            changed.notify_all()

    for number in range(MOST):
        fetches.start(Fetch("one", server.uri(number), POLICY, keep))
    with changed:
        assert changed.wait_for(lambda: len(kept) == MOST_OF_A_HOST // 2, 60)
    fetches.finish(kept[0])
    with changed:
        assert changed.wait_for(lambda: len(kept) == MOST_OF_A_HOST // 2 + 1, 60)
    while len(kept) < MOST:
        fetches.finish(kept[len(kept) - 1])
        with changed:
            changed.wait(0.01)


def test_what_nobody_wants_any_more_is_not_fetched(server: Server, fetches: Fetches) -> None:
    arrivals = Arrivals(fetches)
    fetches.start(Fetch("gone", server.uri("x"), POLICY, arrivals, abandoned=lambda: True))
    arrivals.wait_for(1)
    assert (arrivals.bodies, server.most) == ([None], 0)


def test_a_failure_is_handed_on_as_the_document_s(fetches: Fetches) -> None:
    arrivals = Arrivals(fetches)
    fetches.start(Fetch("one", "http://127.0.0.1:1/x", POLICY, arrivals))
    arrivals.wait_for(1)
    assert "does not lead to a public address" in str(arrivals.bodies[0])
    with remote.given({"http://127.0.0.1:1/x": arrivals.bodies[0]}), pytest.raises(BadDocument, match="public"):
        remote.read_remote("http://127.0.0.1:1/x", POLICY)


def test_closing_refuses_what_waits(server: Server) -> None:
    fetches = Fetches()
    arrivals = Arrivals(fetches)
    for number in range(MOST_OF_A_HOST):
        fetches.start(Fetch("one", server.uri(number), POLICY, arrivals))
    assert server.wait_for(MOST_OF_A_HOST // 2)
    closing = threading.Thread(target=fetches.close)
    closing.start()
    arrivals.wait_for(MOST_OF_A_HOST // 2)
    assert all("The service is ending" in str(body) for body in arrivals.bodies)
    server.gate.set()
    closing.join(60)
    assert len(arrivals.bodies) == MOST_OF_A_HOST


def test_a_trainer_fetches_more_at_a_time_than_it_has_cores(server: Server, tmp_path: Path) -> None:
    docs = DocumentArray(
        Document(id=str(number), uri=server.uri(number), tags={"finetuner_label": number % 2}) for number in range(20)
    )
    workshop = Workshop(tmp_path, allow_remote_uris=True)
    workshop.receive("run", docs)
    preprocess = ModelImages(Preprocessing(size=16), POLICY)
    decoded = Decoded("train", workshop.store, "run", preprocess, None, with_matches=False)
    with ThreadPoolExecutor(1) as thread:
        decoding = thread.submit(decoded.decode_next)
        assert server.wait_for(MOST_OF_A_HOST // 2)
        server.gate.set()
        assert decoding.result(60)
    assert len(decoded) == 0  # what the server sends is no picture
    assert [reason for _, reason in workshop.store.problems("run", 1)] == [
        "The image has an unknown format; send JPEG, PNG, WebP, GIF, BMP or TIFF"
    ]
    decoded.docs.close()
    workshop.close()
