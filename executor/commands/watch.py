"""Follow a run until it ends."""

import argparse
import sys
from typing import Any

from .places import add_place, reading
from .showing import end_of, follow


def add(commands: Any) -> None:
    """Add the command and its arguments."""
    watch = commands.add_parser("watch", help="follow a run until it ends; exit code 1 if it fails")
    watch.add_argument("run", help="the name of the run")
    add_place(watch)
    watch.add_argument("--json", action="store_true", help="print each status on its own line; the last is the end")


def run(arguments: argparse.Namespace) -> int:
    """Show the progress of a run, and how it ended."""
    place = reading(arguments)
    try:
        status = follow(place, arguments.run, show=sys.stderr.isatty() and not arguments.json, lines=arguments.json)
    finally:
        place.close()
    return end_of(status)
