"""A text file with a uri in each line."""

from collections.abc import Iterator
from pathlib import Path

from ..errors import ConfigurationError
from .rows import Columns, Row, RowMaker


def read_list(path: Path) -> Iterator[Row]:
    """Yield a row for each line that is not empty. Raises: ConfigurationError: it is no text in UTF-8."""
    maker = RowMaker(path, Columns(uri="uri"), labelled=False)
    try:
        with open(path, encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield maker.row(number, {"uri": line})
    except (OSError, UnicodeError) as error:
        raise ConfigurationError(f"{path} cannot be read as a list of uris: {error}.") from error
