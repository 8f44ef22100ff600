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
    show = sys.stderr.isatty() and not arguments.json
    try:
        status = follow(place, arguments.run, show=show, lines=arguments.json, is_served=lambda: _is_served(arguments))
    finally:
        place.close()
    return end_of(status)


def _is_served(arguments: argparse.Namespace) -> bool:
    """Whether a service works on the run: the one that answers, or one in the workspace that is only read."""
    if arguments.service:
        return True
    from ..store.lock import is_held
    from ..store.workspace import find_workspace

    return is_held(find_workspace(arguments.workspace))
