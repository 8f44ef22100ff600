"""Every endpoint with its parameters: what a door calls once it has decoded a request."""

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel

from .. import parameters as of
from ..documents import Document
from ..errors import ConfigurationError, Conflict, FinetunerError
from . import gallery, reader, runs, words
from .compare import compare
from .embed import embed
from .evaluate import evaluate
from .feedback import feedback
from .outward import outward_error
from .quarantined import quarantined
from .reader import Reader
from .service import Service
from .suggest import suggest


class Endpoint(NamedTuple):
    """A function that takes the service, documents and typed parameters, and returns documents."""

    function: Callable[[Any, Any, Any], Awaitable[Sequence[Any]]]
    parameters: type[BaseModel]


ENDPOINTS = {
    "/fit": Endpoint(runs.fit, of.FitParameters),
    "/status": Endpoint(runs.status, of.StatusParameters),
    "/embed": Endpoint(embed, of.EmbedParameters),
    "/evaluate": Endpoint(evaluate, of.EvaluateParameters),
    "/compare": Endpoint(compare, of.CompareParameters),
    "/promote": Endpoint(runs.promote, of.PromoteParameters),
    "/cancel": Endpoint(runs.cancel, of.CancelParameters),
    "/delete": Endpoint(runs.delete, of.DeleteParameters),
    "/events": Endpoint(runs.events, of.EventsParameters),
    "/feedback": Endpoint(feedback, of.FeedbackParameters),
    "/galleries": Endpoint(gallery.galleries, of.GalleriesParameters),
    "/gallery": Endpoint(gallery.gallery, of.GalleryParameters),
    "/thumbnails": Endpoint(gallery.thumbnails, of.ThumbnailsParameters),
    "/neighbours": Endpoint(gallery.neighbours, of.NeighboursParameters),
    "/words": Endpoint(words.words, of.WordsParameters),
    "/labels": Endpoint(words.labels, of.LabelsParameters),
    "/suggest": Endpoint(suggest, of.SuggestParameters),
    "/quarantined": Endpoint(quarantined, of.QuarantinedParameters),
    "/report": Endpoint(runs.report, of.ReportParameters),
}


# What the page and our gateway ask for. Other gateways are not told of these: an executor behind ours must have every
# endpoint that they know of.
UNTOLD = frozenset(
    [
        *("/compare", "/galleries", "/gallery", "/labels", "/neighbours", "/quarantined", "/thumbnails", "/words"),
        *("/readyz", "/metrics", "/coming"),
    ]
)
_OF_A_READER = {path: ENDPOINTS[path] for path in ("/embed", "/evaluate")} | {
    "/status": Endpoint(reader.status, of.StatusParameters)
}
_OF_A_TRAINER = {path: endpoint for path, endpoint in ENDPOINTS.items() if path != "/embed"}
_OF_A_ROLE = {"all": ENDPOINTS, "train": _OF_A_TRAINER, "serve": _OF_A_READER}
_BESIDE = {"all": "/watch", "train": "/watch", "serve": "/v1/embeddings"}  # what a role has that no table has


def open_service(folder: Path, options: of.ExecutorOptions, *, copies: int = 1) -> Service | Reader:
    """Return what serves a workspace in the role that the options give it.

    Args: copies: how many such processes are started side by side on this workspace.
    Raises: ConfigurationError: there is more than one, and they are no readers. WorkspaceError: the workspace is in
        use, or cannot be used.
    """
    if options.role == "serve":
        return Reader(folder, options)
    if copies > 1:
        raise ConfigurationError(
            f"{copies} replicas or shards were asked for, but the service that trains (role: {options.role}) must be "
            "alone on its workspace. Start one, let it publish its versions (publish_to), and start as many readers "
            "(role: serve, with serve_from) as you need."
        )
    return Service(folder, options)


def endpoint_of(service: Service | Reader, path: str) -> Endpoint:
    """Return the endpoint at `path`. Raises: Conflict: a service of this role does not have it."""
    endpoints = _OF_A_ROLE[service.role]
    if path not in endpoints:
        raise not_here(service.role, path)
    return endpoints[path]


def writer_of(service: Service | Reader, path: str) -> Service:
    """Return `service` if it is one that has runs. Raises: Conflict: it is a reader; `path` is what was called."""
    if isinstance(service, Reader):
        raise not_here(service.role, path)
    return service


def not_here(role: str, path: str) -> Conflict:
    """Return what a service with a role says of an endpoint that it does not have."""
    other = "the service that trains" if role == "serve" else "a reader, or a service with the role 'all',"
    has = ", ".join([*_OF_A_ROLE[role], _BESIDE[role]])
    return Conflict(f"This service has the role {role!r}: call {other} for {path}. It has: {has}.")


async def call(
    service: Service | Reader, path: str, docs: Sequence[Document], parameters: dict[str, Any] | None
) -> Sequence[Any]:
    """Call the endpoint at `path`, with parameters as they came over the wire.

    Raises: FinetunerError: the message says what was wrong. InvalidParameter: a parameter is wrong. Conflict: the role
        of the service does not have this endpoint.
    """
    endpoint = endpoint_of(service, path)
    try:
        return await endpoint.function(service, docs, of.parse(endpoint.parameters, parameters, where=path))
    except FinetunerError as error:
        raise outward_error(error, service.places) from error
