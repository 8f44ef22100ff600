"""Map stored vectors into the space of another version."""

import argparse
from functools import partial
from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    """Add the command and its arguments."""
    mapping = commands.add_parser("map", help="map stored vectors into the space of another version")
    mapping.add_argument("source", type=Path, metavar="IN.parquet", help="a file with the column `embedding`")
    mapping.add_argument("target", type=Path, metavar="OUT.parquet", help="a new file: all columns of the other")
    mapping.add_argument("--from", dest="version", required=True, metavar="A", help="the version that made the vectors")
    mapping.add_argument("--to", required=True, metavar="B", help="the version in whose space they shall be")
    mapping.add_argument("--workspace", type=Path, required=True, help="the workspace folder of the service")


def run(arguments: argparse.Namespace) -> int:
    """Print what the map loses, map the file, and say how many vectors there were."""
    from ..models.versions import version_folder, version_names
    from ..serving.spaces import Spaces
    from ..serving.stored import loss_of, map_file
    from ..store.workspace import find_workspace

    workspace = find_workspace(arguments.workspace)
    spaces = Spaces(partial(version_folder, workspace), partial(version_names, workspace))
    leap = spaces.leap(arguments.version, arguments.to)
    print(loss_of(leap), flush=True)
    mapped = map_file(arguments.source, arguments.target, leap, say=lambda line: print(line, flush=True))
    print(f"{arguments.target}: {mapped:,} vectors in the space {leap.target}.")
    return 0
