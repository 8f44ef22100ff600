"""The private parts of Jina and DocArray that are patched or read are where they were."""

import inspect

import pytest
from docarray import BaseDoc, DocList
from docarray.typing import ID

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
