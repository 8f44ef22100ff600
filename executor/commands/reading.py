"""The arguments that name a source of pictures, and the count of what it has."""

import argparse
import sys
from dataclasses import dataclass, field
from pathlib import Path

from ..documents import LABEL_TAG, Document
from ..errors import ConfigurationError
from ..sources import Columns, Row, column_names, rows
from ..sources.folders import NoClassFolders

SHOWN = 8  # rows that are left out are named, up to so many; and as many documents are kept to try


def add_source(command: argparse.ArgumentParser) -> None:
    """Add the source and its columns."""
    command.add_argument(
        "source",
        type=Path,
        help="a folder of class folders, a CSV, TSV or parquet file, a dataset of Hugging Face on disk, or a text file "
        "(.txt) with a uri in each line",
    )
    add_columns(command)


def add_columns(command: argparse.ArgumentParser) -> None:
    """Add the columns of a table."""
    for name, what in (
        ("uri", "the picture: a uri, or the bytes of its file"),
        ("label", "the label"),
        ("group", "the group, such as a visit or a customer"),
        ("split", "train or eval"),
        ("id", "the id; by default the uri"),
    ):
        command.add_argument(f"--{name}-column", metavar="NAME", help=f"the column of a table with {what}")


def columns_of(arguments: argparse.Namespace) -> Columns:
    """Return the columns that the arguments name."""
    return Columns(**{name: getattr(arguments, f"{name}_column") for name in ("uri", "label", "group", "split", "id")})


@dataclass
class Census:
    """What a source has: how many rows of each split can be used, their labels, and what is left out."""

    splits: dict[str, int] = field(default_factory=lambda: {"train": 0, "eval": 0})
    labels: set[int | str] = field(default_factory=set)
    left_out: int = 0
    examples: list[str] = field(default_factory=list)
    some: list[Document] = field(default_factory=list)  # the first of those to train on

    def count(self, row: Row) -> None:
        if row.problem is not None:
            self.leave_out(row.problem)
            return
        self.splits[row.split] += 1
        if row.split == "train" and len(self.some) < SHOWN:
            self.some.append(row.document)
        if LABEL_TAG in row.document.tags:
            self.labels.add(row.document.tags[LABEL_TAG])

    def leave_out(self, reason: str) -> None:
        """Count a row that cannot be used."""
        self.left_out += 1
        if len(self.examples) < SHOWN:
            self.examples.append(reason)

    def __str__(self) -> str:
        kinds = f" of {len(self.labels)} labels" if self.labels else " without labels"
        text = f"{self.splits['train']} documents to train on{kinds}"
        return text + (f", {self.splits['eval']} to evaluate with." if self.splits["eval"] else ".")


def take_census(source: Path, columns: Columns, *, labelled: bool) -> Census:
    """Read a source once, without opening its pictures. Raises: ConfigurationError: nothing in it can be trained on."""
    census = Census()
    try:
        for row in rows(source, columns, labelled=labelled):
            census.count(row)
    except NoClassFolders as error:
        raise ConfigurationError(f"{error} Or train without labels: --kind unlabeled.") from error
    if not census.splits["train"]:
        why = f" Of {census.left_out} rows none can be used: {census.examples[0]}." if census.left_out else ""
        raise ConfigurationError(f"{source} has no documents to train on.{why}")
    return census


def without_labels(source: Path, kind: str) -> str:
    """Say what a source has instead of labels, what follows, and how to name them. Args: kind: as asked for."""
    names = column_names(source)
    what = "has no labels: only a table or class folders have them"
    cure = "Make it a table with a column 'label'"
    if names is not None:
        what = f"has no column 'label' (its columns: {', '.join(names)})"
        cure = "Name the labels' column with --label-column"
    then = "it is trained without labels" if kind == "auto" else f"--kind {kind} needs them"
    return f"{source} {what}, so {then}. {cure}, or say --kind unlabeled if none are meant."


def say_what_is_left_out(left_out: int, examples: list[str]) -> None:
    """Say on standard error how many rows are left out, and why the first of them."""
    if left_out:
        shown = [f"  {example}" for example in examples]
        more = [f"  … and {left_out - len(examples)} more"] if left_out > len(examples) else []
        print("\n".join([f"{left_out} left out:", *shown, *more]), file=sys.stderr)


def positive(text: str) -> int:
    """Return a whole number above 0. Raises: ArgumentTypeError: it is not that."""
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} must be a whole number above 0")
