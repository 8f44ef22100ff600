"""Several processes train one run together, with the result of one process. They live and die together."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import nn

from conftest import coloured
from executor import Document, DocumentArray
from executor.compute.ranks import Ranks
from executor.errors import ConfigurationError
from executor.store.run import Run, RunState
from executor.training.gradients import Gradients
from executor.training.losses import build_loss
from executor.training.micro_batch import MicroBatch
from executor.worker.command import end_process, on_workspace, start_process
from serving import ROOT
from workshop import Workshop, all_gone, kill

CPU = torch.device("cpu")
torch.set_num_threads(1)  # the tensors are tiny
BATCH = 11  # which two do not share evenly


# --- the gradient ----------------------------------------------------------------------------------------------------


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 8))


def three_steps(ranks: Ranks, loss_name: str, kind: str, micro_batch: int | None) -> dict[str, torch.Tensor]:
    """The gradients of all steps of plain descent, by parameter and step, and the weights in the end."""
    model = network()
    torch.manual_seed(1)
    memory = BATCH * 2 if loss_name == "triplet" and kind == "class" else 0
    loss = build_loss(loss_name, kind, num_classes=4, embedding_size=8, memory_size=memory)
    gradients = Gradients(model, loss, device=CPU, bf16=False, micro_batch=MicroBatch(micro_batch), ranks=ranks)
    found = {}
    for step in range(3):
        random = torch.Generator().manual_seed(step)
        inputs = torch.randn(BATCH, 6, generator=random)
        labels = torch.arange(BATCH) % 4
        if kind == "session":
            labels = torch.stack([torch.arange(BATCH) // 4, torch.tensor([0, 1, -1, 1] * 3)[:BATCH]], dim=1)
        model.zero_grad()
        loss.zero_grad()
        found[f"{step} value"] = torch.tensor(gradients(inputs[ranks.items(np.arange(BATCH))], labels, step=step))
        for name, parameter in (*model.named_parameters(), *loss.named_parameters()):
            assert parameter.grad is not None
            found[f"{step} {name}"] = parameter.grad.clone()
            parameter.data -= 0.1 * parameter.grad
    return found


CASES = [
    ("proxy_anchor", "class", None),
    ("proxy_anchor", "class", 2),
    ("multi_similarity", "class", None),
    ("triplet", "class", None),
    ("ntxent", "unlabeled", None),
    ("triplet", "session", 3),
]


def rank_main() -> None:
    """What each rank of `gradients_of_two` does: three steps of each case, all gradients into a file of its own."""
    ranks = Ranks(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    dist.init_process_group("gloo")  # as a program does that calls us; the runs below have groups of their own
    ranks.join(CPU)
    torch.save([three_steps(ranks, *case) for case in CASES], f"{sys.argv[1]}/{ranks.rank}")
    ranks.leave()
    with pytest.raises(ConfigurationError, match="make them agree"):
        Ranks(ranks.rank, 3).join(CPU)
    Path(f"{sys.argv[1]}/{ranks.rank}.group").write_text(str(dist.is_initialized()))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two ranks have left what they found."""
    folder = tmp_path_factory.mktemp("ranks")
    done = subprocess.run(
        [*torchrun(), str(Path(__file__)), str(folder)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def gradients_of_two(two: Path) -> list[list[dict[str, torch.Tensor]]]:
    """By rank and case."""
    return [torch.load(two / str(rank)) for rank in range(2)]


def torchrun(*more: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *more]


@pytest.mark.process
@pytest.mark.parametrize("number", range(len(CASES)), ids=["-".join(map(str, case)) for case in CASES])
def test_the_gradient_of_two_processes_is_that_of_one_with_the_whole_batch(
    number: int, gradients_of_two: list[list[dict[str, torch.Tensor]]]
) -> None:
    alone = three_steps(Ranks(), *CASES[number])
    for rank in range(2):
        together = gradients_of_two[rank][number]
        assert together.keys() == alone.keys()
        for name, gradient in alone.items():
            torch.testing.assert_close(together[name], gradient, rtol=1e-5, atol=1e-5, msg=name)
    assert all(torch.equal(*pair) for pair in zip(*(rank[number].values() for rank in gradients_of_two), strict=True))


@pytest.mark.process
def test_ranks_use_a_process_group_that_is_there_and_leave_it_as_it_is(two: Path) -> None:
    assert [(two / f"{rank}.group").read_text() for rank in range(2)] == ["True"] * 2


@pytest.mark.parametrize(("count", "items"), [(2, 11), (3, 2), (4, 1), (3, 9)])
def test_every_item_is_in_one_share_and_every_rank_has_something_to_compute(count: int, items: int) -> None:
    all_items = np.arange(items)
    shares = [all_items[Ranks(rank, count).share(items)] for rank in range(count)]
    np.testing.assert_array_equal(np.concatenate(shares), all_items)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert all(len(Ranks(rank, count).items(all_items)) for rank in range(count))


# --- runs ------------------------------------------------------------------------------------------------------------


def documents(count: int, prefix: str = "d", first_seed: int = 0) -> DocumentArray:
    return DocumentArray(
        Document(
            id=f"{prefix}{number}", blob=coloured(number % 3, first_seed + number), tags={"finetuner_label": number % 3}
        )
        for number in range(count)
    )


OPTIONS = {"batch_size": 7, "epochs": 5, "promote": "always", "precision": "fp32"}


@pytest.fixture
def workshop(tmp_path: Path) -> Iterator[Workshop]:
    made = Workshop(tmp_path / "workspace", devices=["cpu", "cpu"], fit_defaults=OPTIONS)
    yield made
    made.close()


def queue(workshop: Workshop, run: str, **options: object) -> None:
    workshop.receive(run, documents(10, "e", 1000), split="eval", **options)
    workshop.receive(run, documents(20))
    workshop.queue(run)


def ranks_of(pid: int) -> list[psutil.Process]:
    """The trainer and the ranks it has started."""
    trainer = psutil.Process(pid)
    return [trainer, *(child for child in trainer.children() if "train" in child.cmdline())]


def weights(workshop: Workshop, run: str) -> dict[str, torch.Tensor]:
    return load_file(workshop.store.workspace.model_folder(run) / "weights.safetensors")


def is_ready_to_stop(pid: int) -> bool:
    """Whether a process has a handler of its own for SIGTERM."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


@dataclass
class Disturbed:
    """What was seen of the run `disturbed`, whose ranks ended one after the other.

    Attributes: told: whether the rank that was told to stop before it had met the others ended. killed: whether all
        ranks ended when one was killed. run: as it ended.
    """

    workshop: Workshop
    told: bool
    killed: bool
    run: Run


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disturbed]:
    """A run that a service trains. Two attempts at it are disturbed, each in its way, and the third is not.

    One run, because each attempt takes two processes, whose imports are most of their time.
    """
    made = Workshop(tmp_path_factory.mktemp("disturbed"), devices=["cpu", "cpu"], fit_defaults=OPTIONS)
    made.receive("disturbed", documents(10, "e", 1000), split="eval")
    made.receive("disturbed", documents(20))
    with made.supervised():
        pid = made.wait("disturbed", lambda run: run.pid and len(ranks_of(run.pid)) == 2).pid
        assert pid is not None
        _, other = ranks_of(pid)
        made.wait("disturbed", lambda run: is_ready_to_stop(other.pid))
        other.terminate()
        told = all_gone([other])
        made.queue("disturbed")

        trains = made.wait("disturbed", lambda run: made.store.progress("disturbed").step > 0, seconds=250).pid
        assert trains is not None
        processes = ranks_of(trains)
        assert len(processes) == 2
        kill(processes[1].pid)
        run = made.wait("disturbed", seconds=250)
        killed = all_gone(processes)
    yield Disturbed(made, told, killed, run)
    made.close()


@pytest.mark.process
def test_a_run_on_two_devices_succeeds_and_reports_as_one(disturbed: Disturbed) -> None:
    shared = disturbed.workshop
    assert disturbed.run.state is RunState.SUCCEEDED, shared.log("disturbed")
    progress = shared.store.progress("disturbed")
    assert len(progress.history["loss"]) == OPTIONS["epochs"]
    assert progress.step == progress.steps
    assert {"base/mean_average_precision_at_r", "tuned/mean_average_precision_at_r"} <= progress.metrics.keys()
    assert (shared.store.workspace.run_folder("disturbed") / "report.html").exists()


@pytest.mark.process
def test_a_rank_that_is_told_to_stop_before_it_has_met_the_others_ends_the_attempt(disturbed: Disturbed) -> None:
    assert disturbed.told
    assert disturbed.workshop.events("disturbed", "stalled") == []
    log = disturbed.workshop.store.workspace.log_file("disturbed").read_text()
    assert "A rank ended with 4, and so does this one" in log


@pytest.mark.process
def test_a_rank_that_is_killed_ends_the_attempt_and_the_next_one_succeeds(disturbed: Disturbed) -> None:
    assert disturbed.killed
    assert (disturbed.run.state, disturbed.run.attempts) == (RunState.SUCCEEDED, 3), disturbed.workshop.log("disturbed")
    assert "was killed by signal 9" in disturbed.workshop.events("disturbed", "resumed")[1]


@pytest.mark.process
def test_torchrun_trains_a_run_by_hand_as_the_service_does_and_disturbances_leave_no_trace(
    disturbed: Disturbed,
) -> None:
    """What nothing disturbs has the same weights, bit for bit, as a run whose ranks were told to stop and killed."""
    shared = disturbed.workshop
    queue(shared, "hand")
    done = shared.train("hand", *torchrun("-m"))
    assert done.returncode == 0, done.stderr[-4000:]
    same = weights(shared, "disturbed")
    assert all(torch.equal(tensor, same[name]) for name, tensor in weights(shared, "hand").items())


@pytest.mark.process
def test_no_rank_outlives_the_trainer_even_one_that_is_stopped_and_if_no_service_sees_to_it(tmp_path: Path) -> None:
    """The kernel ends them, from their first moment on: so they need not come to train here."""
    workshop = Workshop(tmp_path / "workspace", devices=["cpu"] * 3, fit_defaults=OPTIONS)
    queue(workshop, "endless", epochs=100_000)
    workshop.store.advance("endless", RunState.TRAINING)
    trainer = start_process(
        "train", *on_workspace(workshop.store.workspace.root), "--run=endless", output=subprocess.DEVNULL
    )

    def others() -> list[psutil.Process]:  # only they are tied: one without that word is not yet a program of its own
        return [rank for rank in ranks_of(trainer.pid) if "--tied" in rank.cmdline()]

    try:
        workshop.wait("endless", lambda run: len(others()) == 2)
        ranks = others()
        ranks[1].suspend()
    finally:
        end_process(trainer)
    assert all_gone(ranks)
    workshop.close()


@pytest.mark.process
def test_ranks_stop_together_with_a_checkpoint_when_one_alone_is_told_to_or_the_service_ends(
    workshop: Workshop,
) -> None:
    """A rank alone that is told to stop costs no step: the next attempt, which the service ends, begins there."""
    queue(workshop, "endless", epochs=100_000)
    with workshop.supervised():
        pid = workshop.wait("endless", lambda run: run.pid and workshop.store.progress("endless").step > 0).pid
        assert pid is not None
        step = workshop.store.progress("endless").step
        ranks_of(pid)[1].terminate()
        workshop.wait("endless", lambda run: workshop.events("endless", "resumed"))
        first_stop = workshop.store.workspace.latest_step("endless")
        assert first_stop >= step

        again = workshop.wait(
            "endless", lambda run: run.pid != pid and workshop.store.progress("endless").step > first_stop
        ).pid
        assert again is not None
        processes = ranks_of(again)
    assert len(processes) == 2
    assert all_gone(processes)
    assert workshop.store.workspace.latest_step("endless") > first_stop


@pytest.mark.process
def test_a_failure_of_one_rank_alone_is_that_of_the_run(tmp_path: Path) -> None:
    """The last document of the one batch is the second rank's; it can be loaded at first, and not in the training."""
    (tmp_path / "fading.py").write_text(
        "import os, numpy\n"
        "def load(doc):\n"
        "    if doc.id == 'd1' and int(os.environ['RANK']) == 1:\n"
        "        raise ValueError('it has faded')\n"
        "    return doc.blob\n"
    )
    sys.path.insert(0, str(tmp_path))
    faded = Workshop(tmp_path / "workspace", devices=["cpu", "cpu"], fit_defaults=OPTIONS, preprocess_fn="fading:load")
    faded.receive("faded", documents(20))
    sys.path.remove(str(tmp_path))
    faded.queue("faded")
    with faded.supervised():
        run = faded.wait("faded")
    assert run.state is RunState.FAILED
    assert run.error == "Document 'd1': preprocess_fn raised ValueError: it has faded"
    faded.close()


if __name__ == "__main__":
    rank_main()
    os._exit(0)  # gloo's threads outlive their group: see `_Ending` in executor/__main__.py
