"""What leaves the service names no place of the server: paths below its workspace or its directory become relative."""

import os
from collections.abc import Iterable
from typing import Any

from ..documents import ERROR_TAG, RunStatus
from ..errors import FinetunerError
from ..store.workspace import Workspace


def outward(text: str, workspace: Workspace) -> str:
    """Return a message as a client may read it."""
    for place, name in ((str(workspace.root), "the workspace"), (_directory(), "the service's directory")):
        if len(place) > 1:
            text = text.replace(f"{place}/", "").replace(place, name)
    return text


def outward_error(error: FinetunerError, workspace: Workspace) -> FinetunerError:
    """Return an error of the same class with such a message."""
    said = outward(str(error), workspace)
    return error if said == str(error) else type(error)(said)


def outward_status(status: RunStatus, workspace: Workspace) -> RunStatus:
    """Change the messages in a status, and return it."""
    status.error, status.verdict = (text and outward(text, workspace) for text in (status.error, status.verdict))
    status.warnings = [outward(text, workspace) for text in status.warnings]
    for problem in status.problems:
        problem.reason = outward(problem.reason, workspace)
    return status


def outward_documents(docs: Iterable[Any], workspace: Workspace) -> None:
    """Change the error tags of documents and their matches."""
    for doc in docs:
        for part in (doc, *(doc.matches or ())):
            if ERROR_TAG in part.tags:
                part.tags[ERROR_TAG] = outward(str(part.tags[ERROR_TAG]), workspace)


def _directory() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:  # it was removed
        return ""
