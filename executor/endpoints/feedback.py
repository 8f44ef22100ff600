"""`/feedback`: what users say of documents, kept durably."""

import asyncio
from collections.abc import Sequence

from ..documents import Document, FeedbackStatus
from ..parameters import FeedbackParameters
from .service import Service


async def feedback(service: Service, docs: Sequence[Document], wanted: FeedbackParameters) -> list[FeedbackStatus]:
    """Store what the documents say, and return what is kept in all. Without documents only the latter."""
    return [await asyncio.to_thread(_receive, service, docs, wanted.run)]


def _receive(service: Service, docs: Sequence[Document], run: str | None) -> FeedbackStatus:
    answer = service.feedback.receive(docs, run)
    answer.next_run = service.retrainer.plan().words
    answer.budget_spent = service.retrainer.spent
    return answer
