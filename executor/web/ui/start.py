"""Starts a run on documents that the service has: of feedback, and of earlier runs."""

from typing import Any

from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ...errors import FinetunerError, InvalidParameter
from .page import Page, field, fields

PROMOTIONS = (
    ("if_better", "serve it, if it is proven better than what is served"),
    ("never", "do not serve it; somebody decides later"),
    ("always", "serve it in any case"),
)
KINDS = (
    ("auto", "the service finds out"),
    ("class", "pictures with labels"),
    ("session", "queries with what fits and what does not"),
    ("unlabeled", "pictures without labels"),
)


def routes(page: Page) -> list[Route]:
    async def ask(request: Request) -> Response:
        query = request.query_params
        chosen = _NOTHING | {
            "feedback": query.get("feedback"),
            "documents_from": query.getlist("documents_from"),
            "base": query.get("base", "base"),
        }
        return await _form(page, request, chosen)

    async def start(request: Request) -> Response:
        chosen = _chosen(request.state.form)
        try:
            wanted = _parameters(chosen)
            wanted["run"] = wanted["run"] or await page.new_name("said" if chosen["feedback"] else "again")
            (status,) = await page.call("/fit", **wanted)
        except FinetunerError as error:
            if error.status >= 500:
                raise
            return await _form(page, request, chosen, str(error), error.status)
        return page.to(request, f"/runs/{status.run}", "started")

    return [Route("/start", ask, methods=["GET"]), Route("/start", start, methods=["POST"])]


async def _form(page: Page, request: Request, chosen: dict[str, Any], refused: str = "", status: int = 200) -> Response:
    (feedback,) = await page.call("/feedback")
    runs = [run for run in await page.call("/status") if run.state != "receiving" and run.train_documents]
    models = [run for run in runs if run.state == "succeeded" and run.space]
    bases = [("base", "base, the model before any run"), ("promoted", "the version that is served now")]
    return await page.html(
        request,
        "start.html.jinja",
        status,
        chosen=chosen,
        refused=refused,
        feedback=feedback,
        runs=runs,
        bases=bases + [(run.run, f"the model of {run.run}") for run in models],
        promotions=PROMOTIONS,
        kinds=KINDS,
    )


_NOTHING: dict[str, Any] = {
    "feedback": None,
    "documents_from": [],
    "base": "base",
    "promote": "if_better",
    "run": "",
    "kind": "auto",
    "epochs": "",
    "trials": "1",
    "freeze": None,
}


def _chosen(form: FormData) -> dict[str, Any]:
    found = {name: field(form, name) or default for name, default in _NOTHING.items() if name != "documents_from"}
    return found | {"documents_from": fields(form, "documents_from")}


def _parameters(chosen: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters of `/fit`. Raises: InvalidParameter: one is missing, or no number."""
    if not chosen["feedback"] and not chosen["documents_from"]:
        raise InvalidParameter("Choose what it learns from: what people said, or the documents of a run.")
    found = {name: chosen[name] for name in ("base", "promote", "kind")}
    found |= {"start": True, "run": chosen["run"].strip() or None}
    found |= {name: _whole(name, chosen[name]) for name in ("epochs", "trials")}
    if chosen["feedback"]:
        found["feedback"] = True
    if chosen["documents_from"]:
        found["documents_from"] = chosen["documents_from"]
    if chosen["freeze"]:
        found["freeze"] = True
    return found


def _whole(name: str, text: str) -> int | None:
    if not text:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise InvalidParameter(f"{name.capitalize()} must be a whole number, not {text[:20]!r}.")
    return int(text)
