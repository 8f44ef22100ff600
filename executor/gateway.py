"""An HTTP gateway for a Flow that answers a caller's mistake with its own 4xx instead of Jina's 500.

It also takes a body without `data` where there are no documents to send. In Python:

    Flow(protocol="http").config_gateway(uses=FinetunerGateway).add(uses="config.yml")

In YAML, by its dotted path. The package must be importable in the gateway's process: install it, or start the Flow
with `PYTHONPATH` naming the directory that holds the package (`PYTHONPATH=. jina flow --uses flow.yml`).

    jtype: Flow
    with: {protocol: http, port: 54321, host: 127.0.0.1}
    gateway: {uses: executor.gateway.FinetunerGateway}
    executors:
      - uses: config.yml
"""

from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, HTTPException
from jina.proto import jina_pb2
from jina.serve.runtimes.gateway.http import HTTPGateway

from . import errors
from .http import OptionalData


class FinetunerGateway(HTTPGateway):
    """Jina's HTTP gateway, but for the status of refused requests and for bodies without `data`."""

    @property
    def app(self) -> FastAPI:
        """Jina's app, with its streamer watched for refusals."""
        self._request_handler.streamer = _Watched(self._request_handler.streamer)
        app: FastAPI = super().app
        app.add_middleware(OptionalData)
        return app


class _Watched:
    """A gateway's streamer that raises the refusals it meets with the status of their error."""

    def __init__(self, streamer: Any) -> None:
        self._streamer = streamer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._streamer, name)

    async def stream_docs(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        """Like the streamer's own. Raises: HTTPException: an executor refused the request."""
        async for response in self._streamer.stream_docs(*args, **kwargs):
            refused = getattr(response, "header", None)  # a dry run asks for documents, not for responses
            if refused is not None and refused.status.code == jina_pb2.StatusProto.ERROR:
                raise HTTPException(_status(refused.status.exception.args), refused.status.description)
            yield response


def _status(arguments: Any) -> int:
    """The HTTP status of the error whose class a `Refusal` names as its second argument."""
    error = getattr(errors, arguments[1], None) if len(arguments) == 2 else None
    return error.status if isinstance(error, type) and issubclass(error, errors.FinetunerError) else 500
