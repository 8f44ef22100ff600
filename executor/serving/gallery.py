"""Which places may be galleries."""

from pathlib import Path

from ..errors import BadDocument, BadRequest
from ..images.policy import ImagePolicy
from ..images.uris import check_uri

ENDINGS = {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
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
