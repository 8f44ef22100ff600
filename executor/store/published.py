"""Where the served version is published for readers: a directory, or an fsspec url such as `s3://models/shop`.

It holds `versions/<space>/`, the files of each published version, and `served.json`, which names the one served now.
The files are complete before `served.json` names them, so a reader never sees half a version.
"""

import hashlib
import json
import re
from datetime import datetime, timezone
from pathlib import Path

import fsspec.core
from fsspec.implementations.local import LocalFileSystem
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ..errors import ConfigurationError, WorkspaceError
from .files import publish_copy, publish_file, publish_folder, remove_leftovers, sync

POINTER = "served.json"
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
KEPT_WAY = "serving"  # the file beside a model that names the way found to serve it fastest on this machine


class Pointer(BaseModel):
    """What `served.json` says.

    Attributes:
        version: `base` or a run. space: of its embeddings. sha256: the hexadecimal digest of each file.
        published_at: ISO 8601 in UTC.
    """

    model_config = ConfigDict(frozen=True)

    version: str = Field(min_length=1)
    space: str = Field(pattern=r"^[0-9a-f]{12}$")
    sha256: dict[str, str] = Field(min_length=1)
    published_at: str = ""

    @field_validator("sha256")
    @classmethod
    def _plain_names(cls, digests: dict[str, str]) -> dict[str, str]:
        """Whoever can write `served.json` must not be able to write outside the folder of a version."""
        for name in digests:
            if not _FILE_NAME.fullmatch(name):
                raise ValueError(f"{name!r} is no name of a file")
        return digests


class Place:
    """Where versions are published. Every method may take as long as the store does.

    Args: url: a directory or an fsspec url.
    Raises: ConfigurationError: there is no such scheme, or its package is not installed.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            # Listings are neither kept nor shared: another process writes what we read.
            self._files, self._root = fsspec.core.url_to_fs(url, use_listings_cache=False, skip_instance_cache=True)
        except (ImportError, ValueError) as error:
            raise ConfigurationError(f"Nothing can be published at or read from {url!r}: {error}.") from None

    def pointer(self) -> Pointer | None:
        """Return what is served now; None: nothing was published yet.

        Raises: OSError: the store does not answer. WorkspaceError: `served.json` is damaged.
        """
        try:
            content = self._files.cat_file(f"{self._root}/{POINTER}")
        except FileNotFoundError:
            return None
        try:
            return Pointer.model_validate_json(content)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise WorkspaceError(
                f"{POINTER} at {self.url} is damaged ({first['msg']}); restore it, or promote a version again."
            ) from None

    def publish(self, version: str, space: str, folder: Path, *, anew: bool = True) -> Pointer:
        """Make the files in `folder` those that are served. What is there and right stays as it is meanwhile.

        Args: anew: send them even where they seem to be there already, and write `served.json` even if it is right.
            That mends files of an object store that are damaged, of which else only the sizes are compared.
        Raises: OSError: the store cannot be written, or does not answer.
        """
        files = sorted(file for file in folder.iterdir() if file.is_file() and _is_published(file.name))
        digests = {file.name: digest_of(file) for file in files}
        for file in files:
            self._publish_file(file, digests[file.name], f"versions/{space}", anew=anew)
        served = self._pointer_if_whole()
        if (
            not anew
            and served is not None
            and (served.version, served.space, served.sha256) == (version, space, digests)
        ):
            return served
        at = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        pointer = Pointer(version=version, space=space, sha256=digests, published_at=at)
        self._write(POINTER, json.dumps(pointer.model_dump(), indent=2).encode())
        return pointer

    def remove_leftovers(self) -> None:
        """Remove what killed processes had begun to write. Nobody may publish here meanwhile."""
        if not isinstance(self._files, LocalFileSystem):
            return
        for left in Path(self._root).glob(f".{POINTER}-*"):  # beside it, others may keep files of their own
            left.unlink(missing_ok=True)
        versions = Path(self._root) / "versions"
        for folder in (versions, *versions.glob("[!.]*")):
            remove_leftovers(folder)

    def fetch(self, pointer: Pointer, folder: Path) -> None:
        """Bring the files of a version into `folder`, which appears only when they are complete and undamaged.

        Raises: OSError: the store does not answer. WorkspaceError: a file is missing, or differs from its digest.
        """

        def write(place: Path) -> None:
            for name, digest in pointer.sha256.items():
                try:
                    self._files.get_file(f"{self._root}/versions/{pointer.space}/{name}", str(place / name))
                except FileNotFoundError:
                    raise WorkspaceError(
                        f"{name} of version {pointer.version!r} is missing at {self.url}. Restart the service that "
                        "publishes there, or promote the version at it again: either writes what is missing."
                    ) from None
                if digest_of(place / name) != digest:
                    raise WorkspaceError(
                        f"{name} of version {pointer.version!r} at {self.url} is damaged: it differs from its digest. "
                        "Promote the version again, or another."
                    )

        publish_folder(folder, write)

    def _pointer_if_whole(self) -> Pointer | None:
        try:
            return self.pointer()
        except WorkspaceError:  # what is damaged is written anew
            return None

    def _publish_file(self, file: Path, digest: str, folder: str, *, anew: bool) -> None:
        """Put one file into a folder here, at once, in place of one that differs."""
        target = f"{self._root}/{folder}/{file.name}"
        if isinstance(self._files, LocalFileSystem):
            _publish_here(file, digest, Path(target))
        elif anew or not self._has(target, file.stat().st_size):
            self._files.put_file(str(file), target)

    def _has(self, target: str, size: int) -> bool:
        """Whether there is an object of that size: a store replaces it at once, so it is not half of one."""
        try:
            return bool(self._files.size(target) == size)
        except FileNotFoundError:
            return False

    def _write(self, name: str, content: bytes) -> None:
        if isinstance(self._files, LocalFileSystem):
            publish_file(Path(self._root) / name, content)
        else:
            self._files.pipe_file(f"{self._root}/{name}", content)  # an object store replaces an object at once


def _publish_here(file: Path, digest: str, target: Path) -> None:
    if target.is_file() and digest_of(target) == digest:
        return
    if not target.parent.is_dir():
        target.parent.mkdir(parents=True)
        sync(target.parent.parent)
    publish_copy(file, target)


def _is_published(name: str) -> bool:
    """Whether a file belongs to the version. What begins with a dot was left by a killed process, or a file manager."""
    return name != KEPT_WAY and not name.startswith(".")


def is_whole(folder: Path, pointer: Pointer) -> bool:
    """Whether `folder` holds the files of a version as they were published."""
    return all(
        (folder / name).is_file() and digest_of(folder / name) == digest for name, digest in pointer.sha256.items()
    )


def digest_of(file: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(file, "rb") as content:
        while part := content.read(2**20):
            digest.update(part)
    return digest.hexdigest()
