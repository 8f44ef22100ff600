"""Calls that nobody would write. The service answers each of them with a sentence, and goes on.

By default there are a few hundred, always the same. With `FUZZ_EXAMPLES=5000` each test tries so many at random.
"""

import base64
import json
import os
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
import requests
import schemathesis
from docarray import BaseDoc, DocList
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from jina.clients.request import request_generator
from jina.enums import DataInputType
from jina.proto import jina_pb2, jina_pb2_grpc
from jina.types.request.data import DataRequest, SingleDocumentRequest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from conftest import coloured, encoded
from executor import Document, DocumentArray, errors
from executor.documents import RunStatus
from executor.parameters import EvaluateParameters, EventsParameters, FitParameters
from fronts import SMALL, Served, flow, ports_for, serving

THOROUGH = "FUZZ_EXAMPLES" in os.environ
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "100"))
LONGEST_URL = 60_000  # uvicorn itself answers a far longer one (200 kB) with 400 and resets the connection
TEST_SECONDS = 3600 if THOROUGH else 300  # for a test: ten thousand calls take half an hour
SECONDS = 60.0  # for an answer: a call that takes longer hangs
GROWTH = 200 * 2**20  # bytes of memory that all the calls together may take for ever
# A sentence may repeat what was sent, so these are what no strategy writes.
LEAKS = ("Traceback (most recent", 'File "', "site-packages", "The service failed with")
pytestmark = [pytest.mark.flow, pytest.mark.timeout(TEST_SECONDS)]
OPTIONS = {
    **SMALL,
    "receive_timeout": 3600.0,  # a run that received something waits: what is tried here is not the training
    "max_open_runs": 20,
    "trainer_threads": 1,
    "fit_defaults": {"epochs": 1},
}
PNG = "data:image/png;base64," + base64.b64encode(encoded(coloured(0))).decode()
fuzzed = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=not THOROUGH,
    database=None,
    suppress_health_check=list(HealthCheck),
)


class Loose(BaseDoc):
    """A document with our fields, in which everything fits that a client could put on the wire."""

    uri: Any = None
    blob: Any = None
    buffer: Any = None
    text: Any = None
    tags: Any = None
    embedding: Any = None
    unknown: Any = None
    matches: Any = None


class LooseQuery(BaseDoc):
    """The same for `/watch`."""

    run: Any = None
    unknown: Any = None


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A Flow with our gateway, over gRPC, HTTP and websocket."""
    folder, ports = tmp_path_factory.mktemp("fuzz"), ports_for("grpc", "http", "websocket")
    gateway = {"uses": "executor.gateway.FinetunerGateway"}
    with serving(folder, ports, flow(folder, ports, gateway, OPTIONS)) as running:
        yield running


@pytest.fixture(scope="module", autouse=True)
def unharmed(served: Served) -> Iterator[None]:
    """After all of it the processes live, have not grown, and the service does its work."""
    processes = of_the_service(served)
    before = None
    works(served, "before")
    before = memory(processes)
    yield
    assert of_the_service(served) == processes
    works(served, "after")
    growth = memory(processes) - before
    print(f"\nmemory of the service: {before / 2**20:.0f} MiB before, {growth / 2**20:+.0f} MiB after")
    assert growth < GROWTH


def of_the_service(served: Served) -> list[psutil.Process]:
    """The gateway and the executor, which are forks of the first; without the trainer and what it started."""
    main = psutil.Process(served.process.pid)
    return [
        main,
        *(
            each
            for each in main.children(recursive=True)
            if each.status() != psutil.STATUS_ZOMBIE and each.exe() == main.exe() and each.cmdline() == main.cmdline()
        ),
    ]


def memory(processes: list[psutil.Process]) -> int:
    """What they take of the machine's memory, in bytes."""
    return sum(each.memory_info().rss for each in processes)


def works(served: Served, run: str) -> None:
    """Check that a good document is embedded and that good documents are received."""
    image = DocumentArray([Document(uri=PNG)])
    assert served.client("grpc", None, "/embed", image)[0].embedding is not None
    answer = served.post("/fit", data=[{"uri": PNG}], parameters={"run": run})
    assert (answer.status_code, answer.json()["data"][0]["state"]) == (200, "receiving")
    assert served.post("/cancel", parameters={"run": run}).json()["data"][0]["state"] == "cancelled"


def assert_plain(text: str) -> None:
    """Check that nothing of the inside is told."""
    assert [leak for leak in LEAKS if leak in text] == [], text[:2000]


# over gRPC ------------------------------------------------------------------------------------------------------------

odd_text = st.one_of(
    st.text(max_size=40),
    st.text(st.characters(categories=["Cs", "Cc", "Cf"]), max_size=5),
    st.sampled_from(
        ["", "\0", "a\nb", "../../etc/passwd", "x" * 100_000, "\u202e", "nan", "-1", "/dev/zero", "/", "."]
    ),
)
odd_numbers = st.one_of(
    st.integers(-(2**70), 2**70), st.floats(), st.sampled_from([0, -1, 1e308, 2**31, 2**63, 2**64, 0.5, True])
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), odd_numbers, odd_text),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(odd_text, inner, max_size=3)),
    max_leaves=6,
)


@st.composite
def deep(draw: st.DrawFn) -> dict[str, Any]:
    """An object in an object in an object …"""
    value: Any = draw(values)
    for _ in range(draw(st.sampled_from([1, 10, 40, 90, 200]))):
        value = {"a": value}
    return value


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    """An array that is an image, or is not."""
    shape = tuple(draw(st.lists(st.integers(0, 5), max_size=5)) or ())
    shape = draw(st.sampled_from([shape, (4, 4, 3), (4, 4), (0, 4, 3), (1, 100_000, 3)]))
    kind = draw(st.sampled_from(["u1", "i1", "u2", "i4", "i8", "f2", "f4", "f8", "c8", "?", "S3", "U3", "M8[s]"]))
    array = np.zeros(shape, kind)
    if array.size and array.dtype.kind == "f":
        array.flat[0] = draw(st.sampled_from([np.nan, np.inf, -np.inf, -1.0, 0.5, 300.0]))
    return array


uris = st.one_of(
    odd_text,
    st.binary(max_size=40).map(lambda data: "data:image/png;base64," + base64.b64encode(data).decode()),
    st.sampled_from(
        [
            PNG,
            PNG[:-20],
            "data:,",
            "data:image/png;base64,@@@@",
            "data:" + "a" * 10_000,
            "file:///etc/passwd",
            "file://host/etc/passwd",
            "http://127.0.0.1/a.png",
            "https://[::1",
            "ftp://a/b",
            "gopher://a",
            "//a/b",
            "C:\\a.png",
            "/etc/passwd",
            "../../../../etc/passwd",
            "/proc/self/environ",
            "/dev/zero",
        ]
    ),
)
buffers = st.one_of(
    st.binary(max_size=64),
    st.sampled_from([b"\x89PNG\r\n\x1a\n", encoded(coloured(0))[:60], encoded(coloured(1)), b"GIF89a\xff\xff\xff\xff"]),
)
labels = st.one_of(values, st.sampled_from([0, 1, -1, "a", 1.5]))
tags = st.one_of(
    st.fixed_dictionaries({"finetuner_label": labels}), deep(), st.dictionaries(odd_text, values, max_size=3)
)
ids = st.one_of(odd_text, st.sampled_from(["a", "b", "c"]))
match_fields = {
    "id": ids,
    "uri": st.one_of(uris, values),
    "blob": st.one_of(arrays(), values),
    "buffer": st.one_of(buffers, values),
    "text": st.one_of(odd_text, values),
    "tags": st.one_of(tags, tags, values),
    "embedding": st.one_of(arrays(), values),
    "unknown": values,
}
matches = st.fixed_dictionaries({}, optional=match_fields)
documents = st.fixed_dictionaries(
    {}, optional=match_fields | {"matches": st.one_of(values, st.lists(matches, max_size=3))}
)
good_images = st.builds(lambda label: {"uri": PNG, "tags": {"finetuner_label": label}}, labels)
names = st.sampled_from(["a", "b", "c", "base", "promoted", "before"])
runs = st.one_of(names, odd_text, st.sampled_from(["..", ".", "a/b", "../a", "a" * 64, "a" * 65, "ä"]), values)
known = sorted({*FitParameters.model_fields, *EvaluateParameters.model_fields, *EventsParameters.model_fields})
parameters = st.one_of(
    st.fixed_dictionaries({"run": names}),
    st.fixed_dictionaries({"run": runs}),
    st.fixed_dictionaries({"model": runs}),
    st.dictionaries(st.one_of(st.sampled_from(known), odd_text), values, max_size=3),
    st.tuples(names, st.sampled_from(known), values).map(lambda drawn: {"run": drawn[0], drawn[1]: drawn[2]}),
)
endpoints = st.sampled_from(
    [
        "/feedback",
        "/suggest",
        "/galleries",
        "/gallery",
        "/thumbnails",
        "/neighbours",
        "/words",
        "/labels",
        "/fit",
        "/status",
        "/embed",
        "/cancel",
        "/promote",
        "/evaluate",
        "/compare",
        "/events",
        "/quarantined",
        "/report",
        "/delete",
    ]
)


any_call: dict[str, Any] = {
    "endpoint": endpoints,
    "fields": st.one_of(st.just([]), st.lists(documents, max_size=3), st.lists(good_images, min_size=1, max_size=3)),
    "given": parameters,
}


@pytest.fixture(scope="module")
def channel(served: Served) -> Iterator[grpc.Channel]:
    """A channel to the gateway."""
    unlimited = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(f"localhost:{served.ports['grpc']}", unlimited) as opened:
        yield opened


def on_the_wire(make: Any) -> Any:
    """What `make` returns; None where Jina's client would refuse to send it."""
    try:
        return make()
    except Exception:  # whichever it is, the service never sees it
        return None


def request_for(endpoint: str, fields: list[dict[str, Any]], given: dict[str, Any]) -> Any:
    """The request that Jina's client would send, as bytes and read again."""
    docs = DocList[Loose](Loose(**each) for each in fields)
    (request,) = request_generator(endpoint, docs or None, 0, DataInputType.DOCUMENT, parameters=given)
    request.to_bytes()
    dict(request.parameters)  # fails with infinite numbers and NaN, which Jina's gateway refuses in words of its own
    return request


@fuzzed
@given(**any_call)
def test_over_grpc_every_call_is_answered_in_the_services_own_words(
    channel: grpc.Channel, endpoint: str, fields: list[dict[str, Any]], given: dict[str, Any]
) -> None:
    request = on_the_wire(lambda: request_for(endpoint, fields, given))
    if request is None:
        return
    stub = jina_pb2_grpc.JinaSingleDataRequestRPCStub(channel)
    assert_in_own_words(stub.process_single_data(request, timeout=SECONDS))


def assert_in_own_words(answer: Any) -> None:
    """Check that a call was done, or refused as the caller's mistake."""
    status = answer.header.status
    if status.code == jina_pb2.StatusProto.ERROR:
        assert_plain(f"{status.description} {list(status.exception.stacks)}")
        _, kind = status.exception.args
        assert 400 <= getattr(errors, kind).status < 500, status.description
    else:
        assert_plain(str(answer.proto))  # as it came: what Jina has no endpoint for, it sends back unread


@fuzzed
@given(run=st.one_of(runs, arrays()), unknown=values)
def test_over_grpc_watch_says_what_it_cannot_find(channel: grpc.Channel, run: Any, unknown: Any) -> None:
    def make() -> SingleDocumentRequest:
        request = SingleDocumentRequest()
        request.header.exec_endpoint = "/watch"
        request.document_cls = LooseQuery
        request.data.doc = LooseQuery(run=run, unknown=unknown)
        request.to_bytes()
        return request

    request = on_the_wire(make)
    if request is None:
        return
    answers = jina_pb2_grpc.JinaSingleDocumentRequestRPCStub(channel).stream_doc(request, timeout=SECONDS)
    answer = next(answers)
    answers.cancel()
    answer.document_cls = RunStatus
    assert_plain(answer.data.doc.error or "")


# over a websocket -----------------------------------------------------------------------------------------------------


def by_websocket(served: Served, message: bytes | str) -> DataRequest | str:
    """Send one message and return the answer, or the reason why the connection was closed instead."""
    address, kind = f"ws://localhost:{served.ports['websocket']}", [Subprotocol("bytes")]
    with connect(address, subprotocols=kind, max_size=None) as connection:
        connection.send(message)
        try:
            return DataRequest(connection.recv(timeout=SECONDS, decode=False))
        except ConnectionClosed as closed:
            return "" if closed.rcvd is None else closed.rcvd.reason


@fuzzed
@given(**any_call)
def test_over_websocket_every_call_is_answered_in_the_services_own_words(
    served: Served, endpoint: str, fields: list[dict[str, Any]], given: dict[str, Any]
) -> None:
    request = on_the_wire(lambda: request_for(endpoint, fields, given))
    if request is None:
        return
    answer = by_websocket(served, request.to_bytes())
    assert not isinstance(answer, str)
    assert_in_own_words(answer)


@fuzzed
@given(message=st.one_of(st.binary(max_size=200), st.text(max_size=200)))
def test_over_websocket_what_is_no_request_is_refused_or_hung_up_on_with_a_reason(
    served: Served, message: bytes | str
) -> None:
    assume(message != bytes(True))  # the end of a call: to hang up is the answer
    answer = by_websocket(served, message)
    if isinstance(answer, str):
        assert "Jina's" in answer
    else:
        assert_plain(str(answer.header.status))
    assert "Traceback" not in served.log


JSON = {"Content-Type": "application/json"}


# over HTTP ------------------------------------------------------------------------------------------------------------


def as_json(value: Any) -> Any:
    """What a client would write for bytes and arrays."""
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value.astype(str).tolist()


def assert_answered(response: requests.Response) -> None:
    """Check that a call was done, or refused by a status of the caller's and a sentence."""
    assert response.status_code < 500, response.text
    if response.status_code >= 400:
        assert set(response.json()) in ({"detail"}, {"error"})  # the latter in OpenAI's form
        assert_plain(response.text)


def test_over_http_what_the_openapi_allows_is_answered(served: Served) -> None:
    described = schemathesis.openapi.from_url(f"{served.url}/openapi.json")
    # Of streams schemathesis reads the end only, and with a newer urllib3 than Jina's.
    operations = [found.ok() for found in described.exclude(path="/watch").get_all_operations()]
    assert len(operations) > 8

    @settings(fuzzed, max_examples=max(5, EXAMPLES // len(operations)))
    @given(case=st.data())
    def answered(case: st.DataObject, operation: Any) -> None:
        assert_answered(case.draw(operation.as_strategy()).call(timeout=SECONDS))

    for operation in operations:
        answered(operation=operation)


@fuzzed
@given(
    endpoint=endpoints, fields=st.one_of(values, st.lists(documents, max_size=3)), given=st.one_of(values, parameters)
)
def test_over_http_every_body_is_answered_in_the_services_own_words(
    served: Served, endpoint: str, fields: Any, given: Any
) -> None:
    body = json.dumps({"data": fields, "parameters": given}, default=as_json)  # NaN, surrogates and all
    assert_answered(requests.post(served.url + endpoint, data=body, headers=JSON, timeout=SECONDS))


@fuzzed
@given(endpoint=endpoints, body=st.binary(max_size=200))
def test_over_http_bytes_that_are_no_json_are_refused(served: Served, endpoint: str, body: bytes) -> None:
    assert_answered(requests.post(served.url + endpoint, data=body, headers=JSON, timeout=SECONDS))


@fuzzed
@given(query=st.dictionaries(st.one_of(st.just("run"), odd_text), odd_text, max_size=2))
def test_over_http_watch_says_what_it_cannot_find(served: Served, query: dict[str, str]) -> None:
    encoded_query = {
        key.encode("utf-8", "surrogatepass"): text.encode("utf-8", "surrogatepass") for key, text in query.items()
    }
    url = requests.Request("GET", f"{served.url}/watch", params=encoded_query).prepare().url or ""
    assume(len(url) < LONGEST_URL)
    with requests.get(url, stream=True, timeout=SECONDS) as response:
        assert response.status_code < 500, response.text
        assert_plain(next(response.iter_lines(), b"").decode())
