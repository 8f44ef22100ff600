"""Embed a corpus into a parquet file."""

import argparse
import asyncio
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..documents import Document
from ..errors import BadRequest
from ..parameters import EmbedParameters
from ..sources import Row, rows
from .calling import Place, connect
from .places import add_place, reading
from .reading import add_source, columns_of, positive
from .sending import add_send, embed_by_service
from .showing import print_json, sending

if TYPE_CHECKING:
    from ..bulk.embedding import Shard
    from ..bulk.parts import Finished, Output


def add(commands: Any) -> None:
    """Add the command and its arguments."""
    embed = commands.add_parser("embed", help="embed a corpus into a parquet file; a second start goes on with it")
    add_source(embed)
    add_place(embed)
    embed.add_argument("--to", type=Path, required=True, metavar="FILE.parquet", help="the file to write")
    embed.add_argument(
        "--model", metavar="VERSION", help="`base` or a run; by default the version served when it is begun"
    )
    embed.add_argument("--space", metavar="VERSION", help="map the vectors into the space of another version")
    embed.add_argument("--dimensions", type=positive, metavar="N", help="so many principal components of each vector")
    embed.add_argument(
        "--encoding", choices=("float", "int8", "binary"), default="float", help="of the vectors (default float)"
    )
    embed.add_argument("--shard", default="1/1", metavar="I/N", help="embed only share I of N; each into its own file")
    embed.add_argument(
        "--part-rows",
        type=positive,
        default=2000,
        metavar="N",
        help="rows of a part: as many are embedded again after an interruption (default 2000)",
    )
    embed.add_argument("--engine", choices=("here", "ray"), default="here", help="`ray`: by actors of a Ray cluster")
    embed.add_argument("--actors", type=positive, metavar="N", help="with `ray`: how many; by default one a node")
    add_send(embed)
    embed.add_argument("--json", action="store_true", help="print what was done as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Embed each row; one that cannot be embedded has the reason in the column `error`."""
    from ..bulk.embedding import Shard
    from ..bulk.parts import Output, begun_with, exists_already

    if arguments.engine == "ray" and arguments.service:
        raise BadRequest("--engine ray embeds with a version of a workspace: name it with --workspace.")
    shard = Shard.parse(arguments.shard)
    first = next(rows(arguments.source, columns_of(arguments), labelled=False))  # a wrong source is refused at once
    del first
    place = reading(arguments)
    try:
        version = arguments.model or begun_with(arguments.to).get("model") or _served(place)
        output = Output(
            arguments.to, _plan(arguments, version, shard), arguments.part_rows, encoding=arguments.encoding
        )

        def source() -> Iterator[Row]:
            return shard.of(rows(arguments.source, columns_of(arguments), labelled=False))

        named = ((row.document.id, row.document.uri) for row in source())
        if (before := output.finished) is not None:
            if not output.is_of(named):
                raise exists_already(arguments.to)  # the source has changed
        elif changed := output.remove_changed(named):
            print(f"The source has changed: {changed} finished parts are made anew.", file=sys.stderr)
        done = before or _embed(arguments, source(), version, output)
    finally:
        place.close()
    if before is not None:
        print(f"{arguments.to} was made before, of the same source, and stays as it is.", file=sys.stderr)
    if arguments.json:
        print_json({"to": str(arguments.to), "model": version, **vars(done)})
    else:
        print(
            f"{done.rows - done.failed} embedded with {version}, {done.failed} failed: {arguments.to}", file=sys.stderr
        )
    return 1 if done.failed else 0


def _embed(arguments: argparse.Namespace, source: Iterator[Row], version: str, output: "Output") -> "Finished":
    with sending(sys.stderr.isatty(), None) as bar:
        task = bar.add_task("embedded", total=None)

        def advance(count: int) -> None:
            bar.advance(task, count)

        return output.join(_ENGINES[arguments.engine](arguments, source, version, output, advance))


def _plan(arguments: argparse.Namespace, version: str, shard: "Shard") -> dict[str, Any]:
    """What the rows of the file depend on. What is in a folder is seen by its rows: see `Output.remove_changed`."""
    source = arguments.source.resolve()
    plan = {"source": str(source), "model": version, "shard": str(shard)}
    if source.is_file():
        stat = source.stat()
        plan |= {"size": stat.st_size, "modified": stat.st_mtime_ns}
    columns = {f"{name}_column": column for name, column in vars(columns_of(arguments)).items() if column is not None}
    return plan | columns | _wanted(arguments)


def _served(place: Place) -> str:
    """The version served now: one for the whole corpus, also if another is promoted before it is finished."""
    statuses = place.call("/status")
    return str(statuses[0].model) if statuses else "base"


def _wanted(arguments: argparse.Namespace) -> dict[str, Any]:
    """The parameters of `/embed` that say in what form the vectors are wanted, as far as they are given."""
    form = {name: getattr(arguments, name) for name in ("space", "dimensions", "encoding")}
    return {name: value for name, value in form.items() if value not in (None, "float")}


def _here(
    arguments: argparse.Namespace, source: Iterator[Row], version: str, output: Any, advance: Callable[[int], None]
) -> int:
    from ..bulk.embedding import VersionEmbedder, embed_rows

    if arguments.service:
        place, wanted = connect(arguments.service), _wanted(arguments)
        pictures = arguments.send == "pictures"

        async def by_service(docs: list[Document]) -> list[Document]:
            return await asyncio.to_thread(embed_by_service, place, docs, version, pictures, wanted)

        return asyncio.run(embed_rows(source, by_service, output, advance))
    from ..store.workspace import find_workspace
    from .local import kept_options

    workspace = find_workspace(arguments.workspace)
    form = EmbedParameters(**_wanted(arguments))
    embedder = VersionEmbedder(workspace.root, kept_options(workspace, {}), version, wanted=form)
    try:
        return asyncio.run(embed_rows(source, embedder, output, advance))
    finally:
        embedder.close()


def _on_ray(
    arguments: argparse.Namespace, source: Iterator[Row], version: str, output: Any, advance: Callable[[int], None]
) -> int:
    from ..bulk.on_ray import embed_on_ray
    from ..store.workspace import find_workspace
    from .local import kept_options

    workspace = find_workspace(arguments.workspace)
    options = kept_options(workspace, {})
    form = EmbedParameters(**_wanted(arguments))
    return embed_on_ray(source, workspace.root, options, version, output, advance, wanted=form, actors=arguments.actors)


_ENGINES = {"here": _here, "ray": _on_ray}
