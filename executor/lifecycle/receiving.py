"""Takes documents into a run: finds the run, settles its options, checks the documents, sees when it is complete."""

import contextlib
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from .. import tracing
from ..documents import Document, check_integers, with_ids
from ..errors import (
    BadDocument,
    BadRequest,
    Conflict,
    FinetunerError,
    InvalidParameter,
    LimitExceeded,
    UnknownModel,
    WorkspaceError,
    brief,
)
from ..images.policy import EMPTY
from ..images.reading import OTHER_CLASSES
from ..images.uris import check_uri
from ..loading.datasets import fault_of
from ..parameters import ExecutorOptions, FitParameters, TrainingOptions, parse
from ..store.feedback import FeedbackStore
from ..store.run import Configuration, Run, RunState
from ..store.runs import Quarantined, RunStore
from ..store.spool import DocumentArrayMemmap
from ..store.spool_rows import identity_of
from .deadlines import Deadlines
from .norms import check_parts
from .sizes import bytes_of, parts_of
from .sources import Sources, are_wanted, copied_in_all

RETRY_SECONDS = 60.0  # until documents are copied again that could not be

_log = logging.getLogger(__name__)


class Receiver:
    """Stores documents durably in the spools of receiving runs, and queues a run when it is complete.

    Args: wake: called after each request, so that the supervisor looks at once for something to do.
    """

    def __init__(self, store: RunStore, options: ExecutorOptions, *, wake: Callable[[], None] = lambda: None) -> None:
        self._store = store
        self._options = options
        self._policy = options.image_policy()
        self._wake = wake
        self._directory = os.getcwd()  # now, because it may be removed later
        self._deadlines = Deadlines(options.receive_timeout)
        self._choosing = threading.RLock()  # held briefly, while it is found out which run a request is for
        self._locks: dict[str, threading.RLock] = {}  # of a run: keeps its state and its spool in step
        self._counted: dict[str, tuple[int, int]] = {}  # documents of a receiving run: (train, eval)
        self._spools: dict[str, dict[str, DocumentArrayMemmap]] = {}
        self.feedback = FeedbackStore(store.workspace.feedback)
        self._ending = threading.Event()
        self._copying: list[threading.Thread] = []
        self._sources = Sources(store, self.feedback, options, self._append_copies, self._ending.is_set)

    def receive(
        self, docs: Sequence[Document], parameters: FitParameters, *, automatic: tuple[int, float] | None = None
    ) -> str:
        """Store the documents of one request and return the name of their run. Stored means synced to disk.

        Args: automatic: the number and the level of a run that starts by itself; see `Configuration`.
        Raises: BadRequest, InvalidParameter: the request is wrong. Conflict: the run takes no more documents.
            LimitExceeded: the message names the limit.
        """
        with_ids(docs)
        with self._choosing:
            present = self._present_run(parameters)
            name = (present or self._new_run(docs, parameters, automatic or (0, None))).name
        try:
            return self._receive(name, docs, parameters)
        except FinetunerError:
            if present is None:
                self._undo(name)
            raise

    def _receive(self, name: str, docs: Sequence[Document], parameters: FitParameters) -> str:
        with self._lock_of(name):  # it may wait for the run's file; other runs go on
            run = self._store.get(name)
            if run.state is not RunState.RECEIVING:
                return self._repeated(run, docs, parameters.split)
            self._check_room(run, docs, parameters.split)
            self._settle_options(run, parameters)
            self._settle_total(run, parameters, has_docs=bool(docs))
        self._sources.gather(name)  # without the lock, because it may take long
        with self._lock_of(name):
            run = self._store.get(name)
            if run.state is not RunState.RECEIVING:
                return self._repeated(run, docs, parameters.split)
            if docs:
                new = self._append(run, docs, parameters.split)
                if parameters.split == "train" and new < len(docs):
                    self._store.add_repeated(name, len(docs) - new)
                self._check_not_cancelled(name)
                self._deadlines.arrived(run.name, train=parameters.split == "train")
            self._maybe_start(self._store.get(run.name), parameters, has_docs=bool(docs))
            if not run.acknowledged and self._store.get(name).state is RunState.RECEIVING:
                self._store.acknowledge(name)
        self._wake()
        return run.name

    def coming(self, run: str | None) -> contextlib.AbstractContextManager[Callable[[str], None]]:
        """While documents are on their way, no run that waits for some is started without them: see `Deadlines`."""
        return self._deadlines.coming(run)

    def still_coming(self, request: str, run: str | None) -> None:
        """As `coming`, for a request that comes to another process: see `Deadlines`."""
        self._deadlines.still_coming(request, run)

    def _undo(self, name: str) -> None:
        """Remove a run whose first request came to nothing, unless another request has brought documents since.

        It would wait for ever, and calls without a run would join it.
        """
        try:
            with self._lock_of(name), self._undisturbed(name) as run:
                if run.state is RunState.RECEIVING and not self._deadlines.is_known(name):
                    if run.options.feedback:
                        self.feedback.give_back(run.number)  # first, as in `delete`
                    self._store.undo(name)
                    self.release(name)
        except FinetunerError as error:  # such as a full disk: the caller shall see what went wrong first
            _log.warning("Run %s has got no document, and cannot be removed: %s", name, error)

    def stop(self) -> None:
        """Copy no more documents of other runs and of feedback: the service ends, and the next one goes on with it."""
        self._ending.set()

    def go_on(self) -> None:
        """Start the clock for the runs that an earlier service was receiving: they wait for documents, as before.

        A run of which that service has answered no request is removed. Whoever sends the request again begins it anew,
        and is not told that the run has gone on without these documents.
        """
        for run in self._store.in_state(RunState.RECEIVING):
            if not run.acknowledged:
                self._undo(run.name)
                if not self._store.exists(run.name):
                    continue
            with self._lock_of(run.name):
                self._count_or_explain(run.name)
            self._deadlines.arrived(run.name, train=bool(self._arrived(run.name)))
            if not self._sources.are_complete(run):
                copying = threading.Thread(target=self._gather_again, args=(run.name,), name="sources", daemon=True)
                self._copying.append(copying)
                copying.start()

    def _gather_again(self, name: str) -> None:
        """Copy what an earlier service had not copied. Then the run starts as if its last documents had arrived."""
        told = ""
        while not self._ending.is_set() and self._store.exists(name):
            try:
                self._sources.gather(name)
                self._deadlines.arrived(name, train=True)
                return
            except FinetunerError as error:
                if str(error) != told and not self._ending.is_set():
                    _log.warning("The documents of run %s cannot be copied: %s", name, error)
                    with contextlib.suppress(FinetunerError):  # a full disk takes no event either
                        self._store.event(name, "error", f"What it is to learn from cannot be copied into it: {error}")
                        told = str(error)
            self._ending.wait(RETRY_SECONDS)

    def queue_due(self) -> None:
        """Queue the runs that were asked to start, or for which no document has arrived for `receive_timeout`."""
        for run in self._deadlines.due():
            with self._if_free(run) as free:  # else it is receiving just now; it stays due
                if free and (not self._store.exists(run) or self._sources.are_complete(self._store.get(run))):
                    self.queue(run)

    def queue(self, name: str) -> None:
        """Close a run to documents and put it in the queue. A run that is not receiving any more stays as it is."""
        with self._lock_of(name):
            if self._store.exists(name) and self._store.get(name).state is RunState.RECEIVING:
                train, evaluation = self._count_or_explain(name)
                # A request that is sent again, because its answer was lost, cannot be told from documents that are
                # there twice: it counts as arrived too, so that nobody is told of documents missing that are not.
                arrived = self._arrived(name) + self._store.get(name).repeated
                rows = {"train_rows": train, "eval_rows": evaluation, "arrived": arrived}
                self._store.advance(name, RunState.QUEUED, **rows)
            self.release(name)

    def _count_or_explain(self, name: str) -> tuple[int, int]:
        """Count the documents of a run. If they cannot be read its trainer fails, and says why; others go on."""
        try:
            return self._count(name)
        except WorkspaceError as error:
            with contextlib.suppress(WorkspaceError):  # a full disk takes no event either
                self._store.event(name, "error", str(error))
            self._counted[name] = 0, 0
            return 0, 0

    def counts(self, name: str) -> tuple[int, int]:
        """How many documents the spool of a receiving run has: (train, eval); (0, 0) if it was deleted meanwhile."""
        if name in self._counted:  # those of the last request: nobody who asks waits for the spool
            return self._counted[name]
        if not self._store.exists(name):
            return 0, 0
        with self._lock_of(name):
            counted = self._count(name)
            if self._store.get(name).state is not RunState.RECEIVING:  # it changed since the caller looked
                self._drop_spool(name)  # otherwise it would stay open
            return counted

    def _count(self, name: str) -> tuple[int, int]:
        """Count the documents in the spool, for the caller who has the lock of the run."""
        self._counted[name] = len(self._spool(name, "train")), len(self._spool(name, "eval"))
        return self._counted[name]

    def release(self, name: str) -> None:
        """Close the spool of a run that takes no more documents, and forget its deadline.

        A request that is storing documents in it closes it afterwards: nobody waits for that here.
        """
        self._deadlines.forget(name)
        with self._if_free(name) as free:
            if free:
                self._drop_spool(name)

    def delete(self, name: str) -> None:
        """Delete a run, see `RunStore.delete`. Raises: Conflict: a request for it is under way."""
        with self._undisturbed(name) as run:
            if run.options.feedback and run.state in (RunState.FAILED, RunState.CANCELLED):
                self.feedback.give_back(run.number)  # first: once the run is gone, nobody knows that it had failed
            self._store.delete(name)
            self.release(name)

    @contextlib.contextmanager
    def _undisturbed(self, name: str) -> Iterator[Run]:
        """Keep out requests for a run and for runs based on it. Raises: Conflict: a request for it is under way."""
        with self._choosing, self._if_free(name) as free:
            if not free:
                raise Conflict(f"Documents of run {name!r} are just being stored; delete it in a moment.")
            if borrower := self._sources.borrower(name):
                raise Conflict(f"Run {borrower!r} is just copying the documents of run {name!r}; try again soon.")
            yield self._store.get(name)

    def close(self) -> None:
        """Copy no more, and close the spools."""
        self.stop()
        for copying in self._copying:
            copying.join()
        for name in list(self._spools):
            with self._lock_of(name):
                self._drop_spool(name)
        self.feedback.close()

    def is_busy(self, name: str) -> bool:
        """Whether documents of a run are being stored just now."""
        with self._if_free(name) as free:
            return not free

    def _lock_of(self, name: str) -> threading.RLock:
        return self._locks.setdefault(name, threading.RLock())

    @contextlib.contextmanager
    def _if_free(self, name: str) -> Iterator[bool]:
        """Hold the lock of a run if nobody else does; say whether it is held."""
        lock = self._lock_of(name)
        held = lock.acquire(blocking=False)
        try:
            yield held
        finally:
            if held:
                lock.release()

    # which run ----------------------------------------------------------------------------------------------------

    def _present_run(self, parameters: FitParameters) -> Run | None:
        """Return the run that a request is for: the one it names, or the newest that is receiving; None: a new one."""
        if parameters.run is not None:
            return self._store.get(parameters.run) if self._store.exists(parameters.run) else None
        receiving = self._store.in_state(RunState.RECEIVING)
        return receiving[-1] if receiving else None

    def _new_run(self, docs: Sequence[Document], parameters: FitParameters, automatic: tuple[int, float | None]) -> Run:
        self._check_room(None, docs, parameters.split)
        run = self._create(docs, parameters, automatic)
        self._counted[run.name] = 0, 0
        return run

    def _create(self, docs: Sequence[Document], parameters: FitParameters, automatic: tuple[int, float | None]) -> Run:
        asked = parameters.training_options()
        options = parse(
            TrainingOptions, {"freeze": self._options.freeze, **self._options.fit_defaults, **asked}, where="/fit"
        )
        copies = self._sources.check(options)
        if not docs and are_wanted(options) and not copies:
            raise BadRequest("The sources of this run have no documents yet; post some to /feedback, or to /fit.")
        if not docs and not copies:
            what = f"Run {parameters.run!r} has no documents" if parameters.run else "No run is receiving documents"
            raise BadRequest(f"{what}, so there is nothing to start; post labelled documents to /fit first.")
        open_runs = len(self._store.in_state(RunState.RECEIVING, RunState.QUEUED, RunState.TRAINING))
        if open_runs >= self._options.max_open_runs:
            raise LimitExceeded(
                f"{open_runs} runs are open, as many as max_open_runs allows; wait for one to end, cancel one, "
                "or raise that option of the executor."
            )
        configuration = Configuration(
            options=self._options,
            given=tuple(sorted(asked)),
            automatic=automatic[0],
            level=automatic[1],
            directory=self._directory,
            path=tuple(entry or self._directory for entry in sys.path),
            trace=tracing.promise(),
            asked_by=tracing.here(),
        )
        return self._store.create(parameters.run, self._checked(options), configuration)

    def _checked(self, options: TrainingOptions) -> TrainingOptions:
        """Return the options with a version as `base`; `promoted` becomes the one served now.

        Raises: UnknownModel: it has no model. InvalidParameter: the options do not fit it.
        """
        found = options.model_copy(update={"base": self._version(options.base)})
        check_parts(found, self._store.workspace.model_folder(found.base))
        return found

    def _version(self, name: str) -> str:
        """Return the version to start from; `promoted` is the one served now. Raises: UnknownModel: it has no model."""
        version = self._store.promoted() if name == "promoted" else name
        if version != "base" and not Path(self._store.workspace.model_folder(version)).is_dir():
            raise UnknownModel(
                f"base={name!r} is no version to start from; give base, promoted, or a run that succeeded."
            )
        return version

    def _settle_options(self, run: Run, parameters: FitParameters) -> None:
        """Save the options that no earlier request named. Raises: InvalidParameter: one contradicts an earlier one."""
        asked, present = parameters.training_options(), dict(run.options)
        given = run.configuration.given
        if asked.get("base") == "promoted":
            asked["base"] = run.options.base if "base" in given else self._version("promoted")
        changed = {name: value for name, value in asked.items() if value != present[name]}
        for name, value in changed.items():
            if name in given:
                raise InvalidParameter(
                    f"Parameter {name!r} of run {run.name!r} is {present[name]!r} since an earlier request, not "
                    f"{value!r}; leave it out, or name another run."
                )
        named = tuple(name for name in asked if name not in given)
        if not {"documents_from", "feedback"}.isdisjoint(changed):
            self._sources.check(run.options.model_copy(update=changed))
        if named:  # unchanged ones, too: from now on they are fixed
            options = self._checked(parse(TrainingOptions, present | changed, where="/fit"))
            configuration = run.configuration.model_copy(update={"given": (*given, *named)})
            self._store.set_options(run.name, options, configuration)

    def _settle_total(self, run: Run, parameters: FitParameters, *, has_docs: bool) -> None:
        """Save how many documents are announced. Raises: InvalidParameter: it contradicts an earlier request.

        A request that says `start` and brings none may correct it: who sends them may have left some out.
        """
        if parameters.total in (None, run.total):
            return
        if run.total is not None and (has_docs or not parameters.start):
            raise InvalidParameter(
                f"Parameter 'total' of run {run.name!r} is {run.total} already, not {parameters.total}; leave it out."
            )
        self._store.set_total(run.name, parameters.total)

    def _repeated(self, run: Run, docs: Sequence[Document], split: str) -> str:
        """Accept a repeated request, which changes nothing. Raises: Conflict: new documents come too late."""
        late = self._new_parts(run, docs, split)
        self._drop_spool(run.name)
        if late or (not docs and run.state.ended):
            raise Conflict(
                f"Run {run.name!r} is {run.state.value} and takes no more documents; "
                "send them to another run (parameter 'run')."
            )
        return run.name

    # the documents ------------------------------------------------------------------------------------------------

    def _check_room(self, run: Run | None, docs: Sequence[Document], split: str) -> None:
        """Raise LimitExceeded if a run would have too many documents; `run` None: a new one. Repeated ones are free."""
        limit = self._options.max_documents_per_run
        stored = self._parts_of(run.name) if run is not None else 0
        sent = sum(map(parts_of, docs))
        if stored + sent <= limit or (run is not None and stored + self._new_parts(run, docs, split) <= limit):
            return
        what, count, advice = "A new run was sent", sent, "send fewer"
        if run is not None:
            what, count, advice = f"Run {run.name!r} has", stored, "start it"
        plain = count == (len(docs) if run is None else sum(self.counts(run.name)))
        counted = "" if plain else ", matches and quarantined ones included,"
        raise LimitExceeded(
            f"{what} {count} documents{counted} and max_documents_per_run is {limit}; {advice}, "
            "or raise that option of the executor."
        )

    def _parts_of(self, name: str) -> int:
        """How many documents a run takes room for: matches and quarantined ones, too."""
        spooled = sum(self._spool(name, split).parts for split in ("train", "eval"))
        return spooled + self._store.count_problems(name, spooled=False)

    def _new_parts(self, run: Run, docs: Sequence[Document], split: str) -> int:
        """How many documents and matches no earlier request has sent to the run."""
        spool = self._spool(run.name, split)
        new = {}
        for doc in docs:
            identity = identity_of(doc)
            if not (spool.has(identity) or self._store.is_quarantined(run.name, split, identity.key)):
                new[identity] = parts_of(doc)
        return sum(new.values())

    def _append_copies(self, name: str, docs: Sequence[Document]) -> int | None:
        """Add train documents to a run and return how many are new; None: it is not receiving any more."""
        with self._lock_of(name):
            if not self._store.exists(name) or self._store.get(name).state is not RunState.RECEIVING:
                self._drop_spool(name)
                return None
            before, _ = self._count(name)
            self._append(self._store.get(name), docs, "train")
            return self._count(name)[0] - before

    def _append(self, run: Run, docs: Sequence[Document], split: str) -> int:
        """Store documents, or note why they cannot be used. Return how many of them no earlier request had brought."""
        before = sum(self._count(run.name))
        fit: list[Document] = []
        problems: list[tuple[Document, str]] = []
        for doc in docs:
            fault = self.fault(doc, run.options.kind, split)
            if fault is None:
                fit.append(doc)
            else:
                problems.append((doc, fault))
        contradictions = self._spool(run.name, split).take(fit)
        new = sum(self._count(run.name)) - before
        problems += [(fit[number], reason) for number, reason in contradictions.items()]
        if problems:
            noted = [Quarantined(identity_of(doc).key, str(doc.id), reason) for doc, reason in problems]
            new += self._store.quarantine(run.name, split, noted, spooled=False)
        return new

    def _check_not_cancelled(self, name: str) -> None:
        if self._store.get(name).state is not RunState.RECEIVING:
            self._drop_spool(name)
            raise Conflict(f"Run {name!r} was cancelled while these documents were stored; send them to another run.")

    def fault(self, doc: Document, kind: str, split: str) -> str | None:
        """Return why a document cannot be used, or None. No file or URL is opened to find out."""
        if kind == "unlabeled" and split == "eval":
            kind = "auto"  # such a run may have labelled eval documents
        fault = fault_of(doc, kind)
        if fault is not None:
            return fault
        size = bytes_of(doc)
        try:
            for part in (doc, *doc.matches):
                check_integers(part.tags)
            self._check_content(doc, "it")
            for match in doc.matches if kind in ("auto", "session") else ():
                self._check_content(match, f"its match {brief(match.id)!r}")
        except BadDocument as error:
            return str(error)
        if size > self._options.max_document_bytes:
            return (
                f"it has {size} bytes and max_document_bytes is {self._options.max_document_bytes}; "
                "send a smaller image, or raise that option of the executor"
            )
        return None

    def _check_content(self, doc: Any, what: str) -> None:
        if doc.uri is not None:
            check_uri(doc.uri, self._policy)
        elif isinstance(doc.content, bytes) and not doc.content:
            raise BadDocument(EMPTY)
        elif doc.content is None:
            raise BadDocument(f"{what} has neither uri nor blob nor buffer; set one of them ({OTHER_CLASSES})")

    # when it is complete ------------------------------------------------------------------------------------------

    def _maybe_start(self, run: Run, parameters: FitParameters, *, has_docs: bool) -> None:
        if not has_docs or (run.total is not None and self._arrived(run.name) >= run.total):
            self.queue(run.name)
        elif parameters.start:
            self._deadlines.start_soon(run.name)

    def _arrived(self, name: str) -> int:
        """How many train documents have arrived, quarantined ones included, copied ones not."""
        arrived = self.counts(name)[0] + self._store.count_problems(name, "train", spooled=False)
        return arrived - copied_in_all(self._store, name)

    def _spool(self, name: str, split: str) -> DocumentArrayMemmap:
        splits = self._spools.setdefault(name, {})
        if split not in splits:
            splits[split] = DocumentArrayMemmap(self._store.workspace.spool_file(name), split=split)
        return splits[split]

    def _drop_spool(self, name: str) -> None:
        self._counted.pop(name, None)
        for spool in self._spools.pop(name, {}).values():
            spool.close()
