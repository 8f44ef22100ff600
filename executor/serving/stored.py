"""Map a parquet file of stored vectors into the space of another version.

Rows pass in parts, so memory stays small. Beside `OUT` is the folder `OUT.parts` until all is done: `plan.json` says
what is mapped and how, and each finished part is a parquet file named by its first row. A second start with the same
plan makes the parts that are missing.
"""

import contextlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import compute, parquet

from ..errors import BadRequest, ConfigurationError
from ..evaluation.index_plan import ANEW, INDEX
from ..evaluation.intervals import said
from ..store.files import PLAN, publish_file, read_kept, remove_parts, sync, unwritable
from .spaces import Leap

PART_ROWS = 10_000
VECTORS, SPACE, SOURCE = "embedding", "space", "mapped_from"  # columns; the last is new


def loss_of(leap: Leap) -> str:
    """Say what the map loses, as far as it was measured."""
    plan = leap.known.plan
    if leap.forward and plan:
        (mapped, low, high), anew = plan[INDEX], plan[ANEW]
        return (
            f"On the eval documents of {leap.to!r}: mAP@R {mapped:.3f} ({said(low, high)}) with vectors mapped, "
            f"{anew[0]:.3f} ({said(*anew[1:])}) embedded anew: {_change(mapped - anew[0])}. "
            f"The advice was: {plan['advice']}."
        )
    why = "the run had no proof" if leap.forward else "a run measures how vectors are mapped into its own space only"
    return f"The loss of the map from {leap.version!r} to {leap.to!r} was not measured: {why}."


def _change(gained: float) -> str:
    return f"a gain of {gained:.3f}" if round(gained, 3) > 0 else f"a loss of {abs(gained):.3f}"


def map_file(source: Path, target: Path, leap: Leap, *, say: Callable[[str], None] = lambda line: None) -> int:
    """Write the rows of `source` to `target`, with mapped vectors; return how many vectors there were.

    Rows without a vector stay without. The column `space` says the new space, and `mapped_from` the old one; all other
    columns are copied.

    Raises: BadRequest: the file has no vectors, or some are of another space or size. ConfigurationError: a file is
        missing, or in the way. WorkspaceError: the disk is full.
    """
    folder = target.with_name(f"{target.name}.parts")
    if target.exists():
        _remove_parts_of(target, folder)
        raise ConfigurationError(f"{target} exists already; name a new file.")
    try:
        reader = parquet.ParquetFile(source)
    except (OSError, pa.ArrowInvalid) as error:
        raise ConfigurationError(f"{source} cannot be read as parquet: {str(error).splitlines()[0]}") from error
    with reader:
        _check_columns(reader, source)
        _check_spaces(reader, source, leap)
        try:
            _begin(folder, source, leap)
            for start, batch in _batches(reader):
                part = folder / f"{start:012}.parquet"
                if not part.exists():
                    publish_file(part, _as_bytes(_mapped(batch, start, leap, source)))
                    say(f"{start + batch.num_rows:,} of {reader.metadata.num_rows:,} rows")
            return _join(folder, target)
        except OSError as error:
            raise unwritable("the vectors", target, error) from error


def _check_columns(reader: Any, source: Path) -> None:
    schema = reader.schema_arrow
    if VECTORS not in schema.names:
        raise BadRequest(f"{source} has no column {VECTORS!r}; it has: {', '.join(schema.names)}.")
    kind = schema.field(VECTORS).type
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not lists or not pa.types.is_floating(kind.value_type):
        raise BadRequest(f"The column {VECTORS!r} of {source} is {kind}; only lists of floats can be mapped.")


def _check_spaces(reader: Any, source: Path, leap: Leap) -> None:
    """Look through the column `space`, if there is one, before anything is written."""
    if SPACE not in reader.schema_arrow.names:
        return
    for batch in reader.iter_batches(PART_ROWS, columns=[SPACE]):
        others = [found for found in compute.unique(batch.column(0)).to_pylist() if found not in (None, leap.source)]
        if others:
            raise BadRequest(
                f"{source} has vectors of the space {others[0]}, and those of {leap.version!r} are in {leap.source}; "
                "name the version that made them."
            )


def _begin(folder: Path, source: Path, leap: Leap) -> None:
    stat = source.stat()
    plan = {
        "source": str(source.resolve()),
        "size": stat.st_size,
        "modified": stat.st_mtime_ns,
        "rows": PART_ROWS,
        "from": leap.source,
        "to": leap.target,
    }
    file = folder / "plan.json"
    if file.exists():
        if read_kept(file) != plan:
            raise ConfigurationError(f"{folder} has the parts of another file or map; delete it, or name another file.")
        return
    shutil.rmtree(folder, ignore_errors=True)  # parts without a plan are of nobody knows what
    folder.mkdir(parents=True)
    publish_file(file, json.dumps(plan).encode())


def _batches(reader: Any) -> Iterator[tuple[int, Any]]:
    start = 0
    for batch in reader.iter_batches(PART_ROWS):
        yield start, batch
        start += batch.num_rows


def _mapped(batch: Any, start: int, leap: Leap, source: Path) -> Any:
    """The rows with new vectors. Args: start: the number of the first row."""
    vectors = batch.column(VECTORS)
    there = vectors.is_valid()
    flat = vectors.drop_null()
    size = leap.map.sizes[0]
    lengths = compute.list_value_length(flat).to_numpy(zero_copy_only=False)
    if (lengths != size).any():
        wrong = int(np.flatnonzero(there.to_numpy(zero_copy_only=False))[np.argmax(lengths != size)])
        raise BadRequest(
            f"Row {start + wrong} of {source} has {lengths[lengths != size][0]} values, and the vectors of "
            f"{leap.version!r} have {size}."
        )
    values = flat.flatten().to_numpy(zero_copy_only=False).astype(np.float32).reshape(-1, size)
    if not np.isfinite(values).all():
        raise BadRequest(f"Rows {start} to {start + batch.num_rows - 1} of {source} have values that are not finite.")
    present = there.to_numpy(zero_copy_only=False)
    made = _column(leap.map(values), present, fixed=pa.types.is_fixed_size_list(vectors.type))
    table = pa.Table.from_batches([batch])
    for name, column in (
        (VECTORS, made),
        (SPACE, pa.array([leap.target if here else None for here in present], pa.string())),
        (SOURCE, pa.array([leap.source if here else None for here in present], pa.string())),
    ):
        place = table.schema.get_field_index(name)
        table = table.append_column(name, column) if place < 0 else table.set_column(place, name, column)
    return table


def _column(mapped: np.ndarray, present: np.ndarray, *, fixed: bool) -> Any:
    """Vectors (V, B) as a column with a row for each of `present` (N,), of which V are true."""
    size = mapped.shape[1]
    if fixed:
        rows = np.zeros((len(present), size), np.float32)
        rows[present] = mapped
        return pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), size, mask=pa.array(~present))
    offsets = np.concatenate([[0], np.cumsum(present) * size]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(mapped.reshape(-1)), mask=pa.array(~present))


def _as_bytes(table: Any) -> bytes:
    buffer = io.BytesIO()
    parquet.write_table(table, buffer)
    return buffer.getvalue()


def _join(folder: Path, target: Path) -> int:
    """Make one file of the parts, and remove them. Return how many vectors it has."""
    parts = sorted(folder.glob("*.parquet"))
    joined, vectors = folder / "joined", 0
    made_by = {PLAN: (folder / "plan.json").read_bytes()}
    writer: Any = None
    try:
        for part in parts:
            table = parquet.read_table(part)
            vectors += len(table) - table.column(VECTORS).null_count
            named = {**(table.schema.metadata or {}), **made_by}
            writer = writer or parquet.ParquetWriter(joined, table.schema.with_metadata(named))
            writer.write_table(table)
    finally:
        if writer is not None:
            writer.close()
    if writer is None:
        raise BadRequest(f"There are no rows to map into {target}.")
    sync(joined)
    os.replace(joined, target)
    sync(target.parent)
    with contextlib.suppress(OSError):  # the file is there, and what is left says whose it is
        remove_parts(folder)
    return vectors


def _remove_parts_of(target: Path, folder: Path) -> None:
    """Remove the parts that a file was made of, if a process was killed while it did that."""
    try:
        made_by = (parquet.read_schema(target).metadata or {}).get(PLAN)
    except (OSError, pa.ArrowException):  # it is no file of ours
        return
    plan = folder / "plan.json"
    if made_by is not None and (not plan.exists() or plan.read_bytes() == made_by):
        with contextlib.suppress(OSError):  # mostly there are none
            remove_parts(folder)
