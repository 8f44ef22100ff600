"""From what a user names to its reader."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from ..documents import Document
from ..errors import ConfigurationError
from .datasets import dataset_names, is_dataset, read_dataset
from .folders import read_folder
from .lists import read_list
from .rows import Columns, Row
from .tables import csv_names, parquet_names, read_csv, read_parquet

USUAL_COLUMNS = Columns()
_CSV = (".csv", ".tsv")
_PARQUET = (".parquet", ".pq")


def rows(source: Path, columns: Columns = USUAL_COLUMNS, *, labelled: bool = True) -> Iterator[Row]:
    """Yield each row of a source: also those that cannot be used, with the reason.

    Args:
        source: a folder of class folders, a dataset of Hugging Face on disk, a CSV, TSV or parquet file, or a text
            file (.txt) with a uri in each line.
        columns: those of a table or a dataset.
        labelled: whether the folders in a folder are its classes, and a row of a table without a label cannot be used.
    Raises: ConfigurationError: it is none of these, has no rows, or cannot be read.
    """
    found = False
    for row in _reader(source, columns, labelled):
        found = True
        yield row
    if not found:
        raise ConfigurationError(f"{source} has no rows.")


def documents(
    source: Path,
    columns: Columns = USUAL_COLUMNS,
    *,
    split: Literal["train", "eval"] | None = None,
    labelled: bool = True,
) -> Iterator[Document]:
    """Yield the documents of a source, without the rows that cannot be used.

    Args: split: only those for training, or for evaluation. source, columns, labelled: as in `rows`.
    """
    for row in rows(source, columns, labelled=labelled):
        if row.problem is None and split in (None, row.split):
            yield row.document


def column_names(source: Path) -> list[str] | None:
    """Return the names of the columns of a source that `rows` can read; None: it is no table."""
    ending = source.suffix.lower()
    if source.is_dir():
        return dataset_names(source) if is_dataset(source) else None
    if ending in _CSV:
        return csv_names(source)
    return parquet_names(source) if ending in _PARQUET else None


def _reader(source: Path, columns: Columns, labelled: bool) -> Iterator[Row]:
    ending = source.suffix.lower()
    if not source.exists():
        raise ConfigurationError(f"{source} is not there; name a folder of pictures, a table or a list of uris.")
    if source.is_dir():
        if is_dataset(source):
            return read_dataset(source, columns, labelled=labelled)
        return read_folder(source, labelled=labelled)
    if ending in _CSV:
        return read_csv(source, columns, labelled=labelled)
    if ending in _PARQUET:
        return read_parquet(source, columns, labelled=labelled)
    if ending in (".txt", ".lst"):
        return read_list(source)
    raise ConfigurationError(
        f"{source} is neither a folder nor a file that ends in .csv, .tsv, .parquet or .txt (a uri in each line)."
    )
