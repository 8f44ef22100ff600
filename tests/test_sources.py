"""Folders, tables, datasets and lists are read row by row; what cannot be used is named, and nothing is dropped."""

import csv
import json
import os
import tracemalloc
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from conftest import coloured, encoded
from executor.documents import GROUP_TAG, LABEL_TAG, Document
from executor.errors import ConfigurationError
from executor.sources import Columns, column_names, documents, rows
from extras import run_with_extras
from sentences import assert_plain


def pictures(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(encoded(coloured(number, number), "JPEG" if name.endswith("jpg") else "PNG"))


def table(path: Path, *lines: list[Any]) -> Path:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(lines)
    return path


def test_the_folder_of_a_picture_is_its_label_and_the_path_from_there_its_id(tmp_path):
    pictures(tmp_path, "red/2.png", "red/1.png", "blue/visit/1.jpg")
    found = [(doc.id, doc.tags[LABEL_TAG], doc.uri) for doc in documents(tmp_path)]
    assert found == [
        ("blue/visit/1.jpg", "blue", str(tmp_path / "blue/visit/1.jpg")),
        ("red/1.png", "red", str(tmp_path / "red/1.png")),
        ("red/2.png", "red", str(tmp_path / "red/2.png")),
    ]


def test_folders_for_training_and_for_evaluation_are_told_apart(tmp_path):
    pictures(tmp_path, "train/red/1.png", "test/red/1.png")
    found = [(row.split, row.document.id, row.document.tags[LABEL_TAG]) for row in rows(tmp_path)]
    assert found == [("eval", "test/red/1.png", "red"), ("train", "train/red/1.png", "red")]
    assert [doc.id for doc in documents(tmp_path, split="train")] == ["train/red/1.png"]


def test_classes_that_are_called_train_and_something_else_are_classes(tmp_path):
    pictures(tmp_path, "train/1.png", "car/1.png")
    assert [doc.tags[LABEL_TAG] for doc in documents(tmp_path)] == ["car", "train"]


def test_what_lies_beside_the_classes_is_left_out_with_the_reason(tmp_path):
    pictures(tmp_path, "red/1.png", "above.png", ".hidden/1.png")
    (tmp_path / "red" / "notes.txt").write_text("of no use")
    assert [row.problem for row in rows(tmp_path)] == [
        "above.png lies in no class folder",
        None,
        "red/notes.txt is no picture, by its name",
    ]


@pytest.mark.parametrize("labelled", [True, False])
def test_a_link_to_a_folder_above_is_passed_over_and_one_to_another_folder_is_not(tmp_path, labelled):
    pictures(tmp_path, "corpus/red/1.png", "corpus/blue/1.png", "others/2.png")
    corpus = tmp_path / "corpus"
    (corpus / "red" / "up").symlink_to("..")
    (corpus / "red" / "same").symlink_to(corpus / "red")
    (corpus / "red" / "loop").symlink_to("loop")
    (corpus / "red" / "more").symlink_to(tmp_path / "others")
    found = [doc.id for doc in documents(corpus, labelled=labelled)]
    assert found == ["blue/1.png", "red/1.png", "red/more/2.png"]


def test_a_link_out_of_the_documents_to_train_on_brings_no_eval_documents_in(tmp_path):
    pictures(tmp_path, "train/red/1.png", "eval/red/1.png")
    (tmp_path / "train" / "red" / "up").symlink_to(tmp_path)
    assert [(row.split, row.document.id) for row in rows(tmp_path)] == [
        ("eval", "eval/red/1.png"),
        ("train", "train/red/1.png"),
    ]


def test_a_corpus_has_no_labels_and_may_have_anything_beside_its_pictures(tmp_path):
    pictures(tmp_path, "red/1.png", "above.png")
    (tmp_path / "notes.txt").write_text("of no use")
    assert [(doc.id, doc.tags) for doc in documents(tmp_path, labelled=False)] == [("above.png", {}), ("red/1.png", {})]


@pytest.mark.parametrize("labelled", [True, False])
def test_a_picture_of_a_form_that_is_not_read_is_named_in_a_corpus_too(tmp_path, labelled):
    pictures(tmp_path, "red/1.png")
    (tmp_path / "red" / "2.HEIC").write_bytes(b"as a phone makes it")
    good, bad = rows(tmp_path, labelled=labelled)
    assert (good.document.id, good.problem) == ("red/1.png", None)
    assert bad.problem == "red/2.HEIC is a picture of a form that is not read here; convert it, to JPEG for instance"
    (tmp_path / "red" / "1.png").unlink()
    if labelled:
        with pytest.raises(ConfigurationError, match="no pictures in it"):
            list(rows(tmp_path))
    else:
        assert [row.problem for row in rows(tmp_path, labelled=False)] == [bad.problem]


@pytest.mark.parametrize("labelled", [True, False])
def test_a_name_that_is_no_text_is_left_out_with_the_reason(tmp_path, labelled):
    pictures(tmp_path, "red/1.png", "red/2.png")
    (tmp_path / "red" / "2.png").rename(os.fsdecode(os.fsencode(tmp_path) + b"/red/caf\xe9.png"))  # a Latin-1 archive
    (tmp_path / "red" / os.fsdecode(b"\xff.txt")).write_text("of no use")
    good, bad, *others = rows(tmp_path, labelled=labelled)
    assert [row.document.id for row in others] == ([r"red/\xff.txt"] if labelled else [])
    assert (good.document.id, good.problem) == ("red/1.png", None)
    problem = r"the name of red/caf\xe9.png is not UTF-8; rename it"
    assert (bad.document.id, bad.document.uri, bad.problem) == (r"red/caf\xe9.png", None, problem)


def test_the_columns_of_a_table_are_found_by_their_usual_names(tmp_path):
    place = table(
        tmp_path / "t.csv", ["label", "uri", "group", "split"], ["a", "x.jpg", "g", "val"], ["b", "y.jpg", "", ""]
    )
    first, second = rows(place)
    assert (first.split, first.document.id, first.document.uri) == ("eval", "x.jpg", str(tmp_path / "x.jpg"))
    assert first.document.tags == {LABEL_TAG: "a", GROUP_TAG: "g"}
    assert second.problem == "row 2: the split in the column 'split' is '', but must be train or eval"


def test_columns_may_have_any_name(tmp_path):
    place = table(tmp_path / "t.csv", ["sku", "photo", "visit"], ["a", "https://h/x.jpg", "1"])
    (doc,) = documents(place, Columns(uri="photo", label="sku", group="visit"))
    assert (doc.uri, doc.tags) == ("https://h/x.jpg", {LABEL_TAG: "a", GROUP_TAG: "1"})


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (Columns(label="lable"), "no column 'lable' (--label-column); its columns are: photo, label."),
        (Columns(), "name that of the pictures with --uri-column. Its columns are: photo, label."),
    ],
)
def test_a_column_that_is_missing_is_named_with_those_that_are_there(tmp_path, columns, message):
    place = table(tmp_path / "t.csv", ["photo", "label"], ["x.jpg", "a"])
    with pytest.raises(ConfigurationError) as refused:
        list(rows(place, columns))
    assert message in str(refused.value)


def test_a_row_without_a_picture_or_with_an_empty_label_is_left_out_by_its_number(tmp_path):
    place = table(tmp_path / "t.csv", ["uri", "label"], ["", "a"], ["x.jpg", " "], ["y.jpg"], ["z.jpg", "b"])
    assert [row.problem for row in rows(place)] == [
        "row 1: there is no picture in the column 'uri'",
        "row 2: the label in the column 'label' is empty",
        "row 3: the label in the column 'label' is empty",
        None,
    ]


def test_columns_are_found_without_regard_to_case_where_one_alone_is_meant(tmp_path):
    place = table(tmp_path / "t.csv", ["URI", "Label", "Group", "Split"], ["x.jpg", "a", "g", "eval"])
    (row,) = rows(place)
    assert (row.split, row.document.tags) == ("eval", {LABEL_TAG: "a", GROUP_TAG: "g"})
    (doc,) = documents(place, Columns(label="group"))
    assert doc.tags[LABEL_TAG] == "g"
    (doc,) = documents(table(tmp_path / "u.csv", ["uri", "Label", "LABEL"], ["x.jpg", "a", "b"]))
    assert doc.tags == {}
    (doc,) = documents(table(tmp_path / "v.csv", ["uri", "Label", "label"], ["x.jpg", "a", "b"]))
    assert doc.tags == {LABEL_TAG: "b"}


@pytest.mark.parametrize("ending", ["csv", "tsv"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_a_table_is_read_with_the_separator_that_its_header_has(tmp_path, ending, separator, quoting):
    place = tmp_path / f"t.{ending}"
    with open(place, "w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file, delimiter=separator, quoting=quoting).writerows([["uri", "label"], ["x.jpg", "a,b;c"]])
    (doc,) = documents(place)
    assert (doc.uri, doc.tags) == (str(tmp_path / "x.jpg"), {LABEL_TAG: "a,b;c"})
    assert column_names(place) == ["uri", "label"]


def test_a_row_with_more_fields_than_the_header_is_left_out_with_the_reason(tmp_path):
    place = tmp_path / "t.csv"
    place.write_text('uri,label\nx.jpg,Shoes, red\nx.jpg,"Shoes, red"\nx.jpg,Shoes,,\n')
    cut, whole, with_empty_fields = rows(place)
    assert_plain(
        cut.problem + ".",
        "row 1: it has 3 fields, and the header 2; put a field that has the separator in it into quotation marks",
    )
    assert (cut.document.id, cut.document.uri, cut.document.tags) == ("t.csv:1", None, {})
    assert [row.document.tags[LABEL_TAG] for row in (whole, with_empty_fields)] == ["Shoes, red", "Shoes"]


def test_two_columns_of_one_name_are_refused_where_it_is_asked_for(tmp_path):
    place = table(tmp_path / "t.csv", ["uri", "label", "label"], ["x.jpg", "a", "b"])
    with pytest.raises(ConfigurationError, match=r"has 2 columns 'label'; rename those that are not the label\.$"):
        list(rows(place))
    (doc,) = documents(table(tmp_path / "u.csv", ["uri", "", "", "label"], ["x.jpg", "1", "2", "a"]))
    assert doc.tags == {LABEL_TAG: "a"}


def test_a_column_alone_needs_no_separator(tmp_path):
    (doc,) = documents(table(tmp_path / "t.csv", ["uri"], ["x;y.jpg"]))
    assert doc.uri == str(tmp_path / "x;y.jpg")


def test_a_label_that_is_no_number_is_empty(tmp_path):
    place = tmp_path / "t.parquet"
    parquet.write_table(pa.table({"uri": ["x.jpg", "y.jpg"], "label": [1.0, float("nan")]}), place)
    good, bad = rows(place)
    assert (good.document.tags, bad.problem) == ({LABEL_TAG: 1}, "row 2: the label in the column 'label' is empty")


def test_a_path_is_looked_for_beside_the_table_and_then_here(tmp_path, monkeypatch):
    pictures(tmp_path / "here", "x.png")
    pictures(tmp_path / "there", "y.png")
    monkeypatch.chdir(tmp_path / "here")
    place = table(tmp_path / "there" / "t.csv", ["uri"], ["x.png"], ["y.png"], ["/z.png"])
    assert [doc.uri for doc in documents(place)] == [
        str(tmp_path / "here/x.png"),
        str(tmp_path / "there/y.png"),
        "/z.png",
    ]


def test_a_parquet_file_may_have_uris_bytes_and_numbers_as_labels(tmp_path):
    picture = encoded(coloured(0))
    place = tmp_path / "t.parquet"
    columns = {"image": [{"bytes": picture, "path": "a.png"}, {"bytes": None, "path": "/b.png"}], "label": [3, None]}
    parquet.write_table(pa.table(columns), place)
    first, second = rows(place)
    assert (first.document.id, first.document.buffer, first.document.uri) == ("a.png", picture, None)
    assert first.document.tags == {LABEL_TAG: 3}
    assert second.problem == "row 2: the label in the column 'label' is empty"


SECOND = datetime(2024, 1, 2, 3, 4, 5)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (pa.array([SECOND.date()]), "2024-01-02"),
        (pa.array([SECOND]), "2024-01-02T03:04:05"),
        (pa.array([SECOND.time()]), "03:04:05"),
        (pa.array([1], pa.timestamp("ns")), "1970-01-01 00:00:00.000000001"),
        (pa.array([Decimal("1.50")]), "1.50"),
        (pa.array([b"caf\xe9"]), r"caf\xe9"),
        (pa.array([2**60]), "1152921504606846976"),
        (pa.array([7]), 7),
        (pa.array([0.5]), 0.5),
    ],
)
def test_a_value_that_could_not_be_sent_is_text(tmp_path, values, text):
    place = tmp_path / "t.parquet"
    label = "a" if text == 0.5 else text  # 0.5 is no label
    labels = values if label == text else pa.array([label])
    parquet.write_table(pa.table({"uri": ["x.jpg"], "label": labels, "group": values, "id": values}), place)
    (row,) = rows(place)
    assert row.problem is None
    assert row.document.tags == {LABEL_TAG: label, GROUP_TAG: text}
    assert row.document.id == str(text)
    assert Document.from_protobuf(row.document.to_protobuf()).tags == row.document.tags
    json.dumps(row.document.tags)
    write_dataset(tmp_path / "set", {"uri": ["x.jpg"], "group": values}, {"uri": {}, "group": {}})
    (doc,) = documents(tmp_path / "set")
    assert doc.tags == {GROUP_TAG: text}


def test_a_label_that_is_several_is_left_out_with_the_reason(tmp_path):
    place = tmp_path / "t.parquet"
    parquet.write_table(pa.table({"uri": ["x.jpg"], "label": [["red", "blue"]]}), place)
    (row,) = rows(place)
    assert "of type list; a label is an integer or a string" in str(row.problem)


def test_a_parquet_file_that_is_half_written_is_refused(tmp_path):
    place = tmp_path / "t.parquet"
    parquet.write_table(pa.table({"uri": [str(number) for number in range(1000)]}), place)
    place.write_bytes(place.read_bytes()[:-100])
    with pytest.raises(ConfigurationError, match=r"t\.parquet is no parquet file, or not a whole one: .+\.$"):
        list(rows(place))


def write_dataset(folder: Path, columns: dict[str, list[Any]], features: dict[str, Any]) -> None:
    """Write what `Dataset.save_to_disk` of Hugging Face's `datasets` writes."""
    folder.mkdir(parents=True)
    data = pa.table(columns)
    with (
        pa.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as file,
        pa.ipc.new_stream(file, data.schema) as out,
    ):
        out.write_table(data)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))


def test_a_dataset_on_disk_names_its_picture_and_its_labels_itself(tmp_path):
    columns = {"photo": [{"bytes": encoded(coloured(0)), "path": None}], "label": [1]}
    features = {"photo": {"_type": "Image"}, "label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    write_dataset(tmp_path / "set", columns, features)
    (doc,) = documents(tmp_path / "set")
    assert (doc.buffer, doc.tags) == (encoded(coloured(0)), {LABEL_TAG: "dog"})


def test_the_number_by_which_a_dataset_says_that_there_is_no_label_is_none(tmp_path):
    columns = {"uri": ["a.png", "b.png", "c.png", "d.png"], "label": [0, -1, 2, None]}
    features = {"uri": {"_type": "Value"}, "label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    write_dataset(tmp_path / "set", columns, features)
    good, *bad = rows(tmp_path / "set")
    assert good.document.tags == {LABEL_TAG: "cat"}
    assert [row.problem for row in bad] == [
        "row 2: the label in the column 'label' is empty",
        "row 3: the label in the column 'label' is 2, but the dataset names 2 labels, counted from 0",
        "row 4: the label in the column 'label' is empty",
    ]


def test_the_rows_of_a_corpus_need_no_labels(tmp_path):
    features = {"uri": {"_type": "Value"}, "label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    write_dataset(tmp_path / "set", {"uri": ["a.png", "b.png"], "label": [1, -1]}, features)
    assert [doc.tags for doc in documents(tmp_path / "set", labelled=False)] == [{LABEL_TAG: "dog"}, {}]
    place = table(tmp_path / "t.csv", ["uri", "label"], ["a.png", "a"], ["b.png", ""])
    assert [doc.tags for doc in documents(place, labelled=False)] == [{LABEL_TAG: "a"}, {}]
    parquet.write_table(pa.table({"uri": ["a.png", "b.png"], "label": [0.5, None]}), tmp_path / "t.parquet")
    assert [doc.tags for doc in documents(tmp_path / "t.parquet", labelled=False)] == [{}, {}]


def test_the_splits_of_a_dataset_are_for_training_and_for_evaluation(tmp_path):
    features = {"uri": {"_type": "Value"}, "label": {"_type": "Value"}}
    for split in ("train", "validation"):
        write_dataset(tmp_path / "set" / split, {"uri": [f"/{split}.png"], "label": ["a"]}, features)
    (tmp_path / "set" / "dataset_dict.json").write_text('{"splits": ["train", "validation"]}')
    assert [(row.split, row.document.uri) for row in rows(tmp_path / "set")] == [
        ("train", "/train.png"),
        ("eval", "/validation.png"),
    ]


def test_a_list_has_a_uri_in_each_line(tmp_path):
    (tmp_path / "all.txt").write_text("/a.jpg\n\nhttps://h/b.jpg\n")
    assert [doc.uri for doc in documents(tmp_path / "all.txt")] == ["/a.jpg", "https://h/b.jpg"]


def test_the_mark_that_some_editors_begin_a_list_with_is_no_part_of_the_first_uri(tmp_path):
    (tmp_path / "all.txt").write_text("/a.jpg\n/b.jpg\n", encoding="utf-8-sig")
    assert [doc.uri for doc in documents(tmp_path / "all.txt")] == ["/a.jpg", "/b.jpg"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda place: None, "is not there"),
        (lambda place: place.mkdir(), "has no folders in it"),
        (lambda place: pictures(place, "1.png"), "has no folders in it. Put the pictures of each class into a folder"),
        (lambda place: (place / "red").mkdir(parents=True), "has no pictures in it"),
        (lambda place: place.write_text("?"), "is neither a folder nor a file that ends in .csv"),
    ],
)
def test_what_is_no_source_is_refused_in_a_sentence(tmp_path, make, message):
    make(tmp_path / "source")
    with pytest.raises(ConfigurationError) as refused:
        list(rows(tmp_path / "source"))
    assert message in str(refused.value)


@pytest.mark.parametrize("content", ["", "uri,label\n"])
def test_a_table_without_rows_is_refused(tmp_path, content):
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(ConfigurationError):
        list(rows(tmp_path / "t.csv"))


def test_a_table_in_another_encoding_is_refused(tmp_path):
    (tmp_path / "t.csv").write_bytes("uri,label\nx.jpg,é\n".encode("latin-1"))
    with pytest.raises(ConfigurationError, match="cannot be read as a table in UTF-8"):
        list(rows(tmp_path / "t.csv"))


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_long_table_takes_no_more_memory_than_a_short_one(tmp_path, ending):
    def peak(count: int) -> int:
        place = tmp_path / f"{count}.{ending}"
        uris = [f"/pictures/{number}.jpg" for number in range(count)]
        if ending == "csv":
            table(place, ["uri"], *([uri] for uri in uris))
        else:
            parquet.write_table(pa.table({"uri": uris}), place, row_group_size=500)
        del uris
        tracemalloc.start()
        assert sum(1 for _ in rows(place)) == count
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(10)  # what is loaded at the first use
    assert peak(4000) < 2 * peak(1000)


SAVE = """
import sys
from pathlib import Path
import datasets

folder, picture = Path(sys.argv[1]), sys.argv[2]
features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
data = datasets.Dataset.from_dict({"image": [picture] * 6, "label": [0, 1, 0, 1, 0, 1]}, features=features)
data = data.select([1, 2, 3])  # by indices, which are written out when it is saved
datasets.DatasetDict({"train": data, "test": data.select([0])}).save_to_disk(folder / "dictionary")
data.map(lambda row: row, num_proc=None).save_to_disk(folder / "plain", num_shards=2)
"""


@pytest.mark.extra
@pytest.mark.process
def test_what_hugging_face_itself_has_saved_is_read(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(encoded(coloured(0)))
    run_with_extras(SAVE, tmp_path, tmp_path / "1.png")
    labels = [("train", "dog"), ("train", "cat"), ("train", "dog")]
    found = list(rows(tmp_path / "dictionary"))
    assert sorted((row.split, row.document.tags[LABEL_TAG]) for row in found) == sorted([*labels, ("eval", "dog")])
    assert [(row.split, row.document.tags[LABEL_TAG]) for row in rows(tmp_path / "plain")] == labels
    assert all(row.document.buffer == encoded(coloured(0)) or row.document.uri for row in found)
