"""Fine-tune on a source of pictures: send it to a service, or train in a workspace in this process."""

import argparse
import re
import sys
import time
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel

from ..documents import Document, RunStatus
from ..errors import BadDocument, BadRequest, ConfigurationError
from ..parameters import RESERVED_NAMES, ExecutorOptions, TrainingOptions, meant_by, parse
from ..sources import rows
from .calling import Place, connect
from .local import Trainer
from .places import add_place, to_train_in
from .reading import Census, add_source, columns_of, say_what_is_left_out, take_census, without_labels
from .sending import add_send, loaded
from .showing import as_json, end_of, follow, print_json, sending


def add(commands: Any) -> None:
    """Add the command and its arguments."""
    fit = commands.add_parser("fit", help="fine-tune on a folder, a table or a list of pictures")
    add_source(fit)
    add_place(fit)
    fit.add_argument("--run", help="the name of the run; by default that of the source, with a number if it is taken")
    for name in ("kind", "base", "epochs", "promote"):
        fit.add_argument(f"--{name}", help=f"the option {name} of /fit")
    fit.add_argument(
        "--option", action="append", default=[], metavar="NAME=VALUE", help="any other option of /fit; may be repeated"
    )
    fit.add_argument(
        "--with",
        dest="executor",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of the executor, such as model=small; only with --workspace",
    )
    add_send(fit)
    fit.add_argument("--json", action="store_true", help="print the last status as /status answers it")


def run(arguments: argparse.Namespace) -> int:
    """Read, send or store, train, and say how it ended."""
    options = _options(arguments)
    if arguments.service and arguments.executor:
        raise BadRequest("--with sets an option of the executor; a service has its own. Use it with --workspace.")
    labelled = options.get("kind") != "unlabeled"
    census = take_census(arguments.source, columns_of(arguments), labelled=labelled)
    print(census, file=sys.stderr)
    if labelled and not census.labels:
        print(without_labels(arguments.source, str(options.get("kind", "auto"))), file=sys.stderr)
    show = sys.stderr.isatty()
    place = _place(arguments)
    try:
        name = arguments.run or free_name(place, arguments.source.resolve().stem)
        print(f"Run {name}.", file=sys.stderr)
        if isinstance(place, Trainer):
            _say_estimate(place, options, census)
        sent = _send(place, arguments, census, {**options, "run": name}, labelled=labelled, show=show)
        say_what_is_left_out(census.left_out, census.examples)
        if not any(sent.values()) and name not in {status.run for status in place.call("/status")}:
            pictures = f"{sum(census.splits.values())} pictures of {arguments.source}"
            raise ConfigurationError(f"None of the {pictures} can be read; nothing was sent.")
        _start(place, name, sent["train"])
        status = follow(place, name, show=show, lines=False)
    finally:
        place.close()
    if arguments.json:
        print_json(as_json(status))
    return end_of(status)


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the options of `/fit`. Raises: InvalidParameter: one is unknown or wrong, before anything is sent."""
    options = _settings(arguments.option, "--option", TrainingOptions)
    for name in ("kind", "base", "epochs", "promote"):
        if getattr(arguments, name) is not None:
            options[name] = meant_by(TrainingOptions, name, getattr(arguments, name))
    parse(TrainingOptions, options, where="/fit")
    return options


def _settings(given: list[str], flag: str, model: type[BaseModel]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not equals:
            raise BadRequest(f"{flag} {each!r} must be NAME=VALUE.")
        settings[name.strip()] = meant_by(model, name.strip(), value)
    return settings


def _place(arguments: argparse.Namespace) -> Place:
    if arguments.service:
        return connect(arguments.service)
    workspace = to_train_in(arguments.workspace)
    if not workspace.database.exists():
        print(f"A new workspace, {workspace.root}.", file=sys.stderr)
    return Trainer(workspace, _settings(arguments.executor, "--with", ExecutorOptions))


def _say_estimate(place: Trainer, options: dict[str, Any], census: Census) -> None:
    from .estimate import estimate

    wanted = parse(TrainingOptions, {**place.options.fit_defaults, **options}, where="/fit")
    found = estimate(place.workspace, place.options, wanted, census.splits["train"], census.some)
    if found is not None:
        print(found, file=sys.stderr)


def free_name(place: Place, stem: str) -> str:
    """Return a name that no run has yet, and may have."""
    taken = {*RESERVED_NAMES, *(status.run for status in place.call("/status"))}
    plain = re.sub(r"[^\w.-]+", "-", stem, flags=re.ASCII).strip("-.")[:40] or "run"
    numbered = (plain if number == 1 else f"{plain}-{number}" for number in range(1, len(taken) + 2))
    return next(name for name in numbered if name not in taken)


def _send(
    place: Place, arguments: argparse.Namespace, census: Census, options: dict[str, Any], *, labelled: bool, show: bool
) -> dict[str, int]:
    """Send the eval documents, and then the train documents, with their number; return how many went in the end."""
    sent = {"train": 0, "eval": 0}
    with sending(show, sum(census.splits.values())) as bar:
        task = bar.add_task("sent" if arguments.service else "stored", total=sum(census.splits.values()))

        def docs(split: Literal["train", "eval"]) -> Iterator[Document]:
            for row in rows(arguments.source, columns_of(arguments), labelled=labelled):
                if row.split != split or row.problem is not None:
                    continue
                bar.advance(task)
                try:
                    doc = loaded(row.document) if arguments.service and arguments.send == "pictures" else row.document
                except BadDocument as error:
                    census.leave_out(f"{row.document.id}: {error}")
                    continue
                sent[split] += 1
                yield doc

        if census.splits["eval"]:
            place.stream("/fit", docs("eval"), _ignore, split="eval", **options)
        place.stream("/fit", docs("train"), _ignore, total=census.splits["train"], **options)
    return sent


def _start(place: Place, name: str, sent: int) -> None:
    """Start a run that has got fewer documents than were counted: some were left out, or are there twice.

    Args: sent: how many train documents were sent in the end; the number announced is corrected to it.
    """
    status: RunStatus = place.call("/status", run=name)[0]
    if status.state == "receiving":
        corrected: dict[str, Any] = {"total": sent} if sent else {}
        place.call("/fit", run=name, start=True, **corrected)
    while status.state == "receiving":
        time.sleep(0.2)
        status = place.call("/status", run=name)[0]


def _ignore(answers: list[Any]) -> None:
    pass
