"""Tables of pictures: CSV and TSV files with a header, and parquet files."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from ..errors import ConfigurationError
from .rows import Columns, Row, RowMaker, values_of

BATCH = 256  # rows of a parquet file in memory at a time: their pictures may be in them
csv.field_size_limit(2**28)  # a data: uri may be in a field


def read_csv(path: Path, columns: Columns, *, labelled: bool) -> Iterator[Row]:
    """Yield the rows of a table in UTF-8, separated by commas, or by tabs if its name ends in .tsv.

    One whose header has no such separator, but semicolons, or the other of the two, is separated by these.

    Raises: ConfigurationError: a column is missing, or the file cannot be read.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, delimiter=_separator(path, file), strict=True)
            names = [name.strip() for name in next(reader, [])]
            maker = RowMaker(path, columns.found_in(names, path), labelled)
            for number, fields in enumerate((fields for fields in reader if fields), start=1):
                if any(field.strip() for field in fields[len(names) :]):
                    yield maker.left_out(
                        number,
                        f"it has {len(fields)} fields, and the header {len(names)}; put a field that has the "
                        "separator in it into quotation marks",
                    )
                    continue
                short = fields + [""] * (len(names) - len(fields))
                yield maker.row(number, dict(zip(names, short, strict=False)))
    except (OSError, UnicodeError, csv.Error) as error:
        raise ConfigurationError(f"{path} cannot be read as a table in UTF-8: {error}.") from error


def csv_names(path: Path) -> list[str]:
    """Return the names of a table's columns."""
    with open(path, newline="", encoding="utf-8-sig") as file:
        return [name.strip() for name in next(csv.reader(file, delimiter=_separator(path, file), strict=True), [])]


def parquet_names(path: Path) -> list[str]:
    """Return the names of the columns of a parquet file."""
    from pyarrow import parquet

    return list(parquet.read_schema(path).names)


def _separator(path: Path, file: TextIO) -> str:
    """Return what separates the fields of a table, seen by its header; the file is at its beginning before and after.

    A spreadsheet writes semicolons where the comma is the decimal point.
    """
    header = file.readline()
    file.seek(0)
    usual, *others = ["\t", ",", ";"] if path.suffix.lower() == ".tsv" else [",", ";", "\t"]
    plain = [each for each in others if len(next(csv.reader([header], delimiter=each), [])) > 1]
    alone = len(next(csv.reader([header], delimiter=usual), [])) < 2
    return plain[0] if alone and len(plain) == 1 else usual


def read_parquet(path: Path, columns: Columns, *, labelled: bool) -> Iterator[Row]:
    """Yield the rows of a parquet file. Raises: ConfigurationError: a column is missing, or it is no whole file."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            found = columns.found_in(list(file.schema_arrow.names), path)
            wanted = [name for name in vars(found).values() if name is not None]
            maker, number = RowMaker(path, found, labelled), 0
            for batch in file.iter_batches(BATCH, columns=wanted):
                for values in values_of(batch):
                    number += 1
                    yield maker.row(number, values)
    except (OSError, pa.ArrowException) as error:
        raise ConfigurationError(f"{path} is no parquet file, or not a whole one: {_first_line(error)}.") from error


def _first_line(error: Exception) -> Any:
    return str(error).strip().partition("\n")[0].rstrip(".")
