"""A vector store behind the FinetunerExecutor: Qdrant's local mode, with an alias for the queries of each space.

A query is searched in the collection that the alias of its space means, and in no other. So the vectors of a query and
of the index change over together, whichever version embeds the query meanwhile.
"""

from typing import Any

from docarray import DocList
from jina import requests
from qdrant_client import QdrantClient, models

from examples.into_qdrant import load, swap
from examples.pipeline.indexer import Indexer
from executor import Document, DocumentArray
from executor.documents import ERROR_TAG, SPACE_TAG, Match


class VectorStore(Indexer):
    """Searches collections that were loaded from files of `python -m executor embed` or `map`.

    Args: path: the folder of the collections.
    """

    def __init__(self, path: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._client = QdrantClient(path=path)

    @requests(on="/load")
    async def load(self, docs: DocumentArray, parameters: dict, **_: Any) -> DocumentArray:
        """Load `file` into a collection, and answer with its name; `prefix` begins that."""
        return DocumentArray([Document(text=load(self._client, parameters["file"], parameters["prefix"]))])

    @requests(on="/alias")
    async def alias(self, docs: DocumentArray, parameters: dict, **_: Any) -> DocumentArray:
        """Search `collection` for the queries of `space` from now on; without one, refuse such queries."""
        alias = alias_of(parameters["space"])
        if "collection" in parameters:
            swap(self._client, alias, parameters["collection"])
        else:
            away = models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=alias))
            self._client.update_collection_aliases(change_aliases_operations=[away])
        return docs

    @requests(on="/search")
    async def search(self, docs: DocumentArray, parameters: dict, **_: Any) -> DocumentArray:
        """Fill the matches of each document, nearest first, with `tags['similarity']`; parameter `limit`."""
        present = {each.alias_name for each in self._client.get_aliases().aliases}
        for doc in docs:
            if doc.embedding is None:
                continue  # its tags say why
            alias = alias_of(doc.tags[SPACE_TAG])
            if alias in present:
                doc.matches = self._found(alias, doc, int(parameters.get("limit", 5)))
            else:
                doc.tags[ERROR_TAG] = f"No collection is searched for queries of the space {doc.tags[SPACE_TAG]}."
        return docs

    def _found(self, alias: str, query: Document, limit: int) -> DocList[Match]:
        points = self._client.query_points(alias, query=query.embedding, limit=limit).points
        return DocList[Match](
            Match(
                id=point.payload["id"],
                uri=point.payload["uri"],
                tags={"similarity": point.score, SPACE_TAG: point.payload["space"]},
            )
            for point in points
        )

    def close(self) -> None:
        """Let another process open the folder."""
        self._client.close()


def alias_of(space: str) -> str:
    """Return the alias for the queries of a space."""
    return f"queries-{space}".replace("/", "-")
