"""Documents on their way to a service."""

import argparse
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from ..documents import ERROR_TAG, Document
from ..errors import BadDocument
from ..images.policy import DEFAULT_POLICY
from ..images.uris import read_uri
from .calling import Place

REMOTE = re.compile(r"(?!file:)[a-z][a-z0-9+.-]*:", re.IGNORECASE)  # a uri that is no path of this machine


def add_send(command: argparse.ArgumentParser) -> None:
    """Add the argument that says what of a picture is sent to a service."""
    command.add_argument(
        "--send",
        choices=("pictures", "uris"),
        default="pictures",
        help="to a service: the files themselves (the default), or their paths, which it must be able to read",
    )


def loaded(doc: Document) -> Document:
    """Return the document with its file in place of a path of this machine. Raises: BadDocument: it cannot be read."""
    if doc.uri and not REMOTE.match(doc.uri):
        doc.buffer, doc.uri = read_uri(doc.uri, DEFAULT_POLICY), None
    return doc


PLAIN: Mapping[str, Any] = MappingProxyType({})  # vectors as the model gives them


def embed_by_service(
    place: Place, docs: list[Document], version: str, pictures: bool, wanted: Mapping[str, Any] = PLAIN
) -> list[Document]:
    """Return the documents with what the service says of each; those that cannot be read here are not sent."""
    sent = []
    for doc in docs:
        try:
            sent.append(loaded(doc) if pictures else doc)
        except BadDocument as error:
            doc.tags[ERROR_TAG] = str(error)
    answers = iter(place.call("/embed", sent, model=version, **wanted) if sent else [])
    return [doc if ERROR_TAG in doc.tags else next(answers) for doc in docs]
