"""What a document takes: room among the documents of a run, and bytes."""

from typing import Any


def parts_of(doc: Any) -> int:
    """Return how many documents a document is: it counts with its matches."""
    return 1 + len(doc.matches)


def bytes_of(doc: Any) -> int:
    """Return about how many bytes a document takes with its matches: images, texts, embeddings, tags and ids."""
    return sum(map(_bytes, (doc, *getattr(doc, "matches", ()))))  # a match has none of its own


def _bytes(part: Any) -> int:
    arrays = sum(int(array.nbytes) for array in (part.blob, part.embedding) if array is not None)
    texts = sum(len(value) for value in (part.id, part.uri, part.buffer, part.text) if value is not None)
    return arrays + texts + _bytes_of_tags(part.tags)


def _bytes_of_tags(value: Any) -> int:
    if isinstance(value, (str, bytes)):
        return len(value)
    if isinstance(value, dict):
        return sum(_bytes_of_tags(key) + _bytes_of_tags(item) for key, item in value.items())
    if isinstance(value, (list, tuple, set)):
        return sum(map(_bytes_of_tags, value))
    return int(getattr(value, "nbytes", 8))
