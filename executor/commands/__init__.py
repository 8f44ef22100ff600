"""The commands: `python -m executor COMMAND …`. Each file has `add`, its arguments, and `run`, which does it.

fit.py       fine-tune on a source of pictures, by a service or in this process
embed.py     embed a corpus into a parquet file
runs.py      list the runs
status.py    everything about a run
watch.py     follow a run until it ends
compare.py   measure two versions on the same documents
suggest.py   say which pictures of a gallery to label next
serve.py     serve over HTTP, without a Flow and without Jina
train.py     train one run of a workspace or of a job's folder, in this process
elsewhere.py have one run of a workspace trained by another command
standby.py   import what a trainer needs, then wait for the name of a run
report.py    write the report of a run again
map.py       map stored vectors into the space of another version
export.py    write a model version as files that other programs read
priority.py  how a trainer lets others go first, and ends with its service
reading.py   the arguments that name a source, and the count of what it has
places.py    the arguments that name a service or a workspace
calling.py   a service, over gRPC or HTTP
local.py     a workspace without a service
estimate.py  how long a training will take, and how much memory
sending.py   documents on their way to a service
measuring.py two versions, scored on the same documents
showing.py   tables, JSON and progress

May import everything. A command is imported when it is called: a trainer shall not wait for what others need.
"""

import argparse
import importlib
from typing import Any, Protocol, cast


class Command(Protocol):
    """What the file of a command defines."""

    def add(self, commands: Any) -> None:
        """Add a parser with the command's arguments."""

    def run(self, arguments: argparse.Namespace) -> int:
        """Do it, and return the exit code: 0 done, 1 the run or some rows failed, 2 wrong usage."""


COMMANDS = (
    "serve",
    "fit",
    "embed",
    "runs",
    "status",
    "watch",
    "compare",
    "map",
    "suggest",
    "report",
    "export",
    "train",
    "elsewhere",
    "standby",
)
WITHOUT_TORCH = ("runs", "status", "watch", "elsewhere")  # none of them computes; so does none that asks a service


def command(name: str) -> Command:
    """Import and return one of `COMMANDS`: its file has the same name."""
    return cast(Command, importlib.import_module(f".{name}", __name__))
