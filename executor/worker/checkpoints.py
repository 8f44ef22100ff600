"""Checkpoints of a run: one folder each, complete or absent. A damaged one is skipped, and the one before it is used.

    checkpoints/0000000042/tensors.safetensors   every tensor of the state, named 0, 1, 2, …
    checkpoints/0000000042/state.json            the rest, with one SHA-256 of both

Nothing is pickled: the state's nested dicts and lists are JSON, with a number in place of each tensor.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import WorkspaceError
from ..store.files import publish_folder, unwritable
from ..store.workspace import KEPT_CHECKPOINTS, newest_first
from ..training.state import TrainState

_TENSORS = "tensors.safetensors"
_STATE = "state.json"
_log = logging.getLogger(__name__)


class CheckpointWriter:
    """Saves checkpoints in a thread, one at a time, so that training goes on while the disk works.

    Args: folder: of the checkpoints. failed: told why a checkpoint could not be written.
    """

    def __init__(self, folder: Path, failed: Callable[[WorkspaceError], None]) -> None:
        self._folder = folder
        self._failed = failed
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None

    def write(self, state: TrainState) -> None:
        """Begin to save a state, of which nothing may change any more. Wait for the one before it first."""
        self.wait()
        tensors: dict[str, Tensor] = {}
        encoded = _encode(vars(state), tensors)  # now, because this moves the tensors off the memory of an accelerator
        self._writing = self._thread.submit(_publish, self._folder, encoded, tensors, state.done)

    def wait(self) -> None:
        """Return when nothing is being written."""
        writing, self._writing = self._writing, None
        if writing is not None:
            try:
                writing.result()
            except WorkspaceError as error:
                self._failed(error)


def save_checkpoint(folder: Path, state: TrainState, done: int) -> None:
    """Save the state after `done` steps in `folder`, then remove all but the newest checkpoints.

    Raises: WorkspaceError: the disk is full or cannot be written; the existing checkpoints stay.
    """
    tensors: dict[str, Tensor] = {}
    _publish(folder, _encode(vars(state), tensors), tensors, done)


def _publish(folder: Path, encoded: Any, tensors: dict[str, Tensor], done: int) -> None:
    def write(place: Path) -> None:
        save_file(tensors, place / _TENSORS)
        written = {"done": done, "sha256": _digest(place, encoded), "state": encoded}
        (place / _STATE).write_text(json.dumps(written))

    try:
        publish_folder(folder / f"{done:010d}", write)
    except (OSError, SafetensorError) as error:
        raise unwritable("the checkpoint", folder, error) from error
    for old in newest_first(folder)[KEPT_CHECKPOINTS:]:
        shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(folder: Path) -> TrainState | None:
    """Return the state of the newest undamaged checkpoint, or None if there is none."""
    for place in newest_first(folder):
        try:
            written = json.loads((place / _STATE).read_text())
            if _digest(place, written["state"]) != written["sha256"]:
                raise ValueError("its checksum does not fit")
            return TrainState(**_decode(written["state"], load_file(place / _TENSORS)))
        except (OSError, ValueError, KeyError, TypeError) as error:
            _log.warning("Checkpoint %s is damaged (%s); the one before it is used.", place, error)
    return None


def _digest(place: Path, encoded: Any) -> str:
    """Return one SHA-256 over the tensors of a checkpoint and the rest of its state."""
    digest = hashlib.sha256((place / _TENSORS).read_bytes())
    digest.update(json.dumps(encoded).encode())
    return digest.hexdigest()


def _encode(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Move the tensors into `tensors` and return the rest for JSON.

    Dicts become `{"dict": [[key, value], …]}`, because JSON would turn integer keys into strings.
    """
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().contiguous()
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[key, _encode(item, tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return {"list": [_encode(item, tensors) for item in value]}
    return {"plain": value}


def _decode(value: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Any:
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "dict" in value:
        return {key: _decode(item, tensors) for key, item in value["dict"]}
    if "list" in value:
        return [_decode(item, tensors) for item in value["list"]]
    return value["plain"]
