"""A gallery of pictures that nobody has labelled: a folder, or a parquet file of a corpus that was embedded before."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..documents import Document
from ..errors import BadDocument, BadRequest
from ..images.policy import ImagePolicy
from ..images.uris import check_uri

ENDINGS = {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
MOST_PICTURES = 5_000  # of a folder; of more some are drawn, because each is embedded
MOST_ROWS = 20_000  # of a parquet file
_COLUMNS = ["id", "uri", "embedding", "space", "error"]


def check_gallery(place: str, policy: ImagePolicy) -> Path:
    """Return the path of a gallery. Raises: BadRequest: it may not be read, or is neither of the two."""
    try:
        check_uri(place, policy)
    except BadDocument as error:
        raise BadRequest(f"gallery: {error}.") from error
    path = Path(place)
    if not (path.is_dir() or (path.is_file() and path.suffix == ".parquet")):
        raise BadRequest(f"gallery={place!r} is neither a folder of pictures nor a parquet file; name one of them.")
    return path


def pictures_of(folder: Path, random: np.random.Generator) -> tuple[list[Document], int]:
    """Return the pictures of a folder and all below it, at most `MOST_PICTURES`, and how many there are."""
    files = sorted(_files(folder))
    if not files:
        raise BadRequest(f"gallery={str(folder)!r} has no pictures, in it or below it.")
    chosen = np.arange(len(files))
    if len(files) > MOST_PICTURES:
        chosen = np.sort(random.permutation(len(files))[:MOST_PICTURES])
    docs = [Document(id=os.path.relpath(files[number], folder), uri=files[number]) for number in chosen]
    return docs, len(files)


def _files(folder: Path) -> Iterator[str]:
    for place, _, names in os.walk(folder):
        for name in names:
            if os.path.splitext(name)[1].lower() in ENDINGS:
                yield os.path.join(place, name)


def rows_of(file: Path, space: str, random: np.random.Generator) -> tuple[list[Document], np.ndarray, int]:
    """Return documents of a parquet file, at most `MOST_ROWS`, their embeddings (N, D), and how many rows there are.

    Raises: BadRequest: it has other columns, or its embeddings are of another space.
    """
    from pyarrow import ArrowException, parquet

    try:
        with parquet.ParquetFile(file) as opened:
            count = opened.metadata.num_rows
            kept = np.zeros(count, bool)
            kept[random.permutation(count)[:MOST_ROWS]] = True
            docs, embeddings, first = [], [], 0
            for batch in opened.iter_batches(batch_size=2_000, columns=_COLUMNS):
                mine = kept[first : first + batch.num_rows]
                first += batch.num_rows
                for row in batch.filter(mine.tolist()).to_pylist():
                    if row["error"] is None and row["embedding"] is not None:
                        _check_space(file, row["space"], space)
                        docs.append(Document(id=row["id"], uri=row["uri"]))
                        embeddings.append(np.asarray(row["embedding"], np.float32))
    except (ArrowException, OSError, KeyError) as error:
        raise BadRequest(
            f"gallery={str(file)!r} cannot be read as a parquet file with the columns {', '.join(_COLUMNS)}: {error}."
        ) from error
    if not docs:
        raise BadRequest(f"gallery={str(file)!r} has no embeddings.")
    return docs, np.stack(embeddings), count


def _check_space(file: Path, found: str, wanted: str) -> None:
    if found != wanted:
        raise BadRequest(
            f"The embeddings in gallery={str(file)!r} are of the space {found!r}, and the version served now has "
            f"{wanted!r}; embed the gallery with it, or name its folder."
        )
