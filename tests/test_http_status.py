"""The HTTP status of a refused call, by each server of HTTP: the executor, our gateway, Jina's own."""

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

import fronts
from conftest import coloured, encoded
from serving import DOOR, ROOT, Service

pytestmark = pytest.mark.flow

BY_CLASS = """
import json, sys
from jina import Flow
from executor.gateway import FinetunerGateway

flow = Flow(protocol="http", port=int(sys.argv[1]), host="127.0.0.1", quiet_error=True)
flow = flow.config_gateway(uses=FinetunerGateway)
with flow.add(uses=sys.argv[2], workspace=sys.argv[3], uses_with=json.loads(sys.argv[4])) as served:
    served.block()
"""
WITH_STATUSES = ("executor", "gateway by class")  # one that YAML names: test_door_flow.py


def command(front: str, ports: dict[str, int], folder: Path) -> list[str]:
    """What serves HTTP in the way called `front`."""
    if front == "executor":
        return [*fronts.executor(folder, ports), "--quiet-error"]
    script = folder / "flow.py"
    script.write_text(BY_CLASS)
    served = (ROOT / "config.yml", folder / "workspace", json.dumps(fronts.SMALL))
    return [str(script), str(ports["http"]), *map(str, served)]


@pytest.fixture(scope="module", params=WITH_STATUSES)
def front(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def address(front, tmp_path_factory) -> Iterator[str]:
    folder, ports = tmp_path_factory.mktemp("front"), fronts.ports_for("http")
    with fronts.serving(folder, ports, command(front, ports, folder)) as served:
        yield served.url


@pytest.fixture(scope="module")
def stock(service: Service) -> str:
    """Jina's own gateway: that of the shared Flow."""
    return f"http://localhost:{service.ports['http']}"


def post(address: str, endpoint: str, data=(), **parameters) -> requests.Response:
    return requests.post(f"{address}{endpoint}", json={"data": list(data), "parameters": parameters}, timeout=60)


def image(label: int = 0, **more) -> dict:
    payload = base64.b64encode(encoded(coloured(label))).decode()
    return {"uri": f"data:image/png;base64,{payload}", "tags": {"finetuner_label": label}} | more


def test_an_unknown_parameter_is_a_400_with_the_sentence(address):
    answer = post(address, "/fit", epoch=3)
    assert answer.status_code == 400
    assert answer.json()["detail"].startswith("/fit has no parameter 'epoch'; it accepts: kind, base,")


@pytest.mark.parametrize("parameters", [{"epochs": "three"}, {}], ids=["ill-typed", "nothing to start"])
def test_what_else_a_caller_may_get_wrong_is_a_400(address, parameters):
    answer = post(address, "/fit", **parameters)
    assert answer.status_code == 400
    assert answer.json().keys() == {"detail"}


def test_a_page_of_another_site_is_a_403_whatever_it_calls(address):
    said = {"Origin": "https://evil.example", "Content-Type": "text/plain"}  # which no browser asks about before
    cancelled = requests.post(f"{address}/cancel", '{"parameters": {"run": "mine"}}', headers=said, timeout=60)
    greeted = requests.get(f"{address}/", headers=said, timeout=60)  # a route of Jina's
    for answer in (cancelled, greeted):
        assert (answer.status_code, "cors_origins" in answer.json()["detail"]) == (403, True)
    assert requests.get(f"{address}/", headers={"Origin": address}, timeout=60).status_code == 200


@pytest.mark.parametrize("endpoint", ["/status", "/cancel", "/promote", "/evaluate"])
def test_an_unknown_run_is_a_404(address, endpoint):
    answer = post(address, endpoint, run="nowhere")
    assert answer.status_code == 404
    assert "'nowhere'" in answer.json()["detail"]


def test_an_unknown_model_is_a_404(address):
    answer = post(address, "/embed", [image()], model="nowhere")
    assert (answer.status_code, answer.json()["detail"]) == (404, "There is no model 'nowhere'; there are: base.")


def test_documents_for_a_run_past_receiving_are_a_409(address):
    assert post(address, "/fit", [image(0), image(1)], run="over").status_code == 200
    assert post(address, "/cancel", run="over").json()["data"][0]["state"] == "cancelled"
    answer = post(address, "/fit", [image(2)], run="over")
    assert answer.status_code == 409
    assert answer.json()["detail"] == (
        "Run 'over' is cancelled and takes no more documents; send them to another run (parameter 'run')."
    )


def test_a_good_call_is_a_200_with_the_documents(address):
    answer = post(address, "/embed", [image(0, id="a"), image(1, id="b")])
    assert answer.status_code == 200
    assert [doc["id"] for doc in answer.json()["data"]] == ["a", "b"]
    assert all(doc["tags"]["finetuner_model"] == "base" and doc["embedding"] for doc in answer.json()["data"])


WHOLE = {"since": 1_700_000_000_000, "ean": -(2**53), "list": [2**40, {"deep": 2**31}], "small": 7, "half": 0.5}


def test_whole_numbers_of_up_to_53_bits_come_back_as_they_were(address):
    answer = post(address, "/embed", [image(0) | {"tags": WHOLE}, image(1)])
    first, second = answer.json()["data"]
    assert {name: first["tags"][name] for name in WHOLE} == WHOLE
    assert type(first["tags"]["since"]) is int
    assert first["embedding"]
    assert second["embedding"]
    (status,) = post(address, "/fit", [image(0) | {"tags": WHOLE | {"finetuner_label": 2**53}}], run="ean").json()[
        "data"
    ]
    assert (status["train_documents"], status["skipped"]) == (1, 0)
    post(address, "/cancel", run="ean")


def test_larger_ones_are_refused_in_a_sentence(address):
    answer = post(address, "/fit", [image(0) | {"tags": {"n": 2**70}}, image(1)], run="beyond")
    if answer.status_code == 200:  # the executor itself takes the others
        (status,) = answer.json()["data"]
        assert (status["train_documents"], status["skipped"]) == (1, 1)
        assert "beyond 2**53" in status["problems"][0]["reason"]
        post(address, "/cancel", run="beyond")
    else:
        assert answer.status_code == 400
        assert "An integer in tags is larger than 9.007e+15; send it as text." in answer.text


def test_null_is_no_tags_and_no_matches(address):
    assert_null_is_nothing(address)


def test_null_is_no_tags_and_no_matches_to_jinas_own_gateway_either(stock):
    assert_null_is_nothing(stock)


def assert_null_is_nothing(address: str) -> None:
    answer = post(address, "/embed", [image(0) | {"tags": None, "matches": None}])
    assert answer.status_code == 200, answer.text
    assert answer.json()["data"][0]["embedding"]
    assert answer.json()["data"][0]["matches"] == []


def test_a_large_body_arrives_whole(address):
    docs = [image(0, id=str(number), text="x" * 20_000) for number in range(20)]
    answer = post(address, "/embed", docs)
    assert [doc["id"] for doc in answer.json()["data"]] == [doc["id"] for doc in docs]


@pytest.mark.parametrize("body", ["{}", "", '{"parameters": {}}', '{"data": null}', None])
def test_a_body_may_leave_out_data(address, body):
    headers = {} if body is None else {"Content-Type": "application/json"}
    answer = requests.post(f"{address}/status", data=body, headers=headers, timeout=60)
    assert answer.status_code == 200, answer.text
    assert isinstance(answer.json()["data"], list)


def test_parameters_are_read_from_a_body_without_data(address):
    answer = requests.post(f"{address}/status", json={"parameters": {"run": "nowhere"}}, timeout=60)
    assert answer.status_code == 404


@pytest.mark.parametrize("body", ["{", "[]", "3", '{"data": 3}', '{"parameters": 3}'])
def test_a_malformed_body_is_a_422(address, body):
    headers = {"Content-Type": "application/json"}
    assert requests.post(f"{address}/status", data=body, headers=headers, timeout=60).status_code == 422


def test_watch_of_an_unknown_run_is_a_404_and_at_jinas_own_server_of_an_executor_a_stream_that_says_so(address, front):
    answer = requests.get(f"{address}/watch", params={"run": "nowhere"}, timeout=60)
    assert "There is no run 'nowhere'" in answer.text
    if front == "executor":
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.text.rstrip().endswith("event: end")
    else:
        assert answer.status_code == 404


@pytest.mark.parametrize(
    ("endpoint", "parameters", "detail"),
    [
        ("/cancel", {}, r"/cancel needs the parameter 'run'; it accepts: run\."),
        ("/embed", {"model": "nowhere"}, r"There is no model 'nowhere'; there are: .*base.*\."),
        ("/status", {"runs": 1}, r"/status has no parameter 'runs'; it accepts: run\."),
    ],
)
def test_jinas_own_gateway_answers_500_with_exactly_the_sentence(stock, service, endpoint, parameters, detail):
    answer = post(stock, endpoint, **parameters)
    exactly = service.http(endpoint, protocol=DOOR, **parameters).json()  # of the models there may be others' too
    assert (answer.status_code, answer.json()) == (500, exactly)
    assert re.fullmatch(detail, exactly["detail"])


def test_what_jinas_own_gateway_cannot_encode_is_refused_without_a_traceback(stock):
    deep = '{"data": [{"uri": "x", "tags": {"a": ' + '{"a": ' * 400 + "1" + "}" * 400 + "}}]}"
    not_a_number = '{"data": [], "parameters": {"learning_rate": NaN}}'
    headers = {"Content-Type": "application/json"}
    for body in (deep, not_a_number):
        answer = requests.post(f"{stock}/fit", body, headers=headers, timeout=60)
        assert (answer.status_code, answer.text) == (500, "Internal Server Error")
        assert post(stock, "/status").status_code == 200
