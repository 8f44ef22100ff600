"""`/embed`: the same documents with their embeddings."""

from collections.abc import Sequence

from ..documents import Document
from ..parameters import EmbedParameters
from .outward import outward_documents
from .reader import Reader
from .service import Service


async def embed(service: Service | Reader, docs: Sequence[Document], wanted: EmbedParameters) -> Sequence[Document]:
    """Set the embedding of each document, and return the same documents."""
    with service.measures.embed_seconds.time():
        await service.embedder.embed(docs, model=wanted.model, matches=wanted.matches)
    outward_documents(docs, service.folder)
    return docs
