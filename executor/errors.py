"""Every error that a user can meet, in one tree.

FinetunerError
├── BadRequest            400  the call itself is wrong
│   ├── InvalidParameter  400  unknown, ill-typed or contradicting parameter
│   └── NotTrainable      400  documents that no run can train on
├── Unauthorized          401  no token, or a wrong one
├── NotFound              404
│   ├── UnknownRun        404
│   └── UnknownModel      404
├── ForeignOrigin         403  a page of another site calls our HTTP door
├── TooSlow               408  the body of a request trickles
├── Conflict              409  right call, wrong moment: the run's state forbids it
│   └── IllegalTransition 409
├── LimitExceeded         413  one of the configured limits
├── WrongType             415  a content type that the route does not take
├── Overloaded            429  the embedding queue is full
├── BadDocument           422  one document cannot be used; its neighbours can
│   └── MissingLabel      422  also a KeyError: it names the tag `finetuner_label`
├── ConfigurationError    500  an executor option, or the model it names, is wrong
├── OutOfMemory           500  not even one image at a time fits into memory
├── NotReady              503  a reader has no version yet
├── WorkspaceError        503  the workspace is held by another service, full, read-only or of another version
├── Unreachable           503  the service that a command calls, or any executor of a Flow, does not answer
└── InternalError         500  our fault: the service's log has the traceback

Each message is one or two sentences: what was wrong, and what to do about it.
"""

from collections.abc import Sequence
from typing import Any

SHOWN = 200  # characters of what a caller sent that a message repeats


def brief(value: Any, length: int = SHOWN) -> str:
    """Return what a caller sent as text for a message: an id may have megabytes."""
    text = str(value)
    return text if len(text) <= length else f"{text[:length]}…"


class FinetunerError(Exception):
    """Base of all errors meant for a user. `status` is the HTTP status code."""

    status = 500


class BadRequest(FinetunerError, ValueError):
    """The call itself is wrong."""

    status = 400


class InvalidParameter(BadRequest):
    """A parameter that is unknown, has the wrong type or contradicts another; the message names it."""


class NotTrainable(BadRequest):
    """Documents that cannot be trained on as a set; the message has the counts."""


class Unauthorized(FinetunerError):
    """The service asks for a token and the caller sent none, or a wrong one."""

    status = 401


class NotFound(FinetunerError, LookupError):
    """The call names something that does not exist."""

    status = 404


class UnknownRun(NotFound):
    """There is no run with that name."""


class UnknownModel(NotFound):
    """There is no model version with that name."""


class ForeignOrigin(FinetunerError):
    """A page of another site calls, and the operator has not named it."""

    status = 403


class TooSlow(FinetunerError):
    """The body of a request comes too slowly."""

    status = 408


class Conflict(FinetunerError):
    """The call is right, but the state of the run forbids it now."""

    status = 409


class IllegalTransition(Conflict):
    """A run cannot move from its present state to the state asked for."""


class LimitExceeded(FinetunerError):
    """A configured limit was reached; the message names the option that raises it."""

    status = 413


class WrongType(FinetunerError):
    """The content type of a request is none that the route takes."""

    status = 415


class Overloaded(FinetunerError):
    """Too much is waiting already; try again later."""

    status = 429


class BadDocument(FinetunerError, ValueError):
    """One document cannot be used. `str(error)` is the reason, without the document's id."""

    status = 422


class MissingLabel(BadDocument, KeyError):
    """A document lacks `tags['finetuner_label']`."""

    def __str__(self) -> str:  # KeyError would show the repr of the message
        return str(self.args[0]) if self.args else ""


class ConfigurationError(FinetunerError, ValueError):
    """An executor option, or something that it names, is wrong."""


class OutOfMemory(FinetunerError):
    """There is too little memory, even for the smallest parts of a batch."""


class WorkspaceError(FinetunerError):
    """The workspace cannot be used."""

    status = 503


class Unreachable(FinetunerError):
    """Nothing answers: the service that a command calls, or the executors of the Flow behind a gateway."""

    status = 503


class NotReady(FinetunerError):
    """A reader that no version has reached yet."""

    status = 503


class InternalError(FinetunerError):
    """A bug in the service; its log has the traceback."""

    @classmethod
    def of(cls, error: Exception) -> "InternalError":
        """Return what a caller is told of an error that is our fault."""
        return cls(f"The service failed with {type(error).__name__}; its log has the details. Please report it.")


def status_of(arguments: Sequence[str]) -> int:
    """Return the HTTP status of the class that a `Refusal` names, its second argument; 500 if it names none."""
    error = globals().get(arguments[1]) if len(arguments) == 2 else None
    return error.status if isinstance(error, type) and issubclass(error, FinetunerError) else FinetunerError.status
