"""What survives SIGKILL: `benchmarks/faults.py` with a kill of each kind. The program leaves nothing behind."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from executor import DocumentArray
from executor.lifecycle.receiving import Receiver
from executor.parameters import ExecutorOptions, FitParameters
from executor.store.runs import RunStore
from executor.store.workspace import Workspace

ROOT = Path(__file__).resolve().parent.parent
VICTIMS = ("trainer", "stopped trainer", "gateway", "service")  # `--tiny` kills each of them once
# By which no kill waits for the clock, the service is killed by its executor alone, so that it is seen whether the
# trainer ends by itself, and three of the kills come while a run is trained.
SEED = 17821


def start(folder: Path, seed: int) -> "subprocess.Popen[str]":
    """The program, whose temporary files lie in `folder`."""
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.faults", "--tiny", "--seed", str(seed)],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def started_in(folder: Path) -> list[psutil.Process]:
    """The processes that know the folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if any(str(folder) in part for part in process.cmdline()):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def printed(folder: Path) -> str:
    """What the program says of its kills."""
    process = start(folder, SEED)
    try:
        output, _ = process.communicate(timeout=800)
    finally:
        process.kill()
    assert process.returncode in (0, 1), output[-4000:]
    return output


def count(printed: str, what: str) -> int:
    found = re.search(rf"^\| {re.escape(what)} \| (\d+) \|$", printed, re.MULTILINE)
    assert found is not None, printed[-4000:]
    return int(found[1])


@pytest.mark.process
@pytest.mark.alone
@pytest.mark.timeout(900)  # many starts of a trainer or a service, on whatever machine
@pytest.mark.parametrize(
    "what",
    [
        "documents lost",
        "documents counted twice",
        "runs that ended otherwise than their undisturbed twin",
        "requests that failed while the service was up",
    ],
)
def test_kills_do_no_harm(printed: str, what: str) -> None:
    assert count(printed, what) == 0, printed[-6000:]


@pytest.mark.process
@pytest.mark.alone
def test_no_trainer_outlives_its_service_and_a_stopped_one_is_replaced(printed: str) -> None:
    assert "\ntrainers that outlived their service: 0\n" in printed
    assert "\nstopped trainers that were not replaced: 0\n" in printed


@pytest.mark.process
@pytest.mark.alone
def test_the_trainer_the_gateway_and_the_service_were_killed_while_there_was_something_to_lose(printed: str) -> None:
    kills = {what: count(printed, f"kills: {what}") for what in VICTIMS}
    assert kills == dict.fromkeys(VICTIMS, 1)
    assert count(printed, "documents acknowledged") > 0
    assert count(printed, "runs ended") > 0


@pytest.mark.process
@pytest.mark.alone
def test_the_program_ends_all_processes_that_it_started(printed: str, folder: Path) -> None:
    assert "kill 1:" in printed
    assert started_in(folder) == []


def test_counting_the_documents_of_a_run_that_was_just_queued_leaves_no_file_open(
    tmp_path: Path, labelled: Callable[..., DocumentArray]
) -> None:
    store = RunStore(Workspace(tmp_path))
    receiver = Receiver(store, ExecutorOptions())
    run = receiver.receive(labelled(4), FitParameters(total=4))
    assert receiver.counts(run) == (4, 0)
    opened = [file.path for file in psutil.Process().open_files()]
    receiver.close()
    store.close()
    assert not [path for path in opened if path.startswith(str(store.workspace.spool_file(run)))]


@pytest.mark.process
def test_a_trainer_whose_service_has_died_ends_before_it_has_imported_torch(tmp_path: Path) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "executor", "train", "--workspace", str(tmp_path)]
    ended = subprocess.run(
        [*command, "--run", "orphan", "--tied"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,  # ended, as the pipe from the service has
        capture_output=True,
        text=True,
        check=False,
    )
    imported = {line.rpartition("|")[2].strip() for line in ended.stderr.splitlines()}
    assert ended.returncode == -signal.SIGKILL
    assert "argparse" in imported
    assert "torch" not in imported
