"""Every private part of DocArray 0.41 that is used, in one place: encoding and decoding documents in half the time.

It lies on the floor, beside `documents`, and knows nothing of Jina: the trainer reads documents and imports no Jina.
A test looks for each part by name, so that an upgrade of DocArray that has moved one says which.
"""

from typing import Any

from docarray import BaseDoc
from docarray.base_doc.mixins.io import _type_to_protobuf
from docarray.typing import ID


def node_of(value: Any) -> Any:
    """The protobuf node of any value, as DocArray makes it; it tries a dozen types."""
    return _type_to_protobuf(value)


ID_TYPE: str = ID._proto_type_name  # how the protobuf of an id calls its type


def value_of(document: type[BaseDoc], node: Any, field: str) -> Any:
    """The value of a protobuf node as a field of a class of documents."""
    return document._get_content_from_node_proto(node, field)
