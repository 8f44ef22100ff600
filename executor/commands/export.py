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
    from ..errors import NotFound
    from ..models.export import export, find_model
    from ..models.model import EmbeddingModel
    from ..report.card import model_card
    from ..report.report import load

    folder = find_model(arguments.workspace, arguments.run)
    try:
        report = None if arguments.run == "base" else load(folder.parent)
    except NotFound:  # it may have been removed; the model is here
        report = None

    def card(model: EmbeddingModel, loading: str) -> str:
        return model_card(arguments.run, arguments.format, model.config.model, loading, report)

    print(export(folder, arguments.output, arguments.format, card=card))
    return 0
