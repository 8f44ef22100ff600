"""The three kinds of dataset, over every kind of sequence of documents."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from docarray import BaseDoc
from docarray.documents import ImageDoc
from docarray.documents.legacy import LegacyDocument
from torch import nn
from torch.utils.data import DataLoader

from executor import (
    ClassDataset,
    Document,
    DocumentArray,
    DocumentArrayMemmap,
    InstanceDataset,
    SessionDataset,
    embed,
    fit,
)
from executor.documents import LABEL_TAG, Match
from executor.errors import BadDocument, MissingLabel, NotTrainable
from executor.loading.datasets import check_trainable, fault_of, kind_of, make_dataset

Make = Callable[[list[Document]], Sequence[Any]]


@pytest.fixture(params=["list", "DocumentArray", "DocumentArrayMemmap"])
def sequence(request, tmp_path) -> Make:
    """Put documents into one of the sequences that a dataset takes."""

    def make(docs: list[Document]) -> Sequence[Any]:
        if request.param == "DocumentArrayMemmap":
            memmap = DocumentArrayMemmap(tmp_path / f"{len(list(tmp_path.iterdir()))}.sqlite")
            memmap.extend(docs)
            return memmap
        return list(docs) if request.param == "list" else DocumentArray(docs)

    return make


def image(value: int) -> np.ndarray:
    return np.full((4, 4, 3), value, np.uint8)


def of_class(*labels: Any) -> list[Document]:
    return [
        Document(id=f"d{number}", blob=image(number), tags={"finetuner_label": label})
        for number, label in enumerate(labels)
    ]


def session(name: str, *labels: Any) -> Document:
    matches = [
        Match(id=f"{name}{number}", blob=image(number), tags={"finetuner_label": label})
        for number, label in enumerate(labels, 1)
    ]
    return Document(id=name, blob=image(0), matches=matches)


def without_label(count: int) -> list[Document]:
    return [Document(id=f"u{number}", blob=image(number)) for number in range(count)]


# --- class --------------------------------------------------------------------------------------------------------


def test_labels_are_numbered_by_their_first_appearance(sequence):
    dataset = ClassDataset(sequence(of_class("cat", 7, "cat", "7", 7.0, True, 1)))
    assert [label for _, label in dataset] == [0, 1, 0, 2, 1, 3, 3]
    assert dataset.classes == ["cat", 7, "7", 1]
    assert all(type(dataset[i][1]) is int for i in range(len(dataset)))


def test_a_class_item_is_the_content_and_the_label(sequence):
    content, label = ClassDataset(sequence(of_class("a", "b", "a")))[1]
    np.testing.assert_array_equal(content, image(1))
    assert label == 1


def test_a_missing_label_is_a_key_error_that_names_the_tag_and_the_document(sequence):
    docs = [*of_class(0, 1), Document(id="left-out", blob=image(0))]
    with pytest.raises(KeyError) as caught:
        ClassDataset(sequence(docs))
    assert isinstance(caught.value, MissingLabel)
    assert "finetuner_label" in str(caught.value)
    assert "'left-out'" in str(caught.value)


def test_a_label_that_is_none_names_its_document():
    with pytest.raises(BadDocument, match=r"1\.5"):
        ClassDataset(DocumentArray(of_class(0, 1.5)))


def test_documents_that_arrive_while_the_labels_are_read_do_not_harm():
    class Growing(list):
        def __iter__(self):
            self += of_class("b", "c")
            return super().__iter__()

    dataset = ClassDataset(Growing(of_class("a", "b")))
    assert dataset.labels.tolist() == [0, 1, 1, 2]
    assert len(list(dataset)) == 4


# --- session ------------------------------------------------------------------------------------------------------


def test_a_session_lists_its_root_and_then_its_matches_in_order(sequence):
    dataset = SessionDataset(sequence([session("s", 1, -1.0), session("t", -1, True, 1)]))
    assert [label for _, label in dataset] == [(0, 0), (0, 1), (0, -1), (1, 0), (1, -1), (1, 1), (1, 1)]
    assert [dataset.document(i).id for i in range(7)] == ["s", "s1", "s2", "t", "t1", "t2", "t3"]
    assert [int(content[0, 0, 0]) for content, _ in dataset] == [0, 1, 2, 0, 1, 2, 3]


@pytest.mark.parametrize("label", [0, 2, "1", "positive", -2, 0.5, [1]])
def test_any_other_label_of_a_match_is_refused(sequence, label):
    with pytest.raises(BadDocument):
        SessionDataset(sequence([session("s", 1, label, -1)]))


def test_a_wrong_label_of_a_match_names_the_match_and_its_session():
    with pytest.raises(BadDocument, match=r"'s'.*'s2' is labelled 2; it must be 1 or -1"):
        SessionDataset([session("s", 1, 2)])


def test_a_match_without_a_label_is_a_key_error_that_names_it(sequence):
    with pytest.raises(KeyError) as caught:
        SessionDataset(sequence([session("s", 1, None)]))
    assert "finetuner_label" in str(caught.value)
    assert "'s2'" in str(caught.value)


def test_a_document_without_matches_is_no_session(sequence):
    with pytest.raises(BadDocument, match="'d0' has no matches"):
        SessionDataset(sequence([session("s", 1, -1), *of_class(1)]))


# --- unlabeled ----------------------------------------------------------------------------------------------------


def test_an_instance_is_the_content_and_its_own_number(sequence):
    dataset = InstanceDataset(sequence(without_label(3)))
    assert [label for _, label in dataset] == [0, 1, 2]
    np.testing.assert_array_equal(dataset[2][0], image(2))


# --- what all three share -----------------------------------------------------------------------------------------

DATASETS = [
    pytest.param(ClassDataset, of_class(0, 1, 0), 3, id="class"),
    pytest.param(SessionDataset, [session("s", 1, -1)], 3, id="session"),
    pytest.param(InstanceDataset, without_label(3), 3, id="unlabeled"),
]


@pytest.mark.parametrize(("kind", "docs", "items"), DATASETS)
def test_a_dataset_can_be_iterated_and_indexed_from_the_end(sequence, kind, docs, items):
    dataset = kind(sequence(docs))
    assert len(dataset) == len(list(dataset)) == items
    np.testing.assert_array_equal(dataset[-1][0], dataset[items - 1][0])
    assert dataset[-1][1] == dataset[np.int64(items - 1)][1]


@pytest.mark.parametrize("index", [3, -4])
@pytest.mark.parametrize(("kind", "docs", "items"), DATASETS)
def test_an_item_beyond_the_end_is_an_index_error(sequence, kind, docs, items, index):
    with pytest.raises(IndexError):
        kind(sequence(docs))[index]


@pytest.mark.parametrize(("kind", "docs", "items"), DATASETS)
def test_preprocess_fn_is_called_anew_at_each_access_with_the_document(sequence, kind, docs, items):
    seen = []

    def preprocess(doc):
        seen.append(doc.id)
        return doc.blob.astype(np.float32) / 255

    dataset = kind(sequence(docs), preprocess_fn=preprocess)
    assert seen == []
    assert dataset[1][0].dtype == np.float32
    assert dataset[1][0].shape == (4, 4, 3)
    assert seen == [dataset.document(1).id] * 2


@pytest.mark.parametrize(("kind", "docs", "items"), DATASETS)
def test_a_document_without_content_is_refused_with_how_to_load_it_lazily(sequence, kind, docs, items):
    empty = [doc.model_copy(deep=True) for doc in docs]
    empty[0].blob = None
    empty[0].uri = "somewhere.jpg"
    with pytest.raises(BadDocument, match=rf"'{empty[0].id}' has no content.*preprocess_fn=load_uri_to_image_blob"):
        kind(sequence(empty))[0]


@pytest.mark.parametrize("kind", [ClassDataset, SessionDataset, InstanceDataset])
def test_of_no_documents_a_dataset_is_empty_and_cannot_be_trained_on(sequence, kind):
    dataset = kind(sequence([]))
    assert (len(dataset), list(dataset)) == (0, [])
    with pytest.raises(NotTrainable):
        check_trainable(dataset, np.arange(0))
    with pytest.raises(NotTrainable, match="There are no documents"):
        fit(nn.Linear(3, 2), dataset, progress=False)


@pytest.mark.parametrize("kind", [ClassDataset, SessionDataset, InstanceDataset])
@pytest.mark.parametrize("doc", [BaseDoc(), ImageDoc(url="a.jpg"), LegacyDocument(text="x", tags={LABEL_TAG: 1})])
def test_documents_of_jinas_and_docarrays_own_are_refused_with_the_name_of_ours(kind, doc):
    with pytest.raises(BadDocument, match=f"A {type(doc).__name__} cannot be used.*from executor import Document"):
        kind([doc])
    with pytest.raises(BadDocument, match="from executor import Document"):
        kind_of([doc])
    with pytest.raises(BadDocument, match="from executor import Document"):
        embed([doc], nn.Linear(3, 2))


@pytest.mark.parametrize(("kind", "docs", "items"), DATASETS)
def test_a_dataset_works_in_a_torch_data_loader(sequence, kind, docs, items):
    batches = list(DataLoader(kind(sequence(docs)), batch_size=2))
    assert [tuple(contents.shape) for contents, _ in batches] == [(2, 4, 4, 3), (1, 4, 4, 3)]


@pytest.mark.process
def test_the_worker_processes_of_a_torch_data_loader_read_a_dataset(sequence):
    batches = list(DataLoader(ClassDataset(sequence(of_class(0, 1, 0))), batch_size=2, num_workers=1))
    assert [labels.tolist() for _, labels in batches] == [[0, 1], [0]]


@dataclass
class Other:
    """A document of another library, with our fields."""

    id: str
    uri: str | None = None
    blob: np.ndarray | None = None
    buffer: bytes | None = None
    text: str | None = None
    tags: dict = field(default_factory=dict)
    matches: list["Other"] | None = None
    embedding: np.ndarray | None = None


def test_documents_of_another_class_with_our_fields_are_documents():
    labelled = [Other(str(number), blob=image(number), tags={"finetuner_label": number % 2}) for number in range(4)]
    dataset = make_dataset(labelled)
    assert dataset.kind == "class"
    np.testing.assert_array_equal(dataset[3][0], image(3))


def test_sessions_of_another_class_with_our_fields_are_sessions():
    matches = [Other(str(label), text="x", tags={"finetuner_label": label}) for label in (1, -1)]
    dataset = make_dataset([Other("root", buffer=b"x", matches=matches)])
    assert dataset.kind == "session"
    assert dataset[0] == (b"x", (0, 0))
    assert dataset[2] == ("x", (0, -1))


# --- which kind ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("docs", "kind"),
    [
        (of_class(1, 1.0, "b"), "class"),
        ([session("s", 1), session("t", -1)], "session"),
        (without_label(2), "unlabeled"),
        ([Document(id="d", tags={"finetuner_label": None})], "unlabeled"),
    ],
)
def test_auto_finds_the_kind_of_the_whole_set(sequence, docs, kind):
    assert kind_of(sequence(docs)) == kind


def test_a_labelled_root_with_matches_is_a_session(sequence):
    root = session("s", 1, -1)
    root.tags["finetuner_label"] = "red"
    assert kind_of(sequence([root, session("t", 1)])) == "session"


def test_a_mixture_counts_each_sort_names_one_of_each_and_says_to_set_kind(sequence):
    docs = [*of_class(0, 1), session("s", 1, -1), *without_label(3)]
    with pytest.raises(NotTrainable) as caught:
        kind_of(sequence(docs))
    for part in ("2 labelled", "'d0'", "1 with matches", "'s'", "3 with neither", "'u0'", "Set kind"):
        assert part in str(caught.value)


def test_the_odd_one_is_found_at_the_end_as_well(sequence):
    with pytest.raises(NotTrainable, match=r"2 labelled.*1 with neither.*'u0'"):
        kind_of(sequence([*of_class(0, 1), *without_label(1)]))


def test_a_dataset_given_as_such_keeps_its_kind_and_gets_the_functions():
    dataset = InstanceDataset(of_class(0, 1))
    assert make_dataset(dataset, preprocess_fn=lambda doc: doc.id) is dataset
    assert dataset[1] == ("d1", 1)


@pytest.mark.parametrize(
    ("doc", "kind", "fault"),
    [
        (of_class(1)[0], "class", None),
        (of_class(1)[0], "auto", None),
        (of_class(1.5)[0], "class", r"1\.5"),
        (of_class(1.5)[0], "auto", r"1\.5"),
        (of_class(1.5)[0], "unlabeled", None),
        (without_label(1)[0], "class", "finetuner_label"),
        (without_label(1)[0], "auto", None),
        (without_label(1)[0], "session", "no matches"),
        (session("s", 1, -1), "session", None),
        (session("s", 1, 2), "session", "must be 1 or -1"),
        (session("s", 1, 2), "auto", "must be 1 or -1"),
        (session("s", 1, None), "session", "finetuner_label"),
    ],
)
def test_the_fault_of_a_document_depends_on_the_kind(doc, kind, fault):
    found = fault_of(doc, kind)
    assert (found is None) == (fault is None)
    assert fault is None or re.search(fault, str(found))


# --- what cannot be trained ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("docs", "message"),
    [
        (of_class("a", "a", "a"), "All 3 documents have the label 'a'"),
        (of_class("a", "b", "c"), "Each of the 3 labels has only 1 document"),
        ([session("s", 1, 1), session("t", -1)], "2 matches are labelled 1, 1 are labelled -1"),
        (without_label(1), "only 1 document"),
    ],
    ids=["one class", "no positives", "no session with both", "one document"],
)
def test_what_cannot_be_trained_is_refused_with_the_counts(docs, message):
    dataset = make_dataset(docs)
    with pytest.raises(NotTrainable, match=message):
        check_trainable(dataset, np.arange(len(dataset)))


def test_the_fewest_documents_that_can_be_trained_are_accepted():
    for docs in (of_class("a", "a", "b"), [session("s", 1, -1)], without_label(2)):
        dataset = make_dataset(docs)
        check_trainable(dataset, np.arange(len(dataset)))
