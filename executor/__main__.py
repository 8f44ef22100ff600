"""Commands: `python -m executor train …`."""

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
    arguments = parser.parse_args()
    os.nice(arguments.nice)

    from .trainer import main as run_trainer

    return run_trainer(arguments.workspace, arguments.run, tied=arguments.tied)


if __name__ == "__main__":
    sys.exit(main())
