"""Write a model version as files that other programs read."""

import argparse
from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    """Add the command and its arguments."""
    export = commands.add_parser("export", help="write a model version as files that other programs read")
    export.add_argument("run", help="the name of the run whose model it is, or `base`")
    export.add_argument("--workspace", type=Path, required=True, help="the workspace folder of the service")
    export.add_argument(
        "--format", choices=("onnx", "safetensors", "transformers"), required=True, help="what to write"
    )
    export.add_argument("--output", type=Path, required=True, help="a new folder to write it into")


def run(arguments: argparse.Namespace) -> int:
    """Export the version and print the folder."""
    from ..models.export import main as run_export

    return run_export(arguments.run, arguments.workspace, arguments.format, arguments.output)
