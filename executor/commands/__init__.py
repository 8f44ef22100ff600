"""The commands: `python -m executor COMMAND …`. Each file has `add`, its arguments, and `run`, which does it.

serve.py     serve over HTTP, without a Flow and without Jina
train.py     train one run of a workspace, in this process
standby.py   import what a trainer needs, then wait for the name of a run
report.py    write the report of a run again
export.py    write a model version as files that other programs read
priority.py  how a trainer lets others go first, and ends with its service

May import everything, but only when a command runs: the other commands shall not wait for its imports.
"""

import argparse
from typing import Any, Protocol

from . import export, report, serve, standby, train


class Command(Protocol):
    """What the file of a command defines."""

    def add(self, commands: Any) -> None:
        """Add a parser with the command's arguments."""

    def run(self, arguments: argparse.Namespace) -> int:
        """Do it, and return the exit code: 0 done, 1 the run or some rows failed, 2 wrong usage."""


COMMANDS: dict[str, Command] = {
    "serve": serve,
    "train": train,
    "standby": standby,
    "export": export,
    "report": report,
}
