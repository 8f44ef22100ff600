"""Pictures in folders: `SOURCE/<label>/…`, `SOURCE/train/<label>/…` beside `SOURCE/eval/<label>/…`, or no labels."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from ..documents import LABEL_TAG, Document
from ..errors import ConfigurationError
from ..images.formats.unread import CURE
from ..images.uris import is_unicode
from .rows import SPLITS, Row

ENDINGS = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
UNREADABLE = (".heic", ".heif", ".avif", ".jxl", ".jp2", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2")


class NoClassFolders(ConfigurationError):
    """A folder has no folders in it, whose names would be the labels."""


def read_folder(folder: Path, *, labelled: bool) -> Iterator[Row]:
    """Yield the pictures of a folder, by name; the id of each is its path from there.

    Hidden files are passed over. Others that are no pictures, by their names, are rows with a problem if the pictures
    are `labelled`; a corpus may have anything beside its pictures. Pictures of forms that nothing here reads, and those
    whose names are not UTF-8, which no answer can name, are rows with a problem in either case.

    Args: labelled: the first folder on the way to a picture is its label.
    Raises: NoClassFolders: `labelled`, and there are none. ConfigurationError: there are no pictures.
    """
    splits = _splits(folder)
    parts = [(folder / name, split) for name, split in splits.items()] or [(folder, "train")]
    if labelled and not any(_folders(part) for part, _ in parts):
        raise NoClassFolders(
            f"{folder} has no folders in it. Put the pictures of each class into a folder named after it."
        )
    found = False
    for part, split in parts:
        for row in _read_part(folder, part, split, labelled):
            found = found or row.problem is None or not labelled
            yield row
    if not found:
        raise ConfigurationError(f"{folder} has no pictures in it: no files that end in {', '.join(ENDINGS)}.")


def _read_part(root: Path, part: Path, split: Literal["train", "eval"], labelled: bool) -> Iterator[Row]:
    for path in _files(part, frozenset() if part == root else frozenset({_identity(root)})):
        name = os.path.relpath(path, root)
        doc = Document(id=name, uri=os.path.abspath(path))
        inside = Path(os.path.relpath(path, part)).parts
        is_picture, is_unreadable = path.lower().endswith(ENDINGS), path.lower().endswith(UNREADABLE)
        if not (is_picture or is_unreadable or labelled):
            continue
        if not is_unicode(path):
            yield _unsayable(name, split)
        elif is_unreadable:
            yield Row(doc, split, f"{name} is a picture {CURE}")
        elif not is_picture:
            yield Row(doc, split, f"{name} is no picture, by its name")
        elif labelled and len(inside) == 1:
            yield Row(doc, split, f"{name} lies in no class folder")
        else:
            doc.tags = {LABEL_TAG: inside[0]} if labelled else {}
            yield Row(doc, split)


def _unsayable(name: str, split: Literal["train", "eval"]) -> Row:
    shown = os.fsencode(name).decode(errors="backslashreplace")
    return Row(Document(id=shown), split, f"the name of {shown} is not UTF-8; rename it")


def _splits(folder: Path) -> dict[str, Literal["train", "eval"]]:
    """The folders that are parts of the data, if `folder` has `train` and nothing but such parts, each with folders."""
    names = _folders(folder)
    if "train" in names and len(names) > 1 and all(name in SPLITS and _folders(folder / name) for name in names):
        return {name: SPLITS[name] for name in names}
    return {}


def _folders(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if _is_folder(entry) and not entry.name.startswith("."))
    except OSError as error:
        raise ConfigurationError(f"{folder} cannot be read: {error.strerror}.") from error


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    """Whether an entry is a folder, or a link to one. A link that leads to itself is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _identity(folder: Path) -> tuple[int, int]:
    stat = os.stat(folder)
    return stat.st_dev, stat.st_ino


def _files(folder: Path, above: frozenset[tuple[int, int]]) -> Iterator[str]:
    """Yield the files at any depth, folder by folder; only the names of those on the way are in memory.

    Args: above: the folders on the way here. A link to one of them is passed over: behind it is what is read already.
    """
    try:
        here = _identity(folder)
        if here in above:
            return
        with os.scandir(folder) as entries:
            found = sorted((entry.name, _is_folder(entry)) for entry in entries if not entry.name.startswith("."))
    except OSError as error:
        raise ConfigurationError(f"{folder} cannot be read: {error.strerror}.") from error
    for name, is_folder in found:
        path = os.path.join(folder, name)
        if is_folder:
            yield from _files(Path(path), above | {here})
        else:
            yield path
