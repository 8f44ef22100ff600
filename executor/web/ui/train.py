"""A run on what was said: what it takes, what that can prove, and its start."""

from typing import Any, NamedTuple

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ...documents import LABEL_TAG, WITHDRAWN_TAG
from ...errors import BadRequest
from ..pictures import Picture
from . import words
from .page import Page, field, whole

CLASS, SESSION = "class", "session"
LOOKED_AT = 200  # words, to see whether a run can learn from so few; of more that is not asked
HARD_NEGATIVES = 3  # of a session, as in automatic runs: clicks are only on what was shown


class Plan(NamedTuple):
    """A run that could be started.

    Attributes: kind: `class` or `session`. said: documents of feedback. earlier: train documents of the served version.
        served: that version. words: what it does, in sentences. lack: why it cannot learn anything; empty: it can.
    """

    kind: str
    said: int
    earlier: int
    served: str
    words: list[str]
    lack: str


def routes(page: Page) -> list[Route]:
    async def ask(request: Request) -> Response:
        plans = await plans_of(page)
        return await page.html(request, "train.html.jinja", plans=plans)

    async def start(request: Request) -> Response:
        kind = field(request.state.form, "kind")
        plan = next((each for each in await plans_of(page) if each.kind == kind), None)
        if plan is None or plan.lack:
            raise BadRequest(plan.lack if plan else "Nothing was said yet from which a run could learn.")
        more: dict[str, Any] = {"documents_from": [plan.served]} if plan.earlier else {}
        if plan.kind == SESSION:
            more["hard_negatives"] = HARD_NEGATIVES
        more["run"] = await page.new_name("said")
        (status,) = await page.call("/fit", feedback=True, base="promoted", kind=plan.kind, start=True, **more)
        return page.to(request, f"/runs/{status.run}", "started")

    async def said(request: Request) -> Response:
        before_number = whole(request.query_params.get("before"))
        found = await page.call("/words", limit=50, before=before_number)
        (kept,) = await page.call("/feedback")
        rows = [_row(word) for word in found]
        return await page.html(request, "said.html.jinja", rows=rows, kept=kept, is_first=before_number is None)

    async def withdraw(request: Request) -> Response:
        id = field(request.state.form, "id")
        if id is None:
            raise BadRequest("The form is not complete; load the page again.")
        await page.call("/feedback", [Picture(id, tags={WITHDRAWN_TAG: True})])
        return page.to(request, "/label/said", "undone")

    return [
        Route("/label/train", ask, methods=["GET"]),
        Route("/label/train", start, methods=["POST"]),
        Route("/label/said", said, methods=["GET"]),
        Route("/label/withdraw", withdraw, methods=["POST"]),
    ]


async def plans_of(page: Page) -> list[Plan]:
    """Return a plan for each kind of what was said, the one with more first."""
    (kept,) = await page.call("/feedback")
    served = await _served(page)
    latest = [word for word in await page.call("/words", limit=LOOKED_AT) if not word.tags.get(WITHDRAWN_TAG)]
    plans = [_plan(kind, count, served, latest) for kind, count in ((SESSION, kept.sessions), (CLASS, kept.labelled))]
    return sorted((plan for plan in plans if plan.said), key=lambda plan: -(plan.said + plan.earlier))


async def _served(page: Page) -> Any:
    """The status of the run that is served; None: it is `base`."""
    served = (await page.standing()).served
    if not served or served == "base":
        return None
    (status,) = await page.call("/status", run=served)
    return status


def _plan(kind: str, said: int, served: Any, latest: list[Any]) -> Plan:
    fits = served is not None and served.kind == kind
    earlier = int(served.train_documents) if fits else 0
    what = "whose neighbours were judged" if kind == SESSION else "with the labels that were given here"
    lines = [f"It learns from {words.count(said, 'picture')} {what}"]
    if fits:
        lines[0] += f", and from the {earlier:,} documents of {served.run}, the version served now."
    elif served is not None:
        lines[0] += f"; the documents of {served.run}, the version served now, are of another kind and are left out."
    else:
        lines[0] += "."
    lines.append(f"It starts from the version served now ({served.run if served is not None else 'base'}).")
    lines += _proof(said + earlier, kind)
    lack = ""
    if not earlier and said <= LOOKED_AT // 2:
        lack = _lack_of_sessions(latest) if kind == SESSION else _lack_of_labels(latest)
    return Plan(kind, said, earlier, served.run if served is not None else "base", lines, lack)


def _proof(count: int, kind: str) -> list[str]:
    """What so many documents can prove, in sentences."""
    from ...evaluation.hold_out import LEAST_DOCUMENTS, usual_share

    share = usual_share(count, count)
    if not share:
        return [
            f"{words.count(count, 'document')} cannot prove that the new version is better: from {LEAST_DOCUMENTS} on, "
            f"some are held out for that, so {LEAST_DOCUMENTS - count} more are needed. The new version will be "
            "there, but not be served by itself; you can serve it from its own page."
        ]
    held = round(share * count)
    few = " With so few, only a large gain can be told from chance; the verdict will say so." if held < 100 else ""
    return [
        f"About {held:,} of the {count:,} are held out to prove whether the new version is better. It is served by "
        f"itself only if that is proven.{few}"
    ]


def _lack_of_sessions(latest: list[Any]) -> str:
    sides = ({int(match.tags.get(LABEL_TAG) or 0) for match in word.matches} for word in latest if word.matches)
    if any({1, -1} <= each for each in sides):
        return ""
    return (
        "No picture has both a neighbour that fits and one that does not. A run needs at least one such picture to "
        "learn from; say both of some pictures first."
    )


def _lack_of_labels(latest: list[Any]) -> str:
    labels = [word.tags[LABEL_TAG] for word in latest if not word.matches and LABEL_TAG in word.tags]
    if len(set(labels)) < 2:
        return "There are pictures of one label only. A run needs two labels or more, to tell them apart."
    if len(set(labels)) == len(labels):
        return "Each label has one picture only. A run needs a label with two pictures or more."
    return ""


def _row(word: Any) -> dict[str, Any]:
    """What a line says of a word."""
    signs = [int(match.tags.get(LABEL_TAG) or 0) for match in word.matches]
    good, bad = signs.count(1), signs.count(-1)
    parts = [f"{good} {'fits' if good == 1 else 'fit'}", f"{bad} {'does' if bad == 1 else 'do'} not"] if signs else []
    label = None if word.matches else word.tags.get(LABEL_TAG)
    return {
        "id": str(word.id),
        "name": str(word.tags.get("name") or word.id),
        "said": "taken back"
        if word.tags.get(WITHDRAWN_TAG)
        else ", ".join(parts)
        if parts
        else f"label {words.quoted(label)}",
        "withdrawn": bool(word.tags.get(WITHDRAWN_TAG)),
        "at": str(word.tags.get("finetuner_said_at") or ""),
        "number": int(word.tags["finetuner_word"]),
    }
