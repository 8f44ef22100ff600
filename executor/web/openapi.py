"""The description of all routes (OpenAPI 3.1), made from the models of parameters and documents."""

import functools
from collections.abc import Collection
from typing import Any, get_args, get_type_hints

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from ..documents import Document, RunStatus
from ..endpoints.table import ENDPOINTS
from .calls import FORM, JSON, LABELLED, LINES
from .embeddings import FORMATS, PASSED_ON, PATH
from .routes import WITH_PICTURES

Schema = dict[str, Any]

REFUSALS = {
    400: "the call is wrong",
    401: "there is no token, or a wrong one",
    403: "a page of another site calls",
    404: "there is no such run or model",
    408: "the body trickles",
    409: "the state of the run forbids it now",
    413: "a limit is reached",
    415: "the content type is none of those above",
    422: "a document or the body has the wrong form",
    429: "too much waits already",
    500: "our fault, or a configured model that fails",
    503: "the workspace cannot be used",
}
_RETRY = {"Retry-After": {"description": "seconds to wait", "schema": {"type": "string"}}}


@functools.cache
def description() -> Schema:
    """Return the whole description. It is the same for every service."""
    schemas = _schemas()
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "FinetunerExecutor",
            "version": "1",
            "description": "Fine-tunes image embeddings on the documents posted to it, and serves them.",
        },
        "paths": {
            **{path: {"post": _endpoint(path, schemas)} for path in ENDPOINTS},
            "/watch": {"get": _watch()},
            PATH: {"post": _embeddings()},
            "/healthz": {"get": _plain("Whether the process answers.", _json({"type": "object"}))},
            "/readyz": {"get": _readyz()},
            "/metrics": {"get": _plain("Figures, for Prometheus.", {"text/plain": {"schema": {"type": "string"}}})},
            "/openapi.json": {"get": _plain("This description.", _json({"type": "object"}))},
        },
        "components": {
            "schemas": schemas,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],
    }


def _schemas() -> Schema:
    models: list[type[BaseModel]] = [Document, RunStatus]
    models += [each.parameters for each in ENDPOINTS.values()]
    models += [model for path in ENDPOINTS if (model := _answered(path)) not in models]
    _, found = models_json_schema(
        [(model, "validation") for model in dict.fromkeys(models)], ref_template="#/components/schemas/{model}"
    )
    schemas: Schema = found["$defs"]
    for name in ("Document", "Match"):
        _as_it_travels(schemas[name])
    schemas["Refusal"] = _object({"detail": {"type": "string", "description": "what was wrong, and what to do"}})
    schemas["OpenAIError"] = _object({"error": _object(dict.fromkeys(("message", "type", "param", "code"), _TEXT))})
    return schemas


_TEXT: Schema = {"type": ["string", "null"]}
_ARRAY: Schema = {"type": ["array", "null"], "description": "nested lists of numbers, of equal length"}


def _as_it_travels(document: Schema) -> None:
    """Say how arrays and bytes are written in JSON; null means none everywhere."""
    fields = document["properties"]
    fields["blob"] = fields["embedding"] = _ARRAY
    fields["buffer"] = {"type": ["string", "null"], "description": "the encoded image file, in base64"}
    fields["id"] = {"type": ["string", "null"]}
    fields["tags"] = {"type": ["object", "null"], "description": fields["tags"].get("description", "any values")}
    if "matches" in fields:
        fields["matches"] = {"type": ["array", "null"], "items": _ref("Match")}


def _endpoint(path: str, schemas: Schema) -> Schema:
    name = ENDPOINTS[path].parameters.__name__
    body = {
        "type": "object",
        "properties": {"data": {"type": ["array", "null"], "items": _ref("Document")}, "parameters": _ref(name)},
    }
    content = _json(body)
    if path in WITH_PICTURES:
        content |= {LINES[0]: {"schema": {"type": "string", "description": "a document on each line"}}, FORM: _form()}
        if path == "/embed":
            content["image/*"] = {"schema": {"type": "string", "format": "binary"}}
    answer = _object({"data": {"type": "array", "items": _ref(_answered(path).__name__)}})
    return {
        "operationId": path.strip("/"),
        "summary": (ENDPOINTS[path].function.__doc__ or "").split("\n")[0],
        "parameters": _query(schemas[name]["properties"]),
        "requestBody": {"content": content},
        "responses": _responses(_json(answer), REFUSALS),
    }


def _query(fields: Schema) -> list[Schema]:
    """Every parameter may stand in the query, too."""
    return [{"name": name, "in": "query", "schema": schema} for name, schema in fields.items()]


def _form() -> Schema:
    text = f"The files are the images. One whose name begins with {LABELLED} has the rest of the name as its label."
    fields = {
        "parameters": {"type": "string", "description": "JSON"},
        "data": {"type": "string", "description": "JSON: the other fields of the documents, in the order of the files"},
    }
    return {"schema": {"type": "object", "description": text, "properties": fields}}


def _answered(path: str) -> type[BaseModel]:
    """The class of the documents that an endpoint returns."""
    model: type[BaseModel] = get_args(get_type_hints(ENDPOINTS[path].function)["return"])[0]
    return model


def _watch() -> Schema:
    run = {"name": "run", "in": "query", "schema": {"type": "string"}, "description": "by default the newest"}
    return {
        "operationId": "watch",
        "summary": "The status of a run whenever it changes, until it has ended.",
        "parameters": [run],
        "responses": _responses({"text/event-stream": {"schema": {"type": "string"}}}, (400, 401, 403, 404, 500, 503)),
    }


def _embeddings() -> Schema:
    image = _object({"image": {"type": "string", "minLength": 1}}) | {"additionalProperties": False}
    item = {"anyOf": [{"type": "string", "minLength": 1}, image]}
    given = {
        "model": {"type": "string", "description": "promoted, or a version: base, or a run"},
        "input": {"anyOf": [*item["anyOf"], {"type": "array", "items": item, "minItems": 1}]},
        "encoding_format": {"type": ["string", "null"], "enum": [*FORMATS, None]},
        "dimensions": {"type": ["integer", "null"], "minimum": 1},
        "user": {"type": ["string", "null"]},
    }
    body = {"type": "object", "properties": given, "required": ["model", "input"], "additionalProperties": False}
    body["properties"] = given | {name: _ref_to_field(name) for name in PASSED_ON if name not in given}
    one = _object({"object": {"const": "embedding"}, "index": {"type": "integer"}, "embedding": {}})
    usage = _object({"prompt_tokens": {"type": "integer"}, "total_tokens": {"type": "integer"}})
    answer = _object(
        {
            "object": {"const": "list"},
            "data": {"type": "array", "items": one},
            "model": {"type": "string", "description": "the version that made the embeddings"},
            "usage": usage | {"description": "pictures"},
            "finetuner_space": {"type": "string", "description": "embeddings of equal spaces may be compared"},
        }
    )
    responses = _responses(_json(answer), REFUSALS)
    for status in REFUSALS:
        responses[str(status)]["content"] = _json(_ref("OpenAIError"))
    responses["403"]["content"] = _json(_ref("Refusal"))  # refused before anybody looks at the path
    return {
        "operationId": "embeddings",
        "summary": "Embeddings, in the form of OpenAI's API.",
        "requestBody": {"content": _json(body), "required": True},
        "responses": responses,
    }


def _ref_to_field(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/EmbedParameters/properties/{name}"}


def _readyz() -> Schema:
    fields: Schema = {
        "ready": {"type": "boolean", "description": "whether the served model answers"},
        "served": {"type": "string", "description": "the version now served"},
        "space": {"type": ["string", "null"], "description": "of its embeddings"},
        "degraded": {"type": "array", "items": {"type": "string"}, "description": "what else is wrong"},
    }
    answer = _json(_object(fields))
    said = _plain("Whether the served model answers.", answer)
    said["responses"]["503"] = {"description": "it does not", "content": answer}
    return said


def _plain(summary: str, content: Schema) -> Schema:
    return {"summary": summary, "responses": _responses(content, (401, 403, 500, 503))}


def _responses(content: Schema, refusals: Collection[int]) -> Schema:
    found: Schema = {"200": {"description": "done", "content": content}}
    for status in refusals:
        found[str(status)] = {"description": REFUSALS[status], "content": _json(_ref("Refusal"))}
        if status in (429, 503):
            found[str(status)]["headers"] = _RETRY
    return found


def _object(fields: Schema) -> Schema:
    return {"type": "object", "properties": fields, "required": list(fields)}


def _json(schema: Schema) -> Schema:
    return {JSON: {"schema": schema}}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}
