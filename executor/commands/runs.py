"""List the runs of a service or of a workspace."""

import argparse
from typing import Any

from .places import add_place, reading
from .showing import as_json, console, print_json, runs_table


def add(commands: Any) -> None:
    """Add the command and its arguments."""
    runs = commands.add_parser("runs", help="list the runs, newest first")
    add_place(runs)
    runs.add_argument("--json", action="store_true", help="print what /status answers, as a list")


def run(arguments: argparse.Namespace) -> int:
    """Print a table of all runs."""
    place = reading(arguments)
    try:
        statuses = place.call("/status")
    finally:
        place.close()
    if arguments.json:
        print_json([as_json(status) for status in statuses])
    elif statuses:
        console().print(runs_table(statuses))
    else:
        console().print("There are no runs yet.")
    return 0
