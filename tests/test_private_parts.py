"""The private parts of Jina and DocArray that are patched or read are where they were."""

import asyncio
import inspect
from typing import Any

import pytest
from docarray import BaseDoc, DocList
from docarray.typing import ID
from jina.proto.jina_pb2 import EndpointsProto
from jina.serve.runtimes.worker.request_handling import WorkerRequestHandler

from executor.wire import jina_private
from executor.wire.jina_private import PRIVATE, Part


@pytest.mark.parametrize("part", PRIVATE, ids=lambda part: f"{part.owner.__name__}.{part.name}")
def test_a_private_part_of_jina_is_where_it_was(part: Part) -> None:
    where = f"{part.owner.__name__}.{part.name}"
    if part.in_source:
        owners = inspect.getmro(part.owner) if inspect.isclass(part.owner) else [part.owner]
        assert any(f"self.{part.name}" in inspect.getsource(each) for each in owners if each is not object), where
    else:
        assert hasattr(part.owner, part.name), f"Jina has no {where} any more. {part.why}"


def test_the_private_parts_of_docarray_are_where_they_were() -> None:
    from executor import docarray_private

    assert ID._proto_type_name == docarray_private.ID_TYPE == "id"
    assert docarray_private.node_of("text").text == "text"
    assert callable(BaseDoc._get_content_from_node_proto)
    assert docarray_private.node_of(DocList[BaseDoc]()).HasField("doc_array")


def test_the_schemas_of_the_endpoints_are_made_once_for_all_who_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    async def discover(handler: WorkerRequestHandler, empty: Any, context: Any) -> EndpointsProto:
        made.append(handler)
        return EndpointsProto(endpoints=["/embed", "/words"])

    monkeypatch.setattr(jina_private, "_DISCOVER", discover)
    monkeypatch.setattr(WorkerRequestHandler, "endpoint_discovery", discover)
    jina_private.hide_endpoints({"/words"})
    handler = WorkerRequestHandler.__new__(WorkerRequestHandler)
    for _ in range(3):  # a gateway asks for each of its protocols
        assert list(asyncio.run(handler.endpoint_discovery(None, None)).endpoints) == ["/embed"]
    assert made == [handler]
