"""A service, called over gRPC or HTTP with the same functions."""

import base64
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from itertools import chain, groupby
from typing import Any, Protocol
from urllib.parse import urlsplit

from ..documents import Comparison, Document, Evaluation, Event, RunStatus
from ..errors import (
    BadRequest,
    ConfigurationError,
    Conflict,
    FinetunerError,
    InternalError,
    LimitExceeded,
    NotFound,
    NotReady,
    Overloaded,
    Unauthorized,
    Unreachable,
    brief,
    status_of,
)
from ..lifecycle.sizes import bytes_of
from ..parameters import TOKEN_VARIABLE
from ..store.chunks import chunks

REQUEST = 100  # documents at most: Jina's HTTP gateway answers with no more
REQUEST_BYTES = 32 << 20  # with which a request is full, whatever it has: a service takes 256 MiB by default
UNDERWAY = 4  # requests that a service is sent before it has answered the first
CONNECT_SECONDS, ANSWER_SECONDS = 10.0, 300.0
WAITS = (1.0, 2.0, 4.0, 8.0)  # seconds before a service is asked again that cannot answer for the moment
LONGEST_WAIT = 60.0  # seconds, whatever `Retry-After` says
RETURNS: dict[str, Any] = {
    "/compare": Comparison,
    "/embed": Document,
    "/evaluate": Evaluation,
    "/events": Event,
    "/report": Document,
    "/suggest": Document,
}

Documents = Iterable[Document]


class Place(Protocol):
    """A service, or a workspace without one."""

    def call(self, path: str, docs: Sequence[Document] = (), **parameters: Any) -> list[Any]:
        """Call an endpoint with at most `REQUEST` documents.

        A service that has too much to do, or is not ready, is asked again for some seconds.

        Raises: FinetunerError: in the service's own words.
        """

    def stream(self, path: str, docs: Documents, answered: Callable[[list[Any]], None], **parameters: Any) -> None:
        """Call an endpoint with any number of documents, which are read as they are sent.

        Args: answered: gets the answer to each request.
        Raises: FinetunerError: the first refusal; the rest is not sent.
        """

    def close(self) -> None:
        """End the connection."""


def connect(url: str) -> Place:
    """Return the service at `grpc://host:port`, `grpcs://`, `http://` or `https://`, with the environment's token.

    Raises: ConfigurationError: it is not written so.
    """
    parts = urlsplit(url)
    token = os.environ.get(TOKEN_VARIABLE, "").strip() or None
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if parts.scheme in ("http", "https") and host:
        return OverHttp(url.rstrip("/"), token)
    if parts.scheme in ("grpc", "grpcs") and host and port:
        return OverGrpc(host, port, parts.scheme == "grpcs", token)
    raise ConfigurationError(f"--service {url!r} must be grpc://host:port, grpcs://, http:// or https://.")


def batched(docs: Documents) -> Iterator[list[Document]]:
    """Yield the documents in lists of at most `REQUEST`, or fewer if they are large: see `REQUEST_BYTES`."""
    return chunks(docs, most=REQUEST, enough_bytes=REQUEST_BYTES, size_of=bytes_of)


class OverGrpc:
    """A service over gRPC, by Jina's client. See `Place`."""

    def __init__(self, host: str, port: int, tls: bool, token: str | None) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what Jina imports
            from jina import Client

        self._url = f"{host}:{port}"
        self._client: Any = Client(host=host, port=port, protocol="grpc", tls=tls)
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()

    def call(self, path: str, docs: Sequence[Document] = (), **parameters: Any) -> list[Any]:
        answers: list[Any] = []
        for batch in batched(docs) if docs else ([],):  # one by one, and so their answers come in order
            answers += self._patiently(path, batch, parameters)
        return answers

    def _patiently(self, path: str, batch: list[Document], parameters: dict[str, Any]) -> list[Any]:
        for seconds in (*WAITS, None):
            answers: list[Any] = []
            try:
                self.stream(path, batch, answers.extend, **parameters)
                break
            except (Overloaded, NotReady):
                if seconds is None:
                    raise
                time.sleep(seconds)
        return answers

    def stream(self, path: str, docs: Documents, answered: Callable[[list[Any]], None], **parameters: Any) -> None:
        if isinstance(docs, Sized) and not len(docs):
            self._post(path, None, 1, answered, parameters)
        for size, batches in groupby(batched(docs), key=len):  # Jina cuts a call by the number of documents alone
            self._post(path, chain.from_iterable(batches), size, answered, parameters)

    def _post(
        self,
        path: str,
        docs: Documents | None,
        size: int,
        answered: Callable[[list[Any]], None],
        parameters: dict[str, Any],
    ) -> None:
        """Make one call of Jina's. Args: docs: None: it has no documents. size: documents of a request."""
        from docarray import DocList

        refused: list[FinetunerError] = []
        returns = DocList[RETURNS.get(path, RunStatus)]
        interrupted = docs is not None

        def until_refused() -> Iterator[Document]:
            nonlocal interrupted
            for doc in docs or ():
                if refused:
                    return
                yield doc
            interrupted = False

        def done(response: Any) -> None:
            response.document_array_cls = returns
            answered(list(response.docs))

        def failed(response: Any) -> None:
            status = response.header.status
            refused.append(_as_said(status.description, status_of(status.exception.args)))

        # Not `results_in_order`: with it the gateway waits for ever if it has answered the last request before it has
        # seen that no further one comes. A call with one request has its documents in order anyway.
        try:
            self._client.post(
                path,
                None if docs is None else until_refused(),
                parameters=parameters,
                return_type=returns,
                request_size=size,
                prefetch=UNDERWAY,
                on_done=done,
                on_error=failed,
                metadata=self._metadata,
            )
        except FinetunerError:
            raise
        except Exception as error:  # Jina wraps what grpc raised, in several ways
            raise self._broken(error) from error
        if refused:
            raise refused[0]
        if interrupted:  # Jina's client keeps the exception to itself
            raise KeyboardInterrupt

    def _broken(self, error: BaseException) -> FinetunerError:
        import grpc

        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, grpc.aio.AioRpcError):
            cause = cause.__cause__ or cause.__context__
        if cause is not None and cause.code() is grpc.StatusCode.UNAUTHENTICATED:
            return Unauthorized(_token_sentence(self._url))
        if cause is not None and cause.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
            return LimitExceeded(
                f"The service at {self._url} takes no request of that size ({cause.details()}): raise its option "
                "max_request_bytes, or send paths that it can read."
            )
        if cause is not None or isinstance(error, ConnectionError):
            return _unreachable(self._url, error if cause is None else cause.details())
        return InternalError(f"The call to the service at {self._url} failed: {type(error).__name__}: {error}")

    def close(self) -> None:
        pass


class OverHttp:
    """A service over HTTP: the executor's own door, or a Flow's gateway. See `Place`."""

    def __init__(self, url: str, token: str | None) -> None:
        import requests

        self._url = url
        self._session = requests.Session()
        if token:
            self._session.headers["Authorization"] = f"Bearer {token}"

    def call(self, path: str, docs: Sequence[Document] = (), **parameters: Any) -> list[Any]:
        return [
            answer for batch in (batched(docs) if docs else ([],)) for answer in self._post(path, batch, parameters)
        ]

    def _post(self, path: str, docs: Sequence[Document], parameters: dict[str, Any]) -> list[Any]:
        body = {"data": [_as_json(doc) for doc in docs], "parameters": parameters}
        answer = self._asked(path, body)
        for seconds in WAITS:
            if answer.status_code not in (Overloaded.status, NotReady.status):
                break
            wait = answer.headers.get("Retry-After", "")
            time.sleep(min(float(wait), LONGEST_WAIT) if wait.isdecimal() else seconds)
            answer = self._asked(path, body)
        if answer.status_code in (401, 403):
            raise Unauthorized(_token_sentence(self._url))
        try:
            content = answer.json()
        except ValueError as error:
            raise _unreachable(self._url, f"it answers {answer.status_code} without JSON") from error
        if answer.status_code != 200:
            detail = content.get("detail", content) if isinstance(content, dict) else content
            raise _as_said(detail, answer.status_code)
        returns = RETURNS.get(path, RunStatus)
        return [
            returns(**{name: value for name, value in each.items() if value is not None}) for each in content["data"]
        ]

    def _asked(self, path: str, body: dict[str, Any]) -> Any:
        import requests

        try:
            return self._session.post(f"{self._url}{path}", json=body, timeout=(CONNECT_SECONDS, ANSWER_SECONDS))
        except requests.RequestException as error:
            raise _unreachable(self._url, error) from error

    def stream(self, path: str, docs: Documents, answered: Callable[[list[Any]], None], **parameters: Any) -> None:
        for batch in batched(docs):
            answered(self._post(path, batch, parameters))

    def close(self) -> None:
        self._session.close()


def _as_json(doc: Document) -> dict[str, Any]:
    """Return a document without fields that are not set; bytes become a `data:` uri, the only form JSON has."""
    fields: dict[str, Any] = {"id": doc.id, "tags": doc.tags}
    if doc.buffer:
        fields["uri"] = f"data:application/octet-stream;base64,{base64.b64encode(doc.buffer).decode()}"
    elif doc.uri:
        fields["uri"] = doc.uri
    return fields


def _as_said(detail: Any, status: int) -> FinetunerError:
    """Return the service's refusal in its own words. Args: status: of HTTP, which says whose fault it is."""
    sentence = detail if isinstance(detail, str) else brief(detail)
    if status in _BY_STATUS:
        return _BY_STATUS[status](sentence)
    return BadRequest(sentence) if status < 500 else InternalError(sentence)


_BY_STATUS: dict[int, type[FinetunerError]] = {
    each.status: each for each in (NotFound, Conflict, LimitExceeded, Overloaded, NotReady)
}


def _token_sentence(url: str) -> str:
    return f"The service at {url} wants a token, and there was none or a wrong one: set {TOKEN_VARIABLE} to it."


def _unreachable(url: str, reason: object) -> Unreachable:
    first = str(reason).strip().partition("\n")[0][:200].rstrip(".")
    return Unreachable(f"The service at {url} does not answer ({first}). See whether it runs, and its host and port.")
