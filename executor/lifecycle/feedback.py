"""Takes in what users say of documents, and tells what is kept."""

import contextlib
import hashlib
import os
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple
from urllib.parse import quote

from docarray import DocList

from ..documents import SOURCE_TAG, WITHDRAWN_TAG, Document, FeedbackStatus, Label, Problem, has_label, label_of
from ..errors import BadDocument, brief
from ..images.policy import ImagePolicy
from ..images.uris import file_behind
from ..parameters import ExecutorOptions
from ..store.feedback import FeedbackStore, Taker, Withdrawn, canonical, iso
from ..store.feedback import Word as KeptWord
from ..store.run import RunState
from ..store.runs import SHOWN_PROBLEMS, RunStore
from ..store.spool import DocumentArrayMemmap, StoredForm, stored_form
from ..store.spool_rows import as_document, content_digest, identity_of
from .sources import FEEDBACK, is_about, rule_of

LABELS_KEPT = 5_000  # documents whose labels are known without reading

Word = tuple[str, StoredForm | Withdrawn]


class Feedback:
    """What users have said, durably.

    Args: kept: where it is kept. fault: says why a document cannot be trained on, as for `/fit`.
    """

    def __init__(
        self,
        store: RunStore,
        kept: FeedbackStore,
        options: ExecutorOptions,
        fault: Callable[[Document, str, str], str | None],
    ) -> None:
        self._store = store
        self._kept = kept
        self._rule = rule_of(options)
        self._fault = fault

    def receive(self, docs: Sequence[Document], run: str | None = None) -> FeedbackStatus:
        """Store the words of one request. What the answer counts as stored is on the disk.

        Args: run: an earlier run, of whose train documents those speak that come without an image.
        Raises: UnknownRun. WorkspaceError: nothing of it could be stored.
        """
        words: list[Word] = []
        problems: list[tuple[str, str]] = []
        with contextlib.ExitStack() as stack:
            spool = None
            if run is not None:
                spool = DocumentArrayMemmap(self._store.workspace.spool_file(self._store.get(run).name))
                stack.enter_context(spool)
            for doc in docs:
                try:
                    words.append(self._word(doc, None if spool is None else _meant(spool, doc, run or "")))
                except BadDocument as error:
                    problems.append((str(doc.id or ""), str(error)))
        if words:
            self._kept.put(words, self._rule)
        return self._answer(len({id for id, _ in words}), problems)

    def said(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        """Return what was said of single documents: of each its `id`, and its `label`, or None if it is left out."""
        words: list[dict[str, Any]] = []
        for id in ids:
            latest = self._kept.latest(id)
            if isinstance(latest, Document) and has_label(latest):
                words.append({"id": id, "label": label_of(latest)})
            elif isinstance(latest, Withdrawn) and latest.content:
                words.append({"id": id, "label": None})
        return words

    def _answer(self, stored: int, problems: list[tuple[str, str]]) -> FeedbackStatus:
        last = last_taker(self._store, self._kept)
        kept = self._kept.kept(after=last.upto if last else 0)
        return FeedbackStatus(
            id=FEEDBACK,
            stored=stored,
            total=kept.total,
            since_last_run=kept.since,
            sessions=kept.sessions,
            labelled=kept.labelled,
            last_run=last and last.name,
            skipped=len(problems),
            problems=DocList[Problem](Problem(id=id, reason=reason) for id, reason in problems[:SHOWN_PROBLEMS]),
            disk_bytes=kept.bytes,
            oldest=None if kept.oldest is None else iso(kept.oldest),
            thinned=kept.thinned,
        )

    def _word(self, doc: Document, meant: Document | None) -> Word:
        """Return what a document says. Args: meant: of which document of an earlier run.

        Raises: BadDocument: it cannot be used.
        """
        withdrawn = doc.tags.get(WITHDRAWN_TAG)
        if not isinstance(withdrawn, bool | None):
            raise BadDocument(
                f"tags['{WITHDRAWN_TAG}'] is {brief(repr(withdrawn))}; give true to take back what was said, or leave "
                "it away"
            )
        if withdrawn:
            if not doc.id:
                raise BadDocument(f"it has tags['{WITHDRAWN_TAG}'] and no id; give it the id of what it takes back")
            return str(doc.id), Withdrawn() if meant is None else Withdrawn(identity_of(meant).content)
        if not doc.matches and not has_label(doc):
            raise BadDocument(
                "it has neither matches nor tags['finetuner_label'], so it says nothing; send a query with matches "
                "labelled 1 or -1, or a document with its label"
            )
        if meant is not None:
            doc.uri, doc.blob, doc.buffer, doc.text = meant.uri, meant.blob, meant.buffer, meant.text
            doc.tags = {**meant.tags, **doc.tags}
        _name(doc)
        if fault := self._fault(doc, "auto", "train"):
            raise BadDocument(fault)
        doc.tags = {**doc.tags, SOURCE_TAG: FEEDBACK}
        form = stored_form(doc)
        return form.id, form


def _meant(spool: DocumentArrayMemmap, doc: Document, run: str) -> Document | None:
    """Return the document of an earlier run that a word without an image is about; None: it has its own image.

    Raises: BadDocument: there is none, or there are several.
    """
    if doc.uri is not None or doc.content is not None or doc.matches:
        return None
    found = spool.with_id(str(doc.id or ""))
    if len(found) == 1:
        return found[0]
    if not found:
        raise BadDocument(f"run {run!r} has no train document with this id; send the document with its image")
    raise BadDocument(
        f"run {run!r} has several documents with the id {brief(doc.id)!r}; send the one that is meant with its image, "
        "under an id of its own"
    )


class _Said(NamedTuple):
    """What a word says. Attributes: label: None: none. place: see `_place`. instead: labels in the promoted run, which
    the word replaces."""

    label: Label | None
    place: bytes
    instead: list[Label]


class LabelsSaid:
    """The labels in the latest words, and in the promoted run as these words leave them. Each word is read once."""

    def __init__(self, store: RunStore, kept: FeedbackStore, policy: ImagePolicy) -> None:
        self._store = store
        self._kept = kept
        self._policy = policy
        self._lock = threading.Lock()
        self._read: int | None = None  # up to the word with this number
        self._run: tuple[str, int] | None = None  # the promoted one, by name and number
        self._said: OrderedDict[str, _Said] = OrderedDict()  # by ids, the latest at the end

    def counts(self) -> "Counter[Label]":
        """Return how many documents have each label: those of the latest words, and the others of the promoted run."""
        with self._lock, self._promoted() as docs:
            said = self._latest(docs)
            counts = Counter({} if docs is None else dict(docs.label_counts()))
            counts.subtract(label for word in said for label in word.instead)
            counts.update(word.label for word in said if word.label is not None)
        return +counts

    def of(self, docs: Sequence[Document]) -> list[Label | None]:
        """Return the label of each document, or None.

        It is what was said of the same file, of the same uri, or without one of the same id; else what the promoted run
        was told of the same content.
        """
        with self._lock, self._promoted() as promoted:
            labels = {word.place: word.label for word in self._latest(promoted) if word.label is not None}
            found = [labels.get(_place(doc.uri, doc.id, self._policy)) for doc in docs]
            if promoted is not None:
                others = {place: docs[place] for place, label in enumerate(found) if label is None}
                for place, label in self._of_run(promoted, others):
                    found[place] = label
        return found

    def _of_run(
        self, promoted: DocumentArrayMemmap, docs: Mapping[int, Document]
    ) -> Iterator[tuple[int, Label | None]]:
        """Yield the labels of the documents that the promoted run has with one, unless a word says otherwise since."""
        wanted: dict[bytes, list[int]] = {}
        for place, doc in docs.items():
            for content in _contents(doc, self._policy):
                wanted.setdefault(content, []).append(place)
        known = self._kept.ids()
        for (id, label, matches), content in zip(promoted.labels(), promoted.contents(), strict=False):
            if label is None or matches or content not in wanted:
                continue
            word = self._kept.latest(id) if id in known else None
            if word is not None and any(
                is_about(word, doc, self._policy) for doc in promoted.with_id(id) if content_digest(doc) == content
            ):
                label = label_of(word) if isinstance(word, Document) and has_label(word) else None
            yield from ((place, label) for place in wanted[content])

    @contextlib.contextmanager
    def _promoted(self) -> Iterator[DocumentArrayMemmap | None]:
        """The train documents of the promoted run, if there is one. For another run all words are read anew."""
        name = self._store.promoted()
        run = (name, self._store.get(name).number) if name != "base" and self._store.exists(name) else None
        if run != self._run:
            self._run, self._read = run, None
            self._said.clear()
        spool = self._store.workspace.spool_file(name)
        if run is None or not spool.exists():
            yield None
            return
        with DocumentArrayMemmap(spool) as docs:
            yield docs

    def _latest(self, docs: DocumentArrayMemmap | None) -> list[_Said]:
        start = max(0, self._kept.last() - LABELS_KEPT) if self._read is None else self._read
        for word in self._kept.words_after(start):
            self._said.pop(word.id, None)
            said = self._what_says(word, docs)
            if said.label is not None or said.instead:
                self._said[word.id] = said
            start = word.number
        self._read = start
        while len(self._said) > LABELS_KEPT:
            self._said.popitem(last=False)
        return list(self._said.values())

    def _what_says(self, word: KeptWord, docs: DocumentArrayMemmap | None) -> _Said:
        found = word.document
        label = label_of(found) if found is not None and not found.matches and has_label(found) else None
        latest = self._kept.latest(word.id) if docs is not None and word.id in docs else None
        instead = []
        if docs is not None and latest is not None:
            before = (doc for doc in docs.with_id(word.id) if not doc.matches and has_label(doc))
            instead = [label_of(doc) for doc in before if is_about(latest, doc, self._policy)]
        return _Said(label, _place(None if found is None else found.uri, word.id, self._policy), instead)


def _place(uri: str | None, id: Any, policy: ImagePolicy) -> bytes:
    """Return a digest of the file that a uri names, else of the uri, which may hold a whole picture, else of the id."""
    text = (_file(uri, policy) or uri) if uri else str(id)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16]


def _contents(doc: Document, policy: ImagePolicy) -> set[bytes]:
    """Return the digests that the content of a document may have in a run: the uri of a file has several spellings."""
    found = {content_digest(doc)}
    if doc.uri and (path := _file(doc.uri, policy)) is not None:
        spellings = (path, os.path.relpath(path), "file://" + quote(path, errors="surrogatepass"), "file://" + path)
        found |= {content_digest(SimpleNamespace(uri=spelling)) for spelling in spellings}
    return found


def _file(uri: str, policy: ImagePolicy) -> str | None:
    with contextlib.suppress(BadDocument):
        return file_behind(uri, policy)
    return None


def last_taker(store: RunStore, kept: FeedbackStore) -> Taker | None:
    """The latest run that was trained on feedback. One that failed or was cancelled has come to nothing."""
    for taker in kept.takers():
        run = store.get(taker.name) if store.exists(taker.name) else None
        if run is None or run.number != taker.run or run.state not in (RunState.FAILED, RunState.CANCELLED):
            return taker
    return None


def _name(doc: Any) -> None:
    """Give a document and its matches ids if they came without: always the same for the same content.

    So a request that is sent again counts once, and with another label a match is still the same match.
    """
    if not doc.id:
        doc.id = f"{FEEDBACK}-{hashlib.sha256(canonical(as_document(doc).to_protobuf())).hexdigest()[:24]}"
    for number, match in enumerate(doc.matches):
        match.id = match.id or f"{doc.id}-{number}"
