"""The endpoints about runs: `/fit` `/status` `/watch` `/cancel` `/delete` `/promote` `/events` `/report`."""

import asyncio
import functools
from collections.abc import AsyncGenerator, Sequence

from .. import tracing
from ..documents import Document, Event, RunStatus
from ..errors import Conflict, FinetunerError
from ..lifecycle.status import status_of
from ..parameters import (
    CancelParameters,
    DeleteParameters,
    EventsParameters,
    FitParameters,
    PromoteParameters,
    ReportParameters,
    StatusParameters,
)
from ..report import contents
from ..report.report import to_json
from ..store.run import Run
from .outward import outward, outward_error, outward_status
from .reader import Reader
from .service import Service

WATCH_SECONDS = 0.2


async def fit(service: Service, docs: Sequence[Document], wanted: FitParameters) -> list[RunStatus]:
    """Store documents durably in a run, and return its status."""
    receive = functools.partial(_receive, service, docs, wanted)
    run = await asyncio.wrap_future(service.receiving.submit(wanted.run or "", tracing.carried(receive)))
    return await _statuses(service, run)


def _receive(service: Service, docs: Sequence[Document], wanted: FitParameters) -> str:
    run = service.receiver.receive(docs, wanted)
    service.measures.documents.labels(wanted.split).inc(len(docs))  # here, because the caller may have gone
    return run


async def coming(service: Service | Reader, requests: Sequence[Document]) -> bytes:
    """Hear from a gateway which requests to `/fit` are on their way: a document for each, whose text is the run."""
    if isinstance(service, Service):
        for request in requests:
            service.receiver.still_coming(str(request.id), request.text or None)
    return b""


async def status(service: Service, docs: Sequence[Document], wanted: StatusParameters) -> list[RunStatus]:
    """Return the status of one run, or of all, newest first."""
    return await _statuses(service, wanted.run)


async def cancel(service: Service, docs: Sequence[Document], wanted: CancelParameters) -> list[RunStatus]:
    """Cancel a run that has not ended."""
    await asyncio.to_thread(service.supervisor.cancel, wanted.run)
    return await _statuses(service, wanted.run)


async def delete(service: Service, docs: Sequence[Document], wanted: DeleteParameters) -> list[RunStatus]:
    """Remove an ended run with all its files; the answer is its last status."""
    last = await _statuses(service, wanted.run)
    run = await asyncio.to_thread(service.store.get, wanted.run)
    await asyncio.shield(_delete(service, run))
    return last


async def _delete(service: Service, run: Run) -> None:
    """Remove a run and all that was made of it. A caller who goes meanwhile must not leave a part of that undone.

    Whoever calls again is told that there is no such run, and a new run of its name would be served with its model.
    """
    await asyncio.to_thread(service.supervisor.delete, run.name)
    await asyncio.to_thread(service.embedder.forget, run.name)
    await service.forget(run.number)


async def promote(service: Service, docs: Sequence[Document], wanted: PromoteParameters) -> list[RunStatus]:
    """Serve another version from now on; the answer is the status of that run, or of all for `base`.

    Raises: Conflict: the run has not ended, so that its trainer may still replace the model.
    """
    await asyncio.to_thread(_promote, service, wanted.run)
    return await _statuses(service, None if wanted.run == "base" else wanted.run)


def _promote(service: Service, version: str) -> None:
    _check_ended(service, version)
    service.serve(version)
    service.measures.promotions.labels("by_hand").inc()  # here, because the caller may have gone


def _check_ended(service: Service, version: str) -> None:
    """Raise Conflict if a run that has a model has not ended. One without a model is refused for that."""
    store = service.store
    if not store.exists(version) or not store.workspace.model_folder(version).exists():
        return
    if not (run := store.get(version)).state.ended:
        raise Conflict(
            f"Run {version!r} is {run.state.value}, so its model may still be replaced; promote it when it has ended."
        )


async def events(service: Service, docs: Sequence[Document], wanted: EventsParameters) -> list[Event]:
    """Return the history of a run, oldest first."""
    run = await asyncio.to_thread(service.store.get, wanted.run)
    found = await asyncio.to_thread(service.store.events, run.name, wanted.after, wanted.limit)
    return [
        Event(run=run.name, number=number, at=at, kind=kind, message=outward(message, service.places))
        for number, at, kind, message in found
    ]


async def report(service: Service, docs: Sequence[Document], wanted: ReportParameters) -> list[Document]:
    """Return the report of a run as one document, whose `text` is a self-contained HTML page, or JSON."""
    return [await asyncio.to_thread(_report, service, wanted)]


def _report(service: Service, wanted: ReportParameters) -> Document:
    if wanted.format == "html":
        return Document(id=wanted.run, text=contents.read(service.store, wanted.run))
    found = contents.report_of(service.store, wanted.run)
    suspects = found.label_errors.suspects if found.label_errors else ()
    said = service.feedback.said([suspect.id for suspect in suspects if suspect.id])
    return Document(id=wanted.run, text=to_json(found), tags={"said": said})


async def watch(service: Service, name: str | None) -> AsyncGenerator[RunStatus, None]:
    """Yield the status of a run whenever it changes, until the run has ended. Without a name: the newest run.

    Raises: FinetunerError: there is no such run, or its status cannot be read.
    """
    try:
        run = await asyncio.to_thread(_watched, service, name)
        shown = None
        while shown is None or shown.ended_at is None:
            (now,) = await _statuses(service, run.name)
            if now != shown:
                yield now
                shown = now
            if now.ended_at is None:
                await asyncio.sleep(WATCH_SECONDS)
    except FinetunerError as error:
        raise outward_error(error, service.places) from error


def _watched(service: Service, name: str | None) -> Run:
    if name is None and (runs := service.store.all()):
        return runs[0]
    return service.store.get(name or "")


async def _statuses(service: Service, run: str | None) -> list[RunStatus]:
    return await asyncio.to_thread(_list_statuses, service, run)


def _list_statuses(service: Service, name: str | None) -> list[RunStatus]:
    runs = service.store.all() if name is None else [service.store.get(name)]
    statuses = [status_of(service.store, run, service.receiver.counts) for run in runs]
    return [outward_status(status, service.places) for status in statuses]
