"""`/v1/embeddings`: OpenAI's request with images, and OpenAI's answer."""

import base64
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import requests

from conftest import coloured, encoded
from doors import Opened, opened
from sentences import assert_plain
from serving import ROOT

URIS = [f"data:image/png;base64,{base64.b64encode(encoded(coloured(label))).decode()}" for label in range(3)]


@pytest.fixture(scope="module")
def door(tmp_path_factory) -> Iterator[Opened]:
    with opened(tmp_path_factory.mktemp("embeddings"), token="secret") as running:
        yield running


def ask(door: Opened, token: str = "secret", **body: object) -> requests.Response:
    headers = {"Authorization": f"Bearer {token}"}
    return requests.post(f"{door.address}/v1/embeddings", json=body, headers=headers, timeout=60)


def embedded(door: Opened) -> list[list[float]]:
    answer = door.post("/embed", [{"uri": uri} for uri in URIS], headers={"Authorization": "Bearer secret"})
    return [doc["embedding"] for doc in answer.json()["data"]]


def test_the_answer_has_openai_s_form_and_the_space(door):
    answer = ask(door, model="promoted", input=URIS, user="someone").json()
    assert answer.keys() == {"object", "data", "model", "usage", "finetuner_space"}
    assert (answer["object"], answer["model"], len(answer["finetuner_space"])) == ("list", "base", 12)
    assert answer["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    assert [(each["object"], each["index"]) for each in answer["data"]] == [
        ("embedding", number) for number in range(3)
    ]
    np.testing.assert_allclose([each["embedding"] for each in answer["data"]], embedded(door), atol=1e-5)


@pytest.mark.parametrize(
    "given", [URIS[0], [URIS[0]], [{"image": URIS[0]}], {"image": URIS[0]}], ids=["text", "list", "objects", "object"]
)
def test_an_image_is_a_uri_or_an_object_with_one(door, given):
    (one,) = ask(door, model="base", input=given).json()["data"]
    np.testing.assert_allclose(one["embedding"], embedded(door)[0], atol=1e-5)


def test_base64_is_the_bytes_of_float32(door):
    (one,) = ask(door, model="base", input=URIS[0], encoding_format="base64").json()["data"]
    vector = np.frombuffer(base64.b64decode(one["embedding"]), "<f4")
    np.testing.assert_allclose(vector, embedded(door)[0], atol=1e-5)


@pytest.mark.parametrize("model", ["text-embedding-3-small", "org/model", "", "x" * 70])
def test_another_model_is_a_404(door, model):
    answer = ask(door, model=model, input=URIS)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (404, "model", "model_not_found")
    assert_plain(error["message"], "There is no model")


def test_another_space_is_a_404_that_names_its_parameter(door):
    answer = ask(door, model="base", input=URIS, space="nobody")
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (404, "space", "model_not_found")
    assert_plain(error["message"], "space='nobody': There is no model 'nobody'")


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"input": [URIS[0], URIS[1], URIS[2], "/etc/hostname"]}, "input[3]", "outside the allowed roots"),
        ({"input": [URIS[0], {"image": "data:image/png;base64,#"}]}, "input[1]", "not valid base64"),
        ({"input": [URIS[0], 3]}, "input[1]", "must be the uri of an image"),
        ({"input": [[1, 2], [3]]}, "input[0]", "embeds no text"),
        ({"input": [{"text": "a"}]}, "input[0]", "the field 'text'"),
        ({"input": []}, "input", "at least one image"),
        ({"input": None}, "input", "needs the field 'input'"),
        ({"input": URIS, "model": None}, "model", "needs the field 'model'"),
        ({"input": URIS, "model": 3}, "model", "must be a text"),
        ({"input": URIS, "encoding_format": "hex"}, "encoding_format", "float, base64"),
        ({"input": URIS, "nonsense": 1}, "nonsense", "no field 'nonsense'"),
    ],
)
def test_a_mistake_is_a_400_that_names_its_parameter(door, body, param, words):
    answer = ask(door, **{"model": "base", **body})
    assert (answer.status_code, list(answer.json())) == (400, ["error"]), answer.text
    error = answer.json()["error"]
    assert (error.keys(), error["type"]) == ({"message", "type", "param", "code"}, "invalid_request_error")
    assert error["param"] == param
    assert_plain(error["message"], words)


@pytest.mark.parametrize("body", ["[]", "{", "3", '"text"'])
def test_a_body_of_the_wrong_form_is_refused_in_the_same_form(door, body):
    headers = {"Authorization": "Bearer secret", "Content-Type": "application/json"}
    answer = requests.post(f"{door.address}/v1/embeddings", body, headers=headers, timeout=60)
    assert answer.status_code in (400, 422)
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_the_token_is_the_api_key(door):
    answer = ask(door, token="wrong", model="base", input=URIS)
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")


CLIENT = """
import importlib.util, json, sys
import openai
assert not [name for name in ("jina", "docarray", "executor") if importlib.util.find_spec(name)]
url, uris = sys.argv[1], json.loads(sys.stdin.read())
client = openai.OpenAI(base_url=url + "/v1", api_key="secret", max_retries=0)
said = {}
found = client.embeddings.create(model="promoted", input=uris)
said["default"] = [each.embedding for each in found.data]
said["usage"], said["model"], said["space"] = found.usage.total_tokens, found.model, found.finetuner_space
said["float"] = [e.embedding for e in client.embeddings.create(model="base", input=uris, encoding_format="float").data]
for name, key, call in [
    ("unknown", "secret", dict(model="text-embedding-3-small", input=uris)),
    ("bad", "secret", dict(model="base", input=[uris[0], "/etc/hostname"])),
    ("key", "wrong", dict(model="base", input=uris)),
]:
    try:
        openai.OpenAI(base_url=url + "/v1", api_key=key, max_retries=0).embeddings.create(**call)
    except openai.APIStatusError as error:
        said[name] = [type(error).__name__, error.param]
print(json.dumps(said))
"""


@pytest.mark.extra
@pytest.mark.process
def test_the_official_client_works_unchanged(door):
    python = ROOT / ".venv-extra" / "bin" / "python"
    command: list[str | Path] = [python, "-I", "-c", CLIENT, door.address]
    done = subprocess.run(command, input=json.dumps(URIS), capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    for form in ("default", "float"):
        np.testing.assert_allclose(said[form], embedded(door), atol=1e-5)
    assert (said["usage"], said["model"], len(said["space"])) == (3, "base", 12)
    assert said["unknown"] == ["NotFoundError", "model"]
    assert said["bad"] == ["BadRequestError", "input[1]"]
    assert said["key"] == ["AuthenticationError", None]


def test_a_service_that_does_not_embed_says_so_of_this_path(tmp_path):
    with opened(tmp_path, role="train", publish_to=str(tmp_path / "shop")) as writer:
        answer = ask(writer, model="promoted", input=URIS)
    assert answer.status_code == 409
    assert "a service with the role 'all', for /v1/embeddings. It has: /fit" in answer.json()["error"]["message"]
