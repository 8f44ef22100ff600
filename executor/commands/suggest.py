"""Which pictures of a gallery to label next."""

import argparse
from pathlib import Path
from typing import Any

from rich.table import Table

from ..documents import REASON_TAG
from .calling import Place, connect
from .places import add_place
from .reading import positive
from .showing import console, print_json


def add(commands: Any) -> None:
    """Add the command and its arguments."""
    suggest = commands.add_parser("suggest", help="say which pictures of a gallery to label next, best first")
    suggest.add_argument(
        "gallery",
        metavar="GALLERY",
        help="a folder of pictures, or a parquet file that `embed` has written; a service must be able to read it",
    )
    add_place(suggest)
    suggest.add_argument("--limit", type=positive, default=20, metavar="N", help="at most so many (default 20)")
    suggest.add_argument("--json", action="store_true", help="print what /suggest answers, one document a line")


def run(arguments: argparse.Namespace) -> int:
    """Print the pictures whose labels would teach most, each with the reason."""
    place = _place(arguments)
    try:
        gallery = str(Path(arguments.gallery).resolve())
        found = place.call("/suggest", gallery=gallery, limit=arguments.limit)
    finally:
        place.close()
    if arguments.json:
        for doc in found:
            print_json({"id": doc.id, "uri": doc.uri, "tags": doc.tags})
        return 0
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("", "picture", "why"):
        table.add_column(title, overflow="fold")
    for number, doc in enumerate(found, start=1):
        table.add_row(str(number), str(doc.id), doc.tags[REASON_TAG])
    console().print(table)
    return 0


def _place(arguments: argparse.Namespace) -> Place:
    """A service, or the workspace of one that is not running.

    There every file may be read: what is labelled already need not lie in the gallery.
    """
    if arguments.service:
        return connect(arguments.service)
    from ..store.workspace import find_workspace
    from .local import Trainer

    return Trainer(find_workspace(arguments.workspace), {})
