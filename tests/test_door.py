"""The executor's own HTTP door: what it takes, what it answers, and with which status."""

import base64
import json
import re
from collections.abc import Iterator

import numpy as np
import pytest
import requests

from conftest import coloured, encoded
from doors import Opened, opened
from executor.endpoints.table import ENDPOINTS
from executor.parameters import FitParameters
from sentences import assert_plain
from serving import ROOT

PNG = encoded(coloured(0))
URI = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
DIM = 128
FORM = {"Content-Type": "multipart/form-data; boundary=x"}
WHOLE_FORM = b"".join(
    b'--x\r\nContent-Disposition: form-data; name="label:red"; filename="%d.png"\r\n\r\n' % number + PNG + b"\r\n"
    for number in range(2)
)
WHOLE_FORM += b"--x--\r\n"
METRICS = {
    "finetuner_runs",
    "finetuner_queue_length",
    "finetuner_documents_total",
    "finetuner_embed_seconds",
    "finetuner_embed_batch_images",
    "finetuner_images_waiting",
    "finetuner_trainer_images_per_second",
    "finetuner_promotions_total",
    "finetuner_served_version_info",
    "finetuner_workspace_bytes",
}


@pytest.fixture(scope="module")
def door(tmp_path_factory) -> Iterator[Opened]:
    with opened(tmp_path_factory.mktemp("door"), max_request_bytes=1 << 20) as running:
        yield running


def detail(answer: requests.Response, status: int) -> str:
    assert (answer.status_code, list(answer.json())) == (status, ["detail"]), answer.text
    return str(answer.json()["detail"])


# embedding ----------------------------------------------------------------------------------------------------------


def test_documents_come_back_with_all_their_fields_and_their_embedding(door):
    (doc,) = door.post("/embed", [{"id": "a", "uri": URI, "tags": {"price": 3}, "text": "t"}]).json()["data"]
    assert doc.keys() == {"id", "uri", "blob", "buffer", "text", "tags", "embedding", "matches"}
    assert (doc["id"], doc["uri"], doc["text"], doc["matches"]) == ("a", URI, "t", [])
    assert doc["tags"].keys() == {"price", "finetuner_model", "finetuner_space"}
    assert np.linalg.norm(doc["embedding"]) == pytest.approx(1, abs=1e-5)


def test_one_call_is_one_call_however_many_documents_it_has(door):
    docs = [{"id": str(number), "blob": coloured(number, size=4).tolist()} for number in range(303)]
    answer = door.post("/embed", docs).json()["data"]
    assert [doc["id"] for doc in answer] == [str(number) for number in range(303)]
    assert all(len(doc["embedding"]) == DIM for doc in answer)


def test_a_picture_has_the_same_embedding_in_whatever_form_it_comes(door):
    forms = [
        door.post("/embed", [{"uri": URI}]),
        door.post("/embed", [{"blob": coloured(0).tolist()}]),
        door.post("/embed", [{"buffer": base64.b64encode(PNG).decode()}]),
        door.send("/embed", PNG, "image/png"),
        requests.post(f"{door.address}/embed", files={"image": PNG}, timeout=60),
        door.send("/embed", json.dumps({"uri": URI}), "application/x-ndjson"),
    ]
    first, *others = [answer.json()["data"][0]["embedding"] for answer in forms]
    for other in others:
        np.testing.assert_allclose(other, first, atol=1e-6)


def test_a_file_is_not_sent_back_and_its_name_is_the_id(door):
    files = [("image", (name, PNG)) for name in ("one.png", "two.png")]
    docs = requests.post(f"{door.address}/embed", files=files, timeout=60).json()["data"]
    assert [(doc["id"], doc["buffer"]) for doc in docs] == [("one.png", None), ("two.png", None)]


@pytest.mark.parametrize("path", ["/embed", "/suggest"])
def test_a_document_without_an_id_gets_one(door, path):
    docs = door.post(path, [{"uri": URI, "matches": [{"uri": URI}]}, {"uri": URI, "id": "own"}]).json()["data"]
    ids = [part["id"] for doc in docs for part in (doc, *doc["matches"])]
    assert (all(ids), len(set(ids)), "own" in ids) == (True, 3, True)


def test_parameters_may_stand_in_the_query(door):
    assert "nowhere" in detail(door.send("/embed", PNG, "image/png", model="nowhere"), 404)
    match = {"uri": URI, "matches": [{"uri": URI}]}
    answer = door.send("/embed", json.dumps(match), "application/x-ndjson", matches="true")
    assert len(answer.json()["data"][0]["matches"][0]["embedding"]) == DIM


def test_a_query_of_thousands_of_names_costs_one_look_at_the_schema(door, monkeypatch):
    made = []
    schema = FitParameters.model_json_schema
    monkeypatch.setattr(FitParameters, "model_json_schema", lambda: made.append(None) or schema())
    names = {f"n{number}": "1" for number in range(2_000)}
    assert "has no parameter" in detail(door.send("/fit", b"", "application/x-ndjson", **names), 400)
    assert len(made) <= 1


def test_a_bad_document_says_why_and_harms_no_neighbour(door):
    bad, good = door.post("/embed", [{"uri": "/etc/hostname"}, {"uri": URI}]).json()["data"]
    assert bad["embedding"] is None
    assert "allowed_roots" in bad["tags"]["finetuner_error"]
    assert len(good["embedding"]) == DIM


# statuses -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ENDPOINTS)
def test_an_unknown_parameter_is_a_400_with_the_accepted_ones(door, path):
    assert_plain(detail(door.post(path, nonsense=1), 400), f"{path} has no parameter 'nonsense'", "it accepts")


@pytest.mark.parametrize(
    ("path", "parameters", "status", "words"),
    [
        ("/status", {"run": "nowhere"}, 404, "There is no run 'nowhere'"),
        ("/embed", {"model": "nowhere"}, 404, "There is no model 'nowhere'"),
        ("/cancel", {}, 400, "/cancel needs the parameter 'run'"),
        ("/fit", {"run": "empty"}, 400, "Run 'empty' has no documents"),
        ("/fit", {"epochs": 2.5}, 400, "must be a whole number"),
        ("/delete", {"run": "nowhere"}, 404, "There is no run 'nowhere'"),
    ],
)
def test_a_caller_s_mistake_is_a_4xx_with_one_sentence(door, path, parameters, status, words):
    assert_plain(detail(door.post(path, **parameters), status), words)


def test_an_integer_beyond_64_bits_is_not_taken_for_another(door):
    answer = door.post("/embed", [{"uri": URI, "tags": {"a": [2**70]}}])
    assert_plain(detail(answer, 400), "An integer in tags is larger than", "send it as text")


def test_nan_which_is_no_json_is_taken_where_clients_write_it_and_its_document_is_refused(door):
    bad, good = door.send(
        "/embed",
        json.dumps({"data": [{"blob": [[float("nan")]]}, {"uri": URI, "tags": {"n": 1e30}}]}),
        "application/json",
    ).json()["data"]
    assert "nan" in bad["tags"]["finetuner_error"]
    assert (len(good["embedding"]), good["tags"]["n"]) == (DIM, 1e30)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ('{"data": [', "not JSON"),
        ("[]", "must be an object"),
        ('{"data": 3}', "data must be a list of documents, not 3"),
        ('{"data": ["x"]}', "data[0] must be an object"),
        ('{"data": [{}, {"uri": 3}]}', "data[1].uri must be a text, not 3"),
        ('{"data": [{"id": 3}]}', "data[0].id must be a text"),
        ('{"data": [{"tags": 3}]}', "data[0].tags must be an object"),
        ('{"data": [{"blob": "abc"}]}', "data[0].blob must be an array of numbers"),
        ('{"data": [{"blob": [[1, 2], [3]]}]}', "nested lists of equal length"),
        ('{"data": [{"blob": [[1, null]]}]}', "data[0].blob must be an array of numbers"),
        ('{"data": [{"matches": "x"}]}', "data[0].matches must be a list"),
        ('{"data": [{"matches": [{"text": 3}]}]}', "data[0].matches[0].text must be a text"),
        ('{"data": [{"uri": "\\ud800"}]}', "not JSON"),
        ('{"data": [], "parameters": 3}', "parameters must be an object"),
        ('{"data": [{"tags": ' + '{"a":' * 3000 + "1" + "}" * 3000 + "}]}", "not JSON"),
    ],
)
def test_a_body_of_the_wrong_form_is_a_422_that_says_where(door, body, words):
    assert_plain(detail(door.send("/embed", body, "application/json"), 422), words)


@pytest.mark.parametrize("body", ["", "{}", '{"data": null}', '{"parameters": {}}'])
def test_a_body_may_leave_out_data(door, body):
    assert door.send("/status", body, "application/json").status_code == 200


def test_a_post_without_a_body_needs_no_content_type(door):
    assert requests.post(f"{door.address}/status", timeout=60).json() == {"data": []}
    form = {"Content-Type": "application/x-www-form-urlencoded"}  # as `curl -d ''` sends it
    assert requests.post(f"{door.address}/status", b"", headers=form, timeout=60).json() == {"data": []}


def test_json_that_curl_calls_a_form_is_read_as_json_but_a_form_is_not_nor_a_page_of_another_site(door):
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    said = requests.post(f"{door.address}/status", b' {"data": []}', headers=form, timeout=60)
    assert (said.status_code, said.json()) == (200, {"data": []})
    told = requests.post(f"{door.address}/status", {'{"data": []}': ""}, timeout=60)  # encoded as browsers encode it
    assert_plain(detail(told, 415), "x-www-form-urlencoded is not taken here")
    foreign = form | {"Origin": "https://evil.example"}
    assert requests.post(f"{door.address}/status", b'{"data": []}', headers=foreign, timeout=60).status_code == 403


def test_labelled_files_of_a_form_are_evaluated_and_are_words_of_feedback(door):
    names = ["label:red", "label:red", "label:blue", "label:blue"]
    files = [(name, (f"{number}.png", encoded(coloured(number // 2, number)))) for number, name in enumerate(names)]
    (evaluated,) = requests.post(f"{door.address}/evaluate", files=files, timeout=60).json()["data"]
    assert (evaluated["model"], evaluated["queries"]) == ("base", 4)
    (told,) = requests.post(f"{door.address}/feedback", files=files, timeout=60).json()["data"]
    assert (told["stored"], told["total"]) == (4, 4)


@pytest.mark.parametrize("unread", ["query", "hard negative", None])
def test_a_session_with_a_picture_that_cannot_be_read_is_skipped_whole(door, unread):
    sessions = []
    for number in range(2):
        query, near, hard = (encoded(coloured(label, seed)) for label, seed in ((0, 1), (1, 2), (0, 1)))
        shown = {"query": query, "good": near, "hard negative": hard, "far": encoded(coloured(2, 3))}
        uris = {name: f"data:image/png;base64,{base64.b64encode(image).decode()}" for name, image in shown.items()}
        if number and unread:
            uris[unread] = "data:,x"
        labels = {"good": 1, "hard negative": -1, "far": -1}
        matches = [{"uri": uris[name], "tags": {"finetuner_label": label}} for name, label in labels.items()]
        sessions.append({"uri": uris["query"], "matches": matches})
    (evaluated,) = door.post("/evaluate", sessions).json()["data"]
    assert (evaluated["queries"], evaluated["skipped"]) == ((1, 1) if unread else (2, 0))
    assert evaluated["metrics"]["recall_at_1"] == 0


@pytest.mark.parametrize(("path", "kind"), [("/embed", "text/plain"), ("/status", "image/png")])
def test_another_content_type_is_a_415_that_names_those_taken(door, path, kind):
    assert_plain(detail(door.send(path, b"x", kind), 415), "is not taken here; send application/json")


def test_what_is_not_there_is_a_404_and_the_wrong_method_a_405(door):
    assert_plain(detail(door.get("/nothing"), 404), "There is nothing here: /nothing")
    answer = door.get("/status")
    assert_plain(detail(answer, 405), "GET is not for this path: /status")
    assert answer.headers["allow"] == "POST"


def test_a_body_that_is_too_large_is_a_413_that_names_the_option(door):
    answer = door.send("/embed", b"x" * (1 << 20) + b"y", "image/png")
    assert_plain(detail(answer, 413), "max_request_bytes")
    chunked = door.send("/embed", (b"x" * 1000 for _ in range(3000)), "image/png")
    assert_plain(detail(chunked, 413), "max_request_bytes")


def test_pages_of_other_sites_are_refused_and_one_s_own_are_not(door):
    assert_plain(detail(door.get("/healthz", {"Origin": "https://evil.example"}), 403), "cors_origins")
    assert door.get("/healthz", {"Origin": door.address}).status_code == 200


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"files": {"x": PNG}, "data": {"data": "[{}, {}]"}}, "data has 2 documents and the form 1 files"),
        ({"files": {"x": PNG}, "data": {"other": "1"}}, "a field 'other'"),
        ({"files": {"x": PNG}, "data": {"parameters": "{"}}, "The field parameters is not JSON"),
        ({"files": {"x": PNG}, "data": {"parameters": ["{}", "{}"]}}, "the field 'parameters' 2 times; send it once"),
        ({"data": b"--x\r\nno", "headers": {"Content-Type": "multipart/form-data"}}, "Missing boundary"),
        ({"data": WHOLE_FORM[:-60], "headers": FORM}, "ends before its closing boundary"),  # within the second file
        ({"data": WHOLE_FORM.removesuffix(b"--x--\r\n"), "headers": FORM}, "ends before its closing boundary"),
        ({"data": b"", "headers": FORM}, "ends before its closing boundary"),
    ],
)
def test_a_form_that_cannot_be_read_says_why(door, body, words):
    answer = requests.post(f"{door.address}/embed", timeout=60, **body)
    assert_plain(detail(answer, answer.status_code), words)
    assert answer.status_code in (400, 422)


def test_a_form_that_is_cut_off_stores_nothing(door):
    cut = requests.post(f"{door.address}/fit", WHOLE_FORM[:-7], params={"run": "cut"}, headers=FORM, timeout=60)
    assert_plain(detail(cut, 400), "closing boundary")
    assert door.post("/status", run="cut").status_code == 404


def test_a_whole_form_is_read_however_it_ends(door):
    for form, ids in ((WHOLE_FORM[:-2], ["red/0.png", "red/1.png"]), (b"--x--", [])):  # browsers add a line break
        answer = door.send("/embed", form, FORM["Content-Type"])
        assert [doc["id"] for doc in answer.json()["data"]] == ids


@pytest.mark.parametrize("depth", [101, 300, 900])
def test_what_is_nested_too_deep_is_a_400(door, depth):
    value = "[" * depth + "]" * depth
    for body, where in (
        (f'{{"data": [{{"id": "a"}}, {{"tags": {{"x": {value}}}}}]}}', "data[1].tags"),
        (f'{{"data": [{{"matches": [{{"tags": {{"x": {value}}}}}]}}]}}', "data[0].matches[0].tags"),
        (f'{{"parameters": {{"model": {value}}}}}', "parameters"),
    ):
        answer = door.send("/embed", body, "application/json")
        assert_plain(detail(answer, 400), f"{where} must not be nested deeper than 100 levels")
    lines = f'{{"uri": "{URI}"}}\n{{"tags": {{"x": {value}}}}}\n'
    said = detail(door.send("/embed", lines, "application/x-ndjson"), 400)
    assert_plain(said, "Line 2 is no document: it.tags must not be nested deeper than 100 levels")
    tags = json.loads("[" * 99 + "]" * 99)
    assert door.post("/embed", [{"tags": {"x": tags}, "uri": URI}]).status_code == 200


# health and metrics -------------------------------------------------------------------------------------------------


def test_health_says_that_the_process_answers(door):
    assert (door.get("/healthz").status_code, door.get("/healthz").json()) == (200, {})


def test_readiness_names_what_is_served(door):
    door.post("/embed", [{"uri": URI}])
    answer = door.get("/readyz")
    space = answer.json().pop("space")
    assert (answer.status_code, len(space)) == (200, 12)
    assert answer.json() == {"ready": True, "served": "base", "space": space, "degraded": []}


def test_readiness_says_that_nothing_can_be_stored_while_the_database_is_elsewhere(door):
    database = door.service.store.workspace.database
    moved = database.with_name("elsewhere")
    database.rename(moved)
    try:
        refused = door.post("/fit", [{"uri": URI, "tags": {"finetuner_label": 1}}])
        answer = door.get("/readyz")
    finally:
        moved.rename(database)
    assert refused.status_code == 503
    assert "was removed or replaced while it was in use" in answer.json()["degraded"][0]
    assert door.get("/readyz").json()["degraded"] == []


def test_metrics_have_exactly_their_names(door):
    names = {line.split()[2] for line in door.get("/metrics").text.splitlines() if line.startswith("# TYPE")}
    assert names == METRICS


def test_the_dashboard_names_only_series_that_exist_and_all_metrics(door):
    board = json.loads((ROOT / "deploy" / "grafana.json").read_text())
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    asked += [each["query"] for each in board["templating"]["list"] if each["type"] == "query"]
    named = {name for text in asked for name in re.findall(r"finetuner_\w+", text)}
    assert named <= {name.split("{")[0] for name in door.series()}
    labels = {label for text in asked for label in re.findall(r"by \((\w+)\)", text)} - {"instance", "le"}
    assert labels == {"state", "split", "outcome"}
    bare = {re.sub("_(bucket|sum|count)$", "", name) for name in named}
    assert bare == METRICS


def test_metrics_count_what_was_embedded(door):
    before = door.series()
    door.post("/embed", [{"uri": URI}] * 5)
    after = door.series()
    assert after["finetuner_embed_seconds_count"] - before["finetuner_embed_seconds_count"] == 1
    assert after["finetuner_embed_batch_images_sum"] - before["finetuner_embed_batch_images_sum"] == 5
    assert after["finetuner_images_waiting"] == 0
    assert after["finetuner_workspace_bytes"] > 1e6


# a door with a token ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded(tmp_path_factory) -> Iterator[Opened]:
    folder = tmp_path_factory.mktemp("guarded")
    with opened(folder, token="secret", cors_origins=["https://shop.example"]) as running:
        yield running


@pytest.mark.parametrize("path", [*ENDPOINTS, "/v1/embeddings"])
def test_every_endpoint_wants_the_token(guarded, path):
    answer = guarded.post(path, headers={"Authorization": "Bearer wrong"})
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert guarded.post(path, headers={"Authorization": "Bearer secret"}).status_code != 401


@pytest.mark.parametrize("path", ["/watch", "/openapi.json", "/nothing"])
def test_the_other_routes_want_it_too(guarded, path):
    assert guarded.get(path).status_code == 401


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
def test_health_and_metrics_need_no_token(guarded, path):
    assert guarded.get(path).status_code in (200, 503)


def test_the_option_metrics_token_guards_those_too(tmp_path):
    with opened(tmp_path, token="secret", metrics_token=True) as running:
        for path in ("/healthz", "/readyz", "/metrics"):
            assert running.get(path).status_code == 401
            assert running.get(path, {"Authorization": "Bearer secret"}).status_code in (200, 503)


def test_a_named_origin_may_ask_and_call(guarded):
    origin = {"Origin": "https://shop.example"}
    asks = {**origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    allowed = requests.options(f"{guarded.address}/embed", headers=asks, timeout=60)
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == "https://shop.example"
    answer = guarded.get("/healthz", origin)
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "https://shop.example")
    assert guarded.get("/healthz", {"Origin": "https://other.example"}).status_code == 403
