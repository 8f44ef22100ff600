"""`POST /v1/embeddings`: OpenAI's request with images as Jina writes them, and OpenAI's answer."""

import base64
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from ..documents import ERROR_TAG, MODEL_TAG, SPACE_TAG
from ..errors import BadRequest, Conflict, FinetunerError, NotFound, Overloaded, Unauthorized, UnknownModel, WrongType
from ..parameters import RUN_NAME, EmbedParameters
from . import answers
from .bounds import Bodies
from .calls import JSON, loads, media_type
from .pictures import Picture
from .room import Room
from .routes import Handler, refusing, unless_gone

PATH = "/v1/embeddings"
OWN_FIELDS = ("model", "input", "encoding_format", "dimensions", "user")
PASSED_ON = tuple(name for name in EmbedParameters.model_fields if name not in ("model", "matches"))
ANSWERED_HERE = ("input", "encoding_format", "user")  # the others go to /embed, which may refuse them
FORMATS = ("float", "base64")


class Wrong(BadRequest):
    """A field of the request is wrong. Args: param: its name, in that API's form: `input[3]`."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


def embeddings(room: Room, bodies: Bodies) -> Handler:
    """Return the route."""

    async def handle(request: Request) -> Response:
        with bodies.open(request) as body:
            if media_type(request) != JSON:
                raise WrongType(f"{PATH} takes {JSON}.")
            wanted = _checked(loads(await body.read(), "The body"))
            pictures = _pictures(wanted["input"])
            parameters = {name: value for name, value in wanted.items() if name not in ANSWERED_HERE}
            parameters["model"] = None if wanted["model"] == "promoted" else wanted["model"]
            try:
                found = await unless_gone(request, room.call("/embed", pictures, parameters))
            except Conflict as error:  # the role of the service has no /embed: its caller knows this path
                raise Conflict(str(error).replace(" for /embed.", f" for {PATH}.")) from error
            return answers.answer(_answer(found, wanted))

    return refusing(handle, refusal)


def _checked(wanted: Any) -> dict[str, Any]:
    """Return the fields of a request, checked. Raises: Wrong, UnknownModel."""
    if not isinstance(wanted, dict):
        raise Wrong("The body must be an object with model and input.", "body")
    known = dict.fromkeys((*OWN_FIELDS, *PASSED_ON))
    if unknown := [name for name in wanted if name not in known]:
        raise Wrong(f"{PATH} has no field {unknown[0][:60]!r}; it accepts: {', '.join(known)}.", unknown[0][:60])
    for name in ("model", "input"):
        if wanted.get(name) is None:
            raise Wrong(f"{PATH} needs the field {name!r}.", name)
    if not isinstance(wanted["model"], str):
        raise Wrong("model must be a text: promoted, base, or a run.", "model")
    if not RUN_NAME.fullmatch(wanted["model"]):
        raise UnknownModel(f"There is no model {wanted['model'][:60]!r}; name promoted, base, or a run.")
    if wanted.get("encoding_format") not in (None, *FORMATS):
        raise Wrong(f"encoding_format must be one of: {', '.join(FORMATS)}.", "encoding_format")
    return wanted


def _pictures(wanted: Any) -> list[Picture]:
    """Return the pictures that `input` names. Raises: Wrong."""
    inputs = wanted if isinstance(wanted, list) else [wanted]
    if not inputs:
        raise Wrong("input is empty; give at least one image.", "input")
    return [Picture(uri=_uri(each, f"input[{number}]")) for number, each in enumerate(inputs)]


def _uri(given: Any, param: str) -> str:
    uri = given.get("image") if isinstance(given, dict) else given
    if isinstance(given, dict) and (unknown := [name for name in given if name != "image"]):
        raise Wrong(f'{param} has the field {unknown[0][:60]!r}; an image is {{"image": uri}}.', param)
    if not isinstance(uri, str) or not uri:
        raise Wrong(f'{param} must be the uri of an image, or {{"image": uri}}; this service embeds no text.', param)
    return uri


def _answer(found: Any, wanted: dict[str, Any]) -> dict[str, Any]:
    for number, picture in enumerate(found):
        if picture.embedding is None:
            raise Wrong(f"input[{number}]: {picture.tags.get(ERROR_TAG)}", f"input[{number}]")
    encoded = _as_base64 if wanted.get("encoding_format") == "base64" else np.asarray
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": number, "embedding": encoded(picture.embedding)}
            for number, picture in enumerate(found)
        ],
        "model": found[0].tags[MODEL_TAG],
        "usage": {"prompt_tokens": len(found), "total_tokens": len(found)},
        "finetuner_space": found[0].tags[SPACE_TAG],
    }


def _as_base64(embedding: Any) -> str:
    """Return the bytes of the vector, float32 with the lowest byte first, as callers of this form expect."""
    array = np.asarray(embedding)
    little = array.astype("<f4") if array.dtype.kind == "f" else array
    return base64.b64encode(little.tobytes()).decode()


# errors ------------------------------------------------------------------------------------------------------------


def refusal(error: Exception) -> Response:
    """Return the response to a call that failed, in the form of that API."""
    known = answers.understood(error)
    return answers.answer({"error": as_error(known)}, known.status, answers.retry_headers(known))


def as_error(error: FinetunerError) -> dict[str, Any]:
    """Return an error in the form of that API."""
    kind = "invalid_request_error" if error.status < 500 else "server_error"
    param, code = getattr(error, "param", None), None
    if isinstance(error, Overloaded):
        kind, code = "rate_limit_error", "rate_limit_exceeded"
    elif isinstance(error, Unauthorized):
        code = "invalid_api_key"
    elif isinstance(error, NotFound):
        param, code = "space" if _names(error, "space") else "model", "model_not_found"
    elif isinstance(error, BadRequest) and param is None:
        fields = (*OWN_FIELDS, *PASSED_ON)
        param = next((name for name in fields if _names(error, name) or repr(name) in str(error)), None)
    return {"message": str(error), "type": kind, "param": param, "code": code}


def _names(error: FinetunerError, field: str) -> bool:
    """Whether a sentence begins with the field that is wrong. Behind a gateway there is nothing but the sentence."""
    return str(error).startswith(f"{field}=")
