"""What leaves the service names no place of the server: paths below its workspace or its directory become relative."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..documents import ERROR_TAG, RunStatus
from ..errors import FinetunerError


def outward(text: str, root: Path) -> str:
    """Return a message as a client may read it. Args: root: the folder of the workspace, or of a reader."""
    for place, name in ((str(root), "the workspace"), (_directory(), "the service's directory")):
        if len(place) > 1:
            text = text.replace(f"{place}/", "").replace(place, name)
    return text


def outward_error(error: FinetunerError, root: Path) -> FinetunerError:
    """Return an error of the same class with such a message."""
    said = outward(str(error), root)
    return error if said == str(error) else type(error)(said)


def outward_status(status: RunStatus, root: Path) -> RunStatus:
    """Change the messages in a status, and return it."""
    status.error, status.verdict = (text and outward(text, root) for text in (status.error, status.verdict))
    status.warnings = [outward(text, root) for text in status.warnings]
    for problem in status.problems:
        problem.reason = outward(problem.reason, root)
    return status


def outward_documents(docs: Iterable[Any], root: Path) -> None:
    """Change the error tags of documents and their matches."""
    for doc in docs:
        for part in (doc, *(doc.matches or ())):
            if ERROR_TAG in part.tags:
                part.tags[ERROR_TAG] = outward(str(part.tags[ERROR_TAG]), root)


def _directory() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:  # it was removed
        return ""
