"""Tables of pictures: CSV and TSV files with a header, and parquet files."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import ConfigurationError
from .rows import Columns, Row, RowMaker

BATCH = 256  # rows of a parquet file in memory at a time: their pictures may be in them
csv.field_size_limit(2**28)  # a data: uri may be in a field


def read_csv(path: Path, columns: Columns) -> Iterator[Row]:
    """Yield the rows of a table in UTF-8, separated by commas, or by tabs if its name ends in .tsv.

    Raises: ConfigurationError: a column is missing, or the file cannot be read.
    """
    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, delimiter=separator, strict=True)
            names = [name.strip() for name in next(reader, [])]
            maker = RowMaker(path, columns.found_in(names, path))
            for number, fields in enumerate((fields for fields in reader if fields), start=1):
                short = fields + [""] * (len(names) - len(fields))
                yield maker.row(number, dict(zip(names, short, strict=False)))
    except (OSError, UnicodeError, csv.Error) as error:
        raise ConfigurationError(f"{path} cannot be read as a table in UTF-8: {error}.") from error


def read_parquet(path: Path, columns: Columns) -> Iterator[Row]:
    """Yield the rows of a parquet file. Raises: ConfigurationError: a column is missing, or it is no whole file."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            found = columns.found_in(list(file.schema_arrow.names), path)
            wanted = [name for name in vars(found).values() if name is not None]
            maker, number = RowMaker(path, found), 0
            for batch in file.iter_batches(BATCH, columns=wanted):
                for values in batch.to_pylist():
                    number += 1
                    yield maker.row(number, values)
    except (OSError, pa.ArrowException) as error:
        raise ConfigurationError(f"{path} is no parquet file, or not a whole one: {_first_line(error)}.") from error


def _first_line(error: Exception) -> Any:
    return str(error).strip().partition("\n")[0].rstrip(".")
