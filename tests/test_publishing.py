"""Publishing versions and following them: a writer's place, and the readers of it, in one process."""

import asyncio
import json
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec.core
import numpy as np
import pytest

from conftest import images
from executor import DocumentArray
from executor.documents import ERROR_TAG, MODEL_TAG, SPACE_TAG
from executor.endpoints.health import readiness
from executor.endpoints.reader import Reader
from executor.endpoints.service import Service
from executor.endpoints.table import ENDPOINTS, call, open_service
from executor.errors import (
    ConfigurationError,
    Conflict,
    InvalidParameter,
    NotReady,
    UnknownModel,
    UnknownRun,
    WorkspaceError,
)
from executor.models.building import build_model
from executor.models.model import ModelConfig
from executor.models.saving import save_model, space_of
from executor.parameters import ExecutorOptions, parse
from executor.serving import following, publishing
from executor.serving.following import FollowedVersions
from executor.serving.publishing import Publisher
from executor.store.published import KEPT_WAY, Place, Pointer, is_whole

pytestmark = pytest.mark.compute


@pytest.fixture
def versions(tmp_path: Path) -> dict[str, Path]:
    """Folders of three versions with different weights."""
    found = {}
    for seed, name in enumerate(("base", "first", "second")):
        found[name] = tmp_path / "writer" / name
        save_model(build_model(ModelConfig(model="small", input_size=16, seed=seed)), found[name])
    return found


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(str(tmp_path / "shop"))


@pytest.fixture
def reader(tmp_path: Path, place: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
    monkeypatch.setattr(following, "LOOK_SECONDS", 0.02)  # a directory here bears it
    monkeypatch.setattr(following, "FIRST_RETRY_SECONDS", 1000.0)  # what is published anew is not kept waiting by it
    running = Reader(tmp_path / "reader", options(place))
    yield running
    running.close()


def options(place: Place) -> ExecutorOptions:
    return parse(
        ExecutorOptions, {"role": "serve", "serve_from": place.url, "fast_inference": False}, where="the executor"
    )


def publish(place: Place, version: str, folder: Path) -> str:
    space = space_of(folder)
    place.publish(version, space, folder)
    return space


def until(found: Callable[[], Any]) -> None:
    """Wait until something is so. The test's own timeout ends it otherwise."""
    while not found():
        time.sleep(0.02)


def serves(reader: Reader, space: str) -> bool:
    return reader.versions.pointer is not None and reader.versions.pointer.space == space


def ask(reader: Reader, path: str, docs: DocumentArray | None = None, **parameters: Any) -> Any:
    return asyncio.run(call(reader, path, docs or DocumentArray(), parameters))


# --- the place -------------------------------------------------------------------------------------------------------


def test_the_files_of_a_version_lie_below_its_space_and_the_pointer_has_their_digests(
    place: Place, versions: dict[str, Path], tmp_path: Path
) -> None:
    (versions["first"] / "serving").write_text("graph")  # what this machine measured says nothing about a reader's
    (versions["first"] / ".serving-left").write_text("gr")  # by a process that was killed
    space = publish(place, "first", versions["first"])
    said = json.loads((tmp_path / "shop" / "served.json").read_text())
    assert (said["version"], said["space"]) == ("first", space)
    assert said["published_at"].endswith("+00:00")
    assert sorted(said["sha256"]) == ["model.json", "weights.safetensors"]
    assert sorted(file.name for file in (tmp_path / "shop" / "versions" / space).iterdir()) == sorted(said["sha256"])


@pytest.mark.parametrize("name", ["../../escaped", "/etc/passwd", "a/b", "", ".hidden"])
def test_a_pointer_that_names_a_file_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no name of a file"):
        Pointer(version="first", space="0" * 12, sha256={name: "0" * 64})


def test_a_scheme_that_nothing_can_read_is_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match="nowhere://models"):
        Place("nowhere://models")


def test_what_is_published_again_is_mended_without_a_moment_in_which_a_whole_file_is_gone(
    place: Place, versions: dict[str, Path], tmp_path: Path
) -> None:
    shown = tmp_path / "shop" / "versions" / publish(place, "first", versions["first"])
    inodes = {file.name: file.stat().st_ino for file in shown.iterdir()}
    (shown / "model.json").write_text("{}")
    publish(place, "first", versions["first"])
    now = {file.name: file.stat().st_ino for file in shown.iterdir()}
    assert now["weights.safetensors"] == inodes["weights.safetensors"]
    assert now["model.json"] != inodes["model.json"]
    pointer = place.pointer()
    assert pointer is not None
    assert is_whole(shown, pointer)


def test_what_a_killed_writer_left_is_removed_and_all_else_stays(
    place: Place, versions: dict[str, Path], tmp_path: Path
) -> None:
    shop = tmp_path / "shop"
    shown = shop / "versions" / publish(place, "first", versions["first"])
    kept = sorted([*shop.rglob("*"), shop / ".our-notes"])
    (shop / ".our-notes").write_text("of the directory's owner")
    for left in (shop / ".served.json-x1", shown / ".weights.safetensors-x1"):
        left.write_text("half of it")
    for left in (shown.with_name(f".{shown.name}-{'0' * 32}"), shown.with_name(f".{shown.name}-old-x1")):
        shutil.copytree(shown, left)
    place.remove_leftovers()
    assert sorted(shop.rglob("*")) == kept
    Place("memory://nothing/there").remove_leftovers()  # a store that replaces an object at once has none


def test_an_object_store_gets_and_gives_the_same_files(versions: dict[str, Path], tmp_path: Path) -> None:
    place = Place("memory://shop/models")
    publish(place, "first", versions["first"])
    pointer = place.pointer()
    assert pointer is not None
    place.fetch(pointer, tmp_path / "fetched")
    assert space_of(tmp_path / "fetched") == pointer.space == space_of(versions["first"])


def test_a_reader_that_lacks_a_file_is_told_what_to_do(place: Place, versions: dict[str, Path], tmp_path: Path) -> None:
    space = publish(place, "first", versions["first"])
    pointer = place.pointer()
    assert pointer is not None
    (tmp_path / "shop" / "versions" / space / "model.json").unlink()
    with pytest.raises(
        WorkspaceError, match=r"model\.json of version 'first' is missing at .*Restart the service that"
    ):
        place.fetch(pointer, tmp_path / "fetched")
    assert not (tmp_path / "fetched").exists()


# --- a reader --------------------------------------------------------------------------------------------------------


def test_a_reader_waits_for_the_first_version_and_says_so(reader: Reader) -> None:
    with pytest.raises(NotReady, match="Nothing has been published yet"):
        ask(reader, "/embed", images(1))
    with pytest.raises(NotReady):
        ask(reader, "/status")


def test_a_reader_to_which_no_whole_version_has_come_says_what_to_do_and_not_that_there_is_none(
    reader: Reader, place: Place, versions: dict[str, Path], tmp_path: Path
) -> None:
    half = Place(str(tmp_path / "half"))
    space = publish(half, "first", versions["first"])
    shutil.rmtree(tmp_path / "half" / "versions")
    (tmp_path / "half").rename(tmp_path / "shop")
    until(reader.degraded)
    (said,) = asyncio.run(readiness(reader)).degraded
    assert said.startswith("What `serve_from` names is damaged or not whole (WorkspaceError; the log of this reader")
    assert said.endswith(
        "Restart the service that publishes there, or promote a version at it. No version has come yet."
    )
    with pytest.raises(NotReady, match="promote a version at it"):
        ask(reader, "/embed", images(1))
    publish(place, "first", versions["first"])
    until(lambda: serves(reader, space))
    assert not reader.degraded()


def test_a_reader_embeds_as_the_writer_and_follows_promotions_and_rollbacks(
    reader: Reader, place: Place, versions: dict[str, Path]
) -> None:
    shown = []
    for version in ("base", "first", "base"):
        space = publish(place, version, versions[version])
        until(lambda space=space: serves(reader, space))
        docs = ask(reader, "/embed", images(4))
        assert {(doc.tags[MODEL_TAG], doc.tags[SPACE_TAG]) for doc in docs} == {(version, space)}
        shown.append(np.stack([doc.embedding for doc in docs]))
    np.testing.assert_array_equal(shown[0], shown[2])
    assert not np.allclose(shown[0], shown[1])


def test_a_name_that_is_used_again_is_another_version(reader: Reader, place: Place, versions: dict[str, Path]) -> None:
    for folder in (versions["first"], versions["second"]):
        space = publish(place, "again", folder)
        until(lambda space=space: serves(reader, space))
        (doc,) = ask(reader, "/embed", images(1))
        assert doc.tags[SPACE_TAG] == space


def test_no_answer_mixes_versions_while_they_change(reader: Reader, place: Place, versions: dict[str, Path]) -> None:
    spaces = {name: publish(place, name, folder) for name, folder in versions.items()}
    until(lambda: reader.versions.pointer is not None)
    ended = threading.Event()

    def promote() -> None:
        for name in ("base", "first", "second", "base"):
            publish(place, name, versions[name])
            until(lambda name=name: serves(reader, spaces[name]))
        ended.set()

    promoting = threading.Thread(target=promote)
    promoting.start()
    seen = set()
    while not ended.is_set():
        docs = ask(reader, "/embed", images(12))
        assert not any(ERROR_TAG in doc.tags for doc in docs)
        ((version, space),) = {(doc.tags[MODEL_TAG], doc.tags[SPACE_TAG]) for doc in docs}
        assert space == spaces[version]
        seen.add(version)
    promoting.join()
    assert seen == set(versions)


def damaged_weights(shop: Path, space: str) -> None:
    weights = shop / "versions" / space / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")


def weights_that_are_gone(shop: Path, space: str) -> None:
    (shop / "versions" / space / "weights.safetensors").unlink()


def half_a_pointer(shop: Path, space: str) -> None:
    pointer = shop / "served.json"
    pointer.write_bytes(pointer.read_bytes()[:100])


def no_pointer(shop: Path, space: str) -> None:
    (shop / "served.json").unlink()


@pytest.mark.parametrize("harm", [damaged_weights, weights_that_are_gone, half_a_pointer, no_pointer])
def test_the_last_good_version_is_served_while_the_place_is_damaged(
    reader: Reader, place: Place, versions: dict[str, Path], tmp_path: Path, harm: Callable[[Path, str], None]
) -> None:
    good = publish(place, "first", versions["first"])
    until(lambda: serves(reader, good))
    elsewhere = Place(str(tmp_path / "damaged"))
    harm(tmp_path / "damaged", publish(elsewhere, "second", versions["second"]))
    (tmp_path / "shop").rename(tmp_path / "before")
    (tmp_path / "damaged").rename(tmp_path / "shop")
    until(reader.degraded)
    assert "The last version that came is served" in reader.degraded()[0]
    assert ask(reader, "/status")[0].warnings == reader.degraded()
    assert {doc.tags[SPACE_TAG] for doc in ask(reader, "/embed", images(2))} == {good}
    space = publish(place, "second", versions["second"])  # as a promotion does
    until(lambda: serves(reader, space))
    until(lambda: not reader.degraded())


def test_what_was_fetched_is_kept_for_a_rollback_and_thinned(reader: Reader, place: Place, tmp_path: Path) -> None:
    spaces = []
    for seed in range(5):
        folder = tmp_path / "writer" / f"run-{seed}"
        save_model(build_model(ModelConfig(model="small", input_size=16, seed=seed)), folder)
        spaces.append(publish(place, folder.name, folder))
        until(lambda: serves(reader, spaces[-1]))
    fetched = tmp_path / "reader" / "versions"
    until(lambda: {folder.name for folder in fetched.iterdir()} == set(spaces[-3:]))


@pytest.mark.parametrize("damaged", [False, True])
def test_of_readers_that_share_a_folder_one_fetches_and_measures_a_version(
    place: Place, versions: dict[str, Path], tmp_path: Path, damaged: bool
) -> None:
    space = publish(place, "first", versions["first"])
    pointer = place.pointer()
    assert pointer is not None
    kept, found = tmp_path / "reader" / space / KEPT_WAY, []
    if damaged:
        kept.parent.mkdir(parents=True)
        kept.write_text("of what was here before")
    together = threading.Barrier(4)

    def read() -> None:
        followed = FollowedVersions(place, tmp_path / "reader")
        together.wait()
        with followed.alone_if_new(pointer):
            followed.bring(pointer)
            found.append(kept.is_file())
            time.sleep(0.05)  # as long as measuring takes
            kept.write_text("fp32")

    readers = [threading.Thread(target=read) for _ in range(4)]
    for each in readers:
        each.start()
    for each in readers:
        each.join()
    assert sorted(found) == [False, True, True, True]
    assert is_whole(kept.parent, pointer)


def test_a_reader_that_waits_in_vain_for_another_goes_on(
    place: Place, versions: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "PATIENCE_SECONDS", 0.1)
    publish(place, "first", versions["first"])
    pointer = place.pointer()
    assert pointer is not None
    stopped, other = (FollowedVersions(place, tmp_path / "reader") for _ in range(2))
    with stopped.alone_if_new(pointer), other.alone_if_new(pointer):
        other.bring(pointer)
    assert is_whole(other.folder("first"), pointer)


def test_a_reader_refuses_what_only_a_writer_has(reader: Reader, place: Place, versions: dict[str, Path]) -> None:
    space = publish(place, "first", versions["first"])
    until(lambda: serves(reader, space))
    for path in ("/fit", "/promote", "/cancel", "/delete", "/events", "/report"):
        with pytest.raises(Conflict, match=f"role 'serve'.*{path}.*It has: /embed, /evaluate, /status, /v1/embeddings"):
            ask(reader, path)
    with pytest.raises(Conflict, match="no documents of runs"):
        ask(reader, "/evaluate", run="first")
    with pytest.raises(UnknownModel, match="serves 'first' only"):
        ask(reader, "/embed", images(1), model="base")
    with pytest.raises(UnknownRun, match="serves 'first'"):
        ask(reader, "/status", run="second")
    (status,) = ask(reader, "/status", run="first")
    assert (status.model, status.space, status.promoted) == ("first", space, True)
    (evaluation,) = ask(reader, "/evaluate", images(24))
    assert (evaluation.model, evaluation.queries) == ("first", 24)


# --- a writer --------------------------------------------------------------------------------------------------------


class Writer:
    """What is served, and whether the folders of its versions can be read."""

    def __init__(self, versions: dict[str, Path]) -> None:
        self.version = "base"
        self.folder_of = versions.__getitem__

    def served(self) -> str:
        return self.version


def test_what_is_served_is_published_at_the_start_and_after_each_promotion(
    place: Place, versions: dict[str, Path]
) -> None:
    writer = Writer(versions)
    publisher = Publisher(place, writer.served, writer.folder_of)
    for version in ("base", "first"):
        writer.version = version
        publisher.publish()
        until(lambda version=version: (said := place.pointer()) is not None and said.version == version)
    publisher.close()
    assert publisher.trouble() is None


def test_a_store_out_of_reach_is_said_and_tried_again(
    monkeypatch: pytest.MonkeyPatch, place: Place, versions: dict[str, Path], tmp_path: Path
) -> None:
    monkeypatch.setattr(publishing, "FIRST_RETRY_SECONDS", 0.02)
    (tmp_path / "shop").write_text("a file where the folder should be")
    writer = Writer(versions)
    publisher = Publisher(place, writer.served, writer.folder_of)
    until(publisher.trouble)
    assert "'base' is served here, but could not be published" in (publisher.trouble() or "")
    (tmp_path / "shop").unlink()
    until(lambda: publisher.trouble() is None)
    publisher.close()
    said = place.pointer()
    assert said is not None
    assert said.version == "base"


@pytest.mark.parametrize("where", ["shop", "memory://mended/models"])
@pytest.mark.parametrize("lost", ["all", "a file", "half a file"])
def test_a_writer_that_starts_mends_what_is_not_whole_though_it_is_named_already(
    versions: dict[str, Path], tmp_path: Path, where: str, lost: str
) -> None:
    place = Place(where if "://" in where else str(tmp_path / where))
    shown = f"{place.url}/versions/{publish(place, 'base', versions['base'])}"
    files = fsspec.core.url_to_fs(place.url)[0]
    if lost == "all":
        files.rm(shown, recursive=True)
    else:
        files.rm_file(f"{shown}/weights.safetensors")
    if lost == "half a file":
        files.pipe_file(f"{shown}/weights.safetensors", b"half")
    pointer = place.pointer()
    writer = Writer(versions)
    publisher = Publisher(place, writer.served, writer.folder_of)
    until(lambda: files.exists(f"{shown}/weights.safetensors") and files.size(f"{shown}/weights.safetensors") > 4)
    publisher.close()
    assert pointer is not None
    assert place.pointer() == pointer  # it was right, so no reader loads the version again
    place.fetch(pointer, tmp_path / "fetched")


def test_a_writer_that_starts_removes_what_a_killed_one_left(
    place: Place, versions: dict[str, Path], tmp_path: Path
) -> None:
    space = publish(place, "base", versions["base"])
    left = tmp_path / "shop" / "versions" / f".{space}-old-x1"
    left.mkdir()
    writer = Writer(versions)
    publisher = Publisher(place, writer.served, writer.folder_of)
    until(lambda: not left.exists())
    publisher.close()
    assert publisher.trouble() is None


@pytest.fixture
def trainer(tmp_path: Path) -> Iterator[Service]:
    """A service that embeds nothing."""
    small = {"role": "train", "model": "small", "input_size": 16, "standby_seconds": 0}
    running = Service(tmp_path / "trainer", parse(ExecutorOptions, small, where="the executor"))
    yield running
    running.close()


def test_a_service_that_loads_no_model_knows_the_space_of_the_one_that_readers_serve(trainer: Service) -> None:
    assert asyncio.run(readiness(trainer)).space is None  # there is no model yet, and none is made for that
    folder = trainer.store.workspace.base
    assert not folder.exists()
    save_model(build_model(ModelConfig(model="small", input_size=16)), folder)
    said, figures = asyncio.run(readiness(trainer)), asyncio.run(trainer.measures.exposition()).decode()
    assert (said.ready, said.served, said.space) == (True, "base", space_of(folder))
    assert f'finetuner_served_version_info{{space="{space_of(folder)}",version="base"}} 1.0' in figures


@pytest.mark.process
def test_a_run_that_has_not_ended_is_not_promoted_though_it_has_a_model(trainer: Service) -> None:
    trainer.store.create("early")
    save_model(build_model(ModelConfig(model="small", input_size=16)), trainer.store.workspace.model_folder("early"))
    with pytest.raises(Conflict, match="Run 'early' is receiving, so its model may still be replaced"):
        asyncio.run(call(trainer, "/promote", [], {"run": "early"}))
    assert trainer.served() == "base"
    trainer.supervisor.cancel("early")
    asyncio.run(call(trainer, "/promote", [], {"run": "early"}))
    assert trainer.served() == "early"


def test_who_asks_a_service_that_embeds_nothing_for_embeddings_is_told_all_that_it_has(trainer: Service) -> None:
    has = ", ".join(["It has: /fit", *(path for path in ENDPOINTS if path not in ("/fit", "/embed")), "/watch."])
    with pytest.raises(Conflict, match=re.escape(has)):
        asyncio.run(call(trainer, "/embed", [], {}))


# --- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"role": "serve"}, "a reader needs both"),
        ({"serve_from": "shop"}, "a reader needs both"),
        ({"role": "serve", "serve_from": "shop", "publish_to": "shop"}, "publishes nothing"),
        ({"role": "both"}, "role"),
    ],
)
def test_roles_that_do_not_fit_are_refused(wrong: dict[str, str], sentence: str) -> None:
    with pytest.raises(InvalidParameter, match=sentence):
        parse(ExecutorOptions, wrong, where="the executor")


@pytest.mark.parametrize("role", ["all", "train"])
def test_a_service_that_trains_is_alone_on_its_workspace(tmp_path: Path, role: str) -> None:
    with pytest.raises(ConfigurationError, match="2 replicas or shards"):
        open_service(tmp_path, parse(ExecutorOptions, {"role": role}, where="the executor"), copies=2)
    assert not list(tmp_path.iterdir())
