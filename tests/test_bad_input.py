"""What a client reads when its input is bad: one short message that says what was wrong and what to do."""

import asyncio
import base64
import json
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import requests
from docarray import DocList
from jina import Client
from jina.excepts import BadServer

from conftest import coloured, encoded
from executor import Document, DocumentArray
from executor.documents import LABEL_TAG, RunQuery, RunStatus
from executor.parameters import (
    LOSS_NAMES,
    CancelParameters,
    EmbedParameters,
    EvaluateParameters,
    FitParameters,
    PromoteParameters,
    StatusParameters,
)
from sentences import assert_plain
from serving import DOOR, DOORS, Service, as_json

PARAMETERS = {
    "/fit": FitParameters,
    "/status": StatusParameters,
    "/embed": EmbedParameters,
    "/cancel": CancelParameters,
    "/promote": PromoteParameters,
    "/evaluate": EvaluateParameters,
}
DIFFERENT = ("grpc", "http", DOOR)
pytestmark = pytest.mark.flow


def refused(service: Service, protocol: str, endpoint: str, docs: Any = (), **parameters: Any) -> str:
    """Make a call that is refused, check that the service goes on, and return the message."""
    if protocol in ("http", DOOR):
        answer = service.http(endpoint, [as_json(doc) for doc in docs], protocol=protocol, **parameters)
        assert list(answer.json()) == ["detail"], answer.text
        assert answer.status_code == 500 if protocol == "http" else 400 <= answer.status_code < 500
        message = answer.json()["detail"]
    else:
        status = refused_by_client(service, protocol, endpoint, docs, parameters)
        message = status.description
        traces = " ".join(status.exception.stacks)
        assert "Traceback" not in traces
        assert 'File "' not in traces
    assert service.http("/status").status_code == 200
    return message


def refused_by_client(service: Service, protocol: str, endpoint: str, docs: Any, parameters: dict[str, Any]) -> Any:
    """Call through Jina's client and return the status that it raises; by websocket only `on_error` is told."""
    client = Client(host="127.0.0.1", port=service.ports[protocol], protocol=protocol)
    told: list[Any] = []
    call = {"parameters": parameters, "return_type": DocList[RunStatus]}
    if protocol == "websocket":
        client.post(endpoint, DocumentArray(docs) or None, on_error=told.append, **call)
        return told[0].header.status
    with pytest.raises(BadServer) as caught:
        client.post(endpoint, DocumentArray(docs) or None, **call)
    return caught.value.args[0].status


def send(service: Service, protocol: str, endpoint: str, docs: Any, returns: Any = RunStatus, **parameters: Any) -> Any:
    """Make a call that is not refused. Over HTTP as plain JSON, in which Python writes NaN as it is."""
    if protocol == "grpc":
        return service.post(endpoint, DocumentArray(docs), returns=returns, **parameters)
    body = json.dumps({"data": [as_json(doc) for doc in docs], "parameters": parameters})
    answer = post_body(service, endpoint, body, protocol)
    assert answer.status_code == 200, answer.text
    return [returns(**doc) for doc in answer.json()["data"]]


def post_body(service: Service, endpoint: str, body: str, protocol: str = "http") -> requests.Response:
    headers = {"Content-Type": "application/json"}
    return requests.post(f"http://127.0.0.1:{service.ports[protocol]}{endpoint}", body, headers=headers, timeout=60)


# documents --------------------------------------------------------------------------------------------------------


def data_uri(label: int = 0, seed: int = 0) -> str:
    return f"data:image/png;base64,{base64.b64encode(encoded(coloured(label, seed))).decode()}"


def huge_png() -> bytes:
    """A PNG whose header promises 60,000 × 60,000 pixels and that has next to none."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 9)) + chunk(b"IEND", b"")
    )


BAD_IMAGES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "unreadable": ({"buffer": b"this is no image"}, ("unknown format", "send JPEG, PNG")),
    "truncated-png": ({"buffer": encoded(coloured(0))[:-400]}, ("PNG image is damaged or truncated",)),
    "truncated-jpeg": ({"buffer": encoded(coloured(0), "JPEG")[:-300]}, ("JPEG image is damaged or truncated",)),
    "huge": ({"buffer": huge_png()}, ("60000×60000 pixels", "send a smaller image or raise", "max_image_pixels")),
    "remote": ({"uri": "http://images.example/cat.png"}, ("remote uris are off", "allow_remote_uris", "data: uri")),
    "outside": ({"uri": "/etc/hostname"}, ("/etc/hostname lies outside the allowed roots", "option allowed_roots")),
    "climbing": ({"uri": "../../secret.png"}, ("lies outside the allowed roots", "option allowed_roots")),
    "absent": ({"uri": "nothing.png"}, ("nothing.png cannot be read: No such file", "give the path")),
    "scheme": ({"uri": "ftp://images.example/cat.png"}, ("unknown scheme", "use a path, file://")),
    "base64": ({"uri": "data:image/png;base64,#"}, ("not valid base64",)),
    "long-path": ({"uri": "a/" * 50_000}, ("cannot be read", "a/a/a")),
    "long-data": ({"uri": "data:" + "x" * 100_000}, ("not a valid data: uri", "write data:image/jpeg;base64")),
    "nan": ({"blob": np.full((4, 4, 3), np.nan, np.float32)}, ("blob of shape (4, 4, 3)", "nan", "in [0, 1]")),
    "shape": ({"blob": np.zeros((6, 6, 5), np.uint8)}, ("blob of shape (6, 6, 5)", "an image is H×W×3")),
    "empty": ({}, ("uri", "set")),
    "text": ({"text": "a cat"}, ("no image content", "set uri, buffer or blob", "executor import Document")),
}
SAME = (1, 1.0, True, 1, 1.0, True)  # one label, in three ways to write it
BAD_LABELS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "unlabelled": ({}, ("no tags['finetuner_label']", "give every document its label")),
    "list-label": ({LABEL_TAG: ["cat", "dog"]}, ("of type list", "an integer or a string")),
    "long-label": ({LABEL_TAG: ["cat"] * 5000}, ("of type list", "an integer or a string")),
    "half-label": ({LABEL_TAG: 0.5}, ("0.5", "an integer or a string")),
}


def bad_documents() -> list[Document]:
    """One of each kind that cannot be trained on as class data; no more than a status lists."""
    images = [Document(id=name, tags={LABEL_TAG: 0}, **fields) for name, (fields, _) in BAD_IMAGES.items()]
    return images + [Document(id=name, tags=tags, uri=data_uri()) for name, (tags, _) in BAD_LABELS.items()]


def session(name: str, *labels: Any) -> Document:
    """A session whose matches are labelled so; None is no label."""
    tags = [{} if label is None else {LABEL_TAG: label} for label in labels]
    return Document(id=name, uri=data_uri(), matches=[Document(uri=data_uri(), tags=each) for each in tags])


def labelled_image(name: str, label: int) -> Document:
    return Document(id=name, uri=data_uri(label, len(name)), tags={LABEL_TAG: label})


# calls: unknown and ill-typed parameters ----------------------------------------------------------------------------


# A refusal is the same over every protocol: the first test shows it for one, and the others use one protocol each.


@pytest.mark.parametrize(
    ("endpoint", "protocol"),
    [*(("/fit", protocol) for protocol in DOORS), *((endpoint, "http") for endpoint in list(PARAMETERS)[1:])],
)
def test_an_unknown_parameter_is_named_and_the_known_are_listed(service, endpoint, protocol):
    message = refused(service, protocol, endpoint, epoch=3)
    assert_plain(message, f"{endpoint} has no parameter 'epoch'", *PARAMETERS[endpoint].model_fields)


def test_a_very_long_parameter_name_is_shortened(service):
    assert_plain(refused(service, "http", "/fit", **{"x" * 50_000: 1}), "has no parameter 'xxxx", "it accepts")


@pytest.mark.parametrize("field", FitParameters.model_fields)
def test_an_ill_typed_fit_parameter_is_named_with_its_value(service, field):
    message = refused(service, "grpc", "/fit", **{field: [[1.5]]})
    assert_plain(message, f"Parameter '{field}' of /fit is [", "1.5]", "must be")


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"epochs": "three"}, ("'epochs'", "'three'", "must be a whole number")),
        ({"epochs": 2.5}, ("'epochs'", "2.5", "must be a whole number")),
        ({"epochs": 0}, ("'epochs'", "must be greater than or equal to 1")),
        ({"total": 1e300}, ("'total'", "must be less than or equal to")),
        ({"learning_rate": -1}, ("'learning_rate'", "-1.0", "must be greater than 0")),
        ({"start": "yes"}, ("'start'", "'yes'", "must be true or false")),
        ({"freeze": 3}, ("'freeze'", "must be true, false or names of layers")),
        ({"kind": "pairs"}, ("'kind'", "'pairs'", "'auto', 'class', 'session' or 'unlabeled'")),
        ({"loss": "nce"}, ("'loss'", "'nce'", *LOSS_NAMES["class"])),
        ({"loss": "arcface", "kind": "session"}, ("'arcface' is not for session data", "auto, triplet, contrastive")),
        ({"run": "base"}, ("'run'", "reserved names")),
        ({"run": "x" * 100_000}, ("'run'", "1 to 64 letters")),
    ],
)
def test_a_wrong_value_is_named_with_what_is_accepted(service, parameters, words):
    assert_plain(refused(service, "http", "/fit", **parameters), *words)


@pytest.mark.parametrize("name", ["../x", "/etc", "a/b", ".", "..", "", "x\x00y", "ünïcode", "a" * 65])
def test_a_run_name_that_is_no_plain_name_is_refused_everywhere(service, name):
    before = sorted(service.workspace.rglob("*"))
    for endpoint, parameter in [
        ("/fit", "run"),
        ("/fit", "base"),
        ("/status", "run"),
        ("/cancel", "run"),
        ("/promote", "run"),
        ("/embed", "model"),
        ("/evaluate", "run"),
        ("/evaluate", "model"),
    ]:
        message = refused(service, "http", endpoint, [labelled_image("a", 0)], **{parameter: name})
        assert_plain(message, f"Parameter '{parameter}' of {endpoint}", "letters, digits, '-', '_' or '.'")
    folders = {path.parent.name for path in set(service.workspace.rglob("*")) - set(before)}
    assert not folders & {"runs", "workspace"}


# calls: runs, models, moments ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("endpoint", ["/status", "/cancel", "/promote", "/evaluate"])
def test_an_unknown_run_is_named(service, endpoint):
    assert_plain(refused(service, "grpc", endpoint, run="nowhere"), "'nowhere'", "there are")


@pytest.mark.parametrize("endpoint", ["/embed", "/evaluate"])
def test_an_unknown_model_is_named_and_the_known_are_listed(service, endpoint):
    message = refused(service, "grpc", endpoint, [labelled_image("a", 0)], model="nowhere")
    assert_plain(message, "There is no model 'nowhere'", "there are: base")


def test_an_unknown_base_is_named_and_no_run_is_created(service):
    message = refused(service, "http", "/fit", [labelled_image("a", 0)], run="on-nothing", base="nowhere")
    assert_plain(message, "base='nowhere'", "give base, promoted, or a run that succeeded")
    assert "There is no run" in refused(service, "grpc", "/status", run="on-nothing")


def test_an_empty_request_for_a_new_run_is_refused(service):
    message = refused(service, DOOR, "/fit", run="empty")
    assert_plain(message, "Run 'empty' has no documents", "post labelled documents to /fit first")


def test_a_missing_parameter_is_named(service):
    assert_plain(refused(service, "http", "/cancel"), "/cancel needs the parameter 'run'")


def test_evaluating_nothing_says_what_to_send(service):
    assert_plain(refused(service, DOOR, "/evaluate"), "/evaluate got no documents", "send labelled ones")


def test_watching_an_unknown_run_ends_with_the_reason(service):
    answer = requests.get(f"http://127.0.0.1:{service.ports['http']}/watch?run=nowhere", timeout=60)
    (line,) = [line for line in answer.text.splitlines() if line.startswith("data: ")]
    assert_plain(json.loads(line.removeprefix("data: "))["error"], "There is no run 'nowhere'")


def test_watching_an_unknown_run_over_grpc_ends_with_the_reason(service):
    async def watched() -> list[RunStatus]:
        client = Client(host="127.0.0.1", port=service.ports["grpc"], protocol="grpc", asyncio=True)
        stream = client.stream_doc("/watch", inputs=RunQuery(run="nowhere"), return_type=RunStatus)
        return [status async for status in stream]

    (status,) = asyncio.run(watched())
    assert_plain(status.error, "There is no run 'nowhere'")


# bodies that are no requests ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("endpoint", ["/fit", "/embed"])
@pytest.mark.parametrize(
    "body",
    [
        '{"data": [',
        "[]",
        "3",
        '{"data": 3}',
        '{"data": ["x"]}',
        '{"data": [{"uri": 3}]}',
        '{"data": [{"id": 3}]}',
        '{"data": [{"tags": 3}]}',
        '{"data": [{"blob": "abc"}]}',
        '{"data": [{"blob": [[1, 2], [3]]}]}',
        '{"data": [{"matches": "x"}]}',
        '{"data": [], "parameters": 3}',
    ],
)
def test_a_body_of_the_wrong_form_is_refused_without_a_traceback(service, endpoint, body):
    answer = post_body(service, endpoint, body)
    assert answer.status_code >= 400
    assert "Traceback" not in answer.text
    assert 'File "' not in answer.text
    assert service.http("/status").status_code == 200


# documents that cannot be used --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(service: Service) -> dict[str, RunStatus]:
    """Runs of bad documents, all sent before the first is waited for: their final statuses by name.

    Every other document comes over HTTP.
    """
    good = [labelled_image(f"{'good' * (label + 1)}{number}", label) for label in (0, 1) for number in (0, 1)]
    bad = bad_documents()
    for protocol, docs in (("grpc", [*bad[::2], *good]), ("http", bad[1::2])):
        send(service, protocol, "/fit", docs, run="bad", kind="class", epochs=1)
    service.post("/fit", returns=RunStatus, run="bad")
    mixture = [labelled_image("l", 0), labelled_image("m", 0), Document(id="u", uri=data_uri()), session("s", 1, -1)]
    send(service, "http", "/fit", mixture, run="mixture")
    service.post("/fit", returns=RunStatus, run="mixture")
    same = [Document(id=str(number), uri=data_uri(), tags={LABEL_TAG: label}) for number, label in enumerate(SAME)]
    send(service, "grpc", "/fit", same, run="one-class", start=True)
    bad_sessions = [session("two", 1, 2), session("none", 1, None), session("list", [1]), session("alone")]
    for protocol, docs in (("grpc", bad_sessions[::2]), ("http", bad_sessions[1::2])):
        send(service, protocol, "/fit", docs, run="sessions", kind="session")
    service.post("/fit", returns=RunStatus, run="sessions")
    send(service, "http", "/fit", [session("s", 1, -1), session("t", 1, -1)], run="other-loss", loss="arcface")
    service.post("/fit", returns=RunStatus, run="other-loss")
    names = ("bad", "mixture", "one-class", "sessions", "other-loss")
    return {name: service.wait(name, seconds=240) for name in names}


@pytest.fixture(params=DIFFERENT)
def read(request, service: Service, runs: dict[str, RunStatus]) -> Iterator[Any]:
    """Read a run's status over either protocol, and see that the service answers afterwards."""

    def status(name: str) -> RunStatus:
        return send(service, request.param, "/status", [], run=name)[0]

    yield status
    assert service.http("/status").status_code == 200


@pytest.mark.parametrize("name", BAD_IMAGES | BAD_LABELS)
def test_a_bad_document_is_left_out_of_its_run_with_the_reason(runs, name):
    reasons = {problem.id: problem.reason for problem in runs["bad"].problems}
    assert_plain(reasons[name], *(BAD_IMAGES | BAD_LABELS)[name][1])


def test_bad_documents_do_not_sink_their_run(read):
    status = read("bad")
    assert (status.state, status.train_documents) == ("succeeded", 4)
    assert status.skipped == len(status.problems) == len(bad_documents())


def test_a_mixture_of_kinds_fails_with_the_counts_and_an_example_of_each(read):
    status = read("mixture")
    assert status.state == "failed"
    assert_plain(status.error, "mixture", "2 labelled (such as 'l')", "1 with matches (such as 's')", "'u'", "Set kind")


def test_one_class_only_fails_with_the_label_and_1_and_1_0_and_true_are_one_label(read):
    status = read("one-class")
    assert status.state == "failed"
    assert_plain(status.error, "All 6 documents have the label 1;", "at least 2 labels", "kind='unlabeled'")


def test_a_loss_of_another_kind_fails_with_the_losses_there_are(read):
    status = read("other-loss")
    assert status.state == "failed"
    assert_plain(status.error, "'arcface'", "session data", "auto, triplet, contrastive")


def test_a_run_of_which_nothing_is_left_fails_and_says_where_to_look(read):
    status = read("sessions")
    assert (status.state, status.skipped) == ("failed", 4)
    assert_plain(status.error, "no usable train documents", "problems")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("two", ("'two'", "labelled 2", "must be 1 or -1")),
        ("none", ("'none'", "no tags['finetuner_label']", "labelled 1 or -1")),
        ("list", ("of type list", "an integer or a string")),
        ("alone", ("no matches", "matches labelled 1 or -1")),
    ],
)
def test_a_bad_session_is_left_out_with_the_reason(runs, name, words):
    reasons = {problem.id: problem.reason for problem in runs["sessions"].problems}
    assert_plain(reasons[name], *words)
    assert "None" not in reasons[name]


@pytest.mark.parametrize(("name", "state"), [("bad", "succeeded"), ("mixture", "failed")])
def test_documents_for_a_finished_run_are_refused_with_its_state(service, runs, name, state):
    message = refused(service, "grpc", "/fit", [labelled_image("late", 0)], run=name)
    assert_plain(message, f"Run '{name}' is {state} and takes no more documents", "another run")


def test_a_changed_option_is_refused_with_the_one_the_run_has(service):
    send(service, "http", "/fit", [labelled_image("a", 0)], run="kept", epochs=3, total=9)
    message = refused(service, "websocket", "/fit", [labelled_image("b", 0)], run="kept", epochs=4)
    assert_plain(message, "'epochs'", "'kept' is 3", "not 4", "leave it out")
    assert_plain(refused(service, "grpc", "/fit", run="kept", total=8), "'total'", "is 9 already, not 8")
    send(service, "http", "/cancel", [], run="kept")
    message = refused(service, "grpc", "/fit", [labelled_image("c", 0)], run="kept")
    assert_plain(message, "Run 'kept' is cancelled and takes no more documents")


# embedding ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", DIFFERENT)
def test_a_document_that_cannot_be_embedded_says_why_and_harms_no_neighbour(service, protocol):
    bad = [Document(id=name, **fields) for name, (fields, _) in BAD_IMAGES.items()]
    good = [Document(id=f"good{number}", uri=data_uri(number)) for number in range(3)]
    docs = {doc.id: doc for doc in send(service, protocol, "/embed", [*bad, *good], returns=Document)}
    for name, (_, words) in BAD_IMAGES.items():
        assert docs[name].embedding is None
        assert_plain(docs[name].tags["finetuner_error"], *words)
    for doc in good:
        assert docs[doc.id].embedding is not None
        assert "finetuner_error" not in docs[doc.id].tags
    assert service.http("/status").status_code == 200
