"""What leaves the service names no place of the server: paths below its workspace or its directory become relative.

So does what an option names by an absolute path.
"""

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from ..documents import ERROR_TAG, RunStatus
from ..errors import FinetunerError
from ..parameters import ExecutorOptions

# A place may also be the end of another path, or the begin of another name: /data/workspace, /workspace_old.
_BEGIN = r"""(?:(?<![^\s'"`(\[{<>=:,;|])|(?<=://))"""
_END = r"(?![\w~+@%#-]|\.+\w)"  # a full stop may also end the sentence


class Places(NamedTuple):
    """Folders that nobody outside is told of.

    Attributes: root: the folder of the workspace, or of a reader. named: those of what the options name.
    """

    root: Path
    named: tuple[str, ...] = ()


def places_of(root: Path, options: ExecutorOptions) -> Places:
    """Return the places of a service."""
    named = (options.model, options.augment, options.train_jobs)
    paths = (Path(each) for each in named if isinstance(each, str) and os.path.isabs(each))
    return Places(root, tuple(str(path.parent) for path in paths))


def outward(text: str, places: Places) -> str:
    """Return a message as a client may read it."""
    for place, name in ((str(places.root), "the workspace"), (_directory(), "the service's directory")):
        if len(place) > 1:
            text = re.sub(f"{_BEGIN}{re.escape(place)}(?:/|(?P<whole>{_END}))", _shown_as(name), text)
    for place in places.named:
        text = re.sub(f"{_BEGIN}{re.escape(place)}/", "", text) if len(place) > 1 else text
    return text


def _shown_as(name: str) -> Callable[[re.Match[str]], str]:
    return lambda found: "" if found["whole"] is None else name


def outward_error(error: FinetunerError, places: Places) -> FinetunerError:
    """Return an error of the same class with such a message."""
    said = outward(str(error), places)
    return error if said == str(error) else type(error)(said)


def outward_status(status: RunStatus, places: Places) -> RunStatus:
    """Change the messages in a status, and return it."""
    status.error, status.verdict = (text and outward(text, places) for text in (status.error, status.verdict))
    status.warnings = [outward(text, places) for text in status.warnings]
    for problem in status.problems:
        problem.reason = outward(problem.reason, places)
    return status


def outward_documents(docs: Iterable[Any], places: Places) -> None:
    """Change the error tags of documents and their matches."""
    for doc in docs:
        for part in (doc, *(doc.matches or ())):
            if ERROR_TAG in part.tags:
                part.tags[ERROR_TAG] = outward(str(part.tags[ERROR_TAG]), places)


def _directory() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:  # it was removed
        return ""
