"""Where each file of a workspace is, how much disk a run takes, and when files are removed."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..errors import WorkspaceError
from .files import remove_leftovers, sync

_RESERVE_BYTES = 2 << 20
LINEAGE = "lineage.safetensors"  # the file of a version, wherever it lies
KEPT_CHECKPOINTS = 2  # the newest, and one more in case it is damaged
_PROBE_BYTES = 64 << 10


class Workspace:
    """The files and folders of a workspace."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.database = root / "runs.sqlite"
        self.feedback = root / "feedback.sqlite"
        self.thumbnails = root / "thumbnails.sqlite"
        self.vectors = root / "vectors.sqlite"
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
        """The file in which one run notes that a batch did not fit into memory; see `MicroBatch`."""
        return self.run_folder(name) / "micro_batch"

    def trials_file(self, name: str) -> Path:
        """JSON: the settings that one run has tried, and how they did; see `training/tried.py`."""
        return self.run_folder(name) / "trials.json"

    def proof_file(self, name: str) -> Path:
        """JSON: for each split, the positions of the documents that prove the model of one run."""
        return self.run_folder(name) / "proof.json"

    def lineage_file(self, name: str) -> Path:
        """What the model of one run has seen; see `lineage.py`."""
        return self.run_folder(name) / LINEAGE

    def sources_file(self, name: str) -> Path:
        """JSON: from where documents were copied into one run; see `lifecycle/sources.py`."""
        return self.run_folder(name) / "sources.json"

    def parts_file(self, name: str) -> Path:
        """JSON: the items that one run trains on, that prove its model, and that choose its epoch."""
        return self.run_folder(name) / "parts.json"

    def negatives_file(self, name: str) -> Path:
        """JSON: the negatives that one run has added to its sessions: their sessions, and the items they are of."""
        return self.run_folder(name) / "negatives.json"

    def log_file(self, name: str) -> Path:
        """What the trainer of one run printed."""
        return self.run_folder(name) / "trainer.log"

    def beat_file(self, name: str) -> Path:
        """Empty; the trainer of one run touches it whenever it makes progress."""
        return self.run_folder(name) / "alive"

    def checkpoint_folder(self, name: str) -> Path:
        """The checkpoints of one run: one folder each, named after the number of steps done."""
        return self.run_folder(name) / "checkpoints"

    def image_folder(self, name: str) -> Path:
        """The decoded images of one run, until it ends."""
        return self.run_folder(name) / "images"

    def checkpoints(self, name: str) -> list[Path]:
        """The existing checkpoints of one run, newest first."""
        return newest_first(self.checkpoint_folder(name))

    def latest_step(self, name: str) -> int:
        """How many steps were done at the newest checkpoint; 0 if there is none."""
        return next((int(place.name) for place in self.checkpoints(name)), 0)

    def progress(self, name: str) -> tuple[int, int]:
        """How far one run has come: steps at the newest checkpoint, and bytes of what its trials have shown before."""
        file = self.trials_file(name)
        return self.latest_step(name), file.stat().st_size if file.exists() else 0

    def disk_bytes(self, name: str) -> int:
        """How much disk the folder of one run takes, in bytes; holes in its files do not count."""
        return _disk_bytes(self.run_folder(name))

    def total_bytes(self) -> int:
        """How much disk the workspace takes, in bytes."""
        return _disk_bytes(self.root)

    def try_to_write(self) -> None:
        """Write a little and remove it. Raises: OSError: the disk is full, read-only or broken."""
        with tempfile.TemporaryFile(dir=self.root) as probe:
            probe.write(bytes(_PROBE_BYTES))
            probe.flush()
            os.fsync(probe.fileno())

    def check_database(self) -> None:
        """Raise WorkspaceError if the database of the runs is gone and their folders are not.

        A new one would forget them all, and give their folders to new runs.
        """
        if self.database.exists() and self.database.stat().st_size:
            return
        folders = self.root / "runs"
        known = sum(1 for folder in folders.iterdir() if folder.is_dir()) if folders.is_dir() else 0
        if known:
            raise WorkspaceError(
                f"{self.database} is missing or empty, but {folders} has the documents and models of {known} runs, "
                "which are not harmed. Restore the file from a backup; to begin without these runs, move that folder "
                "away."
            )

    # what is removed ----------------------------------------------------------------------------------------------

    def prune(self, name: str, *, keep_checkpoints: bool) -> None:
        """Remove what an ended run no longer needs: cached images and features, and checkpoints if they cannot help."""
        for cache in ("images", "features"):
            shutil.rmtree(self.run_folder(name) / cache, ignore_errors=True)
        if not keep_checkpoints:
            shutil.rmtree(self.checkpoint_folder(name), ignore_errors=True)
        self.remove_leftovers(name)

    def remove_leftovers(self, name: str) -> None:
        """Remove what a killed trainer had begun to write. The next trainer must not write meanwhile."""
        remove_leftovers(self.checkpoint_folder(name))
        remove_leftovers(self.run_folder(name), spare=self.sources_file(name).name)  # the service writes that

    def keep_reserve(self) -> None:
        """Reserve a little disk space, so that a full disk keeps nobody from a start, a cancellation or a deletion."""
        with contextlib.suppress(OSError):  # on a full disk, reserve as much as there is
            self._reserve.write_bytes(bytes(_RESERVE_BYTES))

    def give_reserve(self) -> None:
        """Free the reserved space."""
        self._reserve.unlink(missing_ok=True)

    @contextlib.contextmanager
    def spending_reserve(self) -> Iterator[None]:
        """Free the reserved space for what the block writes; then reserve it again, or as much as there is."""
        reserved = self._reserve.exists()
        self.give_reserve()
        try:
            yield
        finally:
            if reserved:
                self.keep_reserve()

    def discard(self, name: str, number: int) -> None:
        """Move the folder of a run to where nothing looks for it, with the run's number in its name."""
        self._move(self.run_folder(name), self._discarded / f"{number}-{name}")

    def restore(self, name: str, number: int) -> None:
        """Undo `discard`, if it has happened."""
        self._move(self._discarded / f"{number}-{name}", self.run_folder(name))

    def discarded(self) -> Iterator[tuple[int, str]]:
        """The runs whose folders were moved away and not yet removed, each (number, name)."""
        for place in sorted(self._discarded.iterdir()) if self._discarded.is_dir() else ():
            number, _, name = place.name.partition("-")
            if _is_number(number) and name and place.is_dir():  # anything else is not ours: a file manager leaves some
                yield int(number), name

    def remove_discarded(self, name: str, number: int) -> None:
        """Remove a folder that was moved away. Raises: OSError: something in it cannot be removed."""
        place = self._discarded / f"{number}-{name}"
        if place.is_dir():
            shutil.rmtree(place)

    def _move(self, source: Path, target: Path) -> None:
        if source.is_dir():
            target.parent.mkdir(parents=True, exist_ok=True)
            os.rename(source, target)
            sync(target.parent)
            sync(source.parent)


def _disk_bytes(folder: Path) -> int:
    taken, folders = 0, [folder]
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(Path(entry.path))
                    taken += entry.stat(follow_symlinks=False).st_blocks * 512
        except FileNotFoundError:  # the trainer may rename or remove folders meanwhile
            continue
    return taken


def newest_first(folder: Path) -> list[Path]:
    """The checkpoints in a folder, newest first."""
    found = (place for place in folder.iterdir() if _is_number(place.name)) if folder.is_dir() else ()
    return sorted(found, reverse=True)


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit()


def find_workspace(folder: Path) -> Workspace:
    """Return the workspace in `folder` or up to two folders below: Jina creates FOLDER/FinetunerExecutor/0.

    Raises: WorkspaceError: there is none, or there are several.
    """
    places = [folder] if Workspace(folder).database.is_file() else []
    places = places or sorted(found.parent for depth in ("*", "*/*") for found in folder.glob(f"{depth}/runs.sqlite"))
    if len(places) == 1:
        return Workspace(places[0])
    if places:
        raise WorkspaceError(f"{folder} holds several workspaces; name one: {', '.join(map(str, places))}.")
    raise WorkspaceError(f"{folder} is no workspace: there is no runs.sqlite in it, nor up to two folders below.")
