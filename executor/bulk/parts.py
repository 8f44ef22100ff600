"""The parts of an output, each complete or absent, and how they become one parquet file.

Beside `FILE` is the folder `FILE.parts` until all is done: `plan.json` says what is embedded with what, and
`00000000.parquet` and so on have the rows, equally many each, in the order of the source. A second start with the same
plan makes the parts that are missing, and those of which the source has other rows by now.
"""

import contextlib
import io
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from ..errors import ConfigurationError, WorkspaceError
from ..store.files import PLAN, publish_file, read_kept, remove_parts, sync

PART_ROWS = 2000
NAMES = ("id", "uri")  # columns that say which row of the source it is
Named = tuple[str, str | None]  # what they have
VALUES: dict[str, Any] = {"float": np.float32, "int8": np.int8, "binary": np.uint8}  # of an embedding, by its encoding


def schema_of(encoding: str) -> pa.Schema:
    """Return the columns of an output whose embeddings have an encoding of `/embed`."""
    value = pa.from_numpy_dtype(VALUES[encoding])
    texts = {name: pa.string() for name in ("id", "uri", "model", "space", "error")}
    columns = ("id", "uri", "embedding", "model", "space", "error")
    return pa.schema({name: texts.get(name, pa.list_(value)) for name in columns})


@dataclass
class Embedded:
    """One row of the output. `embedding`: (D,) float32, int8 or uint8; None where there is an `error`."""

    id: str
    uri: str | None
    embedding: np.ndarray | None = None
    model: str | None = None
    space: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class Finished:
    """What an output has: its rows, how many of them have an error, and the space of the others."""

    rows: int
    failed: int
    space: str | None


class Output:
    """A parquet file in the making.

    Args:
        plan: what is embedded, and with what; JSON values. part_rows: rows of a part.
        encoding: of the embeddings: `float`, `int8` or `binary`.
    Attributes: finished: what the file has, if it is there and was made by this plan; None: it is not there.
    Raises: ConfigurationError: the file exists, or was begun with another plan.
    """

    def __init__(
        self, file: Path, plan: dict[str, Any], part_rows: int = PART_ROWS, *, encoding: str = "float"
    ) -> None:
        self.file = file
        self._values, self._schema = VALUES[encoding], schema_of(encoding)
        self.part_rows = part_rows
        self._folder = file.parent / f"{file.name}.parts"
        self._made_by = {PLAN: json.dumps(plan, sort_keys=True).encode()}
        self.finished = _finished(file, self._made_by) if file.exists() else None
        self._plan_file = self._folder / "plan.json"
        self._plan = {**plan, "part_rows": part_rows}
        begun = self._plan
        if self._plan_file.exists():
            begun = read_kept(self._plan_file)
        else:  # parts without a plan are of nobody knows what
            shutil.rmtree(self._folder, ignore_errors=True)
        if self.finished is not None and isinstance(begun, dict) and {**begun, "part_rows": part_rows} == self._plan:
            begun = self._plan
            with contextlib.suppress(OSError):  # there are none, unless a process was killed while it removed them
                remove_parts(self._folder)
        if begun != self._plan:
            difference = _difference(begun, self._plan) if isinstance(begun, dict) else "plan.json is damaged"
            raise ConfigurationError(
                f"{file} was begun with another plan ({difference}). Start it again as it was "
                f"begun, or remove {self._folder}."
            )

    def has(self, number: int) -> bool:
        """Whether a part is complete."""
        return self._part(number).exists()

    def is_of(self, rows: Iterable[Named]) -> bool:
        """Whether the finished file has these rows, in this order."""
        return _same(_named(self.file), iter(rows))

    def remove_changed(self, rows: Iterable[Named]) -> int:
        """Remove the parts that have other rows than the source by now, and return how many: they are made anew.

        Args: rows: of the whole source; read as far as there are parts.
        """
        there = {int(part.stem) for part in self._folder.glob("*.parquet") if part.stem.isdecimal()}
        source, removed = iter(rows), 0
        for number in range(max(there, default=-1) + 1):
            part = list(islice(source, self.part_rows))
            if number in there and not _same(_named(self._part(number)), iter(part)):
                self._part(number).unlink()
                removed += 1
        return removed

    def write(self, number: int, rows: list[Embedded]) -> None:
        """Write a part; it is on the disk when this returns. Raises: WorkspaceError: it cannot be written."""
        for row in rows:  # HTTP carries whole numbers without their type
            row.embedding = None if row.embedding is None else np.asarray(row.embedding, self._values)
        columns = [[getattr(row, name) for row in rows] for name in self._schema.names]
        buffer = io.BytesIO()
        parquet.write_table(pa.table(columns, schema=self._schema), buffer)
        try:
            if not self._plan_file.exists():
                self._folder.mkdir(parents=True, exist_ok=True)
                publish_file(self._plan_file, json.dumps(self._plan, indent=1).encode())
            publish_file(self._part(number), buffer.getvalue())
        except OSError as error:
            raise WorkspaceError(f"A part of {self.file} cannot be written: {error}.") from error

    def join(self, count: int) -> Finished:
        """Make the file of the first `count` parts, a part at a time, and remove them.

        Its column `embedding` is of a fixed size, as vector databases want it, if any row has one.

        Raises: WorkspaceError: the parts were embedded in different spaces, or the disk failed.
        """
        dim, spaces, rows, failed = 0, set(), 0, 0
        for number in range(count):
            table = parquet.read_table(self._part(number))
            values = table["embedding"].combine_chunks()
            dim = dim or max((len(value) for value in values[:].drop_null()[:1].to_pylist()), default=0)
            spaces |= set(table["space"].drop_null().unique().to_pylist())
            rows, failed = rows + len(table), failed + len(table) - table["error"].null_count
        if len(spaces) > 1:
            raise WorkspaceError(
                f"The parts of {self.file} are of different spaces ({', '.join(sorted(spaces))}): the model was "
                f"changed meanwhile. Remove {self._folder} and embed anew."
            )
        temporary = self._folder / "whole.parquet"
        fixed = pa.field("embedding", pa.list_(self._schema.field(2).type.value_type, dim))
        schema = (self._schema.set(2, fixed) if dim else self._schema).with_metadata(self._made_by)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)  # a shard may have no rows
            with parquet.ParquetWriter(temporary, schema) as writer:
                for number in range(count):
                    writer.write_table(_of_fixed_size(parquet.read_table(self._part(number)), schema, dim))
            sync(temporary)
            os.replace(temporary, self.file)
            sync(self.file.parent)
        except OSError as error:
            raise WorkspaceError(f"{self.file} cannot be written: {error}.") from error
        with contextlib.suppress(OSError):  # the file is there, and what is left says whose it is
            remove_parts(self._folder)
        return Finished(rows, failed, next(iter(spaces), None))

    def _part(self, number: int) -> Path:
        return self._folder / f"{number:08d}.parquet"


def begun_with(file: Path) -> dict[str, Any]:
    """Return the plan of the parts that lie beside a file, or else of the finished file; empty: there is none."""
    plan = read_kept(file.parent / f"{file.name}.parts" / "plan.json")
    if plan is None and file.exists():
        try:
            plan = json.loads((parquet.read_schema(file).metadata or {}).get(PLAN, b"null"))
        except (OSError, ValueError, pa.ArrowException):  # somebody else's file, which is refused later
            return {}
    return plan if isinstance(plan, dict) else {}


def exists_already(file: Path) -> ConfigurationError:
    """Return the refusal to write a file anew."""
    return ConfigurationError(f"{file} exists already; name another file, or remove it.")


def _finished(file: Path, made_by: dict[bytes, bytes]) -> Finished:
    """Return what a file has. Raises: ConfigurationError: it was not made by this plan."""
    try:
        if (parquet.read_schema(file).metadata or {}).get(PLAN) != made_by[PLAN]:
            raise exists_already(file)
        table = parquet.read_table(file, columns=["space", "error"])
    except (OSError, pa.ArrowException):
        raise exists_already(file) from None
    spaces = table["space"].drop_null().unique().to_pylist()
    return Finished(len(table), len(table) - table["error"].null_count, next(iter(spaces), None))


def _named(file: Path) -> Iterator[Named]:
    with parquet.ParquetFile(file) as reader:
        for batch in reader.iter_batches(columns=list(NAMES)):
            yield from zip(*(batch[name].to_pylist() for name in NAMES), strict=True)


def _same(one: Iterator[Named], other: Iterator[Named]) -> bool:
    return all(a == b for a, b in zip_longest(one, other))


def _of_fixed_size(table: pa.Table, schema: pa.Schema, dim: int) -> pa.Table:
    if not dim:
        return table
    column = table["embedding"].combine_chunks()
    absent = np.asarray(column.is_null())
    values = np.zeros((len(column), dim), schema.field(2).type.value_type.to_pandas_dtype())
    values[~absent] = np.asarray(column.flatten()).reshape(-1, dim)
    fixed = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), dim, mask=pa.array(absent))
    return table.set_column(2, schema.field(2), fixed)


def _difference(begun: dict[str, Any], plan: dict[str, Any]) -> str:
    changed = [name for name in {**begun, **plan} if begun.get(name) != plan.get(name)]
    return ", ".join(f"{name} {begun.get(name)!r}, now {plan.get(name)!r}" for name in changed)
