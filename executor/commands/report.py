"""Write the report of a run again."""

import argparse
from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    """Add the command and its arguments."""
    report = commands.add_parser("report", help="write the report of a run again and print its path")
    report.add_argument("run", help="the name of the run")
    report.add_argument("--workspace", type=Path, required=True, help="the workspace folder of the service")


def run(arguments: argparse.Namespace) -> int:
    """Write the report and print its path."""
    from ..report.contents import rewrite
    from ..store.workspace import find_workspace

    print(rewrite(find_workspace(arguments.workspace), arguments.run))
    return 0
