"""The three kinds of dataset over any sequence of documents: class, session and unlabeled.

Each is a map-style dataset: `len(dataset)` items, `dataset[i] -> (content, label)`. The content is
`preprocess_fn(document)`, computed again at each access; without a `preprocess_fn` it is `document.content`.
"""

import reprlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..documents import Label, check_ours, content_of, label_of
from ..errors import BadDocument, MissingLabel, NotTrainable, brief
from ..store.spool import label_rows, sorts_of

PreprocessFn = Callable[[Any], np.ndarray]
CollateFn = Callable[[list[Any]], Any]

NO_DOCUMENTS = "There are no documents; send at least two."
KINDS = ("class", "session", "unlabeled")
SET_KIND = "Set kind to class, session or unlabeled, and send documents that fit it."
ONE_SORT = "Those of one sort can be scored; leave out the others."


class _Dataset:
    """The base of the three kinds: holds the documents and loads an item's content.

    It may be empty; training refuses it then.
    """

    kind: str

    def __init__(
        self, docs: Sequence[Any], preprocess_fn: PreprocessFn | None = None, collate_fn: CollateFn | None = None
    ) -> None:
        self.docs = docs
        self.preprocess_fn = preprocess_fn
        self.collate_fn = collate_fn
        if len(docs):
            check_ours(docs[0])

    def place(self, index: int) -> int:
        """Return the item under which the content of item `index` is kept."""
        return index

    def content(self, doc: Any) -> Any:
        """Return the content of `doc` as an item. Raises: BadDocument: it has none."""
        if self.preprocess_fn is not None:
            return self.preprocess_fn(doc)
        content = content_of(doc)
        if content is None:
            raise BadDocument(
                f"Document {brief(doc.id)!r} has no content (blob, text or buffer); to load its uri when it is needed, "
                "pass preprocess_fn=load_uri_to_image_blob."
            )
        return content


class ClassDataset(_Dataset):
    """Documents with one label each: `self[i] -> (content, int label)`.

    Labels are numbered in the order in which they first appear: `classes[label]` is the tag's value.

    Args:
        docs: the documents. preprocess_fn: returns the content of a document. collate_fn: makes a list of contents
            into a batch of model input.
    Raises: MissingLabel (a KeyError): a document has no label; the message names it and the tag.
    """

    kind = "class"

    def __init__(
        self, docs: Sequence[Any], preprocess_fn: PreprocessFn | None = None, collate_fn: CollateFn | None = None
    ) -> None:
        super().__init__(docs, preprocess_fn, collate_fn)
        numbers: dict[Label, int] = {}
        labels: list[int] = []  # do not use len(docs): someone may append documents while we read
        for index, row in enumerate(label_rows(docs)):
            if row.label is None:
                label_of(docs[index])  # raises an error that names the document
            labels.append(numbers.setdefault(row.label, len(numbers)))  # type: ignore[arg-type]
        self.labels = np.asarray(labels, np.int64)
        self.classes: list[Label] = list(numbers)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.content(self.docs[index]), int(self.labels[index])

    def document(self, index: int) -> Any:
        """Return the document of item `index`."""
        return self.docs[index]


class SessionDataset(_Dataset):
    """Documents with labelled matches; the items are each root and then its matches, in order.

    `self[i] -> (content, (session index, 0 | 1 | -1))`: 0 is the root, 1 a match that fits it, -1 one that does not.

    Raises: BadDocument: a document has no matches, or a match has another label than 1 or -1. MissingLabel (a
        KeyError): a match has no label.
    """

    kind = "session"

    def __init__(
        self, docs: Sequence[Any], preprocess_fn: PreprocessFn | None = None, collate_fn: CollateFn | None = None
    ) -> None:
        super().__init__(docs, preprocess_fn, collate_fn)
        sessions: list[int] = []
        kinds: list[int] = []
        members: list[int] = []  # position in the session; 0 is the root
        for number, doc in enumerate(docs):
            check_ours(doc)
            if not doc.matches:
                raise BadDocument(f"Document {doc.id!r} has no matches; a session needs matches labelled 1 or -1.")
            labels = [0, *(match_label(doc, match) for match in doc.matches)]
            sessions += [number] * len(labels)
            kinds += labels
            members += range(len(labels))
        self.labels = np.stack([np.asarray(sessions, np.int64), np.asarray(kinds, np.int64)], axis=1)
        self._members = np.asarray(members, np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, tuple[int, int]]:
        session, kind = self.labels[index]
        return self.content(self.document(index)), (int(session), int(kind))

    def document(self, index: int) -> Any:
        """Return the document of item `index`, a root or a match."""
        root = self.docs[int(self.labels[index, 0])]
        member = int(self._members[index])
        return root if member == 0 else root.matches[member - 1]


class InstanceDataset(_Dataset):
    """Documents without labels; each counts as a class of its own: `self[i] -> (content, i)`."""

    kind = "unlabeled"

    def __init__(
        self, docs: Sequence[Any], preprocess_fn: PreprocessFn | None = None, collate_fn: CollateFn | None = None
    ) -> None:
        super().__init__(docs, preprocess_fn, collate_fn)
        self.labels = np.arange(len(docs), dtype=np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        return self.content(self.docs[index]), int(self.labels[index])

    def document(self, index: int) -> Any:
        """Return the document of item `index`."""
        return self.docs[index]


Dataset = ClassDataset | SessionDataset | InstanceDataset
DATASETS: dict[str, type[ClassDataset] | type[SessionDataset] | type[InstanceDataset]] = {
    "class": ClassDataset,
    "session": SessionDataset,
    "unlabeled": InstanceDataset,
}


def match_label(root: Any, match: Any) -> int:
    """Return the label of a match, 1 or -1. Raises: MissingLabel, BadDocument: they name the match and its root."""
    try:
        label = label_of(match)
    except MissingLabel as error:
        raise MissingLabel(f"Session {brief(root.id)!r}: {error} A match is labelled 1 or -1.") from None
    if label not in (1, -1):
        raise BadDocument(
            f"Session {brief(root.id)!r}: match {brief(match.id)!r} is labelled {reprlib.repr(label)}; "
            "it must be 1 or -1."
        )
    return int(label)


def fault_of(doc: Any, kind: str) -> str | None:
    """Return why `doc` does not fit `kind`, or None if it fits. With `auto` it may fit any kind."""
    try:
        if kind == "class" or (kind == "auto" and not doc.matches and doc.tags.get("finetuner_label") is not None):
            label_of(doc)
        if kind == "session" and not doc.matches:
            return "it has no matches; a session needs matches labelled 1 or -1"
        if kind == "session" or (kind == "auto" and doc.matches):
            for match in doc.matches:
                match_label(doc, match)
    except BadDocument as error:
        return str(error)
    return None


def kind_of(docs: Sequence[Any], cure: str = SET_KIND) -> str:
    """Return the kind of the whole set: `class` if all have labels, `session` if all have matches, else `unlabeled`.

    Args: cure: what to do about a mixture, in a sentence.
    Raises: NotTrainable: there are no documents, or they are a mixture; then the message counts each sort and names a
        document of each.
    """
    sorts = sorts_of(docs)
    counts = {"class": sorts.labelled, "session": sorts.sessions, "unlabeled": sorts.unlabelled}
    present = [kind for kind, count in counts.items() if count]
    if not present:
        raise NotTrainable(NO_DOCUMENTS)
    if len(present) == 1:
        return present[0]
    names = {"class": "labelled", "session": "with matches", "unlabeled": "with neither label nor matches"}
    keys = {"class": "labelled", "session": "sessions", "unlabeled": "unlabelled"}
    parts = [f"{counts[kind]} {names[kind]} (such as {brief(sorts.examples[keys[kind]])!r})" for kind in present]
    raise NotTrainable(f"The documents are a mixture: {', '.join(parts)}. {cure}")


def make_dataset(
    docs: Any, kind: str = "auto", preprocess_fn: PreprocessFn | None = None, collate_fn: CollateFn | None = None
) -> Dataset:
    """Return `docs` as a dataset of `kind`. If it is a dataset already, only set the given functions in it."""
    if isinstance(docs, _Dataset):
        docs.preprocess_fn = preprocess_fn or docs.preprocess_fn
        docs.collate_fn = collate_fn or docs.collate_fn
        return docs  # type: ignore[return-value]
    return DATASETS[kind_of(docs) if kind == "auto" else kind](docs, preprocess_fn, collate_fn)


def ranking_sessions(labels: np.ndarray) -> np.ndarray:
    """Return the numbers of the sessions that have a match labelled 1 and one labelled -1, so that they rank something.

    Args: labels: (N, 2), of items of a `SessionDataset`.
    """
    sessions, kinds = labels.T
    found: np.ndarray = np.intersect1d(sessions[kinds == 1], sessions[kinds == -1])
    return found


def check_trainable(dataset: Dataset, items: np.ndarray) -> None:
    """Raise NotTrainable if a model cannot learn from these items of `dataset`; the message gives the counts."""
    labels = dataset.labels[items]
    if len(items) == 0:
        raise NotTrainable("None of the documents can be trained on; the problems listed say why.")
    if isinstance(dataset, ClassDataset):
        present, counts = np.unique(labels, return_counts=True)
        if len(counts) < 2:
            raise NotTrainable(
                f"All {len(items)} documents have the label {reprlib.repr(dataset.classes[present[0]])}; training "
                "needs at least 2 labels. Send documents of another label, or train without labels: kind='unlabeled'."
            )
        if counts.max() < 2:
            raise NotTrainable(
                f"Each of the {len(counts)} labels has only 1 document, so there are no positives; send at least "
                "2 documents of one label, or train without labels: kind='unlabeled'."
            )
    elif isinstance(dataset, SessionDataset):
        if not len(ranking_sessions(labels)):
            kinds = labels[:, 1]
            raise NotTrainable(
                f"No session has both a match labelled 1 and one labelled -1 ({(kinds == 1).sum()} matches are "
                f"labelled 1, {(kinds == -1).sum()} are labelled -1); send sessions with both."
            )
    elif len(items) < 2:
        raise NotTrainable("There is only 1 document; training without labels needs at least 2.")
