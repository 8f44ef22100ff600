"""Where things lie in a workspace folder, what they take, and what is removed when."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from ..errors import WorkspaceError
from .files import remove_leftovers, sync

_RESERVE_BYTES = 2 << 20


class Workspace:
    """Where things lie in a workspace folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.database = root / "runs.sqlite"
        self.base = root / "base"
        self.lock = root / "service.lock"
        self._discarded = root / "deleted"
        self._reserve = root / "reserve"

    def run_folder(self, name: str) -> Path:
        """The folder of one run."""
        return self.root / "runs" / name

    def spool_file(self, name: str) -> Path:
        """The documents of one run, both splits: a `DocumentArrayMemmap`."""
        return self.run_folder(name) / "documents.sqlite"

    def model_folder(self, version: str) -> Path:
        """The weights of a version: `base` or a run's name."""
        return self.base if version == "base" else self.run_folder(version) / "model"

    def micro_batch_file(self, name: str) -> Path:
        """How many images of a batch one run computes at a time, as far as memory did not suffice for all."""
        return self.run_folder(name) / "micro_batch"

    def log_file(self, name: str) -> Path:
        """What the trainer of one run printed."""
        return self.run_folder(name) / "trainer.log"

    def checkpoint_folder(self, name: str) -> Path:
        """The checkpoints of one run: a folder each, named by the steps done."""
        return self.run_folder(name) / "checkpoints"

    def checkpoints(self, name: str) -> list[Path]:
        """The checkpoints there are, newest first."""
        return newest_first(self.checkpoint_folder(name))

    def latest_step(self, name: str) -> int:
        """The steps done at the newest checkpoint; 0 if there is none."""
        return next((int(place.name) for place in self.checkpoints(name)), 0)

    def disk_bytes(self, name: str) -> int:
        """What the folder of one run takes on the disk, in bytes; holes in its files take nothing."""
        taken, folders = 0, [self.run_folder(name)]
        while folders:
            try:
                with os.scandir(folders.pop()) as entries:
                    for entry in entries:
                        if entry.is_dir(follow_symlinks=False):
                            folders.append(Path(entry.path))
                        taken += entry.stat(follow_symlinks=False).st_blocks * 512
            except FileNotFoundError:  # the trainer publishes, prunes and removes meanwhile
                continue
        return taken

    # what is removed ----------------------------------------------------------------------------------------------

    def prune(self, name: str, *, keep_checkpoints: bool) -> None:
        """Remove what an ended run needs no more: its images and features, and its checkpoints unless they may help."""
        for cache in ("images", "features"):
            shutil.rmtree(self.run_folder(name) / cache, ignore_errors=True)
        if not keep_checkpoints:
            shutil.rmtree(self.checkpoint_folder(name), ignore_errors=True)
        self.remove_leftovers(name)

    def remove_leftovers(self, name: str) -> None:
        """Remove what a trainer that was killed had begun to write. Its successor must not write meanwhile."""
        remove_leftovers(self.checkpoint_folder(name))
        remove_leftovers(self.run_folder(name))

    def keep_reserve(self) -> None:
        """Lay a little room aside, so that a run can be deleted when the disk is full: that takes room, too."""
        with contextlib.suppress(OSError):  # a full disk: as much as there is
            self._reserve.write_bytes(bytes(_RESERVE_BYTES))

    def give_reserve(self) -> None:
        """Give that room up."""
        self._reserve.unlink(missing_ok=True)

    def discard(self, name: str, number: int) -> None:
        """Move the folder of a run away, under the run's number; nothing finds it any more."""
        self._move(self.run_folder(name), self._discarded / f"{number}-{name}")

    def restore(self, name: str, number: int) -> None:
        """Undo `discard`, if it was done."""
        self._move(self._discarded / f"{number}-{name}", self.run_folder(name))

    def discarded(self) -> Iterator[tuple[int, str]]:
        """The runs, each (number, name), whose folders were moved away and are still there."""
        for place in sorted(self._discarded.iterdir()) if self._discarded.is_dir() else ():
            number, _, name = place.name.partition("-")
            yield int(number), name

    def remove_discarded(self, name: str, number: int) -> None:
        """Remove a folder that was moved away. Raises: OSError: something of it cannot be removed."""
        place = self._discarded / f"{number}-{name}"
        if place.is_dir():
            shutil.rmtree(place)

    def _move(self, source: Path, target: Path) -> None:
        if source.is_dir():
            target.parent.mkdir(parents=True, exist_ok=True)
            os.rename(source, target)
            sync(target.parent)
            sync(source.parent)


def newest_first(folder: Path) -> list[Path]:
    """The checkpoints in a folder, newest first."""
    found = (place for place in folder.iterdir() if place.name.isdigit()) if folder.is_dir() else ()
    return sorted(found, reverse=True)


def find_workspace(folder: Path) -> Workspace:
    """Return the workspace in or below `folder`: Jina puts it into FOLDER/FinetunerExecutor/0.

    Raises: WorkspaceError: there is none, or there are several.
    """
    places = [folder] if Workspace(folder).database.is_file() else []
    places = places or sorted(found.parent for depth in ("*", "*/*") for found in folder.glob(f"{depth}/runs.sqlite"))
    if len(places) == 1:
        return Workspace(places[0])
    if places:
        raise WorkspaceError(f"{folder} holds several workspaces; name one: {', '.join(map(str, places))}.")
    raise WorkspaceError(f"{folder} is no workspace: there is no runs.sqlite in it, nor up to two folders below.")
