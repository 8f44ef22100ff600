"""Commands: `python -m executor train …`, `report …` and `export …`."""

import argparse
import os
import sys
from pathlib import Path


def main() -> int:
    """Run a command and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m executor", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="train one run of a workspace; the service starts this by itself")
    train.add_argument("--workspace", type=Path, required=True, help="the workspace folder of the service")
    train.add_argument("--run", required=True, help="the name of the run")
    train.add_argument("--nice", type=int, default=0, help="lower the priority of this process by so much")
    train.add_argument("--tied", action="store_true", help="end when standard input ends")
    export = commands.add_parser("export", help="write a model version as files that other programs read")
    export.add_argument("run", help="the name of the run whose model it is, or `base`")
    export.add_argument("--workspace", type=Path, required=True, help="the workspace folder of the service")
    export.add_argument(
        "--format", choices=("onnx", "safetensors", "transformers"), required=True, help="what to write"
    )
    export.add_argument("--output", type=Path, required=True, help="a new folder to write it into")
    report = commands.add_parser("report", help="write the report of a run again and print its path")
    report.add_argument("run", help="the name of the run")
    report.add_argument("--workspace", type=Path, required=True, help="the workspace folder of the service")
    arguments = parser.parse_args()
    if arguments.command == "report":
        return _report(arguments)
    if arguments.command == "export":
        return _export(arguments)
    return _train(arguments)


def _train(arguments: argparse.Namespace) -> int:
    os.nice(arguments.nice)

    from .trainer import main as run_trainer

    return run_trainer(arguments.workspace, arguments.run, tied=arguments.tied)


def _export(arguments: argparse.Namespace) -> int:
    from .export import main as run_export

    return run_export(arguments.run, arguments.workspace, arguments.format, arguments.output)


def _report(arguments: argparse.Namespace) -> int:
    from .reporting import main as write_report

    return write_report(arguments.run, arguments.workspace)


if __name__ == "__main__":
    sys.exit(main())
