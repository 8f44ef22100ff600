"""The stylesheet and the scripts of the page.

Their address has a digest of all of them, so that browsers keep them for ever, and a new release has new addresses. The
scripts import each other by relative names.
"""

import hashlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ... import report

if TYPE_CHECKING:
    from .page import Page

FOLDER = Path(__file__).parent / "static"
_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml", ".png": "image/png"}
_FOR_EVER = "public, max-age=31536000, immutable"


class _File(NamedTuple):
    content: bytes
    kind: str


@cache
def _files() -> dict[str, _File]:
    """All files by name. The style of the report is among them, for what is within `.report` only."""
    found = {file.name: _File(file.read_bytes(), _TYPES[file.suffix]) for file in sorted(FOLDER.iterdir())}
    style = (Path(report.__file__).parent / "style.css.jinja").read_bytes()
    return found | {"report.css": _File(b".report {\n" + style + b"}\n", _TYPES[".css"])}


@cache
def digest() -> str:
    """A digest of all files."""
    parts = (name.encode() + hashlib.sha256(file.content).digest() for name, file in _files().items())
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def routes(page: "Page") -> list[Route]:
    return [Route("/static/{digest}/{name}", _static, methods=["GET"])]


async def _static(request: Request) -> Response:
    file = _files().get(request.path_params["name"])
    if file is None:
        raise HTTPException(404)
    kept = _FOR_EVER if request.path_params["digest"] == digest() else "no-cache"
    return Response(file.content, headers={"Cache-Control": kept}, media_type=file.kind)
