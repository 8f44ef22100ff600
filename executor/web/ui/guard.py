"""Who may see the page and change something by it, and what the browser is told to forbid.

A session is a random id in a cookie, with the time when it ends and a signature that is made with a key from the token.
So sessions outlive the service, hold for all replicas behind one address, and end when the token changes. The token
itself is not in the cookie. Every change must bring what only a page of this session knows.
"""

import hashlib
import hmac
import secrets
import time
from functools import cached_property
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response

from ...errors import ForeignOrigin, Unauthorized
from ...wire.token import presents

DAYS = 7  # a session lasts
RENEWED_DAYS = 6  # one with less than this is renewed
CSRF = "csrf"  # the field of a form; as a header it is `X-CSRF`
_DAY = 86_400
_DIGITS = 15  # of the seconds since the epoch; Python refuses to read thousands of them
_ROUNDS = 200_000  # so that a stolen cookie does not give away a token that can be guessed

WANTS_TOKEN = "This page asks for the token of the service."
NOT_OURS = (
    "Nothing was changed: the form did not come from this page, or the page was open for too long. Load it again, and "
    "repeat what you did."
)

POLICY = "; ".join(
    [
        "default-src 'none'",
        "img-src 'self' data: blob:",
        "style-src 'self'",
        "script-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "frame-src 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    ]
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
    "Referrer-Policy": "same-origin",  # with less, a browser would not say where a form comes from
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "private, no-cache",
}


class Session(NamedTuple):
    """A visitor. `ends`: seconds since the epoch; 0: the cookie was not there or not ours, so it has to be set."""

    id: str
    ends: int = 0


class Guard:
    """Args: token: what the page asks for; None: nothing."""

    def __init__(self, token: str | None) -> None:
        self._token = token

    @property
    def wants_token(self) -> bool:
        return self._token is not None

    @cached_property
    def _key(self) -> bytes:
        return hashlib.pbkdf2_hmac("sha256", (self._token or "").encode(), b"finetuner page", _ROUNDS)

    def session(self, request: Request) -> Session:
        """Return the visitor's session. Raises: Unauthorized: the page wants a token, and there is none."""
        if found := self._of_cookie(request.cookies.get(cookie_of(request), "")):
            return found
        if self._token is not None and not presents(self._token, request.headers.raw):
            raise Unauthorized(WANTS_TOKEN)
        return Session(secrets.token_urlsafe(18))

    def _of_cookie(self, cookie: str) -> Session | None:
        id, _, rest = cookie.partition(".")
        ends, _, mac = rest.partition(".")
        if not id or len(ends) > _DIGITS or not ends.isascii() or not ends.isdecimal() or int(ends) < time.time():
            return None
        return Session(id, int(ends)) if hmac.compare_digest(mac.encode(), self._mac(f"{id}.{ends}").encode()) else None

    def enter(self, request: Request, token: str) -> Session:
        """Return a new session for who knows the token. Raises: Unauthorized."""
        check_origin(request)
        if self._token is not None and not hmac.compare_digest(token.strip().encode(), self._token.encode()):
            raise Unauthorized("This is not the token of this service. Whoever runs the service can tell you.")
        return Session(secrets.token_urlsafe(18))

    def csrf(self, session: Session) -> str:
        """Return what a change of this session must bring."""
        return self._mac(f"change {session.id}")

    def check_change(self, request: Request, session: Session, brought: str | None) -> None:
        """Raises: ForeignOrigin: the change does not come from a page of this session."""
        check_origin(request)
        if not hmac.compare_digest((brought or "").encode(), self.csrf(session).encode()):
            raise ForeignOrigin(NOT_OURS)

    def keep(self, request: Request, response: Response, session: Session) -> None:
        """Set the cookie of a session that is new, or will end soon."""
        now = int(time.time())
        if session.ends - now > RENEWED_DAYS * _DAY:
            return
        said = f"{session.id}.{now + DAYS * _DAY}"
        response.set_cookie(
            cookie_of(request),
            f"{said}.{self._mac(said)}",
            max_age=DAYS * _DAY,
            path=request.scope["root_path"] or "/",
            secure=request.url.scheme == "https",
            httponly=True,
            samesite="strict",
        )

    def leave(self, request: Request, response: Response) -> None:
        """Delete the cookie."""
        response.delete_cookie(cookie_of(request), path=request.scope["root_path"] or "/")

    def _mac(self, text: str) -> str:
        return hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()


def cookie_of(request: Request) -> str:
    """The name of the cookie: browsers give the cookies of one host to the services on all its ports."""
    return f"finetuner_{request.url.port or 'page'}"


def check_origin(request: Request) -> None:
    """Raises: ForeignOrigin: the browser says that another page sends this, of whatever site."""
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise ForeignOrigin(NOT_OURS)
