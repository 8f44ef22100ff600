"""What the pages share: the room that they call, their templates, the forms that come in."""

import asyncio
import itertools
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from ... import report
from ...endpoints.health import Readiness
from ...errors import FinetunerError, LimitExceeded
from ...report.page import FILTERS as REPORT_FILTERS
from ..answers import retry_headers, understood
from ..bounds import Bodies, Early, came_whole
from ..calls import fields_and_files
from ..room import Room
from ..routes import Handler
from . import static, words
from .guard import CSRF, Guard, Session
from .live import Live

TEMPLATES = Path(__file__).parent / "templates"
STANDING_SECONDS = 1.0  # that what is served is remembered for the head of the pages

NAVIGATION = (  # what stands in the head of each page: its name, and where it is
    ("Runs", "/"),
    ("Compare", "/compare"),
    ("Label", "/label"),
    ("What to label next", "/suggest"),
)


class Page:
    """Args: room: what the pages call. bodies: the bounds of what comes in. token: what the page asks for, if any."""

    def __init__(self, room: Room, bodies: Bodies, token: str | None) -> None:
        self.room = room
        self.bodies = bodies
        self.guard = Guard(token)
        self.live = Live(room)
        self._standing: tuple[float, Readiness] | None = None

    async def call(self, path: str, docs: Sequence[Any] = (), **parameters: Any) -> Sequence[Any]:
        """Call an endpoint; parameters that are None are left out. Raises: FinetunerError: what it refuses."""
        given = {name: value for name, value in parameters.items() if value is not None}
        return await self.room.call(path, docs, given)

    async def new_name(self, first: str) -> str:
        """Return a name for a run that no run has yet. Without one, `/fit` takes the run that is receiving documents.

        Args: first: how the name begins; a number follows.
        """
        names = {status.run for status in await self.call("/status")}
        return next(name for number in itertools.count(1) if (name := f"{first}-{number}") not in names)

    async def standing(self) -> Readiness:
        """How the service stands, as it was a moment ago at most."""
        at, found = self._standing or (0.0, None)
        if found is None or time.monotonic() - at > STANDING_SECONDS:
            found = await self.room.readiness()
            self._standing = time.monotonic(), found
        return found

    def _reads_only(self) -> bool:
        """Whether the service is a reader, as far as was seen: it refuses what the other pages need."""
        _, found = self._standing or (0.0, None)
        return found is not None and found.role == "serve"

    def forget_standing(self) -> None:
        """Ask anew what is served: it was just changed."""
        self._standing = None

    async def html(self, request: Request, template: str, /, status: int = 200, **values: Any) -> Response:
        """Return a page. Args: template: the name of its file. values: what it shows."""
        values = {"service": await self.standing()} | values
        text = await asyncio.to_thread(self.render, request, template, **values)
        return HTMLResponse(text, status)

    def render(self, request: Request, template: str, /, **values: Any) -> str:
        """Return the text of a template."""
        session: Session | None = getattr(request.state, "session", None)
        base = request.scope["root_path"]
        return (
            environment()
            .get_template(template)
            .render(
                base=base,
                static=f"{base}/static/{static.digest()}",
                here=request.url.path.removeprefix(base),
                request_said=request.query_params.get("said"),
                navigation=NAVIGATION[:1] if self._reads_only() else NAVIGATION,
                csrf="" if session is None else self.guard.csrf(session),
                signed_in=session is not None and self.guard.wants_token,
                **values,
            )
        )

    def to(self, request: Request, path: str, said: str | None = None) -> Response:
        """Return the way to another page, as the answer to a form. Args: said: a key of `words.SAID`, shown there."""
        path, mark, place = path.partition("#")
        said = "" if said is None else f"{'&' if '?' in path else '?'}said={said}"
        return RedirectResponse(f"{request.scope['root_path']}{path}{said}{mark}{place}", 303)

    # what every route is wrapped into ------------------------------------------------------------------------------

    def handled(self, handle: Handler, *, free: bool = False) -> Handler:
        """Return a handler for a visitor who may be there, whose errors are pages.

        A change must come from a page of ours. Its fields and files are in `request.state.form` while it is handled.

        Args: free: whether nobody is asked for the token.
        """

        async def handled(request: Request) -> Response:
            try:
                if free:
                    return await self._read(handle, request)
                request.state.session = session = self.guard.session(request)
                response = await self._read(handle, request)
                if "set-cookie" not in response.headers:  # else a page did it
                    self.guard.keep(request, response, session)
                return response
            except ClientDisconnect:
                return Response(status_code=499)  # nobody reads it
            except Exception as error:
                response = await self.error(request, error)
                return (
                    response if request.method in ("GET", "HEAD") or came_whole(request) else Early(response, request)
                )

        return handled

    async def _read(self, handle: Handler, request: Request) -> Response:
        if request.method in ("GET", "HEAD"):
            return await handle(request)
        session: Session | None = getattr(request.state, "session", None)
        header = request.headers.get("x-csrf")
        if session is not None and header is not None:  # before a large body is read
            self.guard.check_change(request, session, header)
        with self.bodies.open(request) as body:
            form = await fields_and_files(request, body)
            try:
                if session is not None and header is None:
                    self.guard.check_change(request, session, field(form, CSRF))
                request.state.form = form
                return await handle(request)
            finally:
                await form.close()

    async def error(self, request: Request, error: Exception) -> Response:
        """Return the page that says what went wrong; to a script, the sentence alone."""
        status, known = _known(error)
        headers = {} if known is None else retry_headers(known)
        detail = "" if known is None else str(known)
        if isinstance(known, LimitExceeded) and request.method == "POST":
            detail = words.TOO_LARGE.format(size=words.size(self.bodies.largest))
        if request.headers.get("x-csrf") is not None or request.headers.get("accept") == "text/event-stream":
            return Response(detail or words.ERRORS[status][0], status, headers, "text/plain")
        if status == 401:
            return await self.ask_for_token(request, detail)
        return HTMLResponse(self._error_text(request, status, detail), status, headers)

    def _error_text(self, request: Request, status: int, detail: str) -> str:
        title, text = words.ERRORS.get(status) or words.ERRORS[500 if status >= 500 else 400]
        retries = status == 503 and request.method == "GET"
        return self.render(
            request, "error.html.jinja", service=None, title=title, text=text, detail=detail, retries=retries
        )

    async def ask_for_token(self, request: Request, why: str = "", to: str | None = None) -> Response:
        """Return the page that asks for the token. Args: why: a sentence. to: where to go after that."""
        if to is None:
            to = _place(request) if request.method == "GET" else "/"
        text = self.render(request, "enter.html.jinja", service=None, why=why, to=to)
        return HTMLResponse(text, 401)


def _place(request: Request) -> str:
    """Where a visitor is on the page, with the query."""
    path = request.url.path.removeprefix(request.scope["root_path"])
    return f"{path}?{request.url.query}" if request.url.query else path


def field(form: FormData, name: str) -> str | None:
    """Return the text of a field; None if it is not there, or empty."""
    value = form.get(name)
    return value if isinstance(value, str) and value else None


def whole(text: str | None) -> int | None:
    """Return the whole number that an address or a form says; None: it says none, or one that nothing here has."""
    return int(text) if text and text.isascii() and text.isdecimal() and len(text) < 16 else None


def fields(form: FormData, name: str) -> list[str]:
    """Return the texts of all fields with a name."""
    return [value for value in form.getlist(name) if isinstance(value, str) and value]


def _known(error: Exception) -> tuple[int, FinetunerError | None]:
    """Return the status of an error, and the error if it has a sentence for people."""
    if isinstance(error, HTTPException):
        return error.status_code, None
    known = understood(error)
    return known.status, known


@cache
def environment() -> Environment:
    """The templates. All values are escaped."""
    found = Environment(
        loader=FileSystemLoader([TEMPLATES, Path(report.__file__).parent]),  # the sections of the report
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= REPORT_FILTERS | words.FILTERS
    found.globals |= {"sentences": words.SAID}  # a name that no page gives a value of its own
    return found
