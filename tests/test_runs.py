"""The runs of a workspace: their states, the table of legal moves, their history."""

import sqlite3
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from pydantic import ValidationError

from executor.errors import IllegalTransition, UnknownRun, WorkspaceError
from executor.parameters import ExecutorOptions, TrainingOptions
from executor.store.database import SCHEMA_VERSION
from executor.store.lock import WorkspaceLock
from executor.store.run import Configuration, Progress, RunState
from executor.store.runs import SHOWN_PROBLEMS, Quarantined, RunStore
from executor.store.workspace import Workspace

ROOT = Path(__file__).parents[1]
RECEIVING, QUEUED, TRAINING, SUCCEEDED, FAILED, CANCELLED = RunState
# As drawn in the documentation: written out here, not taken from the code.
LEGAL_MOVES = {
    (RECEIVING, QUEUED),
    (RECEIVING, CANCELLED),
    (QUEUED, TRAINING),
    (QUEUED, CANCELLED),
    (TRAINING, SUCCEEDED),
    (TRAINING, FAILED),
    (TRAINING, CANCELLED),
    (TRAINING, QUEUED),
}
WAY = {
    RECEIVING: (),
    QUEUED: (QUEUED,),
    TRAINING: (QUEUED, TRAINING),
    SUCCEEDED: (QUEUED, TRAINING, SUCCEEDED),
    FAILED: (QUEUED, TRAINING, FAILED),
    CANCELLED: (CANCELLED,),
}


@pytest.fixture
def store(tmp_path):
    opened = RunStore(Workspace(tmp_path / "workspace"))
    yield opened
    opened.close()


def in_state(store: RunStore, state: RunState, name: str = "a") -> None:
    store.create(name)
    for step in WAY[state]:
        store.advance(name, step)


@pytest.mark.parametrize(
    ("state", "to"), [move for move in product(RunState, RunState) if move in LEGAL_MOVES], ids=lambda s: s.value
)
def test_a_run_makes_every_legal_move(store, state, to):
    in_state(store, state)
    assert store.advance("a", to).state is to
    assert store.get("a").state is to


@pytest.mark.parametrize(
    ("state", "to"), [move for move in product(RunState, RunState) if move not in LEGAL_MOVES], ids=lambda s: s.value
)
def test_a_run_makes_no_other_move(store, state, to):
    in_state(store, state)
    before = store.get("a"), store.events("a")
    with pytest.raises(IllegalTransition, match=f"'a' is {state.value}; it cannot become {to.value}"):
        store.advance("a", to)
    assert (store.get("a"), store.events("a")) == before


@pytest.mark.parametrize("state", RunState)
def test_a_run_has_ended_where_no_move_leads_on(state):
    assert state.ended == (state in (SUCCEEDED, FAILED, CANCELLED))


def test_the_events_of_a_run_are_numbered_from_one_and_tell_its_states(store):
    in_state(store, SUCCEEDED)
    store.create("b")
    store.event("a", "warning", "a note")
    events = store.events("a")
    assert [number for number, *_ in events] == [1, 2, 3, 4, 5]
    assert [kind for _, _, kind, _ in events] == ["received", "queued", "training", "succeeded", "warning"]
    assert [number for number, *_ in store.events("b")] == [1]


def test_events_are_read_from_a_number_on_and_so_many_at_a_time(store):
    store.create("a")
    for number in range(2, 8):
        store.event("a", "note", str(number))
    assert [message for *_, message in store.events("a", after=2, limit=3)] == ["3", "4", "5"]
    assert store.events("a", after=7) == []


def test_a_failure_is_told_with_its_reason(store):
    in_state(store, TRAINING)
    run = store.advance("a", FAILED, error="signal 9")
    assert run.error == "signal 9"
    assert store.events("a")[-1][2:] == ("failed", "signal 9")


def test_an_attempt_is_counted_when_it_begins_and_the_first_start_is_kept(store):
    store.create("a")
    queued = store.advance("a", QUEUED)
    assert (queued.attempts, queued.started_at, queued.ended_at) == (0, None, None)
    first = store.advance("a", TRAINING)
    assert store.advance("a", QUEUED).attempts == 1
    again = store.advance("a", TRAINING)
    assert (first.attempts, again.attempts) == (1, 2)
    assert again.started_at == first.started_at is not None


def test_a_run_that_is_queued_again_keeps_how_far_it_was_and_not_what_it_was_at(store):
    in_state(store, TRAINING)
    shown = Progress(phase="saving", epoch=2, step=9, history={"loss": [0.5]}, eta_seconds=7.0, images_per_second=80.0)
    store.report("a", shown)
    kept = replace(shown, phase=None, eta_seconds=None, images_per_second=None)
    store.advance("a", QUEUED)
    assert store.progress("a") == kept
    store.report("a", shown)  # the last word of a trainer that outlived its service for a moment
    store.advance("a", TRAINING)
    assert store.progress("a") == kept


def test_a_run_that_begins_to_train_goes_on_with_what_its_trainer_does_already(store):
    in_state(store, QUEUED)
    store.report("a", Progress(phase="loading"))
    store.advance("a", TRAINING)
    assert store.progress("a").phase == "loading"


def test_an_ended_run_has_a_time_of_its_end_and_no_process(store):
    in_state(store, TRAINING)
    store.set_pid("a", 4711)
    run = store.advance("a", SUCCEEDED)
    assert run.pid is None
    assert run.ended_at is not None
    assert run.created_at <= run.started_at <= run.ended_at


def test_queued_runs_keep_the_order_in_which_they_were_queued(store):
    for name in "abc":
        store.create(name)
    for name in "cab":
        store.advance(name, QUEUED)
    assert [run.name for run in store.in_state(QUEUED)] == ["c", "a", "b"]


def test_a_run_that_is_queued_again_is_the_first_in_the_queue(store):
    for name in "ab":
        in_state(store, QUEUED, name)
    store.advance("a", TRAINING)
    store.advance("a", QUEUED)
    assert [run.name for run in store.in_state(QUEUED)] == ["a", "b"]


def test_runs_are_listed_newest_first(store):
    for name in "abc":
        store.create(name)
    assert [run.name for run in store.all()] == ["c", "b", "a"]


def test_a_run_without_a_name_gets_one_that_is_free(store):
    store.create("run-2")
    name = store.create().name
    assert name != "run-2"
    assert store.exists(name)
    assert store.create().name == "run-3"


def test_an_unknown_run_is_refused_with_those_there_are(store):
    with pytest.raises(UnknownRun, match="there are none yet"):
        store.get("x")
    store.create("a")
    with pytest.raises(UnknownRun, match="there are: a"):
        store.advance("x", QUEUED)


@pytest.mark.parametrize(("runs", "end"), [(10, "run-2, run-1."), (11, "run-3, run-2, …")])
def test_no_more_than_ten_runs_are_named_to_whoever_asks_for_another(store, runs, end):
    for _ in range(runs):
        store.create()
    with pytest.raises(UnknownRun) as refused:
        store.get("x")
    assert str(refused.value).rstrip(".").endswith(end.rstrip("."))
    assert str(refused.value).count("run-") == 10


def test_a_run_keeps_its_options_and_its_configuration(store):
    options = TrainingOptions(epochs=3, freeze=["x"], loss_options={"margin": 0.5})
    configuration = Configuration(
        options=ExecutorOptions(model="default", fit_defaults={"epochs": 3}),
        given=("epochs",),
        directory="/photos",
        path=("/code",),
    )
    store.create("a", options, configuration)
    run = store.get("a")
    assert (run.options, run.options.epochs, run.options.freeze) == (options, 3, ("x",))
    assert run.configuration == configuration


def test_the_base_is_served_until_a_run_is_promoted(store):
    assert store.promoted() == "base"
    in_state(store, SUCCEEDED)
    store.promote("a")
    assert store.promoted() == "a"
    assert store.events("a")[-1][2] == "promoted"
    store.promote("base")
    assert store.promoted() == "base"


def test_a_run_whose_trainer_has_told_nothing_has_made_no_step_and_has_no_figures(store):
    store.create("a")
    told = vars(store.progress("a"))
    counts, figures = ("epoch", "epochs", "step", "steps"), ("metrics", "history")
    assert [told.pop(name) for name in counts] == [0, 0, 0, 0]
    assert [told.pop(name) for name in figures] == [{}, {}]
    assert {"phase", "kind", "loss", "images_per_second", "eta_seconds", "better", "error", "device"} <= told.keys()
    assert all(not value and value != "" for value in told.values())


@pytest.mark.parametrize(("devices", "ranks"), [(None, 1), (["cpu"], 1), (["cuda:0", "cuda:1", "cuda:2"], 3)])
def test_a_run_is_trained_by_a_process_for_each_device(store, devices, ranks):
    configuration = Configuration(options=ExecutorOptions(devices=devices))
    assert store.create("a", configuration=configuration).ranks == ranks
    with pytest.raises(ValidationError, match="frozen"):  # threads share it
        configuration.directory = "/elsewhere"


def test_the_last_progress_is_the_one_that_is_read(store):
    store.create("a")
    assert store.progress("a") == Progress()
    store.report("a", Progress(phase="training", step=3, history={"loss": [0.5]}))
    last = Progress(phase="saving", step=4, metrics={"base/mrr": 1.0}, better=True)
    store.report("a", last)
    assert store.progress("a") == last


def test_a_document_is_quarantined_once(store):
    store.create("a")
    for _ in range(2):
        found = [Quarantined("3", "x", "truncated"), Quarantined("7", "y", "no label")]
        store.quarantine("a", "train", found, spooled=True)
    store.quarantine("a", "train", [Quarantined("3", "x", "another reason")], spooled=False)
    assert store.problems("a") == [("x", "truncated"), ("y", "no label")]
    assert store.count_problems("a") == 2
    assert [kind for _, _, kind, _ in store.events("a")].count("skipped") == 2
    assert [store.is_quarantined("a", "train", place) for place in ("3", "7", "x")] == [True, True, False]
    assert not store.is_quarantined("a", "eval", "3")


def test_two_bad_documents_may_have_one_id_and_a_match_the_id_of_a_root(store):
    store.create("a")
    store.quarantine("a", "train", [Quarantined("3", "x", "bad"), Quarantined("9", "x", "bad")], spooled=True)
    store.quarantine("a", "train match", [Quarantined("3.1", "x", "bad")], spooled=True)
    store.quarantine("a", "eval", [Quarantined("3", "x", "bad")], spooled=True)
    assert store.problems("a") == [("x", "bad")] * 4


def test_what_is_told_of_a_document_is_short(store):
    store.create("a")
    store.quarantine("a", "train", [Quarantined("0", "x" * 10**6, "y" * 10**6)], spooled=False)
    store.event("a", "note", "z" * 10**6)
    ((document, reason),) = store.problems("a")
    assert (len(document), len(reason)) == (201, 501)
    assert max(len(message) for *_, message in store.events("a")) == 2001
    for state in (QUEUED, TRAINING):
        store.advance("a", state)
    assert len(store.advance("a", FAILED, error="e" * 10**6).error) == 2001


def test_the_same_document_may_be_quarantined_in_two_runs(store):
    for name in "ab":
        store.create(name)
        store.quarantine(name, "train", [Quarantined("0", "x", "truncated")], spooled=True)
    assert store.count_problems("a") == store.count_problems("b") == 1


def test_quarantined_documents_are_counted_by_split_and_by_where_they_lie(store):
    store.create("a")
    store.quarantine("a", "train", [Quarantined("0", "x", "bad"), Quarantined("1", "y", "bad")], spooled=True)
    store.quarantine("a", "eval", [Quarantined("2", "z", "bad")], spooled=False)
    assert store.count_problems("a", "train") == 2
    assert store.count_problems("a", "eval", spooled=True) == 0
    assert store.count_problems("a", spooled=False) == 1


def test_only_the_first_problems_are_shown(store):
    store.create("a")
    store.quarantine(
        "a", "train", [Quarantined(str(number), f"d{number}", "bad") for number in range(30)], spooled=True
    )
    assert [document for document, _ in store.problems("a")] == [f"d{number}" for number in range(SHOWN_PROBLEMS)]
    assert store.count_problems("a") == 30


def test_everything_is_there_again_after_a_restart(store):
    in_state(store, FAILED)
    store.promote("a")
    reopened = RunStore(store.workspace)
    assert reopened.get("a") == store.get("a")
    assert reopened.events("a") == store.events("a")
    assert reopened.promoted() == "a"
    reopened.close()


def test_a_workspace_of_a_newer_version_is_refused_and_left_alone(store):
    store.close()
    with sqlite3.connect(store.workspace.database) as db:
        db.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}")
    with pytest.raises(WorkspaceError, match=f"schema version {SCHEMA_VERSION + 1}.*newer release"):
        RunStore(store.workspace)
    with sqlite3.connect(store.workspace.database) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION + 1,)


def test_a_workspace_that_is_no_database_is_refused(tmp_path):
    (tmp_path / "runs.sqlite").write_bytes(b"not a database at all" * 100)
    with pytest.raises(WorkspaceError, match="cannot be used"):
        RunStore(Workspace(tmp_path))


def test_a_workspace_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkspaceError, match="cannot be used"):
        RunStore(Workspace(tmp_path / "file"))


WRITER = """
import sys
sys.modules["torch"] = None  # a writer starts faster without it
from pathlib import Path
from executor.store.runs import RunStore
from executor.store.workspace import Workspace
store = RunStore(Workspace(Path(sys.argv[1])))
for number in range(40):
    store.event("a", "note", f"{sys.argv[2]}{number}")
    store.quarantine("a", "train", [(str(number), f"d{number}", "bad")], spooled=True)
    store.create()
"""


@pytest.mark.process
def test_several_processes_write_at_once_and_nothing_is_lost(store):
    store.create("a")
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(store.workspace.root), name], cwd=ROOT) for name in "xy"
    ]
    assert [writer.wait(120) for writer in writers] == [0, 0]
    events = store.events("a", limit=1000)
    assert [number for number, *_ in events] == list(range(1, len(events) + 1))
    notes = [message for _, _, kind, message in events if kind == "note"]
    assert sorted(notes) == sorted(f"{name}{number}" for name in "xy" for number in range(40))
    assert [note for note in notes if note[0] == "x"] == [f"x{number}" for number in range(40)]
    assert store.count_problems("a") == 40
    assert len({run.name for run in store.all()}) == 81


@pytest.mark.process
def test_stores_that_are_opened_at_once_make_the_workspace_once(tmp_path):
    code = WRITER.replace("range(40)", "range(0)") + "store.create(sys.argv[2])"
    openers = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), name], cwd=ROOT) for name in "xyz"]
    assert [opener.wait(120) for opener in openers] == [0, 0, 0]
    store = RunStore(Workspace(tmp_path))
    assert {run.name for run in store.all()} == set("xyz")
    store.close()


@pytest.mark.process
def test_a_second_service_on_a_workspace_is_refused_naming_the_holder(tmp_path):
    code = (
        "import sys; sys.modules['torch'] = None; from pathlib import Path; "
        "from executor.store.lock import WorkspaceLock; from executor.store.workspace import Workspace; "
        "lock = WorkspaceLock(Workspace(Path(sys.argv[1]))); print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(WorkspaceError, match=rf"in use by another service \(process {holder.pid}\)"):
            WorkspaceLock(Workspace(tmp_path))
        holder.kill()
        holder.wait()
    WorkspaceLock(Workspace(tmp_path)).release()


def test_the_newest_checkpoint_tells_the_steps_done(tmp_path):
    workspace = Workspace(tmp_path)
    assert workspace.latest_step("a") == 0
    for name in ("0000000009", "0000000041", ".0000000050-tmp"):
        (workspace.checkpoint_folder("a") / name).mkdir(parents=True)
    assert workspace.latest_step("a") == 41
