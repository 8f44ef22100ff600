"""Which places may be galleries."""

import os
from pathlib import Path

from ..errors import BadDocument, BadRequest
from ..images.policy import ImagePolicy
from ..images.uris import check_uri

ENDINGS = {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
COLUMNS = ("id", "uri", "embedding", "space", "error")  # of a parquet file that `embed` has written
MOST_FOOTER_BYTES = 8 << 20  # of a parquet file that is looked at in passing; it names the columns and each part
UNSAYABLE = "has no pictures whose names are UTF-8, in it or below it; rename them"
MOST_PICTURES = 5_000  # that are embedded to answer one question; of a larger gallery some are drawn


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


def is_embedded(file: Path) -> bool:
    """Whether a file has the columns of one that `embed` has written, by a look at its end alone."""
    from pyarrow import ArrowException, parquet

    try:
        with file.open("rb") as opened:
            opened.seek(-8, os.SEEK_END)  # of the footer: its length, and the letters PAR1
            if int.from_bytes(opened.read(4), "little") > MOST_FOOTER_BYTES:
                return False
            opened.seek(0)
            return set(COLUMNS) <= set(parquet.read_schema(opened).names)
    except (ArrowException, OSError):
        return False
