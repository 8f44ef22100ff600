"""Whether a service can answer, and what else is wrong with it."""

import asyncio
import contextlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

from ..errors import FinetunerError, NotReady
from ..lifecycle.watchdog import is_stopped
from ..models.versions import version_folder
from ..store.run import Run, RunState
from .outward import outward

if TYPE_CHECKING:
    from .reader import Reader
    from .service import Service


@dataclass(frozen=True)
class Readiness:
    """Whether `/embed` can answer.

    Attributes:
        served: the version now served. space: of its embeddings; None while nobody knows: see `space_of`.
        degraded: what is wrong besides, in sentences.
        executor: of which executor of a Flow this is said; None where there is only one.
        since: when that version was chosen, ISO 8601; None: since ever, or nobody knows. role: of the service.
    """

    ready: bool
    served: str
    space: str | None
    degraded: list[str]
    executor: str | None = None
    since: str | None = None
    role: str = "all"


async def readiness(service: "Service | Reader") -> Readiness:
    """Return how a service stands. A model that is not loaded is loaded, in the background."""
    found = await asyncio.to_thread(_readiness, service)
    return replace(found, degraded=[outward(sentence, service.places) for sentence in found.degraded])


def _readiness(service: "Service | Reader") -> Readiness:
    try:
        served = service.served()
    except NotReady as error:
        return Readiness(False, "", None, [str(error)], role=service.role)
    version = service.embedder.loaded(served)
    ready = version is not None or service.role == "train"  # which embeds nothing
    degraded = [] if ready else [_not_loaded(service, served)]
    degraded += service.degraded()
    if service.role != "serve":
        writer = cast("Service", service)
        degraded += [*_store_faults(writer), *_training_faults(writer)]
    space = space_of(service, served)
    since = None
    with contextlib.suppress(FinetunerError):  # it is among the faults of the store
        since = service.served_since()
    return Readiness(ready, served, space, degraded, since=since, role=service.role)


def space_of(service: "Service | Reader", version: str) -> str | None:
    """Return the space of a version; None: it is not loaded, and there are no files of it (yet)."""
    loaded = service.embedder.loaded(version)
    if loaded is not None or service.role == "serve":
        return None if loaded is None else loaded.space
    writer = cast("Service", service)
    try:
        version_folder(writer.store.workspace, version)  # where there is no base yet, none is made for this
        return writer.spaces.space_of(version)
    except FinetunerError:
        return None


def _not_loaded(service: "Service | Reader", served: str) -> str:
    why = service.embedder.load_error
    service.embedder.warm()
    return f"The model {served!r} cannot be loaded: {why}" if why else f"The model {served!r} is being loaded."


def _store_faults(service: "Service") -> list[str]:
    workspace, faults = service.store.workspace, []
    try:
        workspace.try_to_write()
    except OSError as error:
        faults.append(
            f"The disk of {workspace.root} cannot be written ({error.strerror or error}), so /fit refuses documents. "
            "See to it."
        )
    try:
        service.store.served_now()
        service.store.check_in_place()
    except FinetunerError as error:
        faults.append(f"The store of the runs is out of reach: {error}")
    return faults


def _training_faults(service: "Service") -> list[str]:
    if not service.supervisor.is_running:
        return ["Nothing looks after the runs any more: they wait until the service is started again."]
    try:
        training = service.store.in_state(RunState.TRAINING)
    except FinetunerError:  # it is among the faults of the store
        return []
    return [
        f"The trainer of run {run.name!r} is stopped: process {run.pid} computes nothing until it is continued "
        "(SIGCONT), or the run cancelled."
        for run in training
        if has_stopped_trainer(run)
    ]


def has_stopped_trainer(run: Run) -> bool:
    """Whether the trainer of a run is stopped by a signal or a debugger. One that has ended is the supervisor's."""
    return run.pid is not None and is_stopped(run.pid)
