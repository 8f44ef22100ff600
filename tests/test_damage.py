"""What a workspace does about files that were damaged, edited, moved away, or left there by others."""

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from conftest import images
from executor import DocumentArrayMemmap
from executor.compute.ranks import ALONE
from executor.errors import IllegalTransition, WorkspaceError
from executor.lifecycle.receiving import Receiver
from executor.lifecycle.sources import copied
from executor.lifecycle.status import status_of
from executor.models.building import build_model
from executor.models.model import ModelConfig
from executor.models.saving import load_model, save_model
from executor.models.versions import ensure_base, load_version
from executor.parameters import FitParameters, TrainingOptions, parse_executor_options
from executor.store.lineage import lineage_of
from executor.store.run import Progress, RunState
from executor.store.runs import RunStore
from executor.store.sqlite import Schema, connect
from executor.store.workspace import Workspace
from executor.training.micro_batch import MicroBatch
from executor.training.tried import KeptTrials, Trial

OPTIONS = parse_executor_options({"model": "small", "input_size": 16})


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "workspace")


def changed(workspace: Workspace, sql: str, *arguments: object) -> None:
    with sqlite3.connect(workspace.database) as database:
        database.execute(sql, arguments)
    database.close()


# --- runs.sqlite -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["half", "zeros", "another"])
def test_a_damaged_database_is_refused_and_says_truly_what_is_safe(workspace: Workspace, what: str) -> None:
    store = RunStore(workspace)
    for number in range(40):
        store.event(store.create(f"r{number}").name, "note", "y" * 500)
    store.close()
    content = workspace.database.read_bytes()
    damaged = {"half": content[: len(content) // 2], "zeros": bytes(len(content)), "another": b"hello" * 100}
    workspace.database.write_bytes(damaged[what])
    with pytest.raises(WorkspaceError) as caught:
        RunStore(workspace).all()
    assert "runs.sqlite is damaged, and with it the states and histories of the runs" in str(caught.value)
    assert "what was answered before is safe" not in str(caught.value)


@pytest.mark.parametrize("gone", [True, False])
def test_a_database_that_is_gone_does_not_make_its_runs_forgotten(workspace: Workspace, gone: bool) -> None:
    store = RunStore(workspace)
    store.create("a")
    store.close()
    DocumentArrayMemmap(workspace.spool_file("a")).close()
    if gone:
        workspace.database.unlink()
    else:
        workspace.database.write_bytes(b"")
    with pytest.raises(WorkspaceError, match="the documents and models of 1 runs, which are not harmed"):
        RunStore(workspace)


def test_nothing_is_written_to_a_database_that_was_moved_away(workspace: Workspace) -> None:
    store = RunStore(workspace)
    store.create("a")
    workspace.database.rename(workspace.root / "elsewhere")
    with pytest.raises(WorkspaceError, match="was removed or replaced while it was in use"):
        store.create("b")
    assert [run.name for run in store.all()] == ["a"]  # what was stored can still be read
    store.close()


@pytest.mark.parametrize(
    ("column", "value"),
    [("state", "odd"), ("options", '{"of_a_newer_release": 1}'), ("options", "{"), ("configuration", "[]")],
)
def test_a_run_that_cannot_be_read_harms_no_other(workspace: Workspace, column: str, value: str) -> None:
    store = RunStore(workspace)
    store.create("a")
    store.create("b")
    changed(workspace, f"UPDATE runs SET {column} = ? WHERE name = 'a'", value)
    assert [(run.name, run.state) for run in store.all()] == [("b", RunState.RECEIVING), ("a", RunState.FAILED)]
    assert [run.name for run in store.in_state(*RunState) if run.state is RunState.RECEIVING] == ["b"]
    assert "cannot be read" in (store.get("a").error or "")
    with pytest.raises(IllegalTransition):
        store.advance("a", RunState.QUEUED)
    assert store.exists("a")
    store.delete("a")
    assert [run.name for run in store.all()] == ["b"]
    store.close()


def test_progress_of_a_newer_release_is_read_as_far_as_it_is_known(workspace: Workspace) -> None:
    store = RunStore(workspace)
    store.create("a")
    store.report("a", Progress(step=3))
    changed(workspace, "UPDATE progress SET fields = ?", json.dumps({"step": 4, "of_a_newer_release": 1}))
    assert store.progress("a") == Progress(step=4)
    for damaged in ("{", "[]", '{"step": "many"}'):
        changed(workspace, "UPDATE progress SET fields = ?", damaged)
        assert "is damaged" in store.progress("a").warnings[0]
    store.close()


# --- a file of documents ---------------------------------------------------------------------------------------------


class Interrupted(sqlite3.Connection):
    """A connection at whose statements, from one of them on, another process tries to create the file."""

    path: Path
    statements: int  # left before

    def execute(self, *arguments: Any) -> sqlite3.Cursor:
        Interrupted.statements -= 1
        if Interrupted.statements >= 0:
            return super().execute(*arguments)
        other = sqlite3.connect(self.path, timeout=0, isolation_level=None)
        try:
            other.executescript("BEGIN; CREATE TABLE theirs (x); PRAGMA application_id = 7; COMMIT;")
        except sqlite3.OperationalError:  # it has to wait, or it has done so
            pass
        finally:
            other.close()
        return super().execute(*arguments)


@pytest.mark.parametrize("statements", range(6))
def test_a_file_that_another_process_is_creating_is_looked_at_as_a_whole(tmp_path: Path, statements: int) -> None:
    Interrupted.path, Interrupted.statements = tmp_path / "documents.sqlite", statements
    schema = Schema(versions=range(2), application_id=7, elsewhere="file", refusal="")
    connection = connect(Interrupted.path, mode="rwc", busy_seconds=0, factory=Interrupted)
    schema.check(connection, Interrupted.path)
    connection.close()


def test_documents_are_not_written_to_a_file_that_was_moved_away(tmp_path: Path) -> None:
    with DocumentArrayMemmap(tmp_path / "documents.sqlite") as docs:
        docs.extend(images(1))
        docs.path.rename(tmp_path / "elsewhere")
        with pytest.raises(WorkspaceError, match="was removed or replaced"):
            docs.extend(images(1, prefix="more"))
        DocumentArrayMemmap(docs.path).close()
        with pytest.raises(WorkspaceError, match="was removed or replaced"):
            docs.extend(images(1, prefix="more"))


# --- models ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (("config",), None),
        (("config", "freeze"), ...),
        (("preprocessing",), ...),
        (("preprocessing", "size"), 0),
        (("preprocessing", "size"), "16"),
        (("preprocessing", "std"), [1, 0, 1]),
        (("preprocessing", "unknown"), 1),
        (("reading",), 3),
        (("features",), "many"),
        (("dim",), 9),
        (("dim",), -1),
        (("normalise",), ...),
    ],
)
def test_an_edited_description_of_a_model_is_refused_by_the_name_of_its_file(
    tmp_path: Path, field: tuple[str, ...], value: object
) -> None:
    folder = tmp_path / "model"
    save_model(build_model(ModelConfig(model="small", input_size=16, embedding_dim=None)), folder)
    settings = json.loads((folder / "model.json").read_text())
    place = settings
    for name in field[:-1]:
        place = place[name]
    if value is ...:
        del place[field[-1]]
    else:
        place[field[-1]] = value
    (folder / "model.json").write_text(json.dumps(settings))
    with pytest.raises(WorkspaceError, match=str(folder)):
        load_model(folder)


@pytest.mark.parametrize("file", ["model.json", "weights.safetensors"])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_base_model_that_was_cut_short_is_built_anew(
    workspace: Workspace, file: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    kept = {path.name: path.read_bytes() for path in ensure_base(workspace, OPTIONS).iterdir()}
    place = workspace.base / file
    if damage == "gone":
        place.unlink()
    else:
        place.write_bytes(kept[file][:-40])
    load_version(workspace, OPTIONS, "base")
    assert {path.name: path.read_bytes() for path in workspace.base.iterdir()} == kept
    assert "The base model is built anew" in caplog.text


def test_a_base_model_of_other_options_is_built_anew_and_the_log_says_which_it_was(
    workspace: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    ensure_base(workspace, OPTIONS)
    assert not caplog.text
    ensure_base(workspace, OPTIONS.model_copy(update={"input_size": 32}))
    assert "'input_size': 16" in caplog.text
    assert "'input_size': 32" in caplog.text
    assert "is of another space" in caplog.text


# --- the rest --------------------------------------------------------------------------------------------------------


def test_files_that_are_not_ours_are_left_alone(workspace: Workspace) -> None:
    store = RunStore(workspace)
    discarded = workspace.root / "deleted"
    for name in (".DS_Store", "7", "7-", "²-a", "x-y"):
        (discarded / name).mkdir(parents=True)
    (discarded / "9-file").write_text("")
    (discarded / "12--dash").mkdir()
    assert list(workspace.discarded()) == [(12, "-dash")]
    store.finish_deletes()
    assert len(list(discarded.iterdir())) == 6
    (workspace.checkpoint_folder("a") / "²").mkdir(parents=True)
    (workspace.checkpoint_folder("a") / "0000000003").mkdir()
    assert workspace.latest_step("a") == 3
    store.close()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"tried": [{"odd": 1}], "chosen": 0}'])
def test_trials_that_cannot_be_read_are_made_again(tmp_path: Path, content: str) -> None:
    file = tmp_path / "trials.json"
    file.write_text(content)
    kept = KeptTrials(file, ALONE)
    assert (kept.now.tried, kept.now.chosen) == ([], None)
    assert kept.trial(0, {}) == Trial({})


def test_halvings_that_cannot_be_read_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / "micro_batch"
    file.write_text("0 32\n5 x\n7\n\n8 4\n")
    assert [MicroBatch(None, 64, file=file).at(step) for step in (0, 6, 8)] == [32, 32, 4]


# --- the small files of a run ----------------------------------------------------------------------------------------

DAMAGE = pytest.mark.parametrize("content", [b"", b'{"upto": 3', b"\xff\xfe\x00", b"[]", b"{}"])


@DAMAGE
def test_what_says_where_documents_came_from_is_made_anew(workspace: Workspace, content: bytes) -> None:
    store = RunStore(workspace)
    run = store.create("a", TrainingOptions(feedback=True))
    receiver = Receiver(store, OPTIONS)
    file = workspace.sources_file("a")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    assert status_of(store, run, lambda name: (0, 0)).sources == {}
    assert receiver.receive(images(1), FitParameters(run="a")) == "a"
    assert copied(store, "a") == {"feedback": 0}
    receiver.close()
    store.close()


@DAMAGE
def test_a_run_based_on_one_whose_proof_is_unknown_says_so(workspace: Workspace, content: bytes) -> None:
    store = RunStore(workspace)
    store.create("a")
    with DocumentArrayMemmap(workspace.spool_file("a")) as docs:
        docs.extend(images(1))
    workspace.proof_file("a").write_bytes(content)
    with pytest.raises(WorkspaceError, match=r"proof\.json, which says what proved run 'a', is damaged"):
        lineage_of(workspace, "a")
    store.close()


def test_a_trainer_that_begins_removes_leftovers_but_not_what_the_service_is_writing(workspace: Workspace) -> None:
    folder = workspace.run_folder("a")
    folder.mkdir(parents=True)
    for name in (".proof.json-x1", ".sources.json-x2", "report.json"):
        (folder / name).write_text("")
    workspace.remove_leftovers("a")
    assert sorted(place.name for place in folder.iterdir()) == [".sources.json-x2", "report.json"]
