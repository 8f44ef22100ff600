"""Where a command works: `--service URL`, or `--workspace FOLDER` without a service."""

import argparse
from pathlib import Path

from ..errors import ConfigurationError
from ..store.workspace import Workspace, find_workspace
from .calling import Place, connect


def add_place(command: argparse.ArgumentParser) -> None:
    """Add `--service` and `--workspace`, of which one is needed."""
    place = command.add_mutually_exclusive_group(required=True)
    place.add_argument(
        "--service",
        metavar="URL",
        help="a service: grpc://host:port or http://host:port (grpcs, https); its token is read from FINETUNER_TOKEN",
    )
    place.add_argument(
        "--workspace", type=Path, metavar="FOLDER", help="a workspace: Jina's folder, or FinetunerExecutor/0 in it"
    )


def reading(arguments: argparse.Namespace) -> Place:
    """Return the service, or the workspace to be read only. Raises: WorkspaceError: there is none."""
    if arguments.service:
        return connect(arguments.service)
    from .local import Reader

    return Reader(find_workspace(arguments.workspace))


def to_train_in(folder: Path) -> Workspace:
    """Return the workspace in `folder`, or a new one if there is no such folder, or nothing in it.

    Raises: WorkspaceError: there are several. ConfigurationError: the folder is in use for something else.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return Workspace(folder.absolute() / "FinetunerExecutor" / "0")  # where a service would make it
    if not folder.is_dir():
        raise ConfigurationError(f"--workspace {folder} is a file; name a folder.")
    found = find_workspace(folder)
    return Workspace(found.root.absolute())
