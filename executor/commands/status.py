"""Show everything about one run."""

import argparse
from typing import Any

from ..errors import UnknownRun
from .places import add_place, reading
from .showing import as_json, console, details, print_json


def add(commands: Any) -> None:
    """Add the command and its arguments."""
    status = commands.add_parser("status", help="show everything about a run")
    status.add_argument("run", nargs="?", help="the name of the run; by default the newest")
    add_place(status)
    status.add_argument("--json", action="store_true", help="print the status as /status answers it")


def run(arguments: argparse.Namespace) -> int:
    """Print the status of a run."""
    place = reading(arguments)
    try:
        statuses = place.call("/status", **({"run": arguments.run} if arguments.run else {}))
    finally:
        place.close()
    if not statuses:
        raise UnknownRun("There are no runs yet: post documents to /fit, or use the command fit.")
    if arguments.json:
        print_json(as_json(statuses[0]))
    else:
        console().print(details(statuses[0]))
    return 0
