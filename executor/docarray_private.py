"""Every private part of DocArray 0.41 that we use or change, in one place.

Some halve the time to encode and decode documents. Others are changed for every document of a process that imports
this package, because DocArray's protobuf has 32 bits for an integer: larger ones, up to 2**53, travel in its field for
floats and come back as integers. NumPy's scalars travel as Python's.

This module is below `documents` and imports no Jina, because the trainer reads documents without Jina.
A test looks for each part by name. If an upgrade of DocArray moves one, the test says which.
"""

from typing import Any

import numpy as np
from docarray import BaseDoc
from docarray.base_doc.mixins import io
from docarray.proto import NodeProto
from docarray.typing import ID

from .errors import BadDocument

LARGEST_INTEGER = 2**53  # up to which every integer is a float, too
TOO_LARGE = f"an integer in tags is beyond 2**53 ({LARGEST_INTEGER}), which not every client can send; write it as text"
_BEYOND = "integer beyond 2**53"  # the type of a node that is refused where it is read: a client's call cannot be


def _is_small(value: float) -> bool:
    """Whether DocArray's own field for integers can hold it."""
    return -(2**31) <= value < 2**31


def node_of(value: Any) -> Any:
    """Return the protobuf node of any value. DocArray makes it, and tries a dozen types."""
    return io._type_to_protobuf(value)


ID_TYPE: str = ID._proto_type_name  # the name of the type in the protobuf of an id


def value_of(document: type[BaseDoc], node: Any, field: str) -> Any:
    """Return the value of a protobuf node, read as `field` of the class `document`."""
    return document._get_content_from_node_proto(node, field)


def fill_integer(node: Any, value: int) -> None:
    """Set a protobuf node to an integer of any size."""
    if _is_small(value):
        node.integer = value
    elif abs(value) <= LARGEST_INTEGER:
        node.float = value
    else:
        node.text, node.type = "", _BEYOND


def _whole(value: Any) -> Any:
    """Return a float that is an integer of more than 32 bits as that integer."""
    large = type(value) is float and value.is_integer() and not _is_small(value) and abs(value) <= LARGEST_INTEGER
    return int(value) if large else value


def _teach_docarray() -> None:
    encode = io._type_to_protobuf
    decode = io.IOMixin._get_content_from_node_proto.__func__
    if encode.__name__ == "with_large_integers":  # Jina loads the package under a second name
        return

    def with_large_integers(value: Any) -> Any:
        if isinstance(value, np.generic):
            value = value.item()
        if type(value) is not int or _is_small(value):
            return encode(value)
        node = NodeProto()
        fill_integer(node, value)
        return node

    def decode_any(cls: Any, value: Any, field_name: str | None = None, field_type: Any = None) -> Any:
        if value.type == _BEYOND:
            raise BadDocument(f"A document cannot be read: {TOO_LARGE}.")
        return _whole(decode(cls, value, field_name, field_type))

    io._type_to_protobuf = with_large_integers
    io.IOMixin._get_content_from_node_proto = classmethod(decode_any)


_teach_docarray()
