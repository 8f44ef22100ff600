"""Answers and refusals as JSON."""

import base64
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson
from starlette.responses import Response

from ..errors import FinetunerError, InternalError, Overloaded, Unreachable, WorkspaceError

RETRY_SECONDS = {Overloaded: "1", Unreachable: "5", WorkspaceError: "5"}  # what a caller is told to wait

_log = logging.getLogger(__name__)


def encode(value: Any) -> bytes:
    """Return JSON. Arrays become nested lists; float32 is written with as many digits as it has."""
    return orjson.dumps(value, default=_plain, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)


def _plain(value: Any) -> Any:
    """What orjson does not know: arrays in another order than the machine's, scalars, DocArray's lists."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return np.ascontiguousarray(value, value.dtype.newbyteorder("="))  # and no subclass, such as DocArray's
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    if isinstance(value, bytes):
        return value.decode("ascii") if value.isascii() else base64.b64encode(value).decode("ascii")
    return list(value)


def answer(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a response with JSON."""
    return Response(encode(value), status, headers, "application/json")


def refusal(error: Exception) -> Response:
    """Return the response to a call that failed: the status of its error, and its sentence as `detail`."""
    known = understood(error)
    return answer({"detail": str(known)}, known.status, retry_headers(known))


def understood(error: Exception) -> FinetunerError:
    """Return an error for the caller. What is our fault goes to the log, with traceback."""
    if isinstance(error, FinetunerError):
        return error
    _log.error("An endpoint failed", exc_info=error)
    return InternalError.of(error)


def retry_headers(error: FinetunerError) -> dict[str, str]:
    """Return `Retry-After` where trying again may help."""
    seconds = RETRY_SECONDS.get(type(error))
    return {} if seconds is None else {"Retry-After": seconds}
