"""The documents and parameters of a request, from JSON, JSON lines, a form with files, or a raw image."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import Any, NamedTuple

import orjson
from pydantic import BaseModel
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import FormParser, MultiPartException, MultiPartParser
from starlette.requests import Request

from ..docarray_private import LARGEST_INTEGER
from ..documents import LABEL_TAG
from ..errors import BadDocument, BadRequest, LimitExceeded, WrongType
from ..parameters import meant_by
from .bounds import Body
from .pictures import Picture, check_depth, picture_of, pictures_of

JSON = "application/json"
LINES = ("application/x-ndjson", "application/jsonl", "application/jsonlines")
FORM = "multipart/form-data"
URLENCODED = "application/x-www-form-urlencoded"  # as `curl -d` calls JSON; a true form never begins with a brace
LABELLED = "label:"  # how the name of a form's file begins whose label is the rest of the name
LARGE = 256 * 1024  # bytes of JSON: from here on it is read in a thread
MAX_FILES = 100_000  # of one form
MAX_FIELDS = 1000  # the same
MAX_LINE_BYTES = 64 << 20
LINES_TOGETHER = 1000  # lines in one part of a call,
LINES_TOGETHER_BYTES = 8 << 20  # or fewer if they are long


class Call(NamedTuple):
    """What a request brought."""

    docs: list[Picture]
    parameters: dict[str, Any]


def media_type(request: Request) -> str:
    """Return the content type of a request, without its arguments."""
    return request.headers.get("content-type", "").split(";")[0].strip().lower()


async def read_call(request: Request, body: Body, parameters: type[BaseModel], *, pictures: bool) -> Call:
    """Read all of a request.

    Args: parameters: the model of the endpoint's parameters. pictures: whether it takes forms and raw images, too.
    Raises: WrongType, BadDocument, BadRequest: it cannot be read. Whatever `Body.chunks` raises.
    """
    kind, query = media_type(request), query_of(request, parameters)
    text = await body.read() if kind in (JSON, "", URLENCODED) else b""
    empty = kind == URLENCODED and not text  # `curl -d ''`
    if kind in (JSON, "") or empty or text.lstrip().startswith(b"{"):
        call = await _call_of_text(text or b"{}")
        return Call(call.docs, query | call.parameters)
    if pictures and kind in LINES:
        return Call([doc async for part in lines(body) for doc in part], query)
    if pictures and kind == FORM:
        call = await _form(request, body)
        return Call(call.docs, query | call.parameters)
    if pictures and (kind.startswith("image/") or kind == "application/octet-stream"):
        return Call([Picture(buffer=await body.read())], query)
    accepted = [JSON, LINES[0], FORM, "image/*"] if pictures else [JSON]
    raise WrongType(f"{kind[:60]} is not taken here; send {', '.join(accepted)}.")


async def _call_of_text(text: bytes) -> Call:
    if len(text) < LARGE:
        return _exact_call(text)
    return await asyncio.to_thread(_exact_call, text)  # the loop answers others meanwhile


def _exact_call(text: bytes) -> Call:
    call = call_of(loads(text, "The body"))
    _check_integers(text, call.docs)
    return call


def _check_integers(text: bytes, docs: list[Picture]) -> None:
    """Raise BadRequest if tags have an integer beyond 64 bits, which orjson has turned into a float."""
    if any(_enormous(part.tags) for doc in docs for part in (doc, *doc.matches)):
        json.loads(text, parse_int=_within)


def _enormous(value: Any) -> bool:
    if isinstance(value, float):
        return abs(value) >= 2**63
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(_enormous(each) for each in inner)


def _within(digits: str) -> int:
    if len(digits) > 20 or not -(2**63) <= int(digits) < 2**64:
        raise BadRequest(f"An integer in tags is larger than {LARGEST_INTEGER:.4g}; send it as text.")
    return int(digits)


def loads(text: bytes, what: str) -> Any:
    """Parse JSON. Raises: BadDocument: it is none."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        refusal = BadDocument(f"{what} is not JSON: {error}.")
    # That is no JSON, but Python and others write it for arrays.
    if (b"NaN" in text or b"Infinity" in text) and b"\\u" not in text:
        with contextlib.suppress(ValueError, RecursionError):
            return json.loads(text, parse_int=orjson.loads)  # which keeps whole numbers within 64 bits
    raise refusal


def call_of(value: Any) -> Call:
    """Return the call that a JSON body makes. Raises: BadDocument: it has the wrong form."""
    if not isinstance(value, dict):
        raise BadDocument('The body must be an object: {"data": [documents], "parameters": {…}}.')
    data, parameters = value.get("data"), value.get("parameters")
    if parameters is not None and not isinstance(parameters, dict):
        raise BadDocument("parameters must be an object of names and values.")
    check_depth(parameters, "parameters")
    docs = [] if data is None else pictures_of([data] if isinstance(data, dict) else data)
    return Call(docs, parameters or {})


# parameters in the query -------------------------------------------------------------------------------------------


def query_of(request: Request, model: type[BaseModel]) -> dict[str, Any]:
    """Return the parameters in the query, each with the type that the model wants, as far as the text allows."""
    if not request.scope["query_string"]:
        return {}
    return {name: meant_by(model, name, text) for name, text in request.query_params.items()}


# JSON lines --------------------------------------------------------------------------------------------------------


async def lines(body: Body, *, kept: bool = True) -> AsyncIterator[list[Picture]]:
    """Yield the documents of a body of JSON lines, some at a time.

    Args: kept: whether the caller keeps them all.
    Raises: BadDocument, BadRequest: a line is wrong; those before it were yielded.
    """
    number, part, size = 0, list[Picture](), 0
    async for line in _split(body.chunks(kept=kept)):
        number += 1
        if not line.strip():
            continue
        try:
            doc = picture_of(loads(line, "It"), "it")
            _check_integers(line, [doc])
        except (BadDocument, BadRequest) as error:
            if part:
                yield part
            raise type(error)(f"Line {number} is no document: {error}") from None
        part.append(doc)
        size += len(line)
        if len(part) == LINES_TOGETHER or size >= LINES_TOGETHER_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part


async def _split(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    rest = bytearray()
    async for chunk in chunks:
        head, newline, tail = chunk.partition(b"\n")
        rest += head
        if len(rest) > MAX_LINE_BYTES:
            raise LimitExceeded(f"A line has more than {MAX_LINE_BYTES} bytes; send its image by a path, or smaller.")
        if newline:
            yield bytes(rest)
            *whole, last = tail.split(b"\n")
            for line in whole:
                yield line
            rest = bytearray(last)
    if rest:
        yield bytes(rest)


# forms -------------------------------------------------------------------------------------------------------------


class _Form(MultiPartParser):
    """Reads a form to its closing boundary. What comes before may lack files, or the end of one.

    Starlette leaves out a part whose end has not come, and says nothing.
    """

    spool_max_size = 1 << 40  # in memory: the body is bounded, and a disk would be slower
    _closed = False

    def on_end(self) -> None:
        self._closed = True

    async def parse(self) -> FormData:
        self.stream = self._to_the_end(self.stream)
        return await super().parse()  # closes the files, too, that were begun, if the stream raises

    async def _to_the_end(self, chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        async for chunk in chunks:
            yield chunk
        if not self._closed:
            raise MultiPartException("it ends before its closing boundary; send all of it again, with the last line")


async def _form(request: Request, body: Body) -> Call:
    """Read a form: each file is the image of a document.

    A field `parameters` has the parameters as JSON, and a field `data` the other fields of the documents, as a list in
    the order of the files. A file whose name in the form is `label:NAME` has that label.
    """
    form = await fields_and_files(request, body)
    try:
        return await _call_of_form(form)
    finally:
        await form.close()


async def fields_and_files(request: Request, body: Body) -> FormData:
    """Read a form, in either of the two ways in which browsers send one. Close it when its files have been read.

    Raises: BadRequest: it cannot be read. Whatever `Body.chunks` raises.
    """
    headers = Headers(raw=request.headers.raw)
    chunks: Any = body.chunks()  # the parsers only iterate
    try:
        if media_type(request) == FORM:
            parser = _Form(headers, chunks, max_files=MAX_FILES, max_fields=MAX_FIELDS, max_part_size=64 << 20)
            return await parser.parse()
        return await FormParser(headers, chunks).parse()
    except MultiPartException as error:
        raise BadRequest(f"The form cannot be read: {error.message.rstrip('.')}.") from None


async def _call_of_form(form: FormData) -> Call:
    files = [(name, value) for name, value in form.multi_items() if isinstance(value, UploadFile)]
    fields = [(name, value) for name, value in form.multi_items() if isinstance(value, str)]
    call = call_of({name: loads(value.encode(), f"The field {name}") for name, value in _known(fields)})
    if call.docs and len(call.docs) != len(files):
        raise BadRequest(f"data has {len(call.docs)} documents and the form {len(files)} files; send one for each.")
    docs = call.docs or [Picture() for _ in files]
    for doc, (name, file) in zip(docs, files, strict=True):
        doc.buffer = await file.read()
        _describe(doc, name, file.filename or None)
    return Call(docs, call.parameters)


def _known(fields: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    names = [name for name, _ in fields]
    for name, value in fields:
        if name not in ("data", "parameters"):
            raise BadRequest(f"The form has a field {name[:60]!r}; it may have data, parameters, and files.")
        if names.count(name) > 1:
            raise BadRequest(f"The form has the field {name!r} {names.count(name)} times; send it once.")
        yield name, value


def _describe(doc: Picture, name: str, filename: str | None) -> None:
    """Give a document what the form's own names say of it, unless `data` has said it."""
    if name.startswith(LABELLED):
        label = name.removeprefix(LABELLED)
        doc.tags.setdefault(LABEL_TAG, label)
        filename = f"{label}/{filename}"
    doc.id = doc.id or filename
