"""Rows in, finished parts out. Pictures are decoded while others go through the model and a part is written."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from ..documents import ERROR_TAG, MODEL_TAG, SPACE_TAG, Document
from ..errors import ConfigurationError
from ..models.versions import WorkspaceVersions, version_folder, version_names
from ..parameters import EmbedParameters, ExecutorOptions
from ..serving.embedder import Embedder
from ..serving.spaces import Spaces
from ..sources import Row
from ..store.workspace import Workspace
from .parts import Embedded, Output

BATCH = 100  # documents; a service is sent so many at a time
UNDERWAY = 4  # batches that are being embedded: while one ends, the others keep all cores busy

PLAIN = EmbedParameters()  # embeddings as the model gives them

Embed = Callable[[list[Document]], Awaitable[list[Document]]]


@dataclass(frozen=True)
class Shard:
    """One of `count` equal shares of the rows: each row whose number leaves the remainder `index - 1`."""

    index: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Read `I/N`, with I from 1 to N. Raises: ConfigurationError: it is not that."""
        index, _, count = text.partition("/")
        if index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count):
            return cls(int(index), int(count))
        raise ConfigurationError(f"--shard {text!r} must be I/N, from 1/N to N/N, such as 1/4 for the first quarter.")

    def of(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Yield the rows of this share."""
        return islice(rows, self.index - 1, None, self.count)

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


class VersionEmbedder:
    """Embeds documents with one version of a workspace, by the way that serves `/embed`.

    Args:
        folder: the workspace. options: those under which its base model stays as it is.
        exact: compute in fp32, as `/evaluate` does. wanted: the space, dimensions and encoding of the embeddings.
    Raises: UnknownModel: there is no such version. InvalidParameter: it cannot give what is wanted.
    """

    def __init__(
        self,
        folder: Path,
        options: ExecutorOptions,
        version: str,
        *,
        exact: bool = False,
        wanted: EmbedParameters = PLAIN,
    ) -> None:
        workspace = Workspace(folder)
        self._embedder = Embedder(WorkspaceVersions(workspace, options, lambda: version), options)
        self._version, self._exact = version, exact
        loaded = self._embedder.version(version)  # an error comes now, and not with the first picture
        spaces = Spaces(partial(version_folder, workspace), partial(version_names, workspace))
        self._conversion = None if wanted.plain else spaces.conversion(loaded, wanted)

    async def __call__(self, docs: list[Document]) -> list[Document]:
        """Set the embedding of each document, or `tags['finetuner_error']`, and return the same documents."""
        # One caller, who may have all cores: nothing else here wants one for long.
        await self._embedder.embed(docs, model=self._version, exact=self._exact, caller=self)
        if self._conversion is not None:
            await asyncio.to_thread(self._conversion.apply, docs)
        return docs

    def close(self) -> None:
        """End the threads."""
        self._embedder.close()


async def embed_rows(rows: Iterable[Row], embed: Embed, output: Output, advance: Callable[[int], None]) -> int:
    """Embed the parts of `output` that are missing, and return how many parts there are.

    A few batches and the rows of one part are in memory at a time; pictures only of those batches.

    Args: advance: told how many rows more are done.
    """
    underway: deque[tuple[int, asyncio.Task[list[Embedded]]]] = deque()
    finished: list[Embedded] = []
    parts = 0

    async def finish_one() -> None:
        part, task = underway.popleft()
        done = await task
        finished.extend(done)
        advance(len(done))
        if not underway or underway[0][0] != part:
            await asyncio.to_thread(output.write, part, finished)
            finished.clear()

    for part, batch in _batches(rows, output.part_rows):
        parts = part + 1
        if output.has(part):
            advance(len(batch))
            continue
        underway.append((part, asyncio.create_task(embed_batch(batch, embed))))
        if len(underway) > UNDERWAY:
            await finish_one()
        await asyncio.sleep(0)  # the new batch begins while the next is read
    while underway:
        await finish_one()
    return parts


def _batches(rows: Iterable[Row], part_rows: int) -> Iterator[tuple[int, list[Row]]]:
    """Yield batches with the number of the part that they belong to."""
    source, part, left = iter(rows), 0, part_rows
    while batch := list(islice(source, min(BATCH, left))):
        yield part, batch
        left -= len(batch)
        if not left:
            part, left = part + 1, part_rows


async def embed_batch(batch: list[Row], embed: Embed) -> list[Embedded]:
    """Return a row of the output for each row. Args: embed: sets the embeddings of documents, as `/embed` does."""
    uris = [row.document.uri for row in batch]  # what is sent to a service may have another
    good = [row.document for row in batch if row.problem is None]
    done = iter(await embed(good) if good else [])
    return [
        Embedded(row.document.id, uri, error=row.problem) if row.problem is not None else _as_row(next(done), uri)
        for row, uri in zip(batch, uris, strict=True)
    ]


def _as_row(doc: Document, uri: str | None) -> Embedded:
    error = doc.tags.get(ERROR_TAG)
    if error is None and doc.embedding is None:
        error = "the service gave it no embedding"
    if error is not None:
        return Embedded(doc.id, uri, error=str(error))
    return Embedded(doc.id, uri, doc.embedding, doc.tags.get(MODEL_TAG), doc.tags.get(SPACE_TAG))
