"""The description of the door names every field, and what it allows is answered as it says."""

from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from doors import Opened, opened
from executor.documents import Document, Evaluation, Event, RunStatus
from executor.endpoints.table import ENDPOINTS
from executor.web.app import PATHS

EXAMPLES = 4
# `/fit` starts a trainer for each run: tests/test_fuzz.py tries it behind a gateway. `/watch` streams.
LEFT_OUT = ("/fit", "/watch")
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def door(tmp_path_factory) -> Iterator[Opened]:
    with opened(tmp_path_factory.mktemp("openapi")) as running:
        running.post("/embed", [{"blob": [[[0, 0, 0]]]}])  # the model is loaded
        yield running


@pytest.fixture(scope="module")
def described(door) -> dict[str, Any]:
    found: dict[str, Any] = door.get("/openapi.json").json()
    return found


def test_every_path_of_the_door_is_described(described):
    assert set(described["paths"]) == PATHS


@pytest.mark.parametrize("path", ENDPOINTS)
def test_every_parameter_of_an_endpoint_is_described_in_the_body_and_in_the_query(described, path):
    operation = described["paths"][path]["post"]
    reference = operation["requestBody"]["content"]["application/json"]["schema"]["properties"]["parameters"]["$ref"]
    schema = described["components"]["schemas"][reference.rpartition("/")[2]]
    names = set(ENDPOINTS[path].parameters.model_fields)
    assert set(schema["properties"]) == names
    assert {each["name"] for each in operation["parameters"]} == names


@pytest.mark.parametrize("model", [Document, RunStatus, Evaluation, Event])
def test_every_field_of_a_document_is_described(described, model):
    assert set(described["components"]["schemas"][model.__name__]["properties"]) == set(model.model_fields)


def test_what_the_description_allows_is_answered_as_it_says(door):
    schema = schemathesis.openapi.from_url(f"{door.address}/openapi.json")
    for path in LEFT_OUT:
        schema = schema.exclude(path=path)
    operations = [found.ok() for found in schema.get_all_operations()]
    assert {each.path for each in operations} == PATHS - {*LEFT_OUT, "/openapi.json"}

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(data=st.data())
    def answered(data: st.DataObject, operation: Any) -> None:
        case = data.draw(operation.as_strategy())
        case.call_and_validate(timeout=60, checks=CHECKS)

    for operation in operations:
        answered(operation=operation)
    assert requests.get(f"{door.address}/readyz", timeout=60).status_code == 200
