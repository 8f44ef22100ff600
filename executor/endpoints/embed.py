"""`/embed`: the same documents with their embeddings."""

import asyncio
from collections.abc import Sequence

from ..documents import Document, with_ids
from ..parameters import EmbedParameters
from ..serving.spaces import Conversion
from .outward import outward_documents
from .reader import Reader
from .service import Service

AT_ONCE = 64  # documents whose embeddings are converted without leaving the event loop, which takes microseconds each


async def embed(service: Service | Reader, docs: Sequence[Document], wanted: EmbedParameters) -> Sequence[Document]:
    """Set the embedding of each document, and return the same documents. Those without an id get one.

    Raises: InvalidParameter: there is no such space, dimensions or encoding. UnknownModel: there is no such version.
    """
    with_ids(docs)
    with service.measures.embed_seconds.time():
        if wanted.plain:
            await service.embedder.embed(docs, model=wanted.model, matches=wanted.matches)
        else:
            await _embed_otherwise(service, docs, wanted)
    outward_documents(docs, service.places)
    return docs


async def _embed_otherwise(service: Service | Reader, docs: Sequence[Document], wanted: EmbedParameters) -> None:
    """Embed, and then map, shorten or encode."""
    # What is refused is not computed before. What takes long of a conversion is made here, in a thread.
    conversion = await asyncio.to_thread(_conversion, service, wanted)
    await service.embedder.embed(docs, model=conversion.version, matches=wanted.matches)
    parts = [part for doc in docs for part in (doc, *(doc.matches if wanted.matches else ()))]
    if len(parts) <= AT_ONCE:
        conversion.apply(parts)
    else:
        await asyncio.to_thread(conversion.apply, parts)


def _conversion(service: Service | Reader, wanted: EmbedParameters) -> Conversion:
    version = service.embedder.version(wanted.model or service.served())
    return service.spaces.conversion(version, wanted)
