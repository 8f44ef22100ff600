"""The same on Ray Data, with a pool of actors: the nodes embed, and this process alone writes the parts.

So a part is written once, whatever happens to a node: Ray gives the batches of an actor that died to another one.
"""

import asyncio
import os
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..errors import ConfigurationError
from ..parameters import EmbedParameters, ExecutorOptions
from ..sources import Row
from .embedding import BATCH, PLAIN, VersionEmbedder, embed_batch
from .parts import Embedded, Output, schema_of

PARTS_AT_A_TIME = 8  # that Ray is given: what they are made of is in memory, and what is made of them

_INPUT = pa.schema(
    {
        "part": pa.int64(),
        "number": pa.int64(),
        "id": pa.string(),
        "uri": pa.string(),
        "buffer": pa.binary(),
        "problem": pa.string(),
    }
)


class Actor:
    """Embeds batches of rows with a version of a workspace that its node can read."""

    def __init__(self, folder: str, options: dict[str, Any], version: str, wanted: dict[str, Any]) -> None:
        form = EmbedParameters(**wanted)
        self._embedder = VersionEmbedder(Path(folder), ExecutorOptions.model_validate(options), version, wanted=form)
        self._schema = schema_of(form.encoding)
        self._loop = asyncio.new_event_loop()

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return the rows of the output, each with its part and its number there."""
        rows = [_row(values) for values in table.to_pylist()]
        done = self._loop.run_until_complete(embed_batch(rows, self._embedder))
        columns = [[getattr(each, name) for each in done] for name in self._schema.names]
        schema = pa.schema([*[*_INPUT][:2], *self._schema])
        return pa.table([table["part"], table["number"], *map(_array, columns, self._schema)], schema=schema)


def embed_on_ray(
    rows: Iterable[Row],
    folder: Path,
    options: ExecutorOptions,
    version: str,
    output: Output,
    advance: Callable[[int], None],
    *,
    wanted: EmbedParameters = PLAIN,
    actors: int | None = None,
) -> int:
    """Embed the parts of `output` that are missing, and return how many parts there are.

    Args:
        folder: the workspace, at the same path on every node, as are the pictures. actors: how many; by default one
            for each node. rows, version, output, advance: as in `embed_rows`. wanted: as in `VersionEmbedder`.
    Raises: ConfigurationError: Ray is not installed, or no cluster can be reached or started.
    """
    ray = _start_ray()
    given = {"folder": str(folder), "options": options.model_dump(exclude_unset=True), "version": version}
    given["wanted"] = wanted.model_dump(exclude_unset=True)
    pool = actors or max(1, len([node for node in ray.nodes() if node["Alive"]]))
    count = 0
    for tables in _windows(rows, output, advance):
        count = max(count, tables.parts)
        if not tables.missing:
            continue
        data = ray.data.from_arrow([part for _, part in tables.missing]).map_batches(
            Actor,
            fn_constructor_kwargs=given,
            batch_size=BATCH,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=pool),
        )
        _collect(data.iter_batches(batch_size=None, batch_format="pyarrow"), dict(tables.missing), output, advance)
    return count


def _start_ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ConfigurationError("--engine ray needs Ray: pip install 'finetuner-executor[ray]'.") from error
    package = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    try:
        ray.init(ignore_reinit_error=True, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": path}})
    except (ConnectionError, OSError, RuntimeError) as error:
        raise ConfigurationError(f"No Ray cluster can be reached or started: {error}") from error
    ray.data.DataContext.get_current().enable_progress_bars = False
    return ray


class _Window:
    """Some parts that follow each other: those that are missing, as tables, and how many parts there are up to here."""

    def __init__(self) -> None:
        self.missing: list[tuple[int, pa.Table]] = []
        self.parts = 0


def _windows(rows: Iterable[Row], output: Output, advance: Callable[[int], None]) -> Iterator[_Window]:
    source, window, number = iter(rows), _Window(), 0
    while chunk := list(islice(source, output.part_rows)):
        if output.has(number):
            advance(len(chunk))
        else:
            window.missing.append((number, _table(number, chunk)))
        number += 1
        window.parts = number
        if len(window.missing) == PARTS_AT_A_TIME:
            yield window
            window = _Window()
    if window.parts:
        yield window


def _collect(
    batches: Iterable[pa.Table], wanted: dict[int, pa.Table], output: Output, advance: Callable[[int], None]
) -> None:
    """Write each part when all its rows have come."""
    done: dict[int, dict[int, Embedded]] = {part: {} for part in wanted}
    for batch in batches:
        for values in batch.to_pylist():
            part, number = values.pop("part"), values.pop("number")
            done[part][number] = Embedded(**values)
        for part in [part for part, found in done.items() if len(found) == len(wanted[part])]:
            found = done.pop(part)
            output.write(part, [found[number] for number in sorted(found)])
            advance(len(found))


def _table(part: int, rows: list[Row]) -> pa.Table:
    columns = {
        "part": [part] * len(rows),
        "number": range(len(rows)),
        "id": [row.document.id for row in rows],
        "uri": [row.document.uri for row in rows],
        "buffer": [row.document.buffer for row in rows],
        "problem": [row.problem for row in rows],
    }
    return pa.table(columns, schema=_INPUT)


def _row(values: dict[str, Any]) -> Row:
    from ..documents import Document

    return Row(Document(id=values["id"], uri=values["uri"], buffer=values["buffer"]), problem=values["problem"])


def _array(column: list[Any], field: pa.Field) -> pa.Array:
    return pa.array(column, field.type)
