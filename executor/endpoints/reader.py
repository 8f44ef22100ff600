"""A reader: it embeds with what a writer publishes (`role: serve`). There may be any number of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..documents import Document, RunStatus
from ..errors import UnknownRun
from ..images.libtiff import silence_libtiff
from ..parameters import ExecutorOptions, StatusParameters
from ..serving.embedder import Embedder
from ..serving.following import FollowedVersions, Follower
from ..serving.spaces import Spaces
from ..store.published import Place
from .gathering import Gatherings
from .measures import Measures
from .outward import places_of


class Reader:
    """Follows a place and embeds with the version that is served there. It trains nothing and writes nothing there.

    Args: folder: where versions are kept that were fetched; several readers may share it. options: with the place in
        `serve_from`.
    Raises: ConfigurationError: `serve_from` cannot be read by any library that is installed.
    """

    role = "serve"

    def __init__(self, folder: Path, options: ExecutorOptions) -> None:
        silence_libtiff()
        self.folder, self.places = folder, places_of(folder, options)
        place = Place(options.serve_from or "")
        self.versions = FollowedVersions(place, folder / "versions")
        self.measures = Measures(self)
        self.embedder = Embedder(self.versions, options, self.measures.batch_images.observe)
        self.spaces = Spaces(self.versions.folder, lambda: [self.versions.served()], elsewhere=True)
        self.gatherings: Gatherings[Any, Any] = Gatherings()  # of /evaluate
        self._follower = Follower(place, self.versions, self.embedder.renew)

    def served(self) -> str:
        """Return the version that is served. Raises: NotReady: none has come yet."""
        return self.versions.served()

    def served_since(self) -> str | None:
        """Return when the writer published it, ISO 8601; None: it did not say."""
        pointer = self.versions.pointer
        return None if pointer is None else pointer.published_at or None

    def degraded(self) -> list[str]:
        """Return what is wrong while it serves nevertheless, a sentence each."""
        trouble = self._follower.trouble()
        return [] if trouble is None else [trouble]

    def close(self) -> None:
        """End the threads."""
        self._follower.close()
        self.embedder.close()


async def status(reader: Reader, docs: Sequence[Document], wanted: StatusParameters) -> list[RunStatus]:
    """Return the status of the version that is served, as far as a reader knows it: its name, its space and troubles.

    Raises: NotReady: none has come yet. UnknownRun: another was asked for.
    """
    version, pointer = reader.served(), reader.versions.pointer
    assert pointer is not None
    if wanted.run not in (None, version):
        raise UnknownRun(
            f"This reader serves {version!r} and knows no run {wanted.run!r}; ask the service that trains."
        )
    return [
        RunStatus(
            id=version,
            run=version,
            state="succeeded",
            promoted=True,
            model=version,
            space=pointer.space,
            warnings=reader.degraded(),
        )
    ]
