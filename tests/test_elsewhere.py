"""A run that another command trains, in a job's folder: torchrun here, a cluster's launcher elsewhere."""

import contextlib
import dataclasses
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from executor import Document, DocumentArrayMemmap, RunStatus
from executor.compute.ranks import Ranks
from executor.errors import WorkspaceError
from executor.store.job import REQUIRED, Job, job_of
from executor.store.job_store import JobStore
from executor.store.lineage import Lineage, lineage_of
from executor.store.run import Progress, RunState, TrainerExit
from executor.store.runs import Quarantined, RunStore
from executor.store.workspace import Workspace
from executor.worker.command import end_process, public_environment
from executor.worker.elsewhere import Elsewhere, arguments_of
from executor.worker.job_folder import fill
from executor.worker.mirror import Mirror, worst
from executor.worker.progress import ProgressWriter
from serving import ROOT, free_ports, served
from test_distributed import documents, weights
from workshop import Workshop, kill

COMMAND = "{python} -m executor train --job {job}"
DOCUMENTED = re.search(r"train_command: (.*torch.*)", (ROOT / "docs" / "many-machines.md").read_text())
OPTIONS = {"batch_size": 7, "epochs": 5, "promote": "always", "precision": "fp32"}


def queue(workshop: Workshop, run: str, **options: object) -> None:
    workshop.receive(run, documents(10, "e", 1000), split="eval", **options)
    workshop.receive(run, documents(20))
    workshop.queue(run)


@pytest.fixture
def workshop(tmp_path: Path) -> Iterator[Workshop]:
    """Options: jobs lie in a directory of their own, and the command is never started."""
    made = Workshop(
        tmp_path / "workspace", train_command=COMMAND, train_jobs=str(tmp_path / "jobs"), fit_defaults=OPTIONS
    )
    yield made
    made.close()


# --- the folder ------------------------------------------------------------------------------------------------------


@pytest.fixture
def job(workshop: Workshop) -> Job:
    """The folder of the job of the run `one`, ready for an attempt."""
    queue(workshop, "one")
    workshop.store.quarantine("one", "train", [Quarantined("key", "bad", "it has no label")], spooled=False)
    run = workshop.store.advance("one", RunState.TRAINING)
    found = job_of(workshop.store.workspace, run, workshop.options.train_jobs)
    fill(found, workshop.store, run)
    return found


def mirror_of(workshop: Workshop, job: Job) -> Mirror:
    return Mirror(job, workshop.store, workshop.store.get("one"), job.begin_attempt())


def test_a_job_has_the_run_its_documents_and_models_and_nothing_of_the_service(workshop: Workshop, job: Job) -> None:
    told = job.run().as_run()
    run = workshop.store.get("one")
    assert (told.options, told.created_at, told.train_rows, told.eval_rows) == (run.options, run.created_at, 20, 10)
    assert told.configuration.options.train_command is None
    assert (job.version("base") / "weights.safetensors").exists()
    assert job.served() == "base"
    assert job.folder.parent == Path(str(workshop.options.train_jobs))
    with DocumentArrayMemmap(workshop.store.workspace.spool_file("one")) as spool:
        copy = job.folder.parent / "copy.sqlite"
        copy.write_bytes(job.documents.read_bytes())
        with DocumentArrayMemmap(copy) as documents_there:
            assert list(documents_there.ids()) == list(spool.ids())
    assert [file.name for file in job.folder.iterdir() if file.name.endswith(("-wal", "-shm"))] == []


def test_a_store_of_a_job_tells_the_service_by_files(workshop: Workshop, job: Job) -> None:
    mirror = mirror_of(workshop, job)
    store = JobStore(job, 0)
    assert store.get("one").state is RunState.TRAINING
    assert store.count_problems("one", "train", spooled=False) == 1
    store.report("one", Progress(phase="training", step=3, loss=0.5))
    store.event("one", "epoch", "epoch 1 of 5")
    store.quarantine("one", "train", [Quarantined("1", "d1", "it is no picture")], spooled=True)
    assert store.finish(TrainerExit.CRASHED) == TrainerExit.CRASHED
    for _ in range(2):  # what was taken is not taken again, by another look or after a restart
        mirror.look()
        Mirror(job, workshop.store, workshop.store.get("one"), job.begin_attempt()).look()
    assert workshop.store.progress("one") == Progress(phase="training", step=3, loss=0.5)
    assert workshop.events("one", "epoch") == ["epoch 1 of 5"]
    assert workshop.store.problems("one") == [("bad", "it has no label"), ("d1", "it is no picture")]
    assert len(workshop.events("one", "skipped")) == 2
    assert mirror.ended() == {0: TrainerExit.CRASHED}


def test_a_job_knows_what_its_versions_have_seen_and_how_far_the_run_was(workshop: Workshop, job: Job) -> None:
    workshop.store.create("before")
    seen = Lineage(taught=frozenset([bytes(16), b"\1" * 16]), labels=frozenset([b"\2" * 16]))
    workshop.store.workspace.run_folder("before").mkdir(parents=True)
    seen.save(workshop.store.workspace.lineage_file("before"))
    workshop.store.promote("before")
    workshop.store.report("one", Progress(phase="training", step=3, history={"loss": [0.5]}))
    shutil.copytree(workshop.store.workspace.base, workshop.store.workspace.model_folder("before"))
    run = workshop.store.get("one")
    fill(job, workshop.store, run)
    mirror = mirror_of(workshop, job)
    store = JobStore(job, 0)
    assert lineage_of(store.workspace, store.served_now()) == seen
    ProgressWriter(store, run, Ranks()).report(phase="starting", step=1)
    store.finish(TrainerExit.CRASHED)
    mirror.look()
    assert workshop.store.progress("one").step == 3
    assert workshop.store.progress("one").history == {"loss": [0.5]}


def test_what_another_rank_refuses_is_told_with_its_reason(workshop: Workshop, job: Job) -> None:
    mirror = mirror_of(workshop, job)
    first, second = JobStore(job, 0), JobStore(job, 1)
    second.report("one", dataclasses.replace(second.progress("one"), error="Document 'd1' has faded"))
    second.event("one", "warning", "of the second rank")
    first.finish(TrainerExit.CRASHED)
    second.finish(TrainerExit.REFUSED)
    mirror.look()
    assert mirror.refusal() == "Document 'd1' has faded"
    assert worst(mirror.ended()) == TrainerExit.REFUSED
    assert workshop.events("one", "warning") == ["of the second rank"]


def test_half_a_line_of_a_killed_process_is_left_out_and_the_next_one_counts(workshop: Workshop, job: Job) -> None:
    mirror = mirror_of(workshop, job)
    JobStore(job, 0).event("one", "epoch", "first")
    with open(job.made / "events.jsonl", "ab") as lines:
        lines.write(b'["2026-01-01T00:00:00.000+00:00", "epo')
    mirror.look()
    assert workshop.events("one", "epoch") == ["first"]
    JobStore(job, 0).event("one", "epoch", "second")
    mirror.look()
    assert workshop.events("one", "epoch") == ["first", "second"]


def test_what_could_not_be_stored_is_taken_at_the_next_look_and_once(workshop: Workshop, job: Job) -> None:
    mirror = mirror_of(workshop, job)
    store, database = JobStore(job, 0), workshop.store.workspace.database

    def end() -> None:
        store.report("one", Progress(phase="training", step=3))
        store.finish(TrainerExit.CRASHED)

    for happens in (
        lambda: store.event("one", "epoch", "epoch 1 of 5"),
        lambda: store.quarantine("one", "train", [Quarantined("1", "d1", "it is no picture")], spooled=True),
        end,
    ):
        happens()
        with aside(database), pytest.raises(WorkspaceError):
            mirror.look()
        mirror.look()
    assert workshop.events("one", "epoch") == ["epoch 1 of 5"]
    assert workshop.store.problems("one") == [("bad", "it has no label"), ("d1", "it is no picture")]
    assert len(workshop.events("one", "skipped")) == 2
    assert workshop.store.progress("one").step == 3


def test_a_file_that_could_not_be_kept_is_kept_at_the_next_look(workshop: Workshop, job: Job) -> None:
    mirror = mirror_of(workshop, job)
    (job.made / "parts.json").write_text("{}")
    kept = workshop.store.workspace.run_folder("one") / "parts.json"
    kept.mkdir()
    with pytest.raises(OSError, match=re.escape(kept.name)):
        mirror.look()
    kept.rmdir()
    mirror.look()
    assert kept.read_text() == "{}"


@contextlib.contextmanager
def aside(file: Path) -> Iterator[None]:
    moved = file.rename(f"{file}-aside")
    yield
    moved.rename(file)


def finished(job: Job, without: str | None = None) -> None:
    """Write a result as the first rank does. Args: without: a file that was removed before."""
    (job.made / "model").mkdir()
    for name in REQUIRED:
        (job.made / name).write_text(name)
    if without is not None:
        (job.made / without).unlink()
    JobStore(job, 0).finish(TrainerExit.SUCCEEDED)


def test_a_result_is_taken_over_when_it_is_whole(workshop: Workshop, job: Job) -> None:
    mirror = mirror_of(workshop, job)
    finished(job)
    mirror.take_over()
    folder = workshop.store.workspace.run_folder("one")
    assert (folder / "model" / "weights.safetensors").read_text() == "model/weights.safetensors"
    assert (folder / "report.json").read_text() == "report.json"


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda made: (made / "model" / "weights.safetensors").write_text("other"), "has not the digest"),
        (lambda made: (made / "model" / "model.json").unlink(), "model/model.json is missing"),
        (lambda made: (made / "result.json").unlink(), "has not written which files"),
        (lambda made: (made / "result.json").write_text("{"), "has not written which files"),
    ],
    ids=["changed", "missing", "unnamed", "half written"],
)
def test_a_result_that_is_not_whole_is_refused_and_nothing_of_the_model_is_left(
    workshop: Workshop, job: Job, damage: object, reason: str
) -> None:
    mirror = mirror_of(workshop, job)
    finished(job)
    assert callable(damage)
    damage(job.made)
    with pytest.raises(WorkspaceError, match=re.escape(reason)):
        mirror.take_over()
    assert not workshop.store.workspace.model_folder("one").exists()


@pytest.mark.parametrize("name", sorted(REQUIRED))
def test_a_result_that_lacks_what_every_run_has_is_refused_by_its_name(workshop: Workshop, job: Job, name: str) -> None:
    mirror = mirror_of(workshop, job)
    finished(job, without=name)
    with pytest.raises(WorkspaceError, match=f"^{re.escape(name)} was gone when it ended$"):
        mirror.take_over()
    assert not workshop.store.workspace.model_folder("one").exists()


def test_what_an_earlier_attempt_has_left_does_not_count(workshop: Workshop, job: Job) -> None:
    mirror_of(workshop, job)
    finished(job)
    later = mirror_of(workshop, job)
    assert later.ended() == {}
    with pytest.raises(WorkspaceError):
        later.take_over()


def test_a_checkpoint_is_kept_in_the_workspace_and_given_to_a_new_folder(workshop: Workshop, job: Job) -> None:
    for step in ("0000000003", "0000000007"):
        (job.made / "checkpoints" / step).mkdir(parents=True)
        (job.made / "checkpoints" / step / "state.json").write_text(step)
    (job.made / "micro_batch").write_text("0 4\n")
    mirror_of(workshop, job).look()
    assert workshop.store.workspace.latest_step("one") == 7
    job.remove()
    assert not job.folder.exists()
    fill(job, workshop.store, workshop.store.get("one"))
    assert (job.made / "checkpoints" / "0000000007" / "state.json").read_text() == "0000000007"
    assert (job.made / "micro_batch").read_text() == "0 4\n"


def test_a_promotion_meanwhile_reaches_the_proof(workshop: Workshop, job: Job) -> None:
    mirror = mirror_of(workshop, job)
    store = JobStore(job, 0)
    workshop.store.create("other")
    model = workshop.store.workspace.model_folder("other")
    model.mkdir(parents=True)
    (model / "model.json").write_text("{}")
    workshop.store.promote("other")
    mirror.look()
    assert store.served_now() == "other"
    assert (store.workspace.model_folder("other") / "model.json").exists()


def test_a_rank_waits_for_a_version_that_is_served_since_a_moment(
    workshop: Workshop, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    job.begin_attempt()
    store = JobStore(job, 1)
    coming = threading.Timer(0.5, job.version("new").mkdir)
    coming.start()
    store.wait_for("new")
    assert job.version("new").is_dir()
    monkeypatch.setattr("executor.store.job_store.VERSION_SECONDS", 0.5)
    with pytest.raises(WorkspaceError, match="'never', which is served now, has not come"):
        store.wait_for("never")


def test_no_attempt_may_work_in_the_folder_of_a_cancelled_run(workshop: Workshop, job: Job) -> None:
    mirror_of(workshop, job)
    job.end_attempts()
    with pytest.raises(WorkspaceError, match="has ended or was cancelled"):
        JobStore(job, 0)
    job.remove()
    with pytest.raises(WorkspaceError, match="There is no job in"):
        JobStore(job, 0)


def test_a_job_of_another_run_with_the_same_name_is_another_folder(workshop: Workshop, job: Job) -> None:
    again = dataclasses.replace(workshop.store.get("one"), number=7)
    assert job_of(workshop.store.workspace, again, workshop.options.train_jobs).folder != job.folder


def test_words_with_spaces_stay_whole_and_no_shell_reads_them(workshop: Workshop, job: Job) -> None:
    spaced = Job(job.folder.parent / "a folder; rm -rf x")
    words = arguments_of("run '{job}' --name={run} $HOME", spaced, workshop.store.get("one"))
    assert words == ["run", str(spaced.folder), "--name=one", "$HOME"]


def test_a_command_inherits_nothing_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = ("FINETUNER_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "DB_PASSWORD", "HF_TOKEN", "API_KEY")
    for name in (*secret, "KUBECONFIG", "MONKEY"):
        monkeypatch.setenv(name, "value")
    inherited = public_environment()
    assert not set(secret) & inherited.keys()
    assert {"PATH", "KUBECONFIG", "MONKEY"} <= inherited.keys()


# --- runs ------------------------------------------------------------------------------------------------------------


def processes_of(job: Path) -> list[psutil.Process]:
    return [each for each in psutil.process_iter(["cmdline"]) if str(job) in " ".join(each.info["cmdline"] or [])]


@pytest.mark.process
def test_the_documented_command_trains_stops_resumes_and_is_cancelled(tmp_path: Path) -> None:
    """One run on two ranks: the service ends and comes back, the run goes on, and a cancel leaves nothing."""
    assert DOCUMENTED is not None
    made = Workshop(tmp_path / "workspace", train_command=DOCUMENTED[1].strip('"'), fit_defaults=OPTIONS)
    workspace = made.store.workspace
    queue(made, "endless", epochs=100_000)
    folder = workspace.run_folder("endless") / "job"
    with made.supervised():
        made.wait("endless", lambda run: made.store.progress("endless").step > 0)
        assert len([each for each in processes_of(folder) if "executor" in each.cmdline()]) == 3  # torchrun, two ranks
        assert not list(folder.rglob("*-wal"))
    stopped = workspace.latest_step("endless")
    assert stopped > 0
    assert not processes_of(folder)
    with made.supervised() as supervisor:
        made.wait("endless", lambda run: made.store.progress("endless").step > stopped)
        assert made.store.get("endless").attempts == 2
        assert f"it goes on from step {stopped}" in made.events("endless", "resumed")[-1]
        supervisor.cancel("endless")
        assert not processes_of(folder)
        assert not folder.exists()
        supervisor.delete("endless")
    assert not workspace.run_folder("endless").exists()
    made.close()


ALIKE = {"norm_statistics": "fixed", "learning_rate": 1e-4, "batch_size": 6, "num_items_per_class": 2}
NODES = """
import os, socket, subprocess, sys, time
job, port = sys.argv[1:]
os.environ["JOB"] = job

def node():
    return subprocess.Popen([
        sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d",
        f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=one", "--max-restarts=9",
        "--rdzv-conf=keep_alive_interval=1,keep_alive_max_attempt=10", "-m", "executor", "train", "--job", job,
    ])

first = node()
while first.poll() is None and socket.socket().connect_ex(("127.0.0.1", int(port))):
    time.sleep(0.1)
second = node()
if second.wait():
    second = node()
sys.exit(first.wait() or second.wait())
"""
FADING = """
import os, pathlib, signal, threading, time
one_at_a_time = threading.Lock()

def load(doc):
    if os.environ.get("GROUP_RANK") == "1" and doc.id.startswith("d"):
        lost, made = pathlib.Path(os.environ["JOB"] + ".lost"), pathlib.Path(os.environ["JOB"], "made")
        with one_at_a_time:
            if not lost.exists() and list(made.glob("checkpoints/[0-9]*")):
                lost.touch()
                os.kill(os.getppid(), signal.SIGKILL)
                os.kill(os.getpid(), signal.SIGKILL)
            if not lost.exists():
                time.sleep(0.2)
    return doc.blob
"""


@pytest.mark.process
def test_two_machines_one_of_which_is_lost_and_back_end_with_the_weights_of_one_process(tmp_path: Path) -> None:
    """fp32, fixed norm statistics, no augmentation, the same global batches: 12 steps at the rate of pretrained."""
    (tmp_path / "fading.py").write_text(FADING)
    (tmp_path / "nodes.py").write_text(NODES)
    sys.path.insert(0, str(tmp_path))
    found = {}
    for name, command in (("two", f"{{python}} {tmp_path}/nodes.py {{job}} {free_ports(1)[0]}"), ("alone", None)):
        made = Workshop(
            tmp_path / name,
            train_command=command,
            preprocess_fn="fading:load",
            fit_defaults=OPTIONS | ALIKE | {"epochs": 3},
        )
        queue(made, "one")
        with made.supervised():
            run = made.wait("one", seconds=250)
        assert (run.state, run.attempts) == (RunState.SUCCEEDED, 1), made.log("one")
        assert made.store.progress("one").steps == 12
        assert len([event for event in made.events("one", "epoch") if event.startswith("epoch 1 ")]) == 1
        found[name] = weights(made, "one")
        start = load_file(made.store.workspace.base / "weights.safetensors")
        made.close()
    sys.path.remove(str(tmp_path))
    assert (tmp_path / "two" / "runs" / "one" / "job.lost").exists()
    for name, weight in found["alone"].items():
        # Adam divides a gradient by its own size. So where one is nearly nothing, rounding, which processors do each in
        # their way, moves a weight by a part of a step: each weight is to be near, and all together much nearer.
        torch.testing.assert_close(found["two"][name], weight, rtol=0, atol=5e-5)
        difference, moved = (float((weight - other[name]).double().norm()) for other in (found["two"], start))
        assert difference <= 1e-3 * moved


@pytest.mark.process
def test_a_launcher_that_tries_again_and_again_is_ended_when_the_run_is_refused(tmp_path: Path) -> None:
    script = tmp_path / "stubborn.py"
    again = "subprocess.call([sys.executable, '-m', 'executor', 'train', '--job', sys.argv[1]])"
    script.write_text(f"import subprocess, sys\nwhile True:\n    {again}\n")
    made = Workshop(tmp_path / "workspace", train_command=f"{{python}} {script} {{job}}", fit_defaults=OPTIONS)
    made.receive("single", documents(40)[::3])  # of one class
    made.queue("single")
    with made.supervised():
        run = made.wait("single")
    assert (run.state, run.attempts) == (RunState.FAILED, 1)
    assert run.error is not None
    assert "All 14 documents have the label 0" in run.error
    job = made.store.workspace.run_folder("single") / "job"
    assert not processes_of(job)
    assert not job.exists()
    made.close()


@pytest.mark.process
def test_a_program_that_is_not_there_is_named(workshop: Workshop) -> None:
    queue(workshop, "none")
    workshop.store.advance("none", RunState.TRAINING)
    attempt = Elsewhere(workshop.store, "none", "no-such-launcher {job}", workshop.options.train_jobs)
    assert attempt.run() == TrainerExit.REFUSED
    error = workshop.store.progress("none").error  # of which a run that is refused fails, as the test above shows
    assert error is not None
    assert "no-such-launcher" in error


LEAVING = """
import os, shutil, signal, subprocess, sys
job, started = sys.argv[1:]
shutil.copy(os.path.join(job, "job.json"), os.path.dirname(started))
rank = subprocess.Popen([sys.executable, "-m", "executor", "train", "--job", job], start_new_session=True)
os.kill(rank.pid, signal.SIGSTOP)
print(rank.pid, file=open(started, "a"))
"""


LOSING = """
import os, pathlib, subprocess, sys, time
job, gate = sys.argv[1:]
while not os.path.exists(gate):
    time.sleep(0.05)
lost = pathlib.Path(gate + ".lost")
files = [pathlib.Path(job, "made", name) for name in ("proof.json", "lineage.safetensors")]
training = subprocess.Popen([sys.executable, "-m", "executor", "train", "--job", job])
while training.poll() is None:
    if all(file.exists() for file in files) and not lost.exists():
        lost.touch()
        for file in files:
            file.unlink()
    time.sleep(0.01)
sys.exit(training.wait())
"""


@pytest.mark.process
def test_a_command_that_trains_nothing_ends_the_run_in_a_sentence_with_the_rank_and_the_job_that_it_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command trains nothing: the rank that it has started and left is stopped. It ends with the run.

    The directory of jobs is a relative path, from where the service is; the command is in another directory.
    """
    monkeypatch.chdir(tmp_path)
    (tmp_path / "leave.py").write_text(LEAVING)
    made = Workshop(
        tmp_path / "workspace",
        train_command=f"{{python}} {tmp_path}/leave.py {{job}} {tmp_path}/started",
        train_jobs="jobs",
        fit_defaults=OPTIONS,
    )
    queue(made, "left")
    with made.supervised():
        run = made.wait("left")
    started = [int(pid) for pid in (tmp_path / "started").read_text().split()]
    left = [pid for pid in started if not has_ended(pid)]
    for pid in left:
        kill(pid)
    assert (len(started), left) == (3, [])
    assert run.state is RunState.FAILED
    assert run.error is not None
    assert "train_command has ended with 0, but its job was not trained to the end" in run.error
    assert (tmp_path / "job.json").exists()
    assert list((tmp_path / "jobs").iterdir()) == []
    made.close()


@pytest.mark.process
@pytest.mark.parametrize("jobs", [None, "jobs"])
def test_a_rank_of_a_job_that_an_earlier_service_has_left_is_ended_and_no_other(
    tmp_path: Path, jobs: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = Workshop(tmp_path / "workspace", train_command="false {job}", train_jobs=jobs, fit_defaults=OPTIONS)
    for name in ("mine", "other"):
        queue(made, name)
    mine, other = (job_of(made.store.workspace, made.store.get(name), jobs).address for name in ("mine", "other"))
    made.store.advance("mine", RunState.TRAINING)
    launcher = "import time; time.sleep(600)"
    lines = (
        ["-u", "-m", "executor", "train", "--job", mine],
        ["-m", "executor", "train", f"--job={mine}", "--tied"],
        ["-m", "executor", "train", "--job", other],
        ["-c", launcher, "-m", "executor", "train", "--job", mine],
    )
    started = [subprocess.Popen([sys.executable, *line], cwd=ROOT, stdin=subprocess.PIPE) for line in lines]
    for process in started:
        psutil.Process(process.pid).suspend()
    try:
        with made.supervised():
            assert [has_ended(process.pid) for process in started] == [True, True, False, False]
            made.supervisor.cancel("mine")
            made.supervisor.cancel("other")
    finally:
        for process in started:
            end_process(process)
    made.close()


@pytest.mark.flow
@pytest.mark.process
def test_the_service_serves_and_receives_while_another_command_trains_and_serves_what_it_has_made_once_it_is_whole(
    tmp_path: Path,
) -> None:
    """The first attempt at a run loses its proof: the run says so, is tried again, and is served then."""
    jobs, gate = tmp_path / "jobs", tmp_path / "gate"
    (tmp_path / "lose.py").write_text(LOSING)
    command = f"{{python}} {tmp_path}/lose.py {{job}} {gate}"
    with served(tmp_path, train_command=command, train_jobs=str(jobs), fit_defaults=OPTIONS | {"epochs": 2}) as service:
        evaluation = documents(10, "e", 1000)
        service.post("/fit", evaluation, returns=RunStatus, run="one", split="eval")
        service.post("/fit", documents(20), returns=RunStatus, run="one", total=20)
        service.wait("one", until=lambda status: status.state == "training" and list(jobs.glob("one-*/attempt.json")))
        embedded = service.post("/embed", documents(2), returns=Document)
        assert {doc.tags["finetuner_model"] for doc in embedded} == {"base"}
        received = service.post("/fit", documents(20), returns=RunStatus, run="two", total=20)
        assert received[-1].state == "queued"
        assert not list(jobs.rglob("*-wal"))
        gate.touch()

        with contextlib.closing(RunStore(Workspace(service.run_folder("one").parent.parent))) as store:
            service.wait("one", until=lambda status: store.progress("one").error)
            told = store.progress("one").error  # of which it fails if it happens again
        assert told is not None
        assert "is not whole: lineage.safetensors and proof.json were gone when it ended. See that nothing" in told
        healed = service.wait("one")
        assert (healed.state, healed.attempts) == ("succeeded", 2)
        assert (service.run_folder("one") / "proof.json").exists()
        assert (service.run_folder("one") / "lineage.safetensors").exists()

        assert {doc.tags["finetuner_model"] for doc in service.post("/embed", documents(2), returns=Document)} == {
            "one"
        }
        assert "one" in service.http("/report", run="one").json()["data"][0]["text"]
        service.wait("two", until=lambda status: status.state == "training" and list(jobs.glob("two-*")))
        service.cancel("two")
        assert service.wait("two").state == "cancelled"
        assert not list(jobs.iterdir())


def has_ended(pid: int) -> bool:
    """Whether a process has ended; one that nobody has waited for yet has."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.process
def test_a_command_ends_with_the_process_that_looks_after_it(tmp_path: Path) -> None:
    """Also if that is killed, as it is when the service is: the kernel tells the command. Then the run goes on."""
    started = tmp_path / "started"
    script = tmp_path / "idle.py"
    script.write_text(f"import os, time\nopen({str(started)!r}, 'a').write(f'{{os.getpid()}}\\n')\ntime.sleep(600)\n")
    made = Workshop(tmp_path / "workspace", train_command=f"{{python}} {script} {{job}}", fit_defaults=OPTIONS)
    queue(made, "idle")

    def commands() -> list[int]:
        return [int(pid) for pid in started.read_text().split()] if started.exists() else []

    with made.supervised() as supervisor:
        pid = made.wait("idle", lambda run: commands() and run.pid).pid
        assert pid is not None
        kill(pid)
        made.wait("idle", lambda run: len(commands()) == 2)
        assert has_ended(commands()[0])
        assert made.store.get("idle").attempts == 2
        supervisor.cancel("idle")
        assert not psutil.pid_exists(commands()[1])
    made.close()
