"""Documents on disk: a durable sequence, which processes and threads share, and which may be larger than memory."""

import os
import pickle
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from docarray import BaseDoc, DocList
from docarray.documents import ImageDoc
from docarray.documents.legacy import LegacyDocument
from docarray.proto import DocProto
from hypothesis import given, settings
from hypothesis import strategies as st

from executor.documents import Document, Match
from executor.errors import BadDocument, WorkspaceError
from executor.store.spool import DocumentArrayMemmap, label_rows, sorts_of
from executor.store.spool_rows import LabelRow, Sorts, identity_of, row_of
from executor.web.pictures import picture_of

ROOT = Path(__file__).parents[1]
PREAMBLE = """
import sys
sys.modules["torch"] = None  # docarray imports it where it can; these processes start faster without
from executor.documents import Document, Match
from executor.store.spool import DocumentArrayMemmap
from docarray import DocList
def documents(prefix, n):
    return [Document(id=f"{prefix}{i}", uri=f"{prefix}{i}.jpg", matches=DocList[Match]()) for i in range(n)]
path = sys.argv[1]
"""


def documents(prefix: str, n: int) -> list[Document]:
    return [Document(id=f"{prefix}{i}", uri=f"{prefix}{i}.jpg", matches=DocList[Match]()) for i in range(n)]


def start(code: str, path: Path, *arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", PREAMBLE + code, str(path), *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)


def output(code: str, path: Path) -> str:
    with start(code, path) as process:
        text, _ = process.communicate()
    assert process.returncode == 0
    return text.strip()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "spool.db"


@pytest.fixture
def memmap(path: Path) -> Iterator[DocumentArrayMemmap]:
    with DocumentArrayMemmap(path) as opened:
        yield opened


def stored(memmap: DocumentArrayMemmap, doc: Any) -> Document:
    memmap.append(doc)
    return memmap[-1]


def test_documents_are_found_by_index_in_the_order_they_came(memmap):
    assert memmap.extend(documents("a", 3)) == 3
    assert memmap.append(Document(id="last", uri="last.jpg"))
    assert len(memmap) == 4
    assert [memmap[i].id for i in range(4)] == ["a0", "a1", "a2", "last"]
    assert memmap[3].uri == "last.jpg"
    assert memmap[np.int64(-1)].id == "last"
    assert memmap[-4].id == "a0"


@pytest.mark.parametrize("index", [3, -4])
def test_an_index_out_of_range_is_refused_with_the_length(memmap, index):
    memmap.extend(documents("a", 3))
    with pytest.raises(IndexError, match="has 3 documents"):
        memmap[index]


def test_a_slice_is_a_document_array(memmap):
    memmap.extend(documents("a", 10))
    part = memmap[8:1:-3]
    assert isinstance(part, DocList)
    assert part.doc_type is Document
    assert [doc.id for doc in part] == ["a8", "a5", "a2"]
    assert len(memmap[20:]) == 0


def test_iterating_crosses_pages_in_order(memmap):
    docs = documents("a", 77)
    memmap.extend(docs)
    assert [doc.uri for doc in memmap] == [doc.uri for doc in docs]
    assert list(memmap.ids()) == [doc.id for doc in docs]


def test_iterating_stops_at_the_length_it_began_with(memmap):
    memmap.extend(documents("a", 3))
    iterator = iter(memmap)
    memmap.extend(documents("b", 3))
    assert [doc.id for doc in iterator] == ["a0", "a1", "a2"]


def test_a_file_reopened_has_its_documents(path):
    with DocumentArrayMemmap(path) as first:
        first.extend(documents("a", 3))
    with DocumentArrayMemmap(str(path)) as second:
        assert [doc.id for doc in second] == ["a0", "a1", "a2"]


def test_closing_leaves_one_file(path, memmap):
    memmap.extend(documents("a", 3))
    memmap.close()
    assert [file.name for file in path.parent.iterdir()] == ["spool.db"]


def labelled(label: Any = 1, **fields: Any) -> Document:
    return Document(**{"id": "a", "uri": "a.jpg", "tags": {"finetuner_label": label}, **fields})


@pytest.mark.parametrize(
    "again",
    [
        labelled(),
        labelled(1.0),
        labelled(True),
        labelled(tags={"finetuner_label": 1, "sent": "later"}),
        labelled(embedding=np.ones(3, np.float32)),
    ],
)
def test_a_document_that_is_sent_again_counts_once(memmap, again):
    assert memmap.append(labelled())
    assert not memmap.append(again)
    assert memmap.extend([again, labelled(id="b"), again]) == 1
    assert list(memmap.ids()) == ["a", "b"]
    assert memmap.shared_ids() == (0, [])


@pytest.mark.parametrize(
    "other",
    [
        {"uri": "b.jpg"},
        {"uri": None, "text": "a.jpg"},
        {"uri": None, "buffer": b"a.jpg"},
        {"blob": np.zeros((2, 3), np.uint8)},
        {"blob": np.zeros((3, 2), np.uint8)},
        {"blob": np.zeros((3, 2), np.int8)},
    ],
)
def test_one_id_with_other_content_is_another_document_whatever_its_label(memmap, other):
    docs = [labelled(), labelled(**other), labelled(2, **{**other, "text": "more"})]
    assert memmap.extend(docs) == 3
    assert memmap.extend(docs) == 0
    assert [doc.id for doc in memmap] == ["a"] * 3
    assert memmap.shared_ids() == (1, ["a"])
    assert memmap["a"].uri == "a.jpg"  # an id means the first that has it


def matched(*labels: int, **fields: Any) -> Document:
    matches = [Match(uri=f"{place}.jpg", tags={"finetuner_label": label}) for place, label in enumerate(labels)]
    return Document(id="a", uri="a.jpg", matches=matches, **fields)


@pytest.mark.parametrize(
    ("first", "then", "words"),
    [
        (labelled(1), labelled(2), "came before with the label '1', not '2'"),
        (labelled("1"), labelled(1), "came before with the label '1', not 1;"),
        (labelled(), labelled(tags={}), "came before with the label '1', not 'None'"),
        (labelled(), labelled(tags={"finetuner_label": 1, "finetuner_group": "x"}), "with another group or other"),
        (matched(1, -1), matched(1, 1), "with another group or other matches"),
        (matched(1, -1), matched(1), "with another group or other matches"),
    ],
)
def test_a_document_that_contradicts_an_earlier_one_is_refused_or_left_out(memmap, first, then, words):
    memmap.append(first)
    with pytest.raises(BadDocument, match="Document 'a': the same id and content came before") as refused:
        memmap.extend([*documents("b", 2), then])
    assert words in str(refused.value)
    assert len(memmap) == 1  # nothing of the transaction is stored
    (left_out,) = memmap.take([*documents("b", 1), then, *documents("c", 1)]).items()
    assert left_out[0] == 1
    assert words in left_out[1]
    assert list(memmap.ids()) == ["a", "b0", "c0"]


def test_those_left_out_are_named_by_their_places_also_in_a_later_transaction(memmap: DocumentArrayMemmap) -> None:
    memmap.extend([labelled(1, id="x")])
    many = documents("b", 2_500)  # three transactions
    many[1_200] = many[2_300] = labelled(2, id="x")
    assert list(memmap.take(many)) == [1_200, 2_300]
    assert len(memmap) == 1 + 2_498


def test_a_session_that_is_sent_again_is_the_same_though_its_matches_get_new_ids(memmap):
    memmap.append(matched(1, -1))
    assert not memmap.append(matched(1, -1))
    assert memmap.has(identity_of(matched(1, -1)))
    assert not memmap.has(identity_of(matched(-1, 1)))


def test_a_group_is_the_same_as_an_integer_and_as_a_float(memmap):
    memmap.append(labelled(tags={"finetuner_group": 3}))
    assert not memmap.append(labelled(tags={"finetuner_group": 3.0}))
    with pytest.raises(BadDocument):
        memmap.append(labelled(tags={"finetuner_group": "3"}))


def test_splits_are_sequences_of_their_own_with_ids_of_their_own(path, memmap):
    memmap.extend(documents("a", 3))
    with DocumentArrayMemmap(path, split="eval") as held_out:
        assert held_out.extend([*documents("a", 1), *documents("e", 2)]) == 3
        assert [doc.id for doc in held_out] == ["a0", "e0", "e1"]
        assert "e1" in held_out
        assert "a1" not in held_out
        assert held_out.shared_ids() == (0, [])
    assert len(memmap) == 3


def test_matches_are_counted_as_parts(path, memmap):
    assert memmap.parts == 0
    memmap.extend([*documents("b", 2), matched(1, -1, 1)])
    with DocumentArrayMemmap(path, split="eval") as held_out:
        held_out.append(matched(1))
        assert (memmap.parts, held_out.parts) == (6, 2)


def test_a_document_is_found_by_its_id(memmap):
    memmap.extend(documents("a", 3))
    assert memmap["a1"].uri == "a1.jpg"
    with pytest.raises(KeyError, match="no document 'b' in split 'train'"):
        memmap["b"]


@pytest.mark.parametrize(
    ("index", "left"),
    [
        (0, "1234"),
        (-1, "0123"),
        (np.int64(2), "0134"),
        ("a3", "0124"),
        (slice(1, 3), "034"),
        (slice(None, None, 2), "13"),
        (slice(4, 0, -1), "0"),
        (slice(9, 12), "01234"),
        (slice(None), ""),
    ],
)
def test_deleted_documents_leave_no_gap(path, memmap, index, left):
    docs = [labelled(id=f"a{i}", uri=f"{i}.jpg", matches=[Match() for _ in range(i)]) for i in range(5)]
    memmap.extend(docs)
    with DocumentArrayMemmap(path, split="eval") as other:
        other.extend(documents("a", 3))
        del memmap[index]
        assert list(other.ids()) == ["a0", "a1", "a2"]
    assert [doc.uri[0] for doc in memmap] == list(left)
    assert [memmap[i].id for i in range(len(memmap))] == [f"a{i}" for i in left]
    assert memmap.parts == sum(1 + int(i) for i in left)
    assert memmap.extend([docs[0], Document(id="new", uri="n")]) == (1 if "0" in left else 2)
    assert memmap[-1].id == "new"


@pytest.mark.parametrize(("index", "error"), [(3, IndexError), (-4, IndexError), ("b", KeyError)])
def test_what_is_not_there_cannot_be_deleted(memmap, index, error):
    memmap.extend(documents("a", 3))
    with pytest.raises(error):
        del memmap[index]
    assert len(memmap) == 3


def test_a_split_is_cleared_alone(path, memmap):
    memmap.extend(documents("a", 3))
    with DocumentArrayMemmap(path, split="eval") as other:
        other.extend(documents("a", 2))
        memmap.clear()
        assert (len(memmap), memmap.parts, len(other)) == (0, 0, 2)
    assert memmap.extend(documents("a", 2)) == 2


def test_a_folder_holds_a_file_of_a_known_name(tmp_path):
    with DocumentArrayMemmap(tmp_path) as memmap:
        memmap.extend(documents("a", 2))
        assert memmap.path == tmp_path / "documents.sqlite"
    with DocumentArrayMemmap(tmp_path) as again:
        assert len(again) == 2


VERSION_1 = """
CREATE TABLE documents (
    row INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, split TEXT NOT NULL, position INTEGER NOT NULL, label,
    matches INTEGER NOT NULL, document BLOB NOT NULL, UNIQUE (split, position)
)"""


def test_a_file_of_the_first_schema_version_is_brought_to_the_present_one(tmp_path):
    path = tmp_path / "old.db"
    docs = [matched(1, -1), *documents("b", 2)]
    with sqlite3.connect(path) as connection:
        connection.execute(VERSION_1)
        connection.execute("PRAGMA application_id = 0x46544D44")
        connection.execute("PRAGMA user_version = 1")
        for position, doc in enumerate(docs):
            payload = doc.to_protobuf().SerializeToString()
            row = (doc.id, "train", position, None, len(doc.matches), payload)
            connection.execute("INSERT INTO documents VALUES (NULL, ?, ?, ?, ?, ?, ?)", row)
    connection.close()
    for _ in range(2):
        with DocumentArrayMemmap(path) as memmap:
            assert [doc.id for doc in memmap] == ["a", "b0", "b1"]
            assert memmap.parts == 5
            assert memmap.extend(docs) == 0
    assert sqlite3.connect(path).execute("PRAGMA user_version").fetchone() == (2,)


def test_containment_asks_for_the_id_of_a_document(memmap):
    memmap.extend(documents("a", 1))
    assert Document(id="a0") in memmap
    assert Document(id="a1") not in memmap
    assert 3 not in memmap


def test_a_document_without_id_is_given_one(memmap):
    doc = Document(uri="x.jpg", id=None)
    assert memmap.append(doc)
    assert memmap[0].id == doc.id
    assert doc.id


def test_tags_keep_their_types(memmap):
    tags = {"i": 1, "f": 1.0, "third": 1 / 3, "b": True, "s": "1", "n": None, "nested": {"list": [1, 2.0, [False], {}]}}
    found = stored(memmap, Document(tags=tags)).tags
    assert found == tags
    assert {key: type(value) for key, value in found.items()} == {key: type(value) for key, value in tags.items()}
    assert [type(item) for item in found["nested"]["list"]] == [int, float, list, dict]
    assert found["nested"]["list"][2][0] is False


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float16", "int64", "bool"])
@pytest.mark.parametrize("shape", [(4, 3, 3), (4, 3)])
def test_arrays_keep_dtype_and_shape_and_stay_writable(memmap, dtype, shape):
    blob = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    found = stored(memmap, Document(blob=blob, embedding=np.ones(5, np.float32)))
    assert (found.blob.dtype, found.blob.shape) == (blob.dtype, shape)
    np.testing.assert_array_equal(found.blob, blob)
    assert found.embedding.dtype == np.float32
    found.blob[0] = 0


def test_bytes_and_empty_text_come_back_as_they_were(memmap):
    found = stored(memmap, Document(buffer=b"\x00\xff", text=""))
    assert (found.buffer, found.text, found.uri, found.blob) == (b"\x00\xff", "", None, None)


def test_what_is_read_is_what_docarray_would_read(path, memmap):
    found = stored(memmap, Document(uri="a", tags={"t": (1, {"x"})}, matches=[Match(text="m", blob=np.eye(2))]))
    ((payload,),) = sqlite3.connect(path).execute("SELECT document FROM documents")
    expected = Document.from_bytes(payload)
    assert (found.id, found.uri, found.tags) == (expected.id, expected.uri, expected.tags)
    assert found.matches[0].id == expected.matches[0].id
    np.testing.assert_array_equal(found.matches[0].blob, expected.matches[0].blob)


def test_matches_are_stored_as_matches_with_ids_and_tags(memmap):
    doc = Document(matches=[Match(id="m0", tags={"finetuner_label": -1})])
    doc.matches.append(Document(id="m1", uri="m1.jpg", tags={"finetuner_label": 1}, matches=[Match(id="deep")]))
    found = stored(memmap, doc).matches
    assert [type(match) for match in found] == [Match, Match]
    assert [match.id for match in found] == ["m0", "m1"]
    assert [match.tags["finetuner_label"] for match in found] == [-1, 1]
    assert found[1].uri == "m1.jpg"


class Photo(BaseDoc):
    uri: str | None = None
    tags: dict[str, Any] = {}
    matches: list[Any] = []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
JSON_DOCUMENTS = st.fixed_dictionaries(
    {"id": st.text(min_size=1)},
    optional={
        **dict.fromkeys(("uri", "buffer", "text"), st.none() | st.text()),
        "tags": st.none() | st.dictionaries(st.sampled_from(("finetuner_label", "finetuner_group", "x")), JSON),
        "blob": st.none() | st.just([[0, 255], [1, 2]]),
        "matches": st.none() | st.lists(st.fixed_dictionaries({"id": st.just("m"), "uri": st.text()}), max_size=1),
    },
)


@given(JSON_DOCUMENTS)
@settings(max_examples=300, deadline=None)
def test_a_document_of_our_own_door_is_stored_as_a_document_of_the_same_fields(fields):
    ours = Document(**fields | {"buffer": None if fields.get("buffer") is None else fields["buffer"].encode()})
    assert row_or_refusal(picture_of(fields, "it")) == row_or_refusal(ours)


def row_or_refusal(doc):
    """The row of a document with its protobuf decoded, because that may be written in several ways; or the refusal."""
    try:
        row = row_of(doc, "train")
    except BadDocument as error:
        return str(error)
    return row._replace(document=DocProto.FromString(row.document))


def test_documents_of_another_class_are_stored_as_ours(memmap):
    photo = Photo(uri="p.jpg", tags={"finetuner_label": 3}, matches=[Photo(id="m", uri="m.jpg")])
    found = stored(memmap, photo)
    assert type(found) is Document
    assert (found.id, found.uri, found.tags) == (photo.id, "p.jpg", {"finetuner_label": 3})
    assert [(type(match), match.id, match.uri) for match in found.matches] == [(Match, "m", "m.jpg")]


@pytest.mark.parametrize("value", [2**31, -(2**31) - 1, 1_700_000_000_000, 2**53, -(2**53), np.int64(2**40)])
def test_integers_up_to_2_to_the_53_stay_integers(memmap, value):
    found = stored(memmap, Document(tags={"finetuner_label": value, "deep": [{"x": value}, 1.5]})).tags
    assert found == {"finetuner_label": value, "deep": [{"x": value}, 1.5]}
    assert type(found["finetuner_label"]) is type(found["deep"][0]["x"]) is int
    assert next(memmap.labels()).label == value


def test_numpy_scalars_in_tags_become_pythons(memmap):
    found = stored(memmap, Document(tags={"finetuner_label": np.int64(3), "x": [np.float32(0.5), np.bool_(True)]}))
    assert found.tags == {"finetuner_label": 3, "x": [0.5, True]}
    assert type(found.tags["finetuner_label"]) is int


def test_labels_are_read_without_decoding_documents(path, memmap):
    memmap.extend(
        [
            Document(id="a", tags={"finetuner_label": 1.0}),
            Document(id="b", tags={"finetuner_label": "1"}),
            Document(id="c", matches=[Match(), Match()]),
            Document(id="d", tags={"finetuner_label": None}),
        ]
    )
    expected = [("a", 1, 0), ("b", "1", 0), ("c", None, 2), ("d", None, 0)]
    assert list(label_rows(memmap[:])) == expected
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE documents SET document = x'00'")
    assert list(memmap.labels()) == expected
    assert [type(row.label) for row in label_rows(memmap)] == [int, str, type(None), type(None)]
    assert isinstance(next(memmap.labels()), LabelRow)


def test_sorts_are_counted_alike_on_disk_and_in_memory(memmap):
    docs = [
        *documents("plain", 3),
        *(Document(id=f"class{i}", tags={"finetuner_label": 0}) for i in range(2)),
        Document(id="session", tags={"finetuner_label": 0}, matches=[Match()]),
    ]
    memmap.extend(docs)
    examples = {"labelled": "class0", "sessions": "session", "unlabelled": "plain0"}
    assert sorts_of(memmap) == sorts_of(docs) == Sorts(labelled=2, sessions=1, unlabelled=3, examples=examples)


def test_no_documents_are_of_no_sort(memmap):
    assert sorts_of(memmap) == sorts_of([]) == Sorts(0, 0, 0, {})


def nested(depth: int) -> dict[str, Any]:
    return {"in": nested(depth - 1)} if depth else {}


@pytest.mark.parametrize(
    "doc",
    [
        Document(id="bad", tags={"finetuner_label": 0.5}),
        Document(id="bad", tags={"finetuner_label": [1]}),
        Document(id="bad", tags={"finetuner_label": 1e300}),
        Document(id="bad", tags={"finetuner_label": 2**53 + 1}),
        Document(id="bad", tags={"finetuner_label": 2**70}),
        Document(id="bad", tags={"deep": [{"x": -(2**53) - 1}]}),
        Document(id="bad", matches=[Match(tags={"x": 2**60})]),
        Document(id="bad", tags={"when": object()}),
        Document(id="bad", tags={"deep": nested(32)}),
        Document(id="bad", tags={"deep": nested(200)}),
        Document(id="bad", text="\ud800"),
        Document(id="bad", blob=np.array([object()])),
        Photo(id="bad", matches=[3]),
    ],
)
def test_a_document_that_cannot_be_stored_is_named_and_its_transaction_undone(memmap, doc):
    with pytest.raises(BadDocument, match="Document 'bad'") as caught:
        memmap.extend([*documents("a", 2), doc, *documents("b", 2)])
    assert len(str(caught.value)) < 300
    assert len(memmap) == 0


def test_what_is_no_document_is_refused(memmap):
    with pytest.raises(BadDocument, match="A str is not a document"):
        memmap.extend(["a.jpg"])


@pytest.mark.parametrize("doc", [BaseDoc(), ImageDoc(url="a.jpg"), LegacyDocument(text="x", tags={"label": 1})])
def test_a_document_of_docarrays_own_is_refused_with_the_name_of_ours(memmap, doc):
    with pytest.raises(BadDocument, match=f"A {type(doc).__name__} cannot be used.*from executor import Document"):
        memmap.append(doc)


def test_an_endless_iterable_is_stored_as_it_comes(path, memmap):
    def endless() -> Iterator[Document]:
        for i in range(2500):
            yield Document(id=str(i), matches=DocList[Match]())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        memmap.extend(endless())
    assert len(memmap) == 2000


@pytest.mark.process
def test_documents_of_another_process_appear_while_this_one_reads(path, memmap):
    code = """
with DocumentArrayMemmap(path) as memmap:
    for line in sys.stdin:
        memmap.extend(documents(line.strip(), 10)); print("done", flush=True)
"""
    memmap.extend(documents("a", 1))
    with start(code, path) as process:
        for round_, length in enumerate([11, 21, 31]):
            reading = iter(memmap)
            next(reading)
            process.stdin.write(f"r{round_}-\n")
            process.stdin.flush()
            assert process.stdout.readline() == "done\n"
            assert len(list(reading)) == length - 11
            assert len(memmap) == length
            assert memmap[-1].id == f"r{round_}-9"
        process.stdin.close()
    assert process.returncode == 0


@pytest.mark.process
def test_two_processes_that_extend_at_once_lose_nothing_and_leave_no_gap(path):
    code = """
sys.stdin.readline()
memmap = DocumentArrayMemmap(path)
for i in range(20):
    memmap.extend(documents(f"{sys.argv[2]}-{i}-", 20))
"""
    with start(code, path, "a") as first, start(code, path, "b") as second:
        for process in (first, second):
            process.stdin.write("go\n")
            process.stdin.close()
    assert (first.returncode, second.returncode) == (0, 0)
    with DocumentArrayMemmap(path) as memmap:
        assert len(memmap) == 800
        for name in "ab":
            own = [id for id in memmap.ids() if id.startswith(name)]
            assert own == [f"{name}-{i}-{j}" for i in range(20) for j in range(20)]
    positions = sqlite3.connect(path).execute("SELECT position FROM documents ORDER BY position").fetchall()
    assert positions == [(i,) for i in range(800)]


@pytest.mark.process
def test_a_killed_process_loses_nothing_that_extend_returned_for(path):
    code = """
memmap = DocumentArrayMemmap(path)
for i in range(10**6):
    memmap.extend(documents(f"{i}-", 10)); print(i, flush=True)
"""
    with start(code, path) as process:
        for _ in range(30):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        returned = 30 + len(process.stdout.readlines())
    assert process.returncode == -signal.SIGKILL
    with DocumentArrayMemmap(path) as memmap:
        ids = list(memmap.ids())
        assert ids[: returned * 10] == [f"{i}-{j}" for i in range(returned) for j in range(10)]
        assert len(ids) % 10 == 0
        assert memmap.append(Document(id="after"))


@pytest.mark.process
def test_opening_many_documents_takes_no_memory(path, tmp_path):
    code = """
import resource
with DocumentArrayMemmap(path) as memmap:
    n = len(memmap)
    found = [memmap[i].uri for i in (0, n // 2, -1)] if n else []
    for row in memmap.labels(): pass
    print(n, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    empty = int(output(code, tmp_path / "empty.db").split()[1])
    with DocumentArrayMemmap(path) as memmap:
        memmap.append(Document(uri="/images/0.jpg"))
    with sqlite3.connect(path) as connection:
        connection.execute(
            "WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < 199999)"
            " INSERT INTO documents SELECT NULL, 'id' || i, split, i, i + 1, label, matches, content, said, document"
            " FROM documents, n"
        )
    length, full = map(int, output(code, path).split())
    assert length == 200_000
    assert full - empty < 20 * 1024  # KiB


def test_threads_may_share_an_instance(memmap):
    memmap.extend(documents("a", 50))
    seen: list[list[str]] = []

    def work(name: str) -> None:
        for i in range(5):
            memmap.extend(documents(f"{name}{i}-", 10))
            seen.append([doc.id for doc in memmap][:50])

    threads = [threading.Thread(target=work, args=(name,)) for name in "bcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [[f"a{i}" for i in range(50)]] * 15
    assert len(memmap) == 200


def test_closing_closes_the_connections_of_all_threads(path, memmap):
    memmap.extend(documents("a", 3))
    opened, leave = threading.Event(), threading.Event()

    def read_and_wait() -> None:
        len(memmap)
        opened.set()
        leave.wait()

    thread = threading.Thread(target=read_and_wait)
    thread.start()
    opened.wait()
    memmap.close()
    files = os.listdir(path.parent)
    leave.set()
    thread.join()
    assert files == ["spool.db"]


@pytest.mark.process
def test_a_pickled_instance_opens_the_same_split_in_another_process(path):
    with DocumentArrayMemmap(path, split="eval") as memmap:
        memmap.extend(documents("a", 3))
        code = f"import pickle; m = pickle.loads({pickle.dumps(memmap)!r}); print(m.split, len(m), m[-1].id)"
        assert output(code, path) == "eval 3 a2"


@pytest.mark.process
def test_a_forked_child_appends_even_after_its_parent_closed(path):
    code = """
import os
memmap = DocumentArrayMemmap(path)
memmap.extend(documents("before", 2))
reader, writer = os.pipe()
child = os.fork()
if child == 0:
    memmap.extend(documents("child", 2))
    os.read(reader, 1)
    memmap.extend(documents("later", 2))
    os._exit(0)
while len(memmap) < 4: pass
memmap.close()
os.write(writer, b".")
assert os.waitpid(child, 0)[1] == 0
with DocumentArrayMemmap(path) as memmap:
    print(*memmap.ids())
"""
    assert output(code, path) == "before0 before1 child0 child1 later0 later1"


def test_a_closed_instance_says_so(path, memmap):
    memmap.close()
    memmap.close()
    with pytest.raises(WorkspaceError, match=r"spool\.db was closed"):
        len(memmap)
    assert str(path) in repr(memmap)


def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path):
    picture = tmp_path / "picture.jpg"
    picture.write_bytes(b"\xff\xd8 not a database" * 100)
    with pytest.raises(WorkspaceError, match=r"picture\.jpg is not a file of documents"):
        DocumentArrayMemmap(picture)
    assert picture.read_bytes() == b"\xff\xd8 not a database" * 100


def test_another_programs_database_is_refused_and_left_alone(tmp_path):
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    before = other.read_bytes()
    with pytest.raises(WorkspaceError, match="another program's database"):
        DocumentArrayMemmap(other)
    assert other.read_bytes() == before


def test_a_file_of_another_schema_version_is_refused(path):
    DocumentArrayMemmap(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 7")
    with pytest.raises(WorkspaceError, match="schema version 7"):
        DocumentArrayMemmap(path)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(WorkspaceError, match=r"spool\.db cannot be used .* can be written"):
        DocumentArrayMemmap(tmp_path / "file" / "spool.db")


def test_a_file_that_was_removed_is_not_made_anew(path):
    memmap = DocumentArrayMemmap(path)
    copy = pickle.loads(pickle.dumps(memmap))
    memmap.close()
    path.unlink()
    with pytest.raises(WorkspaceError, match="cannot be used"):
        len(copy)


@pytest.mark.process
def test_a_full_disk_refuses_the_documents_and_keeps_the_earlier_ones(path):
    code = """
import resource, signal
from executor.errors import WorkspaceError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
memmap = DocumentArrayMemmap(path)
memmap.extend(documents("a", 3))
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
try:
    memmap.extend(documents("b", 5000))
except WorkspaceError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert memmap.extend(documents("c", 1)) == 1
print(len(memmap), *memmap.ids())
"""
    message, found = output(code, path).splitlines()
    assert f"{path} cannot be used" in message
    assert "the disk has room" in message
    assert found == "4 a0 a1 a2 c0"


def test_a_path_may_have_any_characters(tmp_path):
    with DocumentArrayMemmap(tmp_path / "a?b#c%20 é" / "x y.db") as memmap:
        memmap.extend(documents("a", 1))
    assert (tmp_path / "a?b#c%20 é" / "x y.db").exists()
