"""What to label next: typical of much that is not labelled yet, and unlike what is."""

import json
import shutil
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from conftest import coloured, encoded
from doors import Opened, opened
from executor import Document, DocumentArray
from executor.__main__ import main
from executor.endpoints.service import Service as RunningService
from executor.errors import BadRequest
from executor.images.policy import ImagePolicy
from executor.models.versions import version_folder
from executor.parameters import FitParameters
from executor.serving import gallery
from executor.serving.suggesting import suggest, uncertainty
from serving import Service

parquet = pytest.importorskip("pyarrow.parquet")


def clusters(*sizes: int, spread: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
    """Directions around one axis for each cluster, (N, 16), and which cluster each is of, (N,)."""
    random = np.random.default_rng(0)
    of = np.repeat(np.arange(len(sizes)), sizes)
    return (np.eye(16)[of] + spread * random.standard_normal((len(of), 16))).astype(np.float32), of


def test_one_of_each_cluster_comes_first_the_largest_at_the_top():
    vectors, of = clusters(10, 60, 30, 20)
    found = [of[position] for position, _ in suggest(vectors, 4)]
    assert found == [1, 2, 3, 0]


def test_an_outlier_comes_late():
    vectors, of = clusters(50, 50, 1)
    order = [int(of[position]) for position, _ in suggest(vectors, 101)]
    assert len(order) == 101
    assert sorted(order[:2]) == [0, 1]
    assert order.index(2) >= 2


def test_what_is_labelled_already_is_not_suggested_again():
    vectors, of = clusters(50, 40, 30)
    (first, _) = suggest(vectors, 1, known=vectors[of == 0][:1], labels=["a"])[0]
    assert of[first] == 1


def test_the_model_is_unsure_of_what_is_as_near_to_one_label_as_to_another():
    unsure = uncertainty(np.array([[0.9, 0.1], [0.5, 0.5], [0.1, 0.6]]))
    assert unsure.argmax() == 1
    assert (unsure.min(), unsure.max()) == (0, 1)
    assert not uncertainty(np.array([[0.9], [0.1]])).any()
    between = np.zeros((30, 16), np.float32)
    between[:15, :2] = 1  # between the two labels
    between[15:, 0], between[15:, 2] = 1, 1  # near to one of them only
    between += 0.01 * np.random.default_rng(0).standard_normal(between.shape).astype(np.float32)
    known = np.eye(16, dtype=np.float32)[:2]
    ((first, reason),) = suggest(between, 1, known=known, labels=["a", "b"])
    assert first < 15
    assert "as near to one label as to another" in reason


@pytest.mark.parametrize("count", [1, 20])
def test_of_plain_pictures_no_reason_says_that_the_model_is_unsure(count):
    vectors, _ = clusters(count, count)
    known = np.eye(16, dtype=np.float32)[:2]
    found = suggest(vectors, 10, known=known, labels=["a", "b"])
    assert len(found) == min(10, 2 * count)
    assert not [reason for _, reason in found if "unsure" in reason]


def test_a_picture_between_two_labels_is_unsure_though_it_is_the_only_one_or_all_cosines_are_near_1():
    known = np.eye(16, dtype=np.float32)[:2]
    ((_, reason),) = suggest(known.sum(0)[None], 1, known=known, labels=["a", "b"])
    assert reason.endswith("the model is unsure of it: it is about as near to one label as to another")
    near = known + 30 * np.eye(16, dtype=np.float32)[15]
    ((_, reason),) = suggest(near[:1] + 0.01, 1, known=near, labels=["a", "b"])
    assert "unsure" not in reason


def test_a_picture_like_one_that_is_labelled_or_suggested_is_not_said_to_be_unlike_them():
    known = np.eye(16, dtype=np.float32)[:2]
    new = np.eye(16, dtype=np.float32)[2]
    found = suggest(np.stack([known[0], new, new]), 3, known=known, labels=["a", "b"])
    assert [position for position, _ in found] == [1, 0, 2]
    assert "about 2 pictures" in found[0].reason
    for _, reason in found[1:]:
        assert (
            reason
            == "stands for itself at most: what is labelled and the other suggestions are as near to every picture"
        )


def test_reasons_say_for_how_many_a_suggestion_stands():
    vectors, _ = clusters(60, 20)
    reasons = [reason for _, reason in suggest(vectors, 2)]
    assert "about 60 pictures" in reasons[0]
    assert "about 20 pictures" in reasons[1]


def test_a_gallery_larger_than_can_be_looked_at_is_sampled(monkeypatch):
    monkeypatch.setattr("executor.serving.suggesting.MOST_CANDIDATES", 50)
    monkeypatch.setattr("executor.serving.suggesting.MOST_COVERED", 20)
    vectors, of = clusters(500, 300)
    assert {int(of[position]) for position, _ in suggest(vectors, 2)} == {0, 1}


def test_however_many_are_asked_for_they_are_those_of_the_plain_way_with_the_first_of_equals():
    vectors, _ = clusters(40, 30, 20, spread=0.3)
    vectors[1::9] = vectors[::9]  # copies
    unit = vectors.astype(np.float64) / np.linalg.norm(vectors, axis=1, keepdims=True)
    similarity = unit @ unit.T
    cover, plain = np.full(len(unit), -1.0), list[int]()
    for _ in unit:
        gains = np.maximum(similarity - cover, 0).sum(1).round(4)
        gains[plain] = -1
        plain.append(int(gains.argmax()))
        cover = np.maximum(cover, similarity[plain[-1]])
    found = suggest(vectors, len(vectors))
    assert [position for position, _ in found] == plain
    assert suggest(vectors, 7)[-1].position == plain[6]


def test_many_suggestions_take_little_more_memory_than_the_similarities():
    vectors = np.random.default_rng(0).standard_normal((2000, 32)).astype(np.float32)
    suggest(vectors, 1)  # what is loaded at the first use
    tracemalloc.start()
    suggest(vectors, 400)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 2 * 2000 * 2000 * 4


def test_of_more_documents_than_can_be_looked_at_the_reason_says_so(door, monkeypatch):
    monkeypatch.setattr("executor.serving.suggesting.MOST_CANDIDATES", 3)
    sent = [{"uri": as_uri(coloured(number, number))} for number in range(4)]
    (first,) = door.post("/suggest", sent, limit=1).json()["data"]
    assert first["tags"]["finetuner_reason"].endswith("(of 3 that were looked at, of 4)")


# --- galleries -------------------------------------------------------------------------------------------------------


def write_parquet(file: Path, vectors: np.ndarray, *, space: str, failed: int = 0) -> None:
    import pyarrow

    rows = [
        {
            "id": str(n),
            "uri": f"{n}.jpg",
            "embedding": list(map(float, v)),
            "model": "base",
            "space": space,
            "error": None,
        }
        for n, v in enumerate(vectors)
    ]
    rows += [
        {"id": f"x{n}", "uri": "x", "embedding": None, "model": None, "space": None, "error": "broken"}
        for n in range(failed)
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), file)


def test_a_place_has_to_be_allowed_and_to_be_a_gallery(tmp_path):
    policy = ImagePolicy(allowed_roots=(str(tmp_path / "shop"),))
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "notes.txt").write_text("")
    with pytest.raises(BadRequest, match="outside the allowed roots"):
        gallery.check_gallery(str(tmp_path), policy)
    for name in ("nothing", "notes.txt"):
        with pytest.raises(BadRequest, match="neither a folder of pictures nor a parquet file"):
            gallery.check_gallery(str(tmp_path / "shop" / name), policy)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Twelve pictures of two colours."""
    folder: Path = tmp_path_factory.mktemp("gallery")
    for label, count in ((0, 8), (1, 4)):
        for seed in range(count):
            (folder / f"{label}-{seed}.png").write_bytes(encoded(coloured(label, seed)))
    return folder


@pytest.fixture(scope="module")
def door(tmp_path_factory, folder) -> Iterator[Opened]:
    with opened(tmp_path_factory.mktemp("door"), allowed_roots=[str(folder)]) as running:
        running.service.supervisor.close()  # else it would start a trainer
        yield running


def embedded(door: Opened) -> float:
    return door.series()["finetuner_embed_batch_images_sum"]


def test_a_gallery_is_embedded_once_however_often_it_is_asked_about(door, folder):
    before = embedded(door)
    for _ in range(2):
        (first, second) = door.post("/suggest", gallery=str(folder), limit=2).json()["data"]
        assert (first["id"][0], second["id"][0]) == ("0", "1")
        assert first["uri"] == str(folder / first["id"])
    assert embedded(door) == before + 12


def test_of_a_large_gallery_some_are_looked_at_and_the_reason_says_so(door, folder, monkeypatch):
    monkeypatch.setattr("executor.endpoints.suggest.MOST_CANDIDATES", 10)
    (first,) = door.post("/suggest", gallery=str(folder), limit=1).json()["data"]
    assert first["tags"]["finetuner_reason"].endswith("(of 10 that were looked at, of 12)")


def test_what_feedback_has_labelled_is_not_suggested_and_its_latest_words_count_as_known(tmp_path, folder, monkeypatch):
    monkeypatch.setattr("executor.endpoints.suggest.MOST_KNOWN", 1)
    with opened(tmp_path, allowed_roots=[str(folder)]) as door:
        door.service.supervisor.close()
        for name in ("0-0.png", "0-1.png", "1-3.png", "1-0.png"):
            word = {"id": str(folder / name), "uri": str(folder / name), "tags": {"finetuner_label": name[0]}}
            door.post("/feedback", [word]).raise_for_status()
        found = door.post("/suggest", gallery=str(folder), limit=12).json()["data"]
    assert {doc["id"] for doc in found} == {f"0-{n}.png" for n in range(2, 8)} | {"1-1.png", "1-2.png"}


def test_a_table_of_the_served_space_is_used_as_it_is(door, folder):
    space = door.post("/embed", [{"uri": str(folder / "0-0.png")}]).json()["data"][0]["tags"]["finetuner_space"]
    vectors = np.pad(clusters(20, 10)[0], ((0, 0), (0, 112)))
    write_parquet(folder / "g.parquet", vectors, space=space, failed=2)
    before = embedded(door)
    found = door.post("/suggest", gallery=str(folder / "g.parquet"), limit=2).json()["data"]
    assert sorted(int(doc["id"]) >= 20 for doc in found) == [False, True]
    assert embedded(door) == before


def test_the_documents_of_a_run_are_suggested_by_their_places(door):
    docs = DocumentArray(
        Document(id=f"r{n}", blob=coloured(n % 2, n), tags={"finetuner_label": "known"} if n == 0 else {})
        for n in range(6)
    )
    door.service.receiver.receive(docs, FitParameters(run="unlabelled", kind="unlabeled"))
    (found,) = door.post("/suggest", run="unlabelled", limit=1).json()["data"]
    assert found["id"] in ("r1", "r3", "r5")  # those of the other colour than the one that has a label
    assert found["tags"]["finetuner_position"] == int(found["id"][1:])
    assert (found["blob"], found["buffer"], found["uri"]) == (None, None, None)


@pytest.mark.parametrize("asked", ["documents", "run"])
def test_what_was_said_of_documents_of_the_promoted_run_since_is_believed(tmp_path, monkeypatch, asked):
    told = []
    monkeypatch.setattr(
        "executor.endpoints.suggest.choose",
        lambda vectors, limit, known, labels: told.append(sorted(labels)) or suggest(vectors, limit),
    )
    docs = DocumentArray(
        Document(id=f"r{n}", blob=coloured(n, n), tags={"finetuner_label": label})
        for n, label in enumerate(("apple", "apple", "pear", "kiwi"))
    )
    new = Document(id="new", blob=coloured(0, 9))
    with opened(tmp_path) as door:
        service = door.service
        service.supervisor.close()
        service.receiver.receive(DocumentArray([*docs, new]), FitParameters(run="r", kind="unlabeled"))
        promote_base_as(service, "r")

        def known() -> list[str]:
            told.clear()
            sent = {"data": [{"id": "new", "blob": new.blob.tolist()}]} if asked == "documents" else {"run": "r"}
            door.post("/suggest", **sent).raise_for_status()
            return list(dict.fromkeys(told[0]))

        def counts() -> dict[str, int]:
            found = door.post("/labels").json()["data"]
            return {doc["tags"]["finetuner_label"]: doc["tags"]["finetuner_count"] for doc in found}

        assert known() == ["apple", "kiwi", "pear"]
        assert counts() == {"apple": 2, "kiwi": 1, "pear": 1}
        corrected = [{"id": "r2", "tags": {"finetuner_label": "plum"}}]
        door.post("/feedback", corrected, run="r").raise_for_status()
        assert known() == ["apple", "kiwi", "plum"]
        assert counts() == {"apple": 2, "kiwi": 1, "plum": 1}
        withdrawn = [{"id": "r3", "tags": {"finetuner_withdrawn": True}}]
        door.post("/feedback", [*withdrawn, {"id": "r1", "tags": {"finetuner_label": "plum"}}], run="r")
        assert known() == ["apple", "plum"]
        assert counts() == {"plum": 2, "apple": 1}
        door.post("/feedback", [{**withdrawn[0], "id": "r2"}])  # what was said of it, not the document
        assert counts() == {"apple": 1, "pear": 1, "plum": 1}


def test_the_command_knows_what_is_labelled_outside_the_gallery(tmp_path, monkeypatch, capsys):
    for name, label in (("known/a", 0), ("new/a", 0), ("new/b", 0), ("new/c", 1)):
        place = tmp_path / f"{name}.png"
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(encoded(coloured(label, len(name) + label)))
    with opened(tmp_path, allowed_roots=[str(tmp_path)]) as door:
        door.service.embedder.version("base")  # makes it
        word = {"uri": str(tmp_path / "known" / "a.png"), "tags": {"finetuner_label": "red"}}
        assert door.post("/feedback", [word]).json()["data"][0]["stored"] == 1
    monkeypatch.chdir(tmp_path / "new")
    where = ["--workspace", str(tmp_path / "workspace")]
    monkeypatch.setattr(sys, "argv", ["executor", "suggest", ".", *where, "--limit", "1", "--json"])
    assert main() == 0
    assert json.loads(capsys.readouterr().out)["id"] == "c.png"


@pytest.mark.parametrize("labelled_by", ["/feedback", "the promoted run"])
def test_a_file_that_is_labelled_is_not_suggested_however_its_uri_is_spelled(tmp_path, monkeypatch, labelled_by):
    monkeypatch.setattr("executor.endpoints.suggest.MOST_KNOWN", 1)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "my shop"
    folder.mkdir()
    for number in range(8):
        (folder / f"{number}.png").write_bytes(encoded(coloured(number, number)))
    (tmp_path / "link").symlink_to(folder)
    uris = [str(folder / "0.png"), "my shop/1.png", f"file://{folder}/2.png", (folder / "3.png").as_uri()]
    uris += ["./my shop/../link/4.png"] if labelled_by == "/feedback" else []
    docs = [{"id": f"d{n}", "uri": uri, "tags": {"finetuner_label": n % 2}} for n, uri in enumerate(uris)]
    with opened(tmp_path, allowed_roots=[str(tmp_path)]) as door:
        door.service.supervisor.close()

        def suggested() -> set[str]:
            found = door.post("/suggest", gallery=str(tmp_path / "link"), limit=8).json()["data"]
            return {doc["id"] for doc in found}

        if labelled_by == "/feedback":
            assert door.post("/feedback", docs).json()["data"][0]["stored"] == len(docs)
        else:
            received = DocumentArray(Document(**doc) for doc in docs)
            door.service.receiver.receive(received, FitParameters(run="r", kind="class"))
            promote_base_as(door.service, "r")
        assert suggested() == {f"{n}.png" for n in range(len(uris), 8)}
        if labelled_by == "the promoted run":
            door.post("/feedback", [{"id": "d1", "tags": {"finetuner_withdrawn": True}}], run="r")
            assert suggested() == {"1.png"} | {f"{n}.png" for n in range(len(uris), 8)}


def test_a_picture_that_the_promoted_run_has_with_a_label_is_not_suggested_when_it_is_sent(tmp_path, monkeypatch):
    monkeypatch.setattr("executor.endpoints.suggest.MOST_KNOWN", 1)
    docs = [
        {"id": f"d{n}", "uri": as_uri(coloured(n, n)), "tags": {"finetuner_label": n} if n < 3 else {}}
        for n in range(5)
    ]
    with opened(tmp_path) as door:
        door.service.supervisor.close()
        received = DocumentArray(Document(**doc) for doc in docs)
        door.service.receiver.receive(received, FitParameters(run="r", kind="unlabeled"))
        promote_base_as(door.service, "r")
        sent = [{"id": f"new-{doc['id']}", "uri": doc["uri"]} for doc in docs]
        found = door.post("/suggest", sent, limit=5).json()["data"]
    assert {doc["id"] for doc in found} == {"new-d3", "new-d4"}


def promote_base_as(service: RunningService, run: str) -> None:
    """Serve the model `base` under the name of a run."""
    service.embedder.version("base")  # makes it
    workspace = service.store.workspace
    shutil.copytree(version_folder(workspace, "base"), workspace.model_folder(run))
    service.store.promote(run)


# --- through a service -----------------------------------------------------------------------------------------------


@pytest.mark.flow
@pytest.mark.parametrize("protocol", ["grpc", "http", "websocket"])
def test_documents_are_suggested_best_first_with_reasons(service: Service, protocol: str):
    pictures = [coloured(label, seed) for label, count in ((0, 12), (1, 6), (2, 3)) for seed in range(count)]
    docs = DocumentArray(Document(id=f"{n}", uri=as_uri(image)) for n, image in enumerate(pictures))
    docs.append(Document(id="broken", uri="data:,x"))
    found = service.post("/suggest", docs, protocol=protocol, returns=Document, limit=3)
    assert [np.searchsorted([12, 18, 21], int(doc.id), side="right") for doc in found] == [0, 1, 2]
    assert all("is the nearest suggestion to about" in doc.tags["finetuner_reason"] for doc in found)
    assert all(doc.embedding is None for doc in found)


@pytest.mark.flow
def test_a_folder_is_suggested_from_and_what_is_labelled_counts_as_known(service: Service):
    folder = service.directory / "gallery"
    folder.mkdir()
    for label, count in ((0, 8), (1, 4)):
        for seed in range(count):
            (folder / f"{label}-{seed}.png").write_bytes(encoded(coloured(label, seed)))
    (answer,) = service.http("/suggest", gallery=str(folder), limit=1).json()["data"]
    assert answer["id"].startswith("0-")
    assert answer["uri"].endswith(answer["id"])
    refused = service.http("/suggest", gallery="/etc")
    assert "outside the allowed roots" in refused.text
    assert "send one of them" in service.http("/suggest").text
    assert (
        "none to suggest"
        in service.http("/suggest", [{"id": "l", "uri": as_uri(coloured(0)), "tags": {"finetuner_label": 1}}]).text
    )


def as_uri(image: np.ndarray) -> str:
    import base64

    return "data:image/png;base64," + base64.b64encode(encoded(image)).decode()
