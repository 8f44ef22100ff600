"""A small index in memory, to stand behind the FinetunerExecutor.

It compares a query only with embeddings of the same space: those of other models, or of other weights, say nothing.
"""

from typing import Any

import numpy as np
from docarray import DocList
from jina import Executor, requests

from executor import Document, DocumentArray
from executor.documents import Evaluation, Event, FeedbackStatus, Match, RunStatus


class Indexer(Executor):
    """Exact search by cosine similarity, as embeddings are of unit length."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._docs: dict[str, Document] = {}

    @requests(on="/index")
    async def index(self, docs: DocumentArray, **_: Any) -> DocumentArray:
        """Keep the documents; one with the id of an earlier one replaces it."""
        self._docs |= {doc.id: doc for doc in docs if doc.embedding is not None}
        return docs

    @requests(on="/search")
    async def search(self, docs: DocumentArray, parameters: dict, **_: Any) -> DocumentArray:
        """Fill the matches of each document, nearest first, with `tags['similarity']`; parameter `limit`."""
        for doc in docs:
            if doc.embedding is not None:
                doc.matches = self._nearest(doc, int(parameters.get("limit", 5)))
        return docs

    # Jina starts a Flow only if an executor takes what the one before it answers, at each of that one's endpoints.

    @requests(on=["/embed", "/report", "/suggest"])
    async def pass_documents(self, docs: DocumentArray, **_: Any) -> DocumentArray:
        """Leave documents as they are."""
        return docs

    @requests(on=["/fit", "/status", "/cancel", "/delete", "/promote"])
    async def pass_statuses(self, docs: DocList[RunStatus], **_: Any) -> DocList[RunStatus]:
        """Leave statuses as they are."""
        return docs

    @requests(on="/feedback")
    async def pass_feedback(self, docs: DocList[FeedbackStatus], **_: Any) -> DocList[FeedbackStatus]:
        """Leave what is said of feedback as it is."""
        return docs

    @requests(on="/evaluate")
    async def pass_evaluation(self, docs: DocList[Evaluation], **_: Any) -> DocList[Evaluation]:
        """Leave an evaluation as it is."""
        return docs

    @requests(on="/events")
    async def pass_events(self, docs: DocList[Event], **_: Any) -> DocList[Event]:
        """Leave events as they are."""
        return docs

    @requests(on="/watch")
    async def pass_watched(self, doc: RunStatus, **_: Any) -> RunStatus:
        """Leave a watched status as it is."""
        yield doc

    def _nearest(self, query: Document, limit: int) -> list[Match]:
        space = query.tags["finetuner_space"]
        candidates = [doc for doc in self._docs.values() if doc.tags["finetuner_space"] == space]
        if not candidates:
            return []
        similarities = np.stack([doc.embedding for doc in candidates]) @ query.embedding  # (N, D) @ (D,)
        return [
            Match(
                id=candidates[found].id,
                uri=candidates[found].uri,
                tags=candidates[found].tags | {"similarity": float(similarities[found])},
            )
            for found in np.argsort(-similarities)[:limit]
        ]
