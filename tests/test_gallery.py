"""Galleries that people look at: pages, thumbnails, neighbours, and what has been said of the pictures."""

import base64
import io
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conftest import coloured, encoded
from doors import Opened, opened
from executor import Document, DocumentArray
from executor.documents import FeedbackStatus
from executor.errors import BadRequest
from executor.parameters import FitParameters
from executor.serving import galleries, neighbours, thumbnails
from executor.serving.gallery_places import places_of
from executor.store.run import RunState
from serving import DOOR, Service

parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with twelve pictures of three colours, in folders, and others that are no pictures."""
    folder = tmp_path_factory.mktemp("shop")
    for label in range(3):
        (folder / f"colour{label}").mkdir()
        for seed in range(4):
            (folder / f"colour{label}" / f"{seed}.png").write_bytes(encoded(coloured(label, seed, 64)))
    (folder / "notes.txt").write_text("no picture")
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "secret.png").write_bytes(encoded(coloured(0)))
    return folder


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory, shop: Path) -> Iterator[Opened]:
    with opened(tmp_path_factory.mktemp("door"), allowed_roots=[str(shop)]) as running:
        running.service.supervisor.close()  # else it would start a trainer
        yield running


@pytest.fixture(scope="module")
def clicks(door: Opened) -> str:
    """A run that was sent pictures as arrays, bytes, a data: uri and a path; it is not trained."""
    pictures = [
        Document(id="array", blob=coloured(0, size=64), tags={"finetuner_label": "red"}),
        Document(id="bytes", buffer=encoded(coloured(1, size=64)), tags={"finetuner_label": "green"}),
        Document(id="data", uri=data_uri(encoded(coloured(2, size=64))), tags={"finetuner_label": 7}),
    ]
    door.service.receiver.receive(DocumentArray(pictures), FitParameters(run="clicks", kind="class"))
    return "clicks"


def data_uri(image: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(image).decode()


def answered(door: Opened, path: str, data: Any = (), **parameters: Any) -> list[dict[str, Any]]:
    answer = door.post(path, data, **parameters)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["data"]
    return found


def refused(door: Opened, path: str, data: Any = (), **parameters: Any) -> str:
    answer = door.post(path, data, **parameters)
    assert 400 <= answer.status_code < 500, answer.text
    return str(answer.json()["detail"])


# pages --------------------------------------------------------------------------------------------------------------


def test_a_folder_is_shown_page_by_page_by_name(door, shop):
    (page,) = answered(door, "/gallery", gallery=str(shop), offset=2, limit=5)
    assert page["tags"] == {"finetuner_count": 12}
    expected = [f"colour{number // 4}/{number % 4}.png" for number in range(2, 7)]
    assert [picture["id"] for picture in page["matches"]] == expected
    assert [picture["uri"] for picture in page["matches"]] == [f"{shop}/{name}" for name in expected]
    assert [picture["tags"]["finetuner_position"] for picture in page["matches"]] == [2, 3, 4, 5, 6]
    (end,) = answered(door, "/gallery", gallery=str(shop), offset=50)
    assert (end["matches"], end["tags"]["finetuner_count"]) == ([], 12)


def test_a_file_that_comes_or_goes_is_noticed(door, shop, monkeypatch):
    monkeypatch.setattr(galleries, "GLANCE_SECONDS", 0.0)
    new = shop / "colour0" / "new.png"
    assert answered(door, "/gallery", gallery=str(shop), limit=0)[0]["tags"]["finetuner_count"] == 12
    new.write_bytes(encoded(coloured(0)))
    assert answered(door, "/gallery", gallery=str(shop), limit=0)[0]["tags"]["finetuner_count"] == 13
    new.unlink()
    assert answered(door, "/gallery", gallery=str(shop), limit=0)[0]["tags"]["finetuner_count"] == 12


def test_names_that_are_no_text_are_left_out_and_do_not_spoil_the_rest(tmp_path):
    os.mkdir(os.fsencode(tmp_path / "old"))
    for name in (b"caf\xe9.png", b"old/\xff.png"):  # as Latin-1 archives have them
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(encoded(coloured(0)))
    os.mkdir(os.fsencode(tmp_path) + b"/\xfe")
    with pytest.raises(BadRequest, match="no pictures whose names are UTF-8, in it or below it; rename them"):
        galleries.FolderGallery("shop", tmp_path)
    (tmp_path / "café.png").write_bytes(encoded(coloured(0)))
    assert [doc.id for doc in galleries.FolderGallery("shop", tmp_path).documents(0, 9)] == ["café.png"]
    assert [place for place, _ in places_of([str(tmp_path)], tmp_path / "workspace")] == [tmp_path]


def test_a_run_s_documents_are_shown_without_their_bytes_unless_asked_for(door, clicks):
    (page,) = answered(door, "/gallery", run=clicks)
    assert [picture["id"] for picture in page["matches"]] == ["array", "bytes", "data"]
    assert [picture["tags"]["finetuner_label"] for picture in page["matches"]] == ["red", "green", 7]
    assert all(picture[name] is None for picture in page["matches"] for name in ("uri", "blob", "buffer"))
    (whole,) = answered(door, "/gallery", run=clicks, content=True)
    array, as_bytes, data = whole["matches"]
    np.testing.assert_array_equal(array["blob"], coloured(0, size=64))
    assert base64.b64decode(as_bytes["buffer"]) == encoded(coloured(1, size=64))
    assert data["uri"] == data_uri(encoded(coloured(2, size=64)))


def test_pictures_with_their_content_come_as_far_as_an_answer_holds(door, clicks, monkeypatch):
    from executor.endpoints import gallery

    monkeypatch.setattr(gallery, "CONTENT_BYTES", 30_000)
    (page,) = answered(door, "/gallery", run=clicks, content=True)
    assert [picture["id"] for picture in page["matches"]] == ["array", "bytes"]
    (further,) = answered(door, "/gallery", run=clicks, content=True, offset=2)
    assert [picture["id"] for picture in further["matches"]] == ["data"]


def test_a_parquet_file_is_shown_without_the_rows_that_failed(door, shop):
    write_table(shop / "rows.parquet", np.eye(3, 8), space="elsewhere", failed=2)
    (page,) = answered(door, "/gallery", gallery=str(shop / "rows.parquet"), offset=1)
    assert page["tags"]["finetuner_count"] == 3
    assert [picture["id"] for picture in page["matches"]] == ["r1", "r2"]
    assert page["matches"][0]["uri"] == "colour0/1.png"


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({}, "Name one gallery"),
        ({"gallery": "x", "run": "y"}, "Name one gallery"),
        ({"gallery": "/etc"}, "outside the allowed roots"),
        ({"run": "nowhere"}, "There is no run 'nowhere'"),
        ({"run": "clicks", "limit": 5000}, "limit"),
    ],
)
def test_what_is_no_gallery_is_refused_in_a_sentence(door, clicks, parameters, sentence):
    for path in ("/gallery", "/neighbours"):
        assert sentence in refused(door, path, [{"uri": "x"}], **parameters)


def test_a_file_that_is_no_such_table_is_refused(door, shop):
    import pyarrow

    parquet.write_table(pyarrow.table({"id": ["a"]}), shop / "other.parquet")
    (shop / "broken.parquet").write_bytes(b"nonsense")
    for name in ("other", "broken"):
        said = refused(door, "/gallery", gallery=str(shop / f"{name}.parquet"))
        assert "cannot be read as a parquet file with the columns" in said
        assert "was not written by `embed`" in said
        assert "FieldRef" not in said


def test_only_files_that_embed_wrote_are_offered(tmp_path, monkeypatch):
    import pyarrow

    parquet.write_table(pyarrow.table({"id": ["a"], "image": [{"bytes": b"?"}]}), tmp_path / "dataset.parquet")
    for name, content in (("broken", b"nonsense"), ("short", b""), ("huge", b"PAR1" + b"\xff\xff\xff\x7fPAR1")):
        (tmp_path / f"{name}.parquet").write_bytes(content)
    for name in ("one", "two"):
        write_table(tmp_path / f"{name}.parquet", np.eye(3, 8), space="elsewhere")

    def offered() -> list[str]:
        return [place.name for place, _ in places_of([str(tmp_path)], tmp_path / "workspace")]

    assert offered() == ["one.parquet", "two.parquet"]
    monkeypatch.setattr("executor.serving.gallery.MOST_FOOTER_BYTES", 10)
    assert offered() == []
    monkeypatch.undo()
    monkeypatch.setattr("executor.serving.gallery_places.MOST_TABLES", 5)  # by name
    assert offered() == ["one.parquet"]


def test_galleries_that_can_be_named_are_named(door, shop, clicks):
    found = {doc["id"]: doc["tags"]["finetuner_sort"] for doc in answered(door, "/galleries")}
    assert found["clicks"] == "run"
    assert found[str(shop)] == found[str(shop / "colour1")] == "folder"
    assert not any("hidden" in name for name in found)
    assert all((sort == "parquet") == name.endswith(".parquet") for name, sort in found.items())


# thumbnails ---------------------------------------------------------------------------------------------------------


def picture_of(doc: dict[str, Any]) -> Image.Image:
    kind, _, encoded_text = doc["uri"].partition(";base64,")
    image = Image.open(io.BytesIO(base64.b64decode(encoded_text)))
    assert kind == f"data:image/{(image.format or '').lower()}"
    return image


def test_thumbnails_are_small_and_look_like_their_pictures(door, shop):
    Image.effect_noise((800, 400), 50).convert("RGB").save(shop / "wide.jpg")
    sent = [{"id": "w", "uri": str(shop / "wide.jpg")}, {"id": "c", "uri": str(shop / "colour1" / "0.png")}]
    wide, small = answered(door, "/thumbnails", sent, side=100)
    assert ((wide["id"], small["id"]), picture_of(wide).size) == (("w", "c"), (100, 50))
    found = np.asarray(picture_of(small).convert("RGB"), float).mean((0, 1))
    assert picture_of(small).size == (64, 64)  # never enlarged
    np.testing.assert_allclose(found, coloured(1, 0, 64).mean((0, 1)), atol=3)
    (shop / "wide.jpg").unlink()


def test_thumbnails_of_a_run_are_named_by_their_places(door, clicks):
    found = answered(door, "/thumbnails", run=clicks, positions=[2, 0])
    assert [doc["id"] for doc in found] == ["data", "array"]
    twice = answered(door, "/thumbnails", run=clicks, positions=[0, 0, 2])
    assert [doc["id"] for doc in twice] == ["array", "array", "data"]
    assert [int(np.asarray(picture_of(doc).convert("RGB")).mean((0, 1)).argmax()) for doc in found] == [2, 0]
    assert "has 3 train documents, numbered from 0" in refused(door, "/thumbnails", run=clicks, positions=[3])
    assert "send one of them" in refused(door, "/thumbnails", [{"uri": "x"}], run=clicks)


def test_what_is_not_made_in_the_time_to_wait_has_no_uri_and_is_no_error(door, shop, monkeypatch):
    allowed = threading.Event()
    original = thumbnails.thumbnail_of
    monkeypatch.setattr(thumbnails, "thumbnail_of", lambda *given: allowed.wait(60) and original(*given))
    uris = [str(file) for file in sorted(shop.glob("*/*.png"))]
    sent = [{"id": uri, "uri": uri} for uri in uris]
    found = answered(door, "/thumbnails", sent, side=79, wait=0)
    assert [doc["id"] for doc in found] == uris
    assert not any(doc["uri"] or doc["tags"] for doc in found)
    allowed.set()
    assert all(doc["uri"] for doc in answered(door, "/thumbnails", sent, side=79))
    assert all(doc["uri"] for doc in answered(door, "/thumbnails", sent, side=79, wait=0))  # those that are kept


def test_what_may_not_be_embedded_has_no_thumbnail_and_says_why(door, shop, tmp_path):
    outside = tmp_path / "private.png"
    outside.write_bytes(encoded(coloured(0)))
    (shop / "link.png").symlink_to(outside)
    (shop / "text.png").write_text("no picture")
    uris = [str(outside), str(shop / "link.png"), "http://example.com/a.png", "s3://b/a.png", str(shop / "text.png")]
    found = answered(door, "/thumbnails", [{"uri": uri} for uri in [*uris, str(shop / "gone.png")]])
    reasons = [doc["tags"]["finetuner_error"] for doc in found]
    embedded = [doc["tags"]["finetuner_error"] for doc in answered(door, "/embed", [{"uri": uri} for uri in uris])]
    assert reasons[:5] == embedded
    assert all(doc["uri"] is None for doc in found)
    for name in ("link.png", "text.png"):
        (shop / name).unlink()


def test_a_thumbnail_is_made_once_until_its_file_changes(door, shop, monkeypatch):
    made: list[str] = []
    original = thumbnails.thumbnail_of
    monkeypatch.setattr(thumbnails, "thumbnail_of", lambda doc, *rest: made.append(doc.uri) or original(doc, *rest))
    file = shop / "changing.png"
    file.write_bytes(encoded(coloured(0, size=64)))
    first = answered(door, "/thumbnails", [{"uri": str(file)}], side=77)
    assert answered(door, "/thumbnails", [{"uri": str(file)}], side=77) == first
    assert len(made) == 1
    file.write_bytes(encoded(coloured(2, size=64)))
    os.utime(file, ns=(0, time.time_ns() + 10**9))
    (second,) = answered(door, "/thumbnails", [{"uri": str(file)}], side=77)
    assert len(made) == 2
    assert np.asarray(picture_of(second).convert("RGB")).mean((0, 1)).argmax() == 2
    file.unlink()
    (gone,) = answered(door, "/thumbnails", [{"uri": str(file)}], side=77)  # although its thumbnail is kept
    assert "cannot be read" in gone["tags"]["finetuner_error"]


def test_what_is_kept_of_a_run_goes_with_it(door):
    service = door.service
    docs = DocumentArray([Document(id="a", blob=coloured(0, size=64)), Document(id="b", blob=coloured(1, size=64))])
    service.receiver.receive(docs, FitParameters(run="short", kind="unlabeled"))
    number = service.store.get("short").number
    answered(door, "/thumbnails", run="short", positions=[0])
    answered(door, "/neighbours", [{"blob": coloured(0, size=64).tolist()}], run="short")
    kept = [service.store.workspace.thumbnails, service.store.workspace.vectors]
    assert [owned(file, number) for file in kept] == [1, 2]
    service.supervisor.cancel("short")
    answered(door, "/delete", run="short")
    assert [owned(file, number) for file in kept] == [0, 0]


def owned(file: Path, run: int) -> int:
    import sqlite3

    with sqlite3.connect(file) as db:
        ((count,),) = db.execute("SELECT count(*) FROM pieces WHERE owner = ?", (run,))
    return int(count)


# neighbours ---------------------------------------------------------------------------------------------------------


def test_the_nearest_pictures_come_first_and_the_picture_itself_is_none_of_them(door, shop):
    query = str(shop / "colour1" / "0.png")
    (found,) = answered(door, "/neighbours", [{"id": "q", "uri": query}], gallery=str(shop), limit=3)
    assert found["id"] == "q"
    assert found["tags"]["finetuner_model"] == "base"
    assert (found["tags"]["finetuner_count"], found["tags"]["finetuner_embedded"]) == (12, 12)
    assert found["tags"]["finetuner_done"] is True
    assert sorted(match["id"] for match in found["matches"]) == [f"colour1/{number}.png" for number in (1, 2, 3)]
    near = [match["tags"]["finetuner_similarity"] for match in found["matches"]]
    assert near == sorted(near, reverse=True)
    assert all(match["uri"] == f"{shop}/{match['id']}" for match in found["matches"])


def test_they_are_those_that_embed_finds(door, shop):
    names = [f"{shop}/colour{label}/{seed}.png" for label in range(3) for seed in range(4)]
    vectors = np.array([doc["embedding"] for doc in answered(door, "/embed", [{"uri": name} for name in names])])
    order = [names[place] for place in np.argsort(-(vectors @ vectors[5]), kind="stable")[1:]]
    (found,) = answered(door, "/neighbours", [{"uri": names[5]}], gallery=str(shop), limit=11)
    similarity = [match["tags"]["finetuner_similarity"] for match in found["matches"]]
    np.testing.assert_allclose(similarity, sorted(vectors @ vectors[5], reverse=True)[1:], atol=2e-3)
    assert [match["uri"] for match in found["matches"]][:3] == order[:3]


def test_a_picture_that_cannot_be_embedded_says_why(door, shop):
    bad, good = answered(
        door, "/neighbours", [{"uri": "data:,x"}, {"uri": str(shop / "colour0" / "1.png")}], gallery=str(shop)
    )
    assert "finetuner_error" in bad["tags"]
    assert bad["matches"] == []
    assert len(good["matches"]) == 11
    assert "got no documents" in refused(door, "/neighbours", gallery=str(shop))


def test_a_gallery_is_embedded_once_for_a_space_also_over_a_restart(tmp_path, shop):
    query = [{"uri": str(shop / "colour2" / "0.png")}]
    for images in (13, 1):  # the second service computes only that of the query
        with opened(tmp_path, allowed_roots=[str(shop)]) as door:
            for _ in range(2):
                answered(door, "/neighbours", query, gallery=str(shop), limit=2)
            assert door.series()["finetuner_embed_batch_images_sum"] == images + 1


def test_while_a_gallery_is_embedded_the_answer_is_made_of_a_part_and_says_so(tmp_path, shop, monkeypatch):
    from executor.endpoints import gallery

    monkeypatch.setattr(gallery, "WAIT_SECONDS", 0.0)
    monkeypatch.setattr(neighbours, "BLOCK", 4)
    with opened(tmp_path, allowed_roots=[str(shop)]) as door:
        query = [{"uri": str(shop / "colour0" / "0.png")}]
        seen = []
        while not seen or not seen[-1]["tags"]["finetuner_done"]:
            seen += answered(door, "/neighbours", query, gallery=str(shop))
        assert seen[0]["tags"]["finetuner_embedded"] < 12
        assert seen[-1]["tags"]["finetuner_embedded"] == 12
        assert len(seen[-1]["matches"]) == 11
        assert len(seen[0]["matches"]) <= seen[0]["tags"]["finetuner_embedded"]


def write_table(file: Path, vectors: np.ndarray, *, space: str, failed: int = 0) -> None:
    import pyarrow

    rows = [
        {"id": f"r{n}", "uri": f"colour0/{n}.png", "embedding": list(map(float, v)), "space": space, "error": None}
        for n, v in enumerate(vectors)
    ]
    rows[1:1] = [{"id": "x", "uri": "x", "embedding": None, "space": None, "error": "broken"} for _ in range(failed)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), file)


def test_a_table_of_the_served_space_is_used_as_it_is(door, shop):
    query = {"uri": str(shop / "colour0" / "0.png")}
    (embedded,) = answered(door, "/embed", [query])
    own = np.array(embedded["embedding"])
    others = np.random.default_rng(0).standard_normal((4, len(own)))
    write_table(
        shop / "mine.parquet",
        np.stack([others[0], own, others[1]]),
        space=embedded["tags"]["finetuner_space"],
        failed=1,
    )
    before = door.series()["finetuner_embed_batch_images_sum"]
    (found,) = answered(door, "/neighbours", [query], gallery=str(shop / "mine.parquet"), limit=2)
    assert door.series()["finetuner_embed_batch_images_sum"] == before + 1
    assert found["matches"][0]["id"] == "r1"
    assert found["matches"][0]["tags"]["finetuner_similarity"] == pytest.approx(1, abs=1e-3)


def test_a_gallery_too_large_for_memory_is_looked_at_in_part(tmp_path, shop, monkeypatch):
    monkeypatch.setattr(neighbours, "MEMORY_BYTES", 5 * 2 * 128)
    with opened(tmp_path, allowed_roots=[str(shop)]) as door:
        (found,) = answered(door, "/neighbours", [{"uri": str(shop / "colour0" / "0.png")}], gallery=str(shop))
        assert (found["tags"]["finetuner_count"], found["tags"]["finetuner_embedded"]) == (12, 5)


# what has been said --------------------------------------------------------------------------------------------------


def test_the_latest_word_of_each_picture_is_told(door):
    said = [{"id": "w1", "uri": "data:,a", "tags": {"finetuner_label": "apple"}}]
    answered(door, "/feedback", said)
    said[0]["tags"] = {"finetuner_label": "pear"}
    answered(door, "/feedback", said)
    (word,) = answered(door, "/words", [{"id": "w1"}, {"id": "nobody"}])
    assert (word["id"], word["tags"]["finetuner_label"], word["uri"]) == ("w1", "pear", None)
    assert word["tags"]["finetuner_said_at"].startswith("20")
    (whole,) = answered(door, "/words", [{"id": "w1"}], content=True)
    assert whole["uri"] == "data:,a"
    answered(door, "/feedback", [{"id": "w1", "tags": {"finetuner_withdrawn": True}}])
    (last,) = answered(door, "/words", [{"id": "w1"}])
    assert last["tags"]["finetuner_withdrawn"] is True
    assert last["tags"]["finetuner_word"] > word["tags"]["finetuner_word"]


def test_the_latest_words_of_all_come_newest_first(door):
    for name in ("n1", "n2", "n3"):
        match = {"uri": "data:,m", "tags": {"finetuner_label": 1}}
        answered(door, "/feedback", [{"id": name, "uri": f"data:,{name}", "matches": [match]}])
    newest, second = answered(door, "/words", limit=2)
    assert (newest["id"], second["id"]) == ("n3", "n2")
    assert [match["tags"]["finetuner_label"] for match in newest["matches"]] == [1]
    (third,) = answered(door, "/words", limit=1, before=second["tags"]["finetuner_word"])
    assert third["id"] == "n1"


def test_labels_in_use_are_those_of_the_promoted_run_and_of_feedback(door, clicks, monkeypatch):
    for number, label in enumerate(("kiwi", "kiwi", 7)):
        answered(door, "/feedback", [{"id": f"l{number}", "uri": "data:,x", "tags": {"finetuner_label": label}}])
    counts = {doc["tags"]["finetuner_label"]: doc["tags"]["finetuner_count"] for doc in answered(door, "/labels")}
    assert (counts["kiwi"], counts[7], "red" in counts) == (2, 1, False)
    monkeypatch.setattr(door.service.store, "promoted", lambda: clicks)
    counts = {doc["tags"]["finetuner_label"]: doc["tags"]["finetuner_count"] for doc in answered(door, "/labels")}
    assert (counts["kiwi"], counts[7], counts["red"]) == (2, 2, 1)


def test_a_run_that_receives_more_has_more_neighbours(door, clicks):
    run = door.service.store.get(clicks)
    assert run.state is RunState.RECEIVING
    query = [{"blob": coloured(2, 5, 64).tolist()}]
    assert len(answered(door, "/neighbours", query, run=clicks)[0]["matches"]) == 3
    more = DocumentArray([Document(id="more", blob=coloured(2, 6, 64), tags={"finetuner_label": 7})])
    door.service.receiver.receive(more, FitParameters(run=clicks))
    (found,) = answered(door, "/neighbours", query, run=clicks)
    assert len(found["matches"]) == 4
    assert {found["matches"][0]["id"], found["matches"][1]["id"]} == {"data", "more"}
    assert found["matches"][0]["tags"]["finetuner_label"] == 7


# through a Flow ------------------------------------------------------------------------------------------------------


@pytest.mark.flow
def test_galleries_are_shown_by_the_door_of_an_executor_in_a_flow(service: Service):
    folder = service.directory / "shown"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.png").write_bytes(encoded(coloured(number % 2, number, 64)))

    def asked(path: str, docs: Any = None, **parameters: Any) -> list[Document]:
        return list(service.post(path, docs, protocol=DOOR, returns=Document, **parameters))

    assert str(folder.name) in {doc.id for doc in asked("/galleries", limit=1000)}
    (page,) = asked("/gallery", gallery=str(folder), limit=2)
    assert page.tags["finetuner_count"] == 3
    assert [picture.id for picture in page.matches] == ["0.png", "1.png"]
    query = DocumentArray([Document(id="q", uri=page.matches[0].uri)])
    (small,) = asked("/thumbnails", query, side=32)
    assert picture_of({"uri": small.uri}).size == (32, 32)
    (found,) = asked("/neighbours", query, gallery=str(folder))
    assert [match.id for match in found.matches] == ["2.png", "1.png"]
    said = Document(id="gallery", uri=page.matches[0].uri, tags={"finetuner_label": "of the door"})
    service.post("/feedback", DocumentArray([said]), protocol=DOOR, returns=FeedbackStatus)
    (word,) = asked("/words", DocumentArray([Document(id=said.id)]))
    assert word.tags["finetuner_label"] == "of the door"
    assert "of the door" in {doc.tags["finetuner_label"] for doc in asked("/labels")}
    taken_back = Document(id=said.id, tags={"finetuner_withdrawn": True})
    service.post("/feedback", DocumentArray([taken_back]), protocol=DOOR, returns=FeedbackStatus)
