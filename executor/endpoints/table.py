"""Every endpoint with its parameters: what a door calls once it has decoded a request."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

from pydantic import BaseModel

from .. import parameters as of
from ..documents import Document
from ..errors import FinetunerError
from . import runs
from .embed import embed
from .evaluate import evaluate
from .outward import outward_error
from .service import Service


class Endpoint(NamedTuple):
    """A function that takes the service, documents and typed parameters, and returns documents."""

    function: Callable[[Service, Any, Any], Awaitable[Sequence[Any]]]
    parameters: type[BaseModel]


ENDPOINTS = {
    "/fit": Endpoint(runs.fit, of.FitParameters),
    "/status": Endpoint(runs.status, of.StatusParameters),
    "/embed": Endpoint(embed, of.EmbedParameters),
    "/evaluate": Endpoint(evaluate, of.EvaluateParameters),
    "/promote": Endpoint(runs.promote, of.PromoteParameters),
    "/cancel": Endpoint(runs.cancel, of.CancelParameters),
    "/delete": Endpoint(runs.delete, of.DeleteParameters),
    "/events": Endpoint(runs.events, of.EventsParameters),
    "/report": Endpoint(runs.report, of.ReportParameters),
}


async def call(
    service: Service, path: str, docs: Sequence[Document], parameters: dict[str, Any] | None
) -> Sequence[Any]:
    """Call the endpoint at `path`, with parameters as they came over the wire.

    Raises: FinetunerError: the message says what was wrong. InvalidParameter: a parameter is wrong.
    """
    endpoint = ENDPOINTS[path]
    try:
        return await endpoint.function(service, docs, of.parse(endpoint.parameters, parameters, where=path))
    except FinetunerError as error:
        raise outward_error(error, service.store.workspace) from error
