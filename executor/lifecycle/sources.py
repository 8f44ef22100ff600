"""Documents that a run is trained on without being sent to it: those of earlier runs, and feedback.

They are copied into the run's own spool before it is queued, so nothing that is deleted later is missing. They pass the
same checks as documents that are posted. `sources.json` in the run's folder says what was copied, and whether all was.
"""

import contextlib
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from ..documents import SOURCE_TAG, Document
from ..errors import BadDocument, Conflict, LimitExceeded, Overloaded, UnknownRun
from ..images.policy import ImagePolicy
from ..images.uris import is_remote, read_uri
from ..parameters import ExecutorOptions, TrainingOptions
from ..store.feedback import FeedbackStore, Rule, Withdrawn
from ..store.files import publish_file, read_kept
from ..store.run import Run, RunState
from ..store.runs import RunStore
from ..store.spool import DocumentArrayMemmap
from ..store.spool_rows import identity_of

FEEDBACK = "feedback"
_CHUNK = 100  # documents copied at a time; between two chunks others may use the run


def are_wanted(options: TrainingOptions) -> bool:
    """Whether a run with these options gets documents that are not sent to it."""
    return options.feedback or bool(options.documents_from)


def copied(store: RunStore, name: str) -> dict[str, int]:
    """How many documents of a run came from each source; empty: from none, or they are not all copied yet."""
    found = _read(store, name)
    return dict(found.get("from", {})) if found.get("complete") else {}


def copied_in_all(store: RunStore, name: str) -> int:
    """How many train documents of a run were copied, with those that are quarantined; 0: they are not all copied yet.

    Older files do not say how many are quarantined.
    """
    found = _read(store, name)
    return sum(found.get("from", {}).values()) + found.get("quarantined", 0) if found.get("complete") else 0


def of_feedback(store: RunStore, name: str) -> int:
    """How many train documents of a run are copies of feedback, whichever way they came.

    Older files count those alone that came straight from it.
    """
    found = _read(store, name)
    return int(found.get("of_feedback", found.get("from", {}).get(FEEDBACK, 0)))


def _read(store: RunStore, name: str) -> dict[str, Any]:
    found = read_kept(store.workspace.sources_file(name))
    return found if isinstance(found, dict) and "upto" in found else {}


class Sources:
    """Copies documents into runs.

    Args:
        append: adds documents to the train documents of a receiving run and returns how many are new; None: the run is
            not receiving any more.
        is_ending: whether the service ends, and nothing more is copied.
    """

    def __init__(
        self,
        store: RunStore,
        feedback: FeedbackStore,
        options: ExecutorOptions,
        append: Callable[[str, Sequence[Document]], int | None],
        is_ending: Callable[[], bool],
    ) -> None:
        self._store = store
        self._feedback = feedback
        self._limit = options.max_documents_per_run
        self._rule = rule_of(options)
        self._policy = options.image_policy()
        self._append = append
        self._is_ending = is_ending
        self._one_at_a_time = threading.Lock()

    def check(self, options: TrainingOptions) -> int:
        """Return how many documents the sources have that the options name: at most so many would be copied.

        Raises: UnknownRun: there is no such run (any more). Conflict: it is still receiving. LimitExceeded.
        """
        count = self._feedback.kept().total if options.feedback else 0
        for name in options.documents_from:
            if not self._store.exists(name):
                raise UnknownRun(
                    f"documents_from names run {name!r}, and there is no such run. If it was deleted, its documents "
                    "are gone with it: leave it out, or post them again."
                )
            run = self._store.get(name)
            if run.state is RunState.RECEIVING:
                raise Conflict(
                    f"documents_from names run {name!r}, which is still receiving documents; start it, or wait until "
                    "it is queued."
                )
            copies = of_feedback(self._store, name) if options.feedback else 0  # these are left out, see `of_run`
            count += max(0, (run.train_rows or 0) - copies)
        if count > self._limit:
            raise LimitExceeded(
                f"The sources of this run have {count} documents and max_documents_per_run is {self._limit}; name "
                "fewer runs, or raise that option of the executor."
            )
        return count

    def are_complete(self, run: Run) -> bool:
        """Whether a run has all documents that are not sent to it."""
        return not are_wanted(run.options) or bool(_read(self._store, run.name).get("complete"))

    def borrower(self, name: str) -> str | None:
        """The run that is copying documents of run `name` now, if there is one."""
        for run in self._store.in_state(RunState.RECEIVING):
            if name in run.options.documents_from and not self.are_complete(run):
                return run.name
        return None

    def gather(self, name: str) -> None:
        """Copy the documents of all sources into a run, unless that was done. A killed service goes on where it was.

        Raises: WorkspaceError: a source cannot be read. Overloaded: the service ends, and has not copied them all.
        """
        if self._has_all(name):  # nobody waits for the copies of another run
            return
        with self._one_at_a_time:
            if self._has_all(name):
                return
            run = self._store.get(name)
            again = self._store.workspace.sources_file(name).exists()  # a service was killed before it had them all
            upto, before = self._begin(run), self._quarantined(name)
            counts: dict[str, int] = {}
            said = 0
            for source, docs in self._sources(run, upto):
                counts[source] = 0
                while chunk := list(islice(docs, _CHUNK)):
                    if self._is_ending():
                        raise Overloaded("The service is just ending; send this again when it is back.")
                    new = self._append(name, chunk)
                    if new is None:  # it was cancelled meanwhile
                        return
                    added = len(chunk) if again else new
                    counts[source] += added
                    said += max(0, added - sum(doc.tags.get(SOURCE_TAG) != FEEDBACK for doc in chunk))
            if run.options.feedback:
                self._feedback.take(run.number, name, upto)
            # Copies that are made again are counted as they are read, with those that cannot be used.
            quarantined = 0 if again else self._quarantined(name) - before
            told = {"from": counts, "of_feedback": said, "quarantined": quarantined}
            self._write(name, {"complete": True, "upto": upto, **told})
            self._store.event(name, "gathered", _told(counts))

    def _has_all(self, name: str) -> bool:
        run = self._store.get(name)
        return self.are_complete(run) or run.state is not RunState.RECEIVING

    def _quarantined(self, name: str) -> int:
        return self._store.count_problems(name, "train", spooled=False)

    def _begin(self, run: Run) -> int:
        """Return the number of the last word of feedback for the run. It stays the same if the service is killed."""
        begun = _read(self._store, run.name)
        if not begun:
            if run.options.feedback:
                self._feedback.thin(self._rule)
            begun = {"complete": False, "upto": self._feedback.last() if run.options.feedback else 0}
            self._write(run.name, begun)
        return int(begun["upto"])

    def _sources(self, run: Run, upto: int) -> Iterator[tuple[str, Iterator[Document]]]:
        """Feedback first: it is the latest word, and a document that is there already is not replaced."""
        if run.options.feedback:
            yield FEEDBACK, self._feedback.documents(0, upto)
        for name in run.options.documents_from:
            with DocumentArrayMemmap(self._store.workspace.spool_file(name)) as docs:
                yield name, of_run(docs, self._feedback, self._policy, with_feedback=not run.options.feedback)

    def _write(self, name: str, content: dict[str, Any]) -> None:
        file = self._store.workspace.sources_file(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        publish_file(file, json.dumps(content).encode())


def of_run(
    docs: Iterable[Document], feedback: FeedbackStore, policy: ImagePolicy, *, with_feedback: bool = True
) -> Iterator[Document]:
    """Iterate over documents of an earlier run. Where something was said of one since, the latest word counts.

    Args: with_feedback: whether those of feedback are wanted, too.
    """
    for doc, latest in with_words(docs, feedback, policy):
        if latest is None:
            if with_feedback or not _is_of_feedback(doc):
                yield doc
        elif with_feedback and isinstance(latest, Document):
            yield latest


def with_words(
    docs: Iterable[Document], feedback: FeedbackStore, policy: ImagePolicy
) -> Iterator[tuple[Document, Document | Withdrawn | None]]:
    """Iterate over documents of an earlier run, each with the latest word about it; None: nothing was said since."""
    known = feedback.ids()
    for doc in docs:
        latest = feedback.latest(str(doc.id)) if str(doc.id) in known else None
        yield doc, latest if latest is not None and is_about(latest, doc, policy) else None


def is_about(word: Document | Withdrawn, doc: Document, policy: ImagePolicy) -> bool:
    """Whether a word counts in the place of a document of an earlier run that has the id of the word.

    Ids repeat, so of a document that came by `/fit` it must be about the same content.
    """
    if _is_of_feedback(doc):
        return True
    content = identity_of(doc).content
    if isinstance(word, Withdrawn):
        return word.content == content
    if word.matches or doc.matches:
        return False
    return identity_of(word).content == content or _are_one_file(word, doc, policy)


def _is_of_feedback(doc: Document) -> bool:
    return bool(doc.tags.get(SOURCE_TAG) == FEEDBACK)


def _are_one_file(word: Document, doc: Document, policy: ImagePolicy) -> bool:
    """Whether one is the path of a file and the other its bytes: commands send bytes, and people name paths."""
    found = [_bytes_of_file(each, policy) for each in (word, doc)]
    return found[0] is not None and found[0] == found[1]


def _bytes_of_file(doc: Document, policy: ImagePolicy) -> bytes | None:
    if not doc.uri:
        return doc.buffer
    if is_remote(doc.uri, policy):
        return None
    with contextlib.suppress(BadDocument):
        return read_uri(doc.uri, policy)
    return None


def rule_of(options: ExecutorOptions) -> Rule:
    """The rule by which feedback is thinned."""
    keep = options.keep_feedback
    return Rule(keep.documents, keep.bytes, keep.days)


def _told(counts: dict[str, int]) -> str:
    parts = [
        f"{count} documents of feedback" if source == FEEDBACK else f"{count} documents of run {source!r}"
        for source, count in counts.items()
    ]
    return f"it is trained on {', '.join(parts)} too, copied into it"
