"""What the supervisor does with its trainers. Here they are shell commands that end as a trainer might end."""

import contextlib
import functools
import logging
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from executor import Document, DocumentArray
from executor.compute.memory import KernelKills
from executor.errors import Conflict, UnknownRun
from executor.lifecycle import supervisor as supervising
from executor.lifecycle import watchdog
from executor.lifecycle.processes import TrainerProcesses
from executor.lifecycle.promotion import MAX_TRIES
from executor.lifecycle.receiving import Receiver
from executor.lifecycle.supervisor import LOG_LINES, MAX_FRUITLESS_ATTEMPTS, TICK_SECONDS, Supervisor, how_it_ended
from executor.parameters import FitParameters, TrainingOptions, parse_executor_options
from executor.report import contents
from executor.report.parts import ModelFacts
from executor.report.report import load
from executor.store.run import Progress, Run, RunState, TrainerExit
from executor.store.runs import RunStore
from executor.store.workspace import Workspace
from workshop import all_gone

pytestmark = pytest.mark.process
FACTS = ModelFacts(name="small", input_size=16, crop=False, parameters=1, embedding_size=2)
RECEIVING, QUEUED, TRAINING, SUCCEEDED, FAILED, CANCELLED = RunState
FOR_EVER = "exec sleep 600"
MODEL = "mkdir model"


def ends(code: int) -> str:
    return f"exit {int(code)}"


def checkpoint(step: int) -> str:
    return f"mkdir -p checkpoints/{step:010d}"


class Shells(TrainerProcesses):
    """Trainers that are shell commands, run in the folder of the run: one after the other, the last ever again."""

    def __init__(self, workspace: Workspace, *commands: str) -> None:
        super().__init__(workspace, nice=0, yields=False, standby_seconds=0)
        self.workspace = workspace
        self.commands = list(commands)
        self.started: list[tuple[str, subprocess.Popen[bytes]]] = []
        self.prepared = self.expired = self.closed = 0

    def start(self, run: Run) -> "subprocess.Popen[bytes]":
        command = self.commands.pop(0) if len(self.commands) > 1 else self.commands[0]
        with open(self.workspace.log_file(run.name), "ab") as log:
            process = subprocess.Popen(
                ["sh", "-c", command],
                cwd=self.workspace.run_folder(run.name),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
            )
        self.started.append((run.name, process))
        return process

    @property
    def runs(self) -> list[str]:
        """What trainers were started for."""
        return [run for run, _ in self.started]

    def process(self, number: int = -1) -> "subprocess.Popen[bytes]":
        """One of those that were started."""
        return self.started[number][1]

    def prepare(self) -> None:
        self.prepared += 1

    def expire(self) -> None:
        self.expired += 1

    def close(self) -> None:
        self.closed += 1


class House(logging.Handler):
    """A workspace, its receiver, and its supervisor with such trainers; it hears of the errors that are logged."""

    def __init__(self, folder: Path, **options: object) -> None:
        super().__init__(logging.ERROR)
        self.errors: list[str] = []
        self.outcomes: list[str] = []
        self.forgives = 0  # so many errors are part of the test
        logging.getLogger(supervising.__name__).addHandler(self)
        self.store = RunStore(Workspace(folder))
        self.receiver = Receiver(self.store, parse_executor_options({"receive_timeout": 600, **options}).with_roots())
        self.trainers = Shells(self.store.workspace, FOR_EVER)
        self.promote: Callable[[str], None] = self.store.promote
        self.wake = threading.Event()
        self.supervisor = self.another()

    def emit(self, record: logging.LogRecord) -> None:
        self.errors.append(f"{record.getMessage()}: {record.exc_info and record.exc_info[1]!r}")

    def another(self) -> Supervisor:
        """A further supervisor, as of a service that was started again."""
        return Supervisor(
            self.store,
            self.receiver,
            self.trainers,
            promote=lambda run: self.promote(run),
            judged=self.outcomes.append,
            wake=self.wake,
        )

    @contextmanager
    def tended(self, *commands: str) -> Iterator[Supervisor]:
        """The supervisor at work, with trainers that run these commands."""
        if commands:
            self.trainers.commands = list(commands)
        self.supervisor.start()
        try:
            yield self.supervisor
        finally:
            self.supervisor.close()

    def receive(self, name: str, **options: object) -> Run:
        """A run that waits for more documents."""
        docs = DocumentArray([Document(id="d", uri="data:,x", tags={"finetuner_label": 1})])
        self.receiver.receive(docs, FitParameters(run=name, **options))
        return self.store.get(name)

    def queue(self, name: str, progress: Progress | None = None, **options: object) -> None:
        """A run that waits for a trainer, with a report and with what its trainer will have told."""
        run = self.receive(name, **options)
        self.receiver.queue(name)
        self.store.report(name, progress or Progress())
        contents.write(
            self.store,
            run,
            kind="class",
            classes=2,
            counts=(1, 0, 0),
            choosing=0,
            history={},
            device="cpu",
            eval_set=None,
            before=None,
            after=None,
            verdict="",
            served="base",
            used={},
            model=FACTS,
            label_errors=None,
        )

    def wait(self, name: str, until: Callable[[Run], object] = lambda run: run.state.ended) -> Run:
        """Wait until a run has ended, or until something holds for it."""
        return self.wait_for(lambda: (found := self.store.get(name)) and until(found) and found)

    def wait_for(self, holds: Callable[[], object], seconds: float = 15) -> object:
        """Wait until something holds, and return it."""
        deadline = time.monotonic() + seconds
        while not (found := holds()):
            assert time.monotonic() < deadline, [self.store.events(run.name) for run in self.store.all()]
            assert len(self.errors) <= self.forgives, self.errors
            time.sleep(0.01)
        return found

    def events(self, run: str, kind: str) -> list[str]:
        return [message for *_, found, message in self.store.events(run) if found == kind]

    def kinds(self, run: str) -> list[str]:
        return [kind for _, _, kind, _ in self.store.events(run)]

    def close(self) -> None:
        logging.getLogger(supervising.__name__).removeHandler(self)
        super().close()
        self.receiver.close()
        self.store.close()


@pytest.fixture
def house(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[House]:
    """Its parameter: options of the executor."""
    opened = House(tmp_path / "workspace", **getattr(request, "param", {}))
    yield opened
    opened.close()


def is_alive(process: "subprocess.Popen[bytes]") -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE
    return False


# --- a trainer that has made a model ----------------------------------------------------------------------------------

PROVEN, DISPROVEN, UNMEASURED = (
    Progress(better=True, served="base", verdict="It is better."),
    Progress(better=False, served="base", verdict="It is not better."),
    Progress(),
)


@pytest.mark.parametrize(
    ("policy", "progress", "promoted"),
    [
        ("if_better", PROVEN, True),
        ("if_better", DISPROVEN, False),
        ("if_better", UNMEASURED, False),
        ("always", PROVEN, True),
        ("always", DISPROVEN, True),
        ("always", UNMEASURED, True),
        ("never", PROVEN, False),
        ("never", DISPROVEN, False),
        ("never", UNMEASURED, False),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_model_is_served_as_its_run_asked_and_the_proof_allows(
    house: House, policy: str, progress: Progress, promoted: bool
) -> None:
    house.queue("a", progress, promote=policy)
    with house.tended(f"{MODEL}; {ends(TrainerExit.SUCCEEDED)}"):
        run = house.wait("a")
    assert (run.state, run.attempts) == (SUCCEEDED, 1)
    assert house.store.promoted() == ("a" if promoted else "base")
    outcome = "It was promoted." if promoted else f"It was not promoted (promote={policy})."
    assert run.verdict == f"{progress.verdict or contents.UNPROVEN} {outcome}"
    told = load(house.store.workspace.run_folder("a"))
    assert (told.promoted, told.verdict, told.ended_at) == (promoted, run.verdict, run.ended_at)


def test_a_model_that_was_measured_against_another_version_than_the_one_served_by_now_is_not_served(
    house: House,
) -> None:
    house.queue("a", Progress(better=True, served="earlier", verdict="Better."))
    with house.tended(f"{MODEL}; exit 0"):
        run = house.wait("a")
    assert house.store.promoted() == "base"
    assert "It was measured against 'earlier', and 'base' is served by now" in (run.verdict or "")


def test_a_model_is_served_before_its_run_is_called_succeeded(house: House) -> None:
    seen: list[tuple[str, RunState]] = []
    house.promote = lambda run: seen.append((run, house.store.get(run).state))
    house.queue("a", PROVEN)
    with house.tended(f"{MODEL}; exit 0"):
        house.wait("a")
    assert seen == [("a", TRAINING)]


def test_a_run_that_has_succeeded_keeps_no_checkpoints_and_the_next_trainer_is_made_ready(house: House) -> None:
    house.queue("a")
    with house.tended(f"{checkpoint(7)}; mkdir images; {MODEL}; exit 0"):
        house.wait("a")
        house.wait_for(lambda: house.trainers.prepared == 1)
    left = {path.name for path in house.store.workspace.run_folder("a").iterdir()}
    assert "model" in left
    assert left.isdisjoint({"checkpoints", "images"})


def test_a_run_that_is_served_when_its_service_is_killed_has_succeeded_and_is_not_trained_and_judged_again(
    house: House,
) -> None:
    house.queue("a", PROVEN)
    house.store.advance("a", TRAINING)
    house.store.workspace.model_folder("a").mkdir(parents=True)
    house.store.promote("a")
    with house.tended(f"{MODEL}; exit 0"):
        run = house.wait("a")
    assert (run.state, run.verdict, house.trainers.runs) == (SUCCEEDED, "It is better. It was promoted.", [])


def test_what_could_not_be_written_down_is_judged_again(house: House) -> None:
    calls: list[str] = []

    def promote(run: str) -> None:
        calls.append(run)
        if len(calls) == 1:
            raise OSError("No space left on device")
        house.store.promote(run)

    house.promote, house.forgives = promote, 1
    house.queue("a", PROVEN)
    with house.tended(f"{MODEL}; exit 0"):
        run = house.wait("a")
    assert (run.state, run.attempts, calls) == (SUCCEEDED, 1, ["a", "a"])


def fails(times: int, what: Callable[..., Any], error: Exception) -> Callable[..., Any]:
    """The function, which fails so many times first."""
    left = [error] * times

    def failing(*arguments: Any, **more: Any) -> Any:
        if left:
            raise left.pop()
        return what(*arguments, **more)

    return failing


def test_a_run_whose_model_cannot_be_served_ends_after_a_few_tries_and_the_next_one_trains(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervising, "RETRY_SECONDS", 0.01)
    calls: list[str] = []

    def promote(run: str) -> None:
        calls.append(run)
        raise RuntimeError("the model cannot be loaded")

    house.promote, house.forgives = promote, MAX_TRIES
    house.queue("a", PROVEN)
    house.queue("b", UNMEASURED)
    with house.tended(f"{MODEL}; exit 0"):
        run = house.wait("a")
        assert house.wait("b").state is SUCCEEDED
    assert calls == ["a"] * MAX_TRIES
    assert house.outcomes == ["failed", "kept"]
    assert (run.state, house.store.promoted()) == (SUCCEEDED, "base")
    assert run.verdict == (
        "It is better. It was not promoted, because it could not be served: RuntimeError: the model cannot be loaded. "
        "'base' is still served. Look into the service's log, then call /promote."
    )
    assert house.events("a", "succeeded") == [run.verdict]
    assert load(house.store.workspace.run_folder("a")).promoted is False


def test_a_run_that_was_promoted_is_said_to_be_so_also_if_that_could_not_be_written_down_at_once(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervising, "RETRY_SECONDS", 0.01)
    house.forgives = 1
    house.queue("a", PROVEN)
    advance = house.store.advance
    no_room = fails(1, advance, OSError("No space left on device"))
    monkeypatch.setattr(
        house.store, "advance", lambda run, to, **more: (no_room if to is SUCCEEDED else advance)(run, to, **more)
    )
    with house.tended(f"{MODEL}; exit 0"):
        run = house.wait("a")
    assert (house.store.promoted(), run.verdict) == ("a", "It is better. It was promoted.")
    assert house.events("a", "promoted") == ["this version is served now"]
    assert house.outcomes == ["promoted"]


def test_a_full_disk_costs_no_promotion_however_long_it_is_full(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervising, "RETRY_SECONDS", 0.01)
    house.forgives = 4 * MAX_TRIES
    house.queue("a", PROVEN)
    full, advance = OSError("No space left on device"), house.store.advance
    house.promote = fails(2 * MAX_TRIES, house.store.promote, full)
    no_room = fails(MAX_TRIES + 1, advance, full)  # the tries before were not given up
    monkeypatch.setattr(
        house.store, "advance", lambda run, to, **more: (no_room if to is SUCCEEDED else advance)(run, to, **more)
    )
    with house.tended(f"{MODEL}; exit 0"):
        run = house.wait("a")
    assert (house.store.promoted(), run.verdict) == ("a", "It is better. It was promoted.")


def test_a_report_that_could_not_be_finished_is_finished_later(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervising, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(supervising, "settle", fails(1, contents.settle, OSError("No space left on device")))
    house.forgives = 1
    house.queue("a", PROVEN)
    with house.tended(f"{MODEL}; exit 0"):
        run = house.wait("a")
        house.wait_for(lambda: house.trainers.prepared == 1)
    told = load(house.store.workspace.run_folder("a"))
    assert (told.promoted, told.verdict, told.ended_at) == (True, run.verdict, run.ended_at)
    assert told.started_at == run.started_at is not None


def test_a_report_that_cannot_be_finished_stops_no_other_run(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervising, "RETRY_SECONDS", 0.01)
    house.forgives = MAX_TRIES
    house.queue("a", PROVEN)
    house.queue("b", UNMEASURED)
    (house.store.workspace.run_folder("a") / "report.json").write_text("damaged")
    with house.tended(f"{MODEL}; exit 0"):
        assert house.wait("a").state is SUCCEEDED
        assert house.wait("b").state is SUCCEEDED
        house.wait_for(lambda: house.events("a", "error"))  # the other run does not wait for that
    (told,) = house.events("a", "error")
    assert told.startswith("its report does not say what became of the model: ")


def test_an_exit_without_fault_that_leaves_no_model_is_no_success(house: House) -> None:
    house.queue("a")
    with house.tended("exit 0"):
        run = house.wait("a")
    assert (run.state, run.attempts) == (FAILED, MAX_FRUITLESS_ATTEMPTS)
    assert house.store.promoted() == "base"


def test_a_fault_is_no_success_though_there_is_a_model(house: House) -> None:
    house.queue("a", PROVEN)
    with house.tended(f"mkdir -p model; {ends(TrainerExit.CRASHED)}"):
        assert house.wait("a").state is FAILED
    assert house.store.promoted() == "base"


# --- a trainer that gives up ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "error"), [("There is one label.", "There is one label."), (None, "the trainer refused the run")]
)
def test_a_run_that_its_trainer_refuses_fails_at_once_with_the_reason(
    house: House, told: str | None, error: str
) -> None:
    house.queue("a", Progress(error=told))
    with house.tended(f"{checkpoint(3)}; mkdir images; {ends(TrainerExit.REFUSED)}"):
        run = house.wait("a")
    assert (run.state, run.error, run.attempts) == (FAILED, error, 1)
    assert house.store.workspace.latest_step("a") == 3  # a checkpoint may help, the images do not
    assert not (house.store.workspace.run_folder("a") / "images").exists()


@pytest.mark.parametrize("told", ["The disk of /x is full.", None])
def test_a_run_whose_disk_cannot_be_written_fails_at_once_with_the_place(house: House, told: str | None) -> None:
    house.queue("a", Progress(error=told))
    with house.tended(ends(TrainerExit.UNWRITABLE)):
        run = house.wait("a")
    assert (run.state, run.attempts) == (FAILED, 1)
    place = house.store.workspace.run_folder("a")
    expected = f"The disk of {place} is full or cannot be written. See to that, then train another run."
    assert run.error == (told or expected)


# --- a trainer that dies ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "death"),
    [
        (ends(TrainerExit.CRASHED), "ended with exit code 1"),
        ("exit 77", "ended with exit code 77"),
        ("kill -9 $$", "was killed by signal 9 (SIGKILL)"),
        (ends(TrainerExit.INTERRUPTED), "was told to stop"),
    ],
)
def test_a_run_fails_when_its_trainer_has_died_three_times_without_a_further_checkpoint(
    house: House, command: str, death: str
) -> None:
    house.queue("a")
    with house.tended(f"mkdir -p images; echo 'no good: '; echo; echo '  the last words '; {command}"):
        run = house.wait("a")
    assert (run.state, run.attempts, run.pid) == (FAILED, 3, None)
    assert run.error == (
        f"The trainer {death} 3 times without a further checkpoint: the last words "
        "Its log is trainer.log in the folder of the run."
    )
    assert house.events("a", "resumed") == [f"the trainer {death}; it goes on from step 0"] * 2
    (log,) = house.events("a", "error")
    assert log.startswith("the end of the trainer's log: no good:")
    assert log.endswith(" | the last words")
    assert not (house.store.workspace.run_folder("a") / "images").exists()


def test_what_the_trainer_has_told_is_a_better_reason_than_its_log(house: House) -> None:
    house.queue("a", Progress(error="The model is broken."))
    with house.tended("echo some line; exit 1"):
        run = house.wait("a")
    assert run.error is not None
    assert "checkpoint: The model is broken. Its log" in run.error


def test_a_trainer_that_says_nothing_fails_all_the_same(house: House) -> None:
    house.queue("a")
    with house.tended("exit 1"):
        run = house.wait("a")
    assert run.error is not None
    assert "its log is empty" in run.error


def test_only_the_end_of_a_long_log_is_told(house: House) -> None:
    house.queue("a")
    with house.tended("seq 100; exit 1"):
        house.wait("a")
    (log,) = house.events("a", "error")
    lines = log.removeprefix("the end of the trainer's log: ").split(" | ")
    assert lines == [str(number) for number in range(101 - LOG_LINES, 101)]


def test_every_further_checkpoint_gives_a_run_three_more_attempts(house: House) -> None:
    house.queue("a")
    dies = "kill -9 $$"
    with house.tended(dies, dies, f"{checkpoint(5)}; {dies}", dies, f"{checkpoint(9)}; {dies}", dies):
        run = house.wait("a")
    assert (run.state, run.attempts) == (FAILED, 7)
    steps = [message.rpartition(" ")[2] for message in house.events("a", "resumed")]
    assert steps == ["0", "0", "5", "5", "9", "9"]


def test_a_checkpoint_of_an_earlier_service_is_no_progress_of_this_one(house: House) -> None:
    house.queue("a")
    (house.store.workspace.checkpoint_folder("a") / "0000000004").mkdir(parents=True)
    with house.tended("exit 1"):
        assert house.wait("a").attempts == 3


def test_a_run_that_recovers_succeeds(house: House) -> None:
    house.queue("a")
    with house.tended("exit 1", "kill -9 $$", f"{MODEL}; exit 0"):
        run = house.wait("a")
    assert (run.state, run.attempts, run.error) == (SUCCEEDED, 3, None)


def test_attempts_that_ran_out_of_memory_are_not_counted(house: House) -> None:
    """Each has halved what is in memory at a time."""
    house.queue("a")
    memory = ends(TrainerExit.OUT_OF_MEMORY)
    with house.tended("exit 1", "exit 1", *[memory] * 4, "exit 1", "exit 1", f"{MODEL}; exit 0"):
        run = house.wait("a")
    assert (run.state, run.attempts) == (SUCCEEDED, 9)
    assert house.events("a", "resumed").count("the trainer ran out of memory; it goes on from step 0") == 4


def test_a_trainer_that_the_kernel_killed_for_memory_is_told_apart_from_one_that_someone_killed(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = tmp_path / "proc" / "vmstat"
    counter.parent.mkdir()
    counter.write_text("oom_kill 3\n")
    monkeypatch.setattr(supervising, "KernelKills", functools.partial(KernelKills, root=tmp_path))
    by_the_kernel = [f"sleep 0.1; echo 'oom_kill {count}' > {counter}; kill -9 $$" for count in (4, 5, 6, 7)]
    dies_otherwise = (
        f"sleep 0.1; echo 'oom_kill 8' > {counter}; exit 1"  # a kill of some other process in the same moment
    )
    house.queue("a")
    with house.tended(*by_the_kernel, dies_otherwise, "kill -9 $$"):
        run = house.wait("a")
    assert (run.state, run.attempts) == (FAILED, 7)
    assert house.events("a", "killed") == ["the kernel killed the trainer: no memory was left"] * 4
    resumed = house.events("a", "resumed")
    assert resumed[:4] == ["the trainer was killed by the kernel, which had no memory left; it goes on from step 0"] * 4
    assert ["exit code 1" in resumed[4], "signal 9" in resumed[5]] == [True, True]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (-9, "was killed by signal 9 (SIGKILL)"),
        (-15, "was killed by signal 15 (SIGTERM)"),
        (4, "was told to stop"),
        (0, "ended with exit code 0"),
        (1, "ended with exit code 1"),
    ],
)
def test_the_end_of_a_process_is_said_in_words(code: int, words: str) -> None:
    assert how_it_ended(code) == words


# --- which run has the trainer ----------------------------------------------------------------------------------------


def test_runs_are_trained_one_at_a_time_in_the_order_of_the_queue(house: House) -> None:
    for name in ("b", "a", "c"):
        house.queue(name)
    with house.tended(f"sleep 0.2; {MODEL}; exit 0"):
        while not house.store.get("c").state.ended:
            assert len(house.store.in_state(TRAINING)) <= 1
            assert sum(is_alive(process) for _, process in house.trainers.started) <= 1
            time.sleep(0.01)
    assert house.trainers.runs == ["b", "a", "c"]


def test_a_run_that_is_taken_up_again_goes_before_those_that_wait(house: House) -> None:
    for name in "ab":
        house.queue(name)
    with house.tended("exit 1", f"{MODEL}; exit 0"):
        house.wait("b")
    assert house.trainers.runs == ["a", "a", "b"]


def test_a_trainer_is_started_while_documents_still_arrive_and_is_the_one_that_trains(house: House) -> None:
    house.receive("a")
    with house.tended():
        house.wait_for(lambda: house.trainers.started)
        run = house.wait("a", lambda run: run.pid)
        assert (run.state, run.pid, run.attempts) == (RECEIVING, house.trainers.process().pid, 0)
        house.receiver.queue("a")
        run = house.wait("a", lambda run: run.state is TRAINING)
        assert (run.pid, run.attempts) == (house.trainers.process().pid, 1)
    assert house.trainers.runs == ["a"]


def test_only_one_trainer_is_warmed_up_at_a_time(house: House) -> None:
    for name in "ab":
        house.receive(name)
    with house.tended():
        house.wait_for(lambda: house.trainers.started)
        time.sleep(0.3)
        assert house.trainers.runs == ["a"]  # the one that began to receive first


def test_a_trainer_that_was_warmed_up_for_another_run_gives_way_to_the_first_in_the_queue(house: House) -> None:
    house.receive("a")
    with house.tended():
        house.wait_for(lambda: house.trainers.started)
        house.queue("b")
        house.wait("b", lambda run: run.state is TRAINING)
        assert house.trainers.runs == ["a", "b"]
        assert not is_alive(house.trainers.process(0))
        assert house.store.get("a").state is RECEIVING


def test_a_trainer_that_was_warmed_up_with_other_options_is_replaced(house: House) -> None:
    house.receive("a")
    with house.tended():
        house.wait_for(lambda: house.trainers.started)
        settled = TrainingOptions(epochs=3)
        house.store.set_options("a", settled, house.store.get("a").configuration)
        house.wait_for(lambda: len(house.trainers.started) == 2)
        assert not is_alive(house.trainers.process(0))
        house.store.set_options("a", TrainingOptions(epochs=4), house.store.get("a").configuration)
        house.receiver.queue("a")
        house.wait("a", lambda run: run.state is TRAINING)
        house.wait_for(lambda: len(house.trainers.started) >= 3)
        assert [is_alive(process) for _, process in house.trainers.started][:2] == [False, False]
        assert is_alive(house.trainers.process())


def test_a_trainer_that_dies_while_it_warms_up_is_tried_again_only_when_its_run_is_queued(house: House) -> None:
    house.receive("a")
    with house.tended("exit 1", FOR_EVER):
        house.wait_for(lambda: house.trainers.started and not is_alive(house.trainers.process()))
        time.sleep(0.3)
        assert house.trainers.runs == ["a"]
        house.receiver.queue("a")
        run = house.wait("a", lambda run: run.state is TRAINING)
        assert (house.trainers.runs, run.attempts) == (["a", "a"], 1)


@pytest.mark.parametrize("ended", [True, False])
def test_the_trainer_of_a_run_that_came_to_nothing_ends_and_others_are_trained(house: House, ended: bool) -> None:
    """A request whose sources cannot be copied removes the run that it has begun, after a trainer warms up for it."""
    with house.tended("exit 1" if ended else FOR_EVER, FOR_EVER):
        house.receive("next")
        house.wait_for(lambda: house.trainers.runs == ["next"])
        house.store.advance("next", CANCELLED, train_rows=0, eval_rows=0)
        house.receiver.delete("next")
        house.wait_for(lambda: not is_alive(house.trainers.process(0)))
        house.queue("good")
        house.wait("good", lambda run: run.state is TRAINING)


def test_no_trainer_is_warmed_up_while_one_trains(house: House) -> None:
    house.queue("a")
    with house.tended():
        house.wait("a", lambda run: run.state is TRAINING)
        house.receive("b")
        time.sleep(0.3)
        assert house.trainers.runs == ["a"]


def test_an_ended_trainer_leaves_no_pipe_open(house: House) -> None:
    house.queue("a")
    with house.tended(f"{MODEL}; exit 0"):
        house.wait("a")
        stdin = house.trainers.process().stdin
        house.wait_for(lambda: stdin is not None and stdin.closed)


# --- what a service leaves to the next --------------------------------------------------------------------------------


def test_a_run_that_trained_when_its_service_died_is_taken_up_again_first(house: House) -> None:
    for name in "ab":
        house.queue(name)
    house.store.advance("a", TRAINING, pid=4711)
    (house.store.workspace.checkpoint_folder("a") / "0000000012").mkdir(parents=True)
    with house.tended(f"{MODEL}; exit 0"):
        house.wait("b")
    assert house.trainers.runs == ["a", "b"]
    assert house.store.get("a").attempts == 2
    assert house.events("a", "resumed") == ["the service was started again; it goes on from step 12"]


def test_a_run_that_the_next_service_takes_up_has_no_process_until_it_has_a_trainer(house: House) -> None:
    house.queue("a")
    house.store.advance("a", TRAINING, pid=4711)
    house.trainers.commands = [FOR_EVER]
    house.supervisor.start()
    run = house.wait("a", lambda run: run.pid != 4711)
    house.supervisor.close()
    assert run.pid in (None, house.trainers.process().pid)


def ended(house: House, name: str, state: RunState) -> set[str]:
    """A run that has ended, with all that its trainer has left. Return the names in its folder."""
    house.queue(name)
    house.store.advance(name, TRAINING)
    folder = house.store.workspace.run_folder(name)
    for part in ("checkpoints/0000000012", "images", "features", "job", "model"):
        (folder / part).mkdir(parents=True)
    house.store.advance(name, state, verdict="It is better. It was promoted." if state is SUCCEEDED else None)
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("state", "removed"),
    [
        (SUCCEEDED, {"checkpoints", "images", "features", "job"}),
        (FAILED, {"images", "features", "job"}),
        (CANCELLED, {"checkpoints", "images", "features", "job"}),
    ],
)
def test_a_run_that_ended_when_its_service_was_killed_keeps_what_any_run_in_its_state_keeps(
    house: House, state: RunState, removed: set[str]
) -> None:
    folder = house.store.workspace.run_folder("a")
    left = ended(house, "a", state)
    with house.tended():
        house.wait_for(lambda: not house.store.unsettled())
    assert {path.name for path in folder.iterdir()} == left - removed
    for part in removed:
        (folder / part).mkdir()
    house.supervisor = house.another()
    with house.tended():
        house.queue("b")
        house.wait("b", lambda run: run.state is TRAINING)
    assert removed < {path.name for path in folder.iterdir()}, "what was settled once is not looked at again"


@pytest.mark.parametrize("promoted", [True, False])
def test_the_report_of_a_run_that_ended_when_its_service_was_killed_says_what_became_of_its_model_then(
    house: House, promoted: bool
) -> None:
    house.queue("a")
    house.store.advance("a", TRAINING)
    if promoted:
        house.store.promote("a")
    run = house.store.advance("a", SUCCEEDED, verdict="It is what it is.")
    house.store.promote("base" if promoted else "a")  # by somebody's hand, before it is settled
    with house.tended():
        house.wait_for(lambda: not house.store.unsettled())
    told = load(house.store.workspace.run_folder("a"))
    assert (told.promoted, told.verdict, told.ended_at) == (promoted, "It is what it is.", run.ended_at)


def test_a_run_that_is_served_and_whose_report_is_damaged_keeps_no_service_from_starting(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervising, "RETRY_SECONDS", 0.01)
    house.forgives = MAX_TRIES
    house.queue("a", PROVEN)
    house.store.advance("a", TRAINING)
    house.store.promote("a")
    (house.store.workspace.run_folder("a") / "report.json").write_text("damaged")
    with house.tended():
        assert house.wait("a").state is SUCCEEDED


@pytest.mark.parametrize("state", [FAILED, CANCELLED])
def test_what_cannot_be_removed_after_a_run_is_removed_later_and_keeps_no_other_from_being_settled(
    house: House, monkeypatch: pytest.MonkeyPatch, state: RunState
) -> None:
    monkeypatch.setattr(supervising, "RETRY_SECONDS", 0.01)
    house.forgives = 10_000
    ended(house, "a", state)
    ended(house, "b", state)
    attempt = house.store.workspace.run_folder("a") / "job" / "attempt.json"
    attempt.mkdir()  # no file: it cannot be removed as one
    with house.tended():
        house.wait_for(lambda: [run.name for run in house.store.unsettled()] == ["a"])
        house.queue("c")
        house.wait("c", lambda run: run.state is TRAINING)
        attempt.rmdir()
        house.wait_for(lambda: not house.store.unsettled())
    assert not attempt.parent.exists()


def test_closing_lets_the_trainer_write_its_checkpoint_and_the_run_go_on_in_the_next_service(house: House) -> None:
    house.queue("a")
    with house.tended(f"trap '{checkpoint(8)}; exit 4' TERM; echo ready; while :; do sleep 0.01; done"):
        house.wait_for(lambda: (log := house.store.workspace.log_file("a")).exists() and log.read_text())
    assert not is_alive(house.trainers.process())
    assert house.store.workspace.latest_step("a") == 8
    assert house.store.get("a").state is TRAINING
    assert house.trainers.closed == 1
    house.supervisor = house.another()
    with house.tended(f"{MODEL}; exit 0"):
        assert house.wait("a").state is SUCCEEDED


def test_a_trainer_that_will_not_stop_is_killed(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0 < supervising.STOP_SECONDS <= 10  # whoever stops a service waits for that
    monkeypatch.setattr(supervising, "STOP_SECONDS", 0.3)
    house.queue("a")
    with house.tended("trap '' TERM; echo ready; while :; do sleep 0.01; done"):
        house.wait_for(lambda: (log := house.store.workspace.log_file("a")).exists() and log.read_text())
        began = time.monotonic()
    assert time.monotonic() - began > 0.3
    assert house.trainers.process().returncode == -9


# --- a trainer that hangs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("house", [{"trainer_stall_seconds": 1}], indirect=True)
def test_a_trainer_that_hangs_is_killed_with_its_children_and_its_run_goes_on(house: House) -> None:
    house.queue("a", DISPROVEN)
    with house.tended("sleep 600 & echo $!; kill -STOP $$", f"{MODEL}; exit 0"):
        log = house.store.workspace.log_file("a")
        child = psutil.Process(int(str(house.wait_for(lambda: log.exists() and log.read_text().strip()))))
        run = house.wait("a")
    assert (run.state, run.attempts) == (SUCCEEDED, 2)
    assert all_gone([child])
    (stalled,) = house.events("a", "stalled")
    assert stalled.startswith("the trainer hangs: it has been stopped, by SIGSTOP or a debugger, for ")
    assert stalled.endswith(" s. It was killed")
    assert "hung and was killed" in house.events("a", "resumed")[0]


@pytest.mark.parametrize("house", [{"trainer_stall_seconds": 0}], indirect=True)
def test_no_trainer_hangs_where_nobody_minds(house: House) -> None:
    house.queue("a")
    with house.tended("kill -STOP $$") as supervisor:
        house.wait_for(lambda: house.trainers.runs)
        time.sleep(1.5)  # as long as in the test before
        assert is_alive(house.trainers.process())
        supervisor.cancel("a")
    assert house.events("a", "stalled") == []


@pytest.mark.parametrize(
    ("house", "remedy"),
    [
        ({"trainer_yields": True}, "; with the option trainer_yields: false it competes with them"),
        ({"trainer_yields": False}, ""),
    ],
    indirect=["house"],
)
def test_a_trainer_that_gets_no_processor_is_told_of_with_the_remedy(
    house: House, monkeypatch: pytest.MonkeyPatch, remedy: str
) -> None:
    monkeypatch.setattr(watchdog, "WINDOW", 1.0)
    starving = watchdog.Vitals(beat=0, processor=0.0, wants=True, stopped=False)
    monkeypatch.setattr(supervising, "vitals", lambda pid, file: starving)
    house.queue("a")
    with house.tended(FOR_EVER):
        house.wait_for(lambda: house.events("a", "warning"))
    assert house.events("a", "warning") == [
        "in the last minute the trainer got 0.0% of a processor, because other processes want all of them" + remedy
    ]


def test_a_supervisor_that_has_nothing_to_do_rests_and_ends_waiting_trainers_in_time(house: House) -> None:
    with house.tended():
        house.wake.set()
        time.sleep(1)
    assert 1 < house.trainers.expired <= 1.5 / TICK_SECONDS


def test_closing_ends_a_supervisor_that_has_nothing_to_do(house: House) -> None:
    with house.tended():
        pass
    assert "supervisor" not in [thread.name for thread in threading.enumerate()]
    assert house.trainers.closed == 1
    assert house.trainers.started == []


# --- cancel and delete ------------------------------------------------------------------------------------------------


def test_cancelling_a_run_that_trains_kills_its_trainer_and_frees_it_for_the_next(house: House) -> None:
    for name in "ab":
        house.queue(name)
    with house.tended(f"{checkpoint(2)}; echo ready; {FOR_EVER}", FOR_EVER) as supervisor:
        house.wait("a", lambda run: run.state is TRAINING)
        house.wait_for(lambda: house.store.workspace.latest_step("a"))
        supervisor.cancel("a")
        assert not is_alive(house.trainers.process(0))
        run = house.store.get("a")
        assert (run.state, run.pid) == (CANCELLED, None)
        assert not house.store.workspace.checkpoint_folder("a").exists()
        house.wait("b", lambda run: run.state is TRAINING)
    assert house.kinds("a") == ["received", "queued", "training", "cancelled"]


def test_what_a_trainer_has_started_ends_with_it(house: House) -> None:
    house.queue("a")
    with house.tended("sleep 600 & sleep 600 & jobs -p; kill -STOP $!; wait") as supervisor:
        log = house.store.workspace.log_file("a")
        house.wait_for(lambda: log.exists() and len(log.read_text().split()) == 2)
        children = [psutil.Process(int(pid)) for pid in log.read_text().split()]
        supervisor.cancel("a")
    assert all_gone(children)


def test_a_trainer_that_the_kernel_does_not_let_go_holds_nobody_up(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Held(subprocess.Popen[bytes]):
        """It waits for a disk that hangs, so that even SIGKILL must wait."""

        def wait(self, timeout: float | None = None) -> int:
            assert timeout is not None, "this would be for ever"
            raise subprocess.TimeoutExpired(self.args, timeout)

    monkeypatch.setattr(subprocess, "Popen", Held)
    for name in "ab":
        house.queue(name)
    with house.tended() as supervisor:
        house.wait("a", lambda run: run.state is TRAINING)
        supervisor.cancel("a")
        house.wait("b", lambda run: run.state is TRAINING)
        supervisor.cancel("b")
    monkeypatch.undo()
    assert [process.poll() is not None for _, process in house.trainers.started] == [True, True]


def test_cancelling_a_run_that_waits_leaves_the_trainer_of_another_alone(house: House) -> None:
    for name in "ab":
        house.queue(name)
    house.receive("c")
    with house.tended() as supervisor:
        house.wait("a", lambda run: run.state is TRAINING)
        for name in "bc":
            supervisor.cancel(name)
            assert house.store.get(name).state is CANCELLED
        assert is_alive(house.trainers.process())
        assert house.store.get("a").state is TRAINING
    assert house.trainers.runs == ["a"]


def test_cancelling_a_run_that_receives_ends_its_warm_trainer_and_closes_its_documents(house: House) -> None:
    house.receive("a")
    with house.tended() as supervisor:
        house.wait_for(lambda: house.trainers.started)
        supervisor.cancel("a")
        assert not is_alive(house.trainers.process())
    run = house.store.get("a")
    assert (run.train_rows, run.eval_rows) == (1, 0)  # its status goes on to say what it has got
    folder = house.store.workspace.run_folder("a")
    assert [file for file in psutil.Process().open_files() if Path(file.path).is_relative_to(folder)] == []


@pytest.mark.parametrize("state", [SUCCEEDED, FAILED, CANCELLED])
def test_cancelling_a_run_that_has_ended_changes_nothing(house: House, state: RunState) -> None:
    house.queue("a")
    house.store.advance("a", TRAINING)
    house.store.advance("a", state)
    (house.store.workspace.checkpoint_folder("a") / "0000000012").mkdir(parents=True)
    before = house.store.get("a"), house.store.events("a")
    house.supervisor.cancel("a")
    assert (house.store.get("a"), house.store.events("a")) == before
    kept = house.store.workspace.latest_step("a")
    assert kept == (0 if state is CANCELLED else 12)  # a cancelled run is never taken up again


def test_a_run_that_nobody_knows_is_not_cancelled(house: House) -> None:
    with pytest.raises(UnknownRun, match="There is no run 'x'"):
        house.supervisor.cancel("x")


def test_a_new_run_with_the_name_of_a_deleted_one_is_warmed_up_as_any_new_run(house: House) -> None:
    house.receive("a")
    with house.tended() as supervisor:
        house.wait_for(lambda: house.trainers.started)
        with pytest.raises(Conflict, match="cancel it before you delete it"):
            supervisor.delete("a")
        supervisor.cancel("a")
        supervisor.delete("a")
        assert not house.store.exists("a")
        assert not house.store.workspace.run_folder("a").exists()
        house.receive("a")
        house.wait_for(lambda: len(house.trainers.started) == 2)


def test_a_new_run_with_the_name_of_a_deleted_one_has_all_its_attempts(house: House) -> None:
    dies = "kill -9 $$"
    house.queue("a")
    with house.tended(dies, dies, FOR_EVER) as supervisor:
        house.wait("a", lambda run: run.attempts == 3)  # two of them have failed
        supervisor.cancel("a")
        supervisor.delete("a")
        house.trainers.commands = [dies]
        house.queue("a")
        assert house.wait("a").attempts == 3


def test_a_start_that_was_asked_for_is_seen_to_while_another_run_trains(house: House) -> None:
    house.receive("a")
    with house.tended():
        house.receiver.receive(DocumentArray(), FitParameters(run="a"))
        house.wait("a", lambda run: run.state is TRAINING)
        house.receiver.receive(DocumentArray([Document(id="d", uri="data:,x")]), FitParameters(run="b", start=True))
        house.wait("b", lambda run: run.state is QUEUED)
