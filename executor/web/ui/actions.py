"""What changes a run or what is served: each says what it will do before it is done."""

from collections.abc import Callable
from typing import Any, NamedTuple

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ...documents import RunStatus
from ...endpoints.health import Readiness
from ...errors import FinetunerError
from . import words
from .page import Page


class Change(NamedTuple):
    """Something that a page can do to a run.

    Attributes:
        sentences: what it will do. hindrance: why it cannot be done to a run as it is now; or empty.
        said: a key of `words.SAID`. leads_to_runs: whether the run's page is gone.
    """

    path: str
    title: str
    button: str
    sentences: Callable[[RunStatus, Readiness], list[str]]
    hindrance: Callable[[RunStatus], str]
    said: str
    is_destructive: bool = True
    leads_to_runs: bool = False


def routes(page: Page) -> list[Route]:
    async def ask(request: Request) -> Response:
        return await _confirm(page, request, _change(request))

    async def do(request: Request) -> Response:
        change, name = _change(request), request.path_params["run"]
        try:
            await page.call(change.path, run=name)
        except FinetunerError as error:
            if error.status != 409:
                raise
            return await _confirm(page, request, change, str(error))
        page.forget_standing()
        return page.to(request, "/" if change.leads_to_runs or name == "base" else f"/runs/{name}", change.said)

    return [
        Route("/runs/{run}/{change}", ask, methods=["GET"]),
        Route("/runs/{run}/{change}", do, methods=["POST"]),
    ]


def _change(request: Request) -> Change:
    found = CHANGES.get(request.path_params["change"])
    if found is None or (request.path_params["run"] == "base" and found.path != "/promote"):
        raise HTTPException(404)
    return found


async def _confirm(page: Page, request: Request, change: Change, refused: str = "") -> Response:
    name, service = request.path_params["run"], await page.standing()
    status = RunStatus(run="base", state="succeeded")
    if name != "base":
        (status,) = await page.call("/status", run=name)
    base = request.scope["root_path"]
    hindrance = change.hindrance(status)
    return await page.html(
        request,
        "confirm.html.jinja",
        409 if refused else 200,
        title=change.title.format(run=name),
        sentences=[] if hindrance else change.sentences(status, service),
        button="" if hindrance else change.button,
        is_destructive=change.is_destructive,
        refused=refused or hindrance,
        back=f"{base}/" if name == "base" else f"{base}/runs/{name}",
    )


def _hinders_start(run: RunStatus) -> str:
    return "" if run.state == "receiving" else f"The run {run.run} takes no documents any more: it was started already."


def _hinders_cancel(run: RunStatus) -> str:
    return f"The run {run.run} has ended, so there is nothing to cancel. {_UNCHANGED}" if run.ended_at else ""


def _hinders_delete(run: RunStatus) -> str:
    if run.promoted:
        return f"{run.run} cannot be deleted, because it is served now. First serve another version, or base."
    return "" if run.ended_at else f"{run.run} cannot be deleted, because it has not ended. First cancel it."


def _hinders_promotion(run: RunStatus) -> str:
    if run.run == "base" or (run.state == "succeeded" and run.space):
        return ""
    return f"{run.run} cannot be served: {'it has no model' if run.ended_at else 'it has not ended'}."


def _start(run: RunStatus, _: Readiness) -> list[str]:
    return [
        f"The run {run.run} learns from the {words.count(run.train_documents, 'document')} that are there. None can be "
        "added after that.",
        "It begins at once, or as soon as the run that trains now has ended.",
    ]


def _cancel(run: RunStatus, _: Readiness) -> list[str]:
    said = ["The run ends within seconds and cannot go on later. There will be no model of it."]
    if run.state == "training":
        said.append("What it has learned so far is thrown away.")
    return [*said, "Its documents stay until you delete it: another run can learn from them.", _UNCHANGED]


def _delete(run: RunStatus, _: Readiness) -> list[str]:
    said = [
        f"The run {run.run} is removed with its {words.count(run.train_documents + run.eval_documents, 'document')}, "
        f"its report and its history: {words.size(run.disk_bytes)}. Nobody can bring that back.",
    ]
    if run.space:
        said.append("Its model is removed too: it embeds nothing any more, and an index of its vectors is of no use.")
    return [*said, _UNCHANGED]


def _promote(run: RunStatus, service: Readiness) -> list[str]:
    if run.run == service.served:
        return [f"The version {run.run} is served already: nothing changes."]
    said = [
        f"From now on every picture is embedded by {run.run}, and no longer by {service.served}. It changes between "
        "two pictures: no request fails or waits.",
        *_about_index(run, service),
    ]
    if run.verdict:
        first, *others = words.verdict_alone(run.verdict, run.warnings)
        said += [f"What was found out about it: {first}", *others, *run.warnings]
    return [*said, f"You can go back at any time: serve {service.served} again."]


def _about_index(run: RunStatus, service: Readiness) -> list[str]:
    plan: dict[str, Any] = run.index_plan
    if plan and plan.get("from") == service.served and plan.get("advice") in words.INDEX:
        return [words.INDEX[plan["advice"]].format(version=service.served)]
    return [
        f"Vectors of {service.served} and of {run.run} cannot be compared: an index of the former must be made anew, "
        "or be one that was made by the latter."
    ]


_UNCHANGED = "What is served now does not change."

CHANGES = {
    "start": Change("/fit", "Start {run} now?", "Start it", _start, _hinders_start, "started", is_destructive=False),
    "cancel": Change("/cancel", "Cancel {run}?", "Cancel the run", _cancel, _hinders_cancel, "cancelled"),
    "delete": Change(
        "/delete", "Delete {run}?", "Delete it for ever", _delete, _hinders_delete, "deleted", leads_to_runs=True
    ),
    "promote": Change(
        "/promote",
        "Serve {run} from now on?",
        "Serve it",
        _promote,
        _hinders_promotion,
        "promoted",
        is_destructive=False,
    ),
}
