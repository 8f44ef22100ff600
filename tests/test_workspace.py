"""A workspace over time: its older and newer versions, other processes, clocks, and when something is removed."""

import multiprocessing
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from executor import Document, DocumentArrayMemmap
from executor.errors import WorkspaceError
from executor.lifecycle.status import status_of
from executor.parameters import TrainingOptions
from executor.store import database
from executor.store.database import STEPS, Database
from executor.store.run import Progress, RunState
from executor.store.runs import RunStore
from executor.store.workspace import Workspace
from serving import ROOT

FAR_FUTURE = "2999-01-01T00:00:00.000+00:00"
# As the first release wrote it: written out here, not taken from the code.
VERSION_1 = """
CREATE TABLE runs (
    number INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, state TEXT NOT NULL,
    options TEXT NOT NULL, configuration TEXT NOT NULL, total INTEGER, train_rows INTEGER, eval_rows INTEGER,
    attempts INTEGER NOT NULL DEFAULT 0, pid INTEGER, error TEXT, verdict TEXT,
    created_at TEXT NOT NULL, started_at TEXT, ended_at TEXT, queue_order INTEGER
);
CREATE TABLE progress (run TEXT PRIMARY KEY, fields TEXT NOT NULL);
CREATE TABLE problems (
    number INTEGER PRIMARY KEY AUTOINCREMENT, run TEXT NOT NULL, split TEXT NOT NULL, document TEXT NOT NULL,
    reason TEXT NOT NULL, spooled INTEGER NOT NULL, UNIQUE (run, document)
);
CREATE TABLE events (
    run TEXT NOT NULL, number INTEGER NOT NULL, at TEXT NOT NULL, kind TEXT NOT NULL, message TEXT NOT NULL,
    PRIMARY KEY (run, number)
);
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL);
INSERT INTO runs VALUES (3, 'old', 'succeeded', '{"base": "base", "kind": "class", "epochs": 2}', '{}', NULL, 12, 0, 1,
    NULL, NULL, 'Better. It was promoted.', '2024-05-01T10:00:00.000+00:00', '2024-05-01T10:00:01.000+00:00',
    '2024-05-01T10:05:00.000+00:00', 1);
INSERT INTO runs VALUES (4, 'waiting', 'queued', '{"base": "old", "kind": "class", "epochs": 2}', '{}', NULL, 7, 0, 0,
    NULL, NULL, NULL, '2024-05-01T11:00:00.000+00:00', NULL, NULL, 2);
INSERT INTO progress VALUES ('old', '{"epoch": 2, "epochs": 2, "step": 4, "steps": 4, "loss": 0.5, "device": "cpu"}');
INSERT INTO problems VALUES (1, 'old', 'train', 'd1', 'it is no image', 1);
INSERT INTO events VALUES ('old', 1, '2024-05-01T10:00:00.000+00:00', 'received', 'the run was created');
INSERT INTO settings VALUES ('promoted', 'old');
PRAGMA user_version = 1;
PRAGMA journal_mode = WAL;
"""


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "workspace")


@pytest.fixture
def old(workspace: Workspace) -> Workspace:
    """A workspace of version 1 with two runs."""
    workspace.root.mkdir()
    with sqlite3.connect(workspace.database) as written:
        written.executescript(VERSION_1)
    written.close()
    return workspace


@pytest.fixture
def store(workspace: Workspace) -> Iterator[RunStore]:
    opened = RunStore(workspace)
    yield opened
    opened.close()


def schema(path: Path) -> list[tuple[str, ...]]:
    with sqlite3.connect(path) as opened:
        rows = opened.execute("SELECT name, replace(replace(sql, ' ', ''), char(10), '') FROM sqlite_master ORDER BY 1")
        found = rows.fetchall()
    opened.close()
    return found


# --- versions --------------------------------------------------------------------------------------------------------


def test_a_workspace_of_version_1_is_opened_and_goes_on(old: Workspace) -> None:
    store = RunStore(old)
    assert [(run.number, run.name, run.state.value) for run in store.all()] == [
        (4, "waiting", "queued"),
        (3, "old", "succeeded"),
    ]
    assert store.promoted() == "old"
    status = status_of(store, store.get("old"), lambda name: (0, 0))
    assert (status.train_documents, status.skipped, status.step, status.loss) == (11, 1, 4, 0.5)
    store.advance("waiting", RunState.TRAINING)
    assert store.create().name == "run-5"
    assert store.events("old")[0][3] == "the run was created"
    store.close()


def test_a_new_workspace_has_the_schema_that_an_old_one_is_brought_to(old: Workspace, tmp_path: Path) -> None:
    Database(old.database).close()
    Database(tmp_path / "new.sqlite").close()
    assert schema(old.database) == schema(tmp_path / "new.sqlite")


def test_a_file_into_which_another_process_writes_while_it_is_opened_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "new.sqlite"
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    release = threading.Timer(0.3, other.execute, ["COMMIT"])
    release.start()
    Database(path).close()
    release.join()
    assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    other.close()


def test_an_older_workspace_is_brought_forward_step_by_step(old: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    more = (
        ("ALTER TABLE runs ADD COLUMN note TEXT", "UPDATE runs SET note = name || '!'"),
        ("CREATE TABLE notes AS SELECT note FROM runs ORDER BY number",),
    )
    monkeypatch.setattr(database, "STEPS", (*STEPS, *more))
    opened = Database(old.database)
    assert opened.rows("SELECT note FROM notes") == [("old!",), ("waiting!",)]
    assert opened.rows("PRAGMA user_version") == [(len(STEPS) + 2,)]
    opened.close()
    Database(old.database).close()  # a second time there is nothing to do


def test_a_step_that_fails_leaves_the_workspace_as_it_was(old: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    before = schema(old.database)
    monkeypatch.setattr(database, "STEPS", (*STEPS, ("CREATE TABLE more (x)", "INSERT INTO nowhere VALUES (1)")))
    with pytest.raises(WorkspaceError, match="no such table: nowhere"):
        Database(old.database)
    monkeypatch.undo()
    assert schema(old.database) == before
    assert RunStore(old).get("old").verdict == "Better. It was promoted."


def test_a_newer_workspace_is_refused_naming_both_versions_and_left_byte_for_byte(old: Workspace) -> None:
    newer = sqlite3.connect(old.database)
    newer.execute("PRAGMA wal_autocheckpoint = 0")
    newer.execute("PRAGMA user_version = 9")  # stays in the WAL file, as where a service was killed
    before = {path.name: path.read_bytes() for path in (old.database, Path(f"{old.database}-wal"))}
    with pytest.raises(WorkspaceError, match=f"version 9, this software knows {len(STEPS)}; use the newer"):
        RunStore(old)
    assert {name: (old.root / name).read_bytes() for name in before} == before
    newer.close()


def test_another_programs_database_is_refused_and_left_alone(workspace: Workspace) -> None:
    workspace.root.mkdir()
    with sqlite3.connect(workspace.database) as other:
        other.execute("CREATE TABLE theirs (x)")
    other.close()
    before = workspace.database.read_bytes()
    with pytest.raises(WorkspaceError, match="another program's database"):
        RunStore(workspace)
    assert workspace.database.read_bytes() == before


@pytest.mark.parametrize("version", [0, 3])
def test_a_spool_of_another_version_is_refused_and_left_byte_for_byte(tmp_path: Path, version: int) -> None:
    DocumentArrayMemmap(tmp_path / "documents.sqlite").close()
    with sqlite3.connect(tmp_path / "documents.sqlite") as changed:
        changed.execute(f"PRAGMA user_version = {version}")
    changed.close()
    before = (tmp_path / "documents.sqlite").read_bytes()
    with pytest.raises(WorkspaceError, match=f"schema version {version}; this program reads 2"):
        DocumentArrayMemmap(tmp_path / "documents.sqlite")
    assert (tmp_path / "documents.sqlite").read_bytes() == before


# --- another process -------------------------------------------------------------------------------------------------

HOLD = """
import sqlite3, sys, time
held = sqlite3.connect(sys.argv[1], isolation_level=None)
held.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
sys.stdin.readline() if sys.argv[2] == "told" else time.sleep(float(sys.argv[2]))
held.execute("COMMIT")
"""


def hold(path: Path, until: str) -> subprocess.Popen[str]:
    """A process that holds the file's write lock: for some seconds, or until it is `told`."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path), until], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


@pytest.mark.process
def test_a_database_locked_for_a_moment_is_waited_for(store: RunStore, tmp_path: Path) -> None:
    store.create("a")
    docs = DocumentArrayMemmap(tmp_path / "documents.sqlite")
    with hold(store.workspace.database, "1"), hold(docs.path, "1"):
        store.report("a", Progress(step=7))
        assert store.advance("a", RunState.QUEUED).state is RunState.QUEUED
        assert docs.append(Document(text="stored"))
    assert store.progress("a").step == 7
    docs.close()


@pytest.mark.process
def test_a_database_locked_for_too_long_is_told_and_the_next_try_works(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.2)
    store = RunStore(workspace)
    with hold(workspace.database, "told") as holder:
        with pytest.raises(WorkspaceError, match=r"database is locked.*held its runs.sqlite for 0.2 s: end that one"):
            store.create("a")
        assert not store.exists("a")
        holder.communicate("\n")
    assert store.create("a").name == "a"
    store.close()


# --- clocks ----------------------------------------------------------------------------------------------------------


def test_a_clock_that_jumped_back_changes_no_order(store: RunStore) -> None:
    for name in ("first", "second"):
        store.create(name, TrainingOptions(kind="class", epochs=1))
        store.advance(name, RunState.QUEUED)
        with sqlite3.connect(store.workspace.database) as changed:  # made before the clock was put back
            changed.execute("UPDATE runs SET created_at = ?", (FAR_FUTURE,))
            changed.execute("UPDATE events SET at = ?", (FAR_FUTURE,))
        changed.close()
    store.create("third", TrainingOptions(kind="class", epochs=1))
    store.advance("third", RunState.QUEUED)
    assert [run.name for run in store.all()] == ["third", "second", "first"]
    assert [run.name for run in store.in_state(RunState.QUEUED)] == ["first", "second", "third"]
    store.advance("first", RunState.TRAINING)
    store.report("first", Progress(phase="training", step=3, steps=9, eta_seconds=6.0))
    assert [(number, kind) for number, _, kind, _ in store.events("first")] == [
        (1, "received"),
        (2, "queued"),
        (3, "training"),
    ]
    status = status_of(store, store.get("first"), lambda name: (0, 0))
    assert (status.state, status.eta_seconds, status.created_at) == ("training", 6.0, FAR_FUTURE)
    assert store.advance("first", RunState.SUCCEEDED).state is RunState.SUCCEEDED


def test_no_duration_is_taken_from_a_clock_that_can_jump() -> None:
    jumping = [path.name for path in (ROOT / "executor").rglob("*.py") if "time.time(" in path.read_text()]
    assert jumping == ["guard.py"]  # a session of the page ends on a day, also if the service starts anew meanwhile


# --- what is removed when, and what a run takes ----------------------------------------------------------------------


def make_files(workspace: Workspace, run: str = "a") -> Path:
    folder = workspace.run_folder(run)
    for name in ("images/train-16", "features/0", "checkpoints/0000000009/x", "model/weights", "report.html"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x" * 4096)
    for left in ("checkpoints/.0000000012-abc", ".model-abc", ".model-old-abc"):
        (folder / left).mkdir()
        (folder / left / "half").write_bytes(b"x" * 4096)
    return folder


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        (True, ["checkpoints", "checkpoints/0000000009", "checkpoints/0000000009/x"]),
        (False, []),
    ],
)
def test_an_ended_run_keeps_its_model_and_report_and_checkpoints_only_if_they_may_help(
    workspace: Workspace, keep: bool, kept: list[str]
) -> None:
    folder = make_files(workspace)
    workspace.prune("a", keep_checkpoints=keep)
    left = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
    assert left == sorted([*kept, "model", "model/weights", "report.html"])


def test_what_a_killed_trainer_was_writing_is_removed_and_no_more(workspace: Workspace) -> None:
    folder = make_files(workspace)
    whole = {path for path in folder.rglob("*") if "abc" not in str(path.relative_to(folder))}
    workspace.remove_leftovers("a")
    assert set(folder.rglob("*")) == whole


def test_the_disk_use_of_a_run_is_what_its_files_take(workspace: Workspace) -> None:
    assert workspace.disk_bytes("a") == 0
    folder = make_files(workspace)
    taken = int(subprocess.run(["du", "-s", "-B1", folder], capture_output=True, check=True).stdout.split()[0])
    assert taken - folder.stat().st_blocks * 512 == workspace.disk_bytes("a")
    with open(folder / "sparse", "wb") as sparse:
        sparse.truncate(1 << 30)
    assert workspace.disk_bytes("a") < 1 << 20


@pytest.mark.process
def test_the_disk_use_is_told_while_files_come_and_go(workspace: Workspace) -> None:
    folder = make_files(workspace)
    coming = multiprocessing.get_context("fork").Process(target=_come_and_go, args=(folder,))
    coming.start()
    while coming.is_alive():
        assert workspace.disk_bytes("a") > 0
    assert coming.exitcode == 0


def _come_and_go(folder: Path) -> None:
    for _ in range(300):
        (folder / "more").mkdir()
        (folder / "more" / "x").write_bytes(b"x")
        (folder / "more" / "x").unlink()
        (folder / "more").rmdir()
