"""The documents that travel: their fields, labels, contents and matches."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from docarray import BaseDoc, DocList
from docarray.documents import ImageDoc
from docarray.documents.legacy import LegacyDocument
from docarray.utils.create_dynamic_doc_class import create_base_doc_from_schema, create_pure_python_type_model
from PIL import Image

from conftest import coloured, encoded
from executor import Document, DocumentArray, load_uri_to_image_blob
from executor.documents import Match, RunQuery, RunStatus, has_label, label_of, normalise_label, with_id
from executor.errors import BadDocument, MissingLabel


@pytest.fixture
def image_file(tmp_path: Path) -> Path:
    path = tmp_path / "image.png"
    path.write_bytes(encoded(coloured(1)))
    return path


@pytest.mark.parametrize("value", [1, 1.0, True, np.int64(1), np.float32(1), np.bool_(True)])
def test_one_is_one_label_however_it_is_written(value):
    assert normalise_label(value) == 1
    assert type(normalise_label(value)) is int


def test_the_text_1_is_another_label_than_the_number():
    assert normalise_label("1") == "1"
    assert normalise_label("1") != normalise_label(1)


@pytest.mark.parametrize("value", [1.5, float("nan"), float("inf"), [1], {"a": 1}, b"1"])
def test_what_is_neither_an_integer_nor_a_text_is_no_label(value):
    with pytest.raises(BadDocument, match="a label is an integer or a string"):
        normalise_label(value)


def test_a_missing_label_is_a_key_error_that_names_the_tag_and_the_document():
    with pytest.raises(KeyError) as caught:
        label_of(Document(id="left-out"))
    assert isinstance(caught.value, MissingLabel)
    assert "finetuner_label" in str(caught.value)
    assert "'left-out'" in str(caught.value)


@pytest.mark.parametrize(
    ("tags", "labelled"), [({}, False), ({"finetuner_label": None}, False), ({"finetuner_label": 0}, True)]
)
def test_a_null_label_counts_as_absent_and_zero_does_not(tags, labelled):
    assert has_label(Document(tags=tags)) is labelled


def test_content_is_the_first_of_blob_text_and_buffer_that_is_set():
    blob = np.zeros((2, 2, 3), np.uint8)
    assert Document(uri="a.jpg").content is None
    assert Document(buffer=b"abc").content == b"abc"
    assert Document(buffer=b"abc", text="words").content == "words"
    np.testing.assert_array_equal(Document(buffer=b"abc", text="words", blob=blob).content, blob)


def test_an_empty_text_is_content():
    assert Document(text="", buffer=b"abc").content == ""


def test_matches_given_as_documents_become_matches_with_all_their_fields():
    match = Document(
        id="m", uri="m.jpg", blob=np.ones((2, 2)), buffer=b"b", text="t", tags={"finetuner_label": 1}, embedding=[1.0]
    )
    (converted,) = Document(matches=[match]).matches
    assert type(converted) is Match
    assert (converted.id, converted.uri, converted.buffer, converted.text) == ("m", "m.jpg", b"b", "t")
    assert converted.tags == {"finetuner_label": 1}
    np.testing.assert_array_equal(converted.blob, np.ones((2, 2)))
    np.testing.assert_array_equal(converted.embedding, [1.0])


@pytest.mark.parametrize("collection", [list, tuple, iter, DocList[Match]])
def test_matches_may_come_in_any_collection(collection):
    doc = Document(matches=collection([Match(id="a"), Match(id="b")]))
    assert isinstance(doc.matches, DocList)
    assert [match.id for match in doc.matches] == ["a", "b"]


def test_matches_may_be_assigned_as_a_plain_list():
    doc = Document()
    doc.matches = [Document(id="a"), Match(id="b")]
    assert [type(match) for match in doc.matches] == [Match, Match]


@pytest.mark.parametrize(
    "make",
    [Document, lambda: Document(matches=None), lambda: Document.from_protobuf(Document().to_protobuf())],
    ids=["new", "none", "from the wire"],
)
def test_two_documents_never_share_their_matches_or_tags(make):
    first, second = make(), make()
    first.matches.append(Match(id="m"))
    first.tags["finetuner_label"] = 1
    assert len(second.matches) == 0
    assert second.tags == {}
    assert len(make().matches) == 0


def test_the_method_fills_the_blob_and_returns_the_document(image_file):
    doc = Document(uri=str(image_file))
    assert doc.load_uri_to_image_blob() is doc
    assert doc.blob.dtype == np.uint8
    np.testing.assert_array_equal(doc.blob, coloured(1))


def test_a_match_loads_its_image_too(image_file):
    doc = Document(matches=[Match(uri=str(image_file))])
    assert doc.matches[0].load_uri_to_image_blob().blob.shape == (24, 24, 3)


def test_the_function_returns_the_image_and_leaves_the_document_as_it_was(image_file):
    doc = Document(uri=str(image_file))
    np.testing.assert_array_equal(load_uri_to_image_blob(doc), coloured(1))
    assert doc.blob is None


def test_the_image_is_turned_upright_by_its_exif_orientation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the top of the scene is at the right edge
    Image.fromarray(np.zeros((10, 20, 3), np.uint8)).save(tmp_path / "turned.jpg", exif=exif)
    assert Document(uri=str(tmp_path / "turned.jpg")).load_uri_to_image_blob().blob.shape == (20, 10, 3)


def test_an_encoded_image_in_the_buffer_is_loaded_where_there_is_no_uri():
    assert Document(buffer=encoded(coloured(2), "JPEG")).load_uri_to_image_blob().blob.shape == (24, 24, 3)


def test_a_document_without_any_image_is_refused():
    with pytest.raises(BadDocument, match="no image content"):
        Document(text="words").load_uri_to_image_blob()


def full_document() -> Document:
    return Document(
        id="root",
        uri="file:///a.png",
        blob=coloured(0),
        buffer=b"\x00\xffraw",
        text="words",
        tags={"finetuner_label": 3, "nested": {"list": [1, "two", None]}, "half": 0.5},
        embedding=np.asarray([0.5, -1.5], np.float32),
        matches=[Match(id="m", blob=coloured(1), tags={"finetuner_label": -1})],
    )


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # docarray writes arrays as lists
@pytest.mark.parametrize("form", ["protobuf", "json"])
def test_a_document_survives_the_wire(form):
    sent = full_document()
    if form == "protobuf":
        received = Document.from_protobuf(sent.to_protobuf())
    else:
        sent.buffer = b"plain"  # JSON has no bytes: what is not text travels as base64, see the README
        received = Document.model_validate_json(sent.model_dump_json())
    assert (received.id, received.uri, received.text, received.buffer) == (sent.id, sent.uri, sent.text, sent.buffer)
    assert received.tags == sent.tags
    np.testing.assert_array_equal(received.blob, sent.blob)
    np.testing.assert_array_equal(received.embedding, sent.embedding)
    assert [match.id for match in received.matches] == ["m"]
    assert received.matches[0].tags == {"finetuner_label": -1}
    np.testing.assert_array_equal(received.matches[0].blob, coloured(1))


def test_an_array_of_documents_survives_the_wire_in_order():
    sent = DocumentArray([full_document(), Document(id="second", text="x")])
    received = DocumentArray.from_protobuf(sent.to_protobuf())
    assert [doc.id for doc in received] == ["root", "second"]
    assert received[0].blob.dtype == np.uint8


def test_an_integer_label_is_still_an_integer_after_the_wire():
    received = Document.from_protobuf(full_document().to_protobuf())
    assert received.tags["finetuner_label"] == 3
    assert type(label_of(received)) is int


def test_a_document_without_an_id_gets_one_and_keeps_it():
    doc = Document(text="x")
    doc.id = None
    given = with_id(doc).id
    assert given
    assert with_id(doc).id == given


def test_what_is_wrong_in_a_field_is_refused():
    with pytest.raises(ValueError, match="matches"):
        Document(matches="m.jpg")


@pytest.mark.parametrize("make", [Document, lambda: full_document(), lambda: Match(text="", buffer=b"", tags={})])
def test_a_document_is_encoded_as_docarray_encodes_it(make):
    doc = make()
    assert doc.to_protobuf() == BaseDoc.to_protobuf(doc)


@pytest.mark.parametrize("tags", [{"x": object()}, {"x": {3: "a key that is no text"}}])
def test_what_cannot_be_encoded_is_refused_in_docarrays_words(tags):
    doc = Document(tags=tags)
    with pytest.raises(ValueError, match="tags") as ours:
        doc.to_protobuf()
    with pytest.raises(ValueError, match="tags") as theirs:
        BaseDoc.to_protobuf(doc)
    assert ours.value.args == theirs.value.args


WHOLE = [2**31 - 1, 2**31, -(2**31), -(2**31) - 1, 4_006_381_333_931, 2**53, -(2**53)]


@pytest.mark.parametrize("value", [*WHOLE, np.int64(2**40), np.int32(7), np.bool_(True), np.float32(0.5), 1e300, 2.5])
def test_numbers_in_tags_survive_the_wire_as_they_are(value):
    doc = Document(tags={"x": value, "deep": [{"y": value}]}, matches=[Match(tags={"x": value})])
    found = Document.from_protobuf(doc.to_protobuf())
    plain = value.item() if isinstance(value, np.generic) else value
    assert found.tags == {"x": plain, "deep": [{"y": plain}]}
    assert type(found.tags["x"]) is type(found.matches[0].tags["x"]) is type(plain)
    theirs = Theirs.from_protobuf(Theirs(tags={"x": value}).to_protobuf())  # as in a gateway, which makes a class anew
    assert theirs.tags == {"x": plain}


class Theirs(BaseDoc):
    tags: dict[str, Any] = {}


@pytest.mark.parametrize("value", [2**53 + 1, -(2**53) - 1, 2**70])
@pytest.mark.parametrize("kind", [Document, Theirs])
def test_an_integer_that_not_every_client_can_send_is_refused_where_it_is_read(kind, value):
    sent = kind(tags={"x": [value]}).to_protobuf()
    with pytest.raises(BadDocument, match=r"A document cannot be read: an integer in tags is beyond 2\*\*53.*as text"):
        Document.from_protobuf(sent)


@pytest.mark.parametrize("label", [2**53 + 1, 1e20, np.int64(2**60)])
def test_a_label_that_not_every_client_can_send_is_refused(label):
    with pytest.raises(BadDocument, match=r"beyond 2\*\*53.* write it as a string"):
        normalise_label(label)


def test_null_is_no_tags_and_no_matches():
    doc = Document(uri="a.jpg", tags=None, matches=None)
    assert (doc.tags, list(doc.matches)) == ({}, [])


def test_a_gateway_can_make_the_class_from_its_schema_and_describe_it_again():
    schema = create_pure_python_type_model(Document).model_json_schema()
    made = create_base_doc_from_schema(schema, "Document", {})
    assert {"tags", "matches"} < create_pure_python_type_model(made).model_json_schema()["properties"].keys()
    empty = Document.from_protobuf(made(uri="a.jpg", tags=None, matches=None).to_protobuf())
    assert (empty.uri, empty.tags, len(empty.matches)) == ("a.jpg", {}, 0)
    body = {"uri": "a.jpg", "tags": {"x": 2**40}, "matches": [{"uri": "m.jpg", "tags": {"finetuner_label": 1}}]}
    sent = made.model_validate(body).to_protobuf()
    back = made.from_protobuf(Document.from_protobuf(sent).to_protobuf())
    assert (back.tags, back.matches[0].uri) == ({"x": 2**40}, "m.jpg")


@pytest.mark.parametrize("doc", [ImageDoc(url="a.jpg"), LegacyDocument(text="x")])
def test_a_document_of_docarrays_own_that_arrives_is_refused_with_the_name_of_ours(doc):
    with pytest.raises(BadDocument, match=r"of Jina's or DocArray's own.*from executor import Document"):
        Document.from_protobuf(doc.to_protobuf())


@pytest.mark.parametrize("disk_bytes", [0, 3 * 2**30, 2**52 + 1])
def test_the_disk_use_of_a_large_run_can_be_told(disk_bytes):
    sent = DocList[RunStatus]([RunStatus(disk_bytes=disk_bytes)])
    (received,) = DocList[RunStatus].from_protobuf(sent.to_protobuf())
    assert received.disk_bytes == disk_bytes
    assert json.loads(received.model_dump_json())["disk_bytes"] == disk_bytes


def test_a_label_beside_the_tags_is_warned_of():
    with pytest.warns(
        UserWarning, match=r"no field 'label', so what is given there is lost.*tags\['finetuner_label'\]"
    ):
        Document(uri="a.jpg", label=3)


@pytest.mark.parametrize(
    ("embedding", "space", "kind"),
    [
        ([0.5, 1.0], "0123456789ab", np.float32),
        (np.array([0.5, 1.0]), None, np.float32),
        ([1, -1], "0123456789ab", np.float32),
        ([1, -1], "0123456789ab/8/int8", np.int8),
        ([1, 255], "0123456789ab/binary", np.uint8),
        (np.array([1, 2], np.int8), None, np.int8),
        (np.array([1, 2], np.uint8), None, np.uint8),
    ],
)
def test_an_embedding_that_came_as_json_has_its_type_again(embedding, space, kind):
    tags = {} if space is None else {"finetuner_space": space}
    given = {"embedding": embedding, "tags": tags}
    doc = Document(**given, matches=[given])
    for part in (doc, doc.matches[0]):
        assert part.embedding.dtype == kind
        np.testing.assert_array_equal(part.embedding, embedding)


class OddQuery(BaseDoc):
    run: Any = None


@pytest.mark.parametrize(
    ("run", "beginning"),
    [
        (2**60, "(A document cannot be read"),
        ({"a": 1}, "{'a': 1}"),
        (b"\xff", "b'"),
        (np.zeros(3), "NdArray(["),
        (3, "3"),
    ],
)
def test_a_query_for_what_is_no_name_names_no_run(run, beginning):
    """Jina says nothing to the caller of a stream whose document cannot be read."""
    assert RunQuery.from_protobuf(OddQuery(run=run).to_protobuf()).run.startswith(beginning)
