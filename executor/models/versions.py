"""The model versions in a workspace: `base`, built from the configuration, and one for each succeeded run."""

import json
import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from filelock import FileLock

from ..errors import UnknownModel, WorkspaceError
from ..parameters import ExecutorOptions
from ..store.files import remove_leftovers
from ..store.workspace import Workspace
from .building import build_model
from .model import EmbeddingModel, ModelConfig
from .saving import check_whole, load_model, read_settings, save_model

_log = logging.getLogger(__name__)


def ensure_base(workspace: Workspace, options: ExecutorOptions, say: Callable[[str], None] = _log.warning) -> Path:
    """Return the folder of the base version; build it if it is missing, damaged or of other options.

    The service and the trainer may call this at the same time: a lock lets one build while the other waits.

    Args: say: called with a sentence on what had to be assumed of the model, when it is built.
    """
    config = ModelConfig(model=options.model, input_size=options.input_size, embedding_dim=options.embedding_dim)
    workspace.root.mkdir(parents=True, exist_ok=True)
    with FileLock(workspace.root / "base.lock"):
        before, wanted = _saved_config(workspace.base), json.loads(json.dumps(asdict(config)))
        if before != wanted:
            if before is not None:
                _log.warning(
                    "The base model of %s was %s and is made anew by the options of now, %s. What the old one embedded "
                    "is of another space: embed it again, or set the options back.",
                    workspace.root,
                    before,
                    wanted,
                )
            remove_leftovers(workspace.root)
            model = build_model(config)
            save_model(model, workspace.base)
            for note in model.notes:
                say(note)
    return workspace.base


def load_version(workspace: Workspace, options: ExecutorOptions, version: str) -> EmbeddingModel:
    """Return the model called `version`, in evaluation mode. Raises: UnknownModel: there is no such version."""
    if version == "base":
        return load_model(ensure_base(workspace, options))
    check_version(workspace, version)
    return load_model(workspace.model_folder(version))


class WorkspaceVersions:
    """The versions of a workspace as the embedder wants them: which one is served, and the model and files of each."""

    def __init__(self, workspace: Workspace, options: ExecutorOptions, served: Callable[[], str]) -> None:
        self._workspace = workspace
        self._options = options
        self.served = served

    def load(self, version: str) -> EmbeddingModel:
        """Return the model called `version`. Raises: UnknownModel: there is no such version."""
        return load_version(self._workspace, self._options, version)

    def folder(self, version: str) -> Path:
        """Return the folder of a version that is there; `base` is built if it is not."""
        if version == "base":
            return ensure_base(self._workspace, self._options)
        return self._workspace.model_folder(version)


def check_version(workspace: Workspace, version: str) -> None:
    """Raise UnknownModel if there is no `version`; the message names those that exist."""
    if version == "base" or workspace.model_folder(version).is_dir():
        return
    raise UnknownModel(f"There is no model {version!r}; there are: {', '.join(version_names(workspace))}.")


def version_names(workspace: Workspace) -> list[str]:
    """Return the names of all versions, `base` first."""
    return ["base", *sorted(folder.parent.name for folder in workspace.root.glob("runs/*/model"))]


def version_folder(workspace: Workspace, version: str) -> Path:
    """Return the folder of a version. Raises: UnknownModel: there is none, or `base` was not made yet."""
    check_version(workspace, version)
    folder = workspace.model_folder(version)
    if not folder.is_dir():
        raise UnknownModel(f"{workspace.root} has no base model yet; the service makes it at its first run or /embed.")
    return folder


def _saved_config(folder: Path) -> object:
    if not folder.exists():
        return None
    try:
        check_whole(folder)
    except WorkspaceError as error:
        _log.warning("The base model is built anew: %s", error)
        return None
    return read_settings(folder)["config"]
