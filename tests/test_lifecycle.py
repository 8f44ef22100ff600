"""The service and its trainer start, end, die, and go on where they were."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from docarray import DocList
from jina import Client

import fronts
from conftest import coloured
from executor import Document, DocumentArray
from executor.documents import RunStatus
from serving import ROOT, Service, free_ports, gone

pytestmark = [pytest.mark.flow, pytest.mark.alone]

FOREVER = 100_000  # epochs
SOME = 12  # epochs: enough to be caught between the first step and the last


def documents(count: int) -> DocumentArray:
    return DocumentArray(
        Document(id=f"d{number}", blob=coloured(number % 3, number), tags={"finetuner_label": number % 3})
        for number in range(count)
    )


def train_for_ever(service: Service, run: str) -> psutil.Process:
    """Start a run that would take days, wait until it makes steps, and return its trainer."""
    service.post("/fit", documents(12), returns=RunStatus, run=run, total=12, epochs=FOREVER)
    service.wait(run, until=lambda status: status.step > 0)
    (trainer,) = service.trainers()
    return trainer


def train_half(service: Service, run: str) -> psutil.Process:
    """Start a run and return its trainer, halted between the first step and the last."""
    service.post("/fit", documents(12), returns=RunStatus, run=run, total=12, epochs=SOME)
    service.wait(run, until=lambda status: status.step > 0)
    (trainer,) = service.trainers()
    trainer.suspend()
    return trainer


def executor_command(port: int, workspace: Path) -> list[str]:
    """What a user writes after `python`."""
    return [
        *("-m", "jina", "executor", "--uses", str(ROOT / "config.yml"), "--port", str(port)),
        *("--host", "127.0.0.1", "--workspace", str(workspace), "--uses-with", json.dumps(fronts.SMALL)),
    ]


# --- one workspace through several lives of its service --------------------------------------------------------------


class Lives:
    """The lives of one service on one workspace, and what was seen on the way; each method is a part of it.

    In the first, run `served` succeeds and is promoted; then every process of the service but the trainer gets
    SIGKILL while run `interrupted` trains and run `receiving` has some of its documents. In the second, the trainer
    of run `orphaned` gets SIGKILL. It ends by SIGINT while run `endless` trains.
    """

    def __init__(self, service: Service) -> None:
        self.service = service

    def live_once(self) -> None:
        service = self.service.start()
        service.post("/fit", documents(12), returns=RunStatus, run="served", total=12, epochs=1, promote="always")
        self.served = service.wait("served")
        self.embedding = service.post("/embed", documents(1), returns=Document)[0].embedding
        service.post("/fit", documents(3), returns=RunStatus, run="half-deleted", total=12)
        service.cancel("half-deleted")
        trainer = train_half(service, "interrupted")
        self.acknowledged = service.post("/fit", documents(5), returns=RunStatus, run="receiving", total=6)[0]
        for process in everything_but(trainer, service):
            process.kill()
        service.stop(signal.SIGKILL)
        trainer.resume()
        self.trainer_is_gone = gone(trainer)
        self.trainer_had_finished = (service.run_folder("interrupted") / "model").exists()
        self.half_deleted = service.run_folder("half-deleted")
        self.deleted = self.half_deleted.parents[1] / "deleted"
        self.deleted.mkdir(exist_ok=True)
        self.half_deleted.rename(self.deleted / "1-half-deleted")  # as if it had been killed before its commit
        (self.deleted / "77-over").mkdir()  # and after the one of another

    def live_again(self) -> None:
        service = self.service.start()
        self.statuses = list(service.post("/status", returns=RunStatus))
        self.embedded = service.post("/embed", documents(1), returns=Document)[0]
        service.post("/cancel", returns=RunStatus, run="receiving")
        self.interrupted = service.wait("interrupted")

    def lose_the_trainer(self) -> None:
        trainer = train_half(self.service, "orphaned")
        trainer.kill()
        self.orphaned = self.service.wait("orphaned")

    def end(self) -> tuple[int, bool]:
        """SIGINT while a run trains; return the exit code and whether no process is left."""
        trainer = train_for_ever(self.service, "endless")
        processes = [trainer, *everything_but(trainer, self.service)]
        return self.service.stop(signal.SIGINT), gone(*processes)


def everything_but(trainer: psutil.Process, service: Service) -> list[psutil.Process]:
    """The processes of a service, without its trainer."""
    assert service.process is not None
    main = psutil.Process(service.process.pid)
    return [process for process in (main, *main.children(recursive=True)) if process != trainer]


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lives]:
    """After the first life."""
    folder = tmp_path_factory.mktemp("lives")
    with contextlib.ExitStack() as stack:
        service = Service(folder / "workspace", folder / "cwd")
        stack.push(service.__exit__)
        lives = Lives(service)
        lives.live_once()
        yield lives


@pytest.fixture(scope="module")
def restarted(killed: Lives) -> Lives:
    """In the second life."""
    killed.live_again()
    return killed


@pytest.fixture(scope="module")
def recovered(restarted: Lives) -> Lives:
    """After the loss of a trainer."""
    restarted.lose_the_trainer()
    return restarted


def test_a_flow_serves_the_path_of_config_yml_from_another_directory(killed: Lives) -> None:
    assert ROOT not in (killed.service.directory, *killed.service.directory.parents)
    assert killed.served.state == "succeeded", killed.served.error


def test_the_trainer_dies_by_itself_when_its_service_gets_sigkill(killed: Lives) -> None:
    assert killed.trainer_is_gone
    assert not killed.trainer_had_finished


def test_a_service_started_again_shows_the_earlier_runs(restarted: Lives) -> None:
    assert [status.run for status in restarted.statuses] == ["receiving", "interrupted", "half-deleted", "served"]
    assert restarted.statuses[-1].ended_at == restarted.served.ended_at
    assert restarted.statuses[-1].history == restarted.served.history


def test_a_service_started_again_finishes_what_the_killed_one_was_deleting(restarted: Lives) -> None:
    assert restarted.service.status("half-deleted").state == "cancelled"
    assert restarted.half_deleted.is_dir()
    assert not list(restarted.deleted.iterdir())


def test_a_service_started_again_serves_the_promoted_model(restarted: Lives) -> None:
    assert restarted.embedded.tags["finetuner_model"] == "served"
    np.testing.assert_allclose(restarted.embedded.embedding, restarted.embedding, atol=1e-5)


def test_documents_that_were_acknowledged_before_sigkill_are_there_after_it(restarted: Lives) -> None:
    assert restarted.acknowledged.train_documents == 5
    assert restarted.statuses[0].train_documents == 5


def test_a_run_that_trained_when_its_service_died_is_resumed_and_succeeds(restarted: Lives) -> None:
    assert (restarted.interrupted.state, restarted.interrupted.attempts) == ("succeeded", 2)


def test_a_run_whose_trainer_is_killed_is_resumed_and_succeeds(recovered: Lives) -> None:
    assert (recovered.orphaned.state, recovered.orphaned.attempts) == ("succeeded", 2)


@pytest.mark.parametrize("run", ["interrupted", "orphaned"])
def test_a_resumed_run_makes_each_epoch_once(recovered: Lives, run: str) -> None:
    status: RunStatus = getattr(recovered, run)
    assert (status.epoch, status.step) == (SOME, status.steps)
    assert len(status.history["loss"]) == SOME


def test_a_second_service_on_the_workspace_is_refused_with_the_holder(restarted: Lives, tmp_path: Path) -> None:
    workspace = restarted.service.workspace
    holder = next(workspace.glob("*/*/service.lock")).read_text()
    _, said = fronts.ended(tmp_path, executor_command(*free_ports(1), workspace))
    assert f"is in use by another service (process {holder})" in " ".join(said.split())
    assert restarted.service.status("served").state == "succeeded"


def test_sigint_ends_the_service_its_trainer_and_every_other_process(recovered: Lives) -> None:
    code, no_process_is_left = recovered.end()
    assert no_process_is_left
    assert code == 0


# --- another way to serve; a Flow of the class: test_installed.py -----------------------------------------------------


@contextlib.contextmanager
def process(command: list[str], folder: Path, ready: Callable[[], object]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command in `folder` from when it is ready; it is killed in the end if it still runs."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JINA_OPTOUT_TELEMETRY": "1"}
    with (
        open(folder / "log", "wb") as log,
        subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
        ) as running,
    ):
        try:
            deadline = time.monotonic() + 90
            while True:
                try:
                    ready()
                    break
                except Exception as error:  # whatever a client makes of a port that nobody listens on yet
                    if running.poll() is not None or time.monotonic() > deadline:
                        raise RuntimeError((folder / "log").read_text()[-4000:]) from error
                    time.sleep(0.2)
            yield running
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(running.pid, signal.SIGKILL)


def over_grpc(port: int, endpoint: str, docs: DocumentArray | None, **parameters: object) -> list[RunStatus]:
    client = Client(host="127.0.0.1", port=port, protocol="grpc")
    return list(client.post(endpoint, docs, parameters=parameters, return_type=DocList[RunStatus]))


def test_jina_executor_serves_grpc_by_default(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    command = [sys.executable, *executor_command(port, tmp_path / "workspace")]
    with process(command, tmp_path, lambda: over_grpc(port, "/status", None)):
        (status,) = over_grpc(port, "/fit", documents(3), run="first")
        assert (status.state, status.train_documents) == ("receiving", 3)
        assert over_grpc(port, "/cancel", None, run="first")[0].state == "cancelled"
