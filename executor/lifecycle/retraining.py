"""Starts runs by itself when users have said enough, and undoes a promotion that later feedback proves wrong."""

import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from .. import tracing
from ..documents import Document, DocumentArray
from ..errors import FinetunerError
from ..parameters import ExecutorOptions, FitParameters, Retrain
from ..store.budget import BUDGET, FAILED, KEPT, LOST, PROMOTED, UNPROVEN, Attempt, Budget, level_of
from ..store.feedback import FeedbackStore, iso, now
from ..store.run import Run, RunState
from ..store.runs import RunStore
from .feedback import last_taker
from .promotion import was_promoted
from .receiving import Receiver

TICK_SECONDS = 1.0
LONGEST_WAIT = 86_400.0  # seconds after failed runs
FIRST_LOOK = (
    20  # documents of later feedback with which a promoted run is first compared; then twice as many, and so on
)
MOST_KILLED = 3  # looks that a kill broke off before the next waits for more feedback: a look may be what kills
HARD_NEGATIVES = 3  # of a session, unless `fit_defaults` says otherwise: clicks are only on what was shown
_ONGOING = (RunState.QUEUED, RunState.TRAINING)

_log = logging.getLogger(__name__)


class Plan(NamedTuple):
    """Whether an automatic run is due now, and when it is, in words."""

    due: bool
    words: str


class Retrainer:
    """A thread that starts automatic runs, if the option `retrain` says so.

    Args:
        is_worse: compares the versions `before` and `after` on later feedback of a kind; gets it newest first, and
            the chance of a false answer. Returns a sentence if `after` is worse, else None.
        serve: serves a version.
    """

    def __init__(
        self,
        store: RunStore,
        kept: FeedbackStore,
        receiver: Receiver,
        options: ExecutorOptions,
        *,
        is_worse: Callable[[str, str, str, Iterator[Document], float], str | None],
        serve: Callable[[str], None],
    ) -> None:
        self._store = store
        self._kept = kept
        self._receiver = receiver
        self._options = options
        self._is_worse = is_worse
        self._serve = serve
        self._budget = Budget(kept)
        self._refused: tuple[float, int, str] | None = None  # when a run could not begin, how often, and why
        self._uncompared = (0, 0, 0.0)  # the number of a run that could not be compared, how often, and until when
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._tend, name="retrainer", daemon=True)

    def start(self) -> None:
        """Look after automatic runs until `close`, if there are any to look after."""
        if self._options.retrain is not None:
            self._thread.start()

    def stop(self) -> None:
        """Begin nothing more, and serve nothing. What is under way ends by itself."""
        self._stopping.set()

    def close(self) -> None:
        """End the thread."""
        self.stop()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def spent(self) -> float:
        """How much of the budget of false promotions the automatic runs have spent."""
        return self._budget.spent()

    def _tend(self) -> None:
        while not self._stopping.wait(TICK_SECONDS):
            try:
                self.look()
            except Exception:
                _log.exception("The automatic runs go on after an error")

    def look(self) -> None:
        """Note what has ended, undo what was wrong, and start a run if one is due."""
        retrain = self._options.retrain
        if retrain is None:
            return
        self._note_ended()
        if retrain.rollback:
            self._undo_if_worse(retrain)
        if not self._stopping.is_set() and self.plan().due:
            self._begin()

    # when -----------------------------------------------------------------------------------------------------------

    def plan(self) -> Plan:
        """When the next run begins."""
        retrain = self._options.retrain
        if retrain is None:
            return Plan(False, "no run begins by itself: the option retrain is not set")
        attempts = self._budget.attempts()
        if attempts and attempts[0].outcome is None:
            return Plan(False, f"run {attempts[0].name!r} is under way")
        if ongoing := self._store.in_state(*_ONGOING):
            return Plan(False, f"not before run {ongoing[-1].name!r} has ended")
        last = last_taker(self._store, self._kept)
        news = self._kept.kept(after=last.upto if last else 0)
        if not news.since:
            return Plan(False, "as soon as there is new feedback that suffices")
        if (until := self._waits_until(retrain, attempts)) > now():
            why = f": {self._refused[2]}" if self._refused else ""
            return Plan(False, f"not before {iso(until)}, because the last one failed{why}")
        since = (last.at if last else news.oldest) or now()
        return _due(retrain, news.since, since)

    def _waits_until(self, retrain: Retrain, attempts: list[Attempt]) -> float:
        failed = 0
        for attempt in attempts:
            if attempt.outcome != FAILED:
                break
            failed += 1
        times = [(attempts[0].ended or 0.0, failed)] if failed else []
        times += [self._refused[:2]] if self._refused else []
        return max((at + wait_of(retrain, count) for at, count in times), default=0.0)

    # the run --------------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        number, level = self._budget.next()
        try:
            with tracing.span("retrain"):
                name = self._receiver.receive(DocumentArray(), self._parameters(), automatic=(number, level))
        except FinetunerError as error:
            count = self._refused[1] + 1 if self._refused else 1
            self._refused = now(), count, str(error)
            _log.warning("An automatic run could not begin: %s", error)
            return
        self._refused = None
        self._budget.begin(self._store.get(name).number, name, level)
        self._store.event(
            name,
            "automatic",
            f"it started by itself, as number {number} of those that are judged. The chance that it is promoted though "
            f"it is no better is {level:.3%}; with it {self._budget.spent():.3%} of {BUDGET:.1%} are spent, which all "
            "such runs share",
        )

    def _parameters(self) -> FitParameters:
        promoted = self._store.promoted()
        known = promoted != "base" and self._store.exists(promoted)
        kind = (self._store.progress(promoted).kind or self._store.get(promoted).options.kind) if known else "auto"
        if kind not in ("class", "session"):
            known, kept = False, self._kept.kept()
            kind = "session" if kept.sessions >= kept.labelled else "class"
        never = self._options.fit_defaults.get("promote") == "never"
        negatives = {"hard_negatives": HARD_NEGATIVES} if kind == "session" else {}
        return FitParameters(
            **{name: value for name, value in negatives.items() if name not in self._options.fit_defaults},
            run=self._new_name(),
            base="promoted",
            feedback=True,
            documents_from=(promoted,) if known else (),
            kind=kind,
            promote="never" if never else "if_better",
            promote_by="interval",
        )

    def _new_name(self) -> str:
        number = len(self._budget.attempts()) + 1
        while self._store.exists(f"auto-{number}"):
            number += 1
        return f"auto-{number}"

    def _note_ended(self) -> None:
        attempts = {attempt.run: attempt for attempt in self._budget.attempts()}
        for run in self._store.all():
            if run.configuration.automatic and run.number not in attempts:  # the service was killed meanwhile
                self._budget.begin(run.number, run.name, run.configuration.level or level_of(1))
        for attempt in self._budget.attempts():
            if attempt.outcome is None:
                self._note(attempt)

    def _note(self, attempt: Attempt) -> None:
        run = self._run_of(attempt)
        if run is None:
            self._budget.end(attempt.run, LOST)
        elif run.state is RunState.SUCCEEDED:
            progress = self._store.progress(run.name)
            if progress.better is None:
                self._budget.end(run.number, UNPROVEN)
            else:
                if was_promoted(self._store.events(run.name, limit=-1)):
                    self._budget.end(run.number, PROMOTED, progress.served, self._number_of(progress.served))
                else:
                    self._budget.end(run.number, KEPT)
        elif run.state.ended:
            self._budget.end(run.number, FAILED)

    def _run_of(self, attempt: Attempt) -> Run | None:
        return self._store.get(attempt.name) if self._number_of(attempt.name) == attempt.run else None

    def _number_of(self, version: str | None) -> int | None:
        """The number of a run; None: none has that name."""
        return None if version is None or not self._store.exists(version) else self._store.get(version).number

    # the way back ---------------------------------------------------------------------------------------------------

    def _undo_if_worse(self, retrain: Retrain) -> None:
        """Compare the promoted run with the version before, each time that twice as much later feedback has come."""
        promoted = next((each for each in self._budget.attempts() if each.outcome == PROMOTED), None)
        if promoted is None or promoted.before is None or self._store.promoted() != promoted.name:
            return
        run = self._run_of(promoted)
        upto = next((taker.upto for taker in self._kept.takers() if taker.run == promoted.run), None)
        if run is None or upto is None or not self._can_return(promoted):
            return
        put_off, failed, until = self._uncompared
        if self._kept.kept(after=upto).since < FIRST_LOOK * 2**promoted.looks or (
            put_off == run.number and until > now()
        ):
            return
        if promoted.begun >= MOST_KILLED:
            self._budget.looked(run.number)
            _log.warning(
                "Run %r is not compared with %r before there is twice as much feedback: the service was killed "
                "%d times while it compared them",
                *(run.name, promoted.before, promoted.begun),
            )
            return
        self._budget.begin_look(run.number)
        try:
            self._compare(promoted, promoted.before, run, upto)
            self._uncompared = (0, 0, 0.0)
        except Exception as error:  # nothing was undone, so this look is not used up
            failed = failed + 1 if put_off == run.number else 1
            self._uncompared = run.number, failed, now() + wait_of(retrain, failed)
            self._budget.not_looked(run.number)
            _log.warning(
                "Run %r could not be compared with %r, or not be undone; that is tried again after %s: %s",
                *(run.name, promoted.before, iso(self._uncompared[2]), error),
                exc_info=not isinstance(error, FinetunerError),
            )

    def _compare(self, promoted: Attempt, before: str, run: Run, upto: int) -> None:
        docs = self._kept.latest_documents(upto)
        kind = self._store.progress(run.name).kind or run.options.kind
        why = self._is_worse(before, run.name, kind, docs, level_of(promoted.looks + 1))
        if self._stopping.is_set():
            self._budget.not_looked(run.number)
            return
        # That took minutes: somebody may have promoted another meanwhile, or deleted the one before.
        if why is not None and self._store.promoted() == run.name and self._can_return(promoted):
            self._serve(before)
            self._store.event(run.name, "rolled back", f"{before!r} is served again. {why}")
        self._budget.looked(run.number)  # only now: a service that is killed before looks again

    def _can_return(self, promoted: Attempt) -> bool:
        """Whether the version before is still there: another run may have got the name of one that was deleted."""
        before, number = promoted.before, self._number_of(promoted.before)
        if before is None or number is None:
            return before == "base"
        # An older release has noted the name alone. A run that got the name later has a higher number.
        is_that_run = number < promoted.run if promoted.before_run is None else number == promoted.before_run
        return is_that_run and self._store.workspace.model_folder(before).is_dir()


def wait_of(retrain: Retrain, failed: int) -> float:
    """How many seconds to wait after so many runs that failed in a row."""
    return float(min(LONGEST_WAIT, 60 * retrain.retry_minutes * 2 ** min(failed - 1, 20)))


def _due(retrain: Retrain, news: int, since: float) -> Plan:
    """Args: news: new words. since: when the last run began, or the first word was said."""
    words: list[Any] = []
    if retrain.every_documents is not None:
        if news >= retrain.every_documents:
            return Plan(True, "now")
        words.append(f"after {retrain.every_documents - news} more new documents")
    if retrain.every_hours is not None:
        at = since + 3600 * retrain.every_hours
        if at <= now():
            return Plan(True, "now")
        words.append(f"at {iso(at)}")
    return Plan(False, ", or ".join(words))
