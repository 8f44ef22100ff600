"""If memory does not suffice, this attempt or the next one computes a batch in smaller parts."""

import functools
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from conftest import coloured
from executor import ClassDataset, Document, DocumentArray
from executor.compute.memory import OOM_SCORE, KernelKills, is_out_of_memory
from executor.errors import OutOfMemory
from executor.lifecycle import supervisor
from executor.loading.loader import Loader
from executor.loading.samplers import ClassSampler
from executor.store.run import RunState
from executor.training.config import TrainConfig
from executor.training.loop import train
from executor.training.losses import build_loss
from executor.training.micro_batch import MicroBatch
from workshop import Workshop, kill

pytestmark = pytest.mark.compute

CPU = torch.device("cpu")
torch.set_num_threads(1)  # the tensors are tiny


# --- the errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ask",
    [lambda: torch.empty(2**60), lambda: np.empty(2**50), lambda: bytearray(2**60)],
    ids=["torch", "numpy", "python"],
)
def test_what_every_library_raises_for_lack_of_memory_is_known_as_that(ask: Callable[[], object]) -> None:
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        ask()
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))


def test_another_error_of_torch_is_not_one_of_memory() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.ones(2, 3) @ torch.ones(2, 3)
    assert not is_out_of_memory(caught.value)
    assert not is_out_of_memory(ValueError("out of memory"))


# --- how many items at a time ----------------------------------------------------------------------------------------


def test_halvings_hold_from_their_step_on_and_are_remembered(tmp_path: Path) -> None:
    said: list[str] = []
    first = MicroBatch(None, 64, file=tmp_path / "micro_batch", say=said.append)
    assert first.at(10**6) is None
    first.halve(7)
    first.halve(9, 20)
    again = MicroBatch(None, 64, file=tmp_path / "micro_batch")
    assert [again.at(step) for step in (6, 7, 8, 9, 100)] == [None, 32, 32, 10, 10]
    assert "from step 9 on a batch is computed in parts of 10" in said[1]


def test_a_configured_micro_batch_is_what_is_halved(tmp_path: Path) -> None:
    micro_batch = MicroBatch(6, 64, file=tmp_path / "micro_batch")
    micro_batch.halve(0)
    assert micro_batch.at(0) == 3


def test_one_item_that_does_not_fit_ends_it_with_what_to_lower() -> None:
    micro_batch = MicroBatch(None, 3)
    micro_batch.halve(0)
    with pytest.raises(OutOfMemory, match="lower input_size"):
        micro_batch.halve(0)


# --- an accelerator that runs out ------------------------------------------------------------------------------------


class Hungry(nn.Module):
    """Raises what CUDA does when it is to embed more than `room` items, from its batch number `since` on."""

    def __init__(self, room: int, since: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Dropout(0.3), nn.Linear(16, 8))
        self.room = room
        self.since = since
        self.batches = 0

    def without_norm(self) -> "Hungry":
        self.layers[1] = nn.Identity()  # which cannot train on one item
        return self

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        embeddings = self.layers(inputs)  # has drawn random numbers and moved statistics by the time it fails
        self.batches += 1
        if self.batches > self.since and len(inputs) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return embeddings


def trained_weights(
    model: nn.Module, micro_batch: MicroBatch | None, loss_name: str = "proxy_anchor"
) -> dict[str, torch.Tensor]:
    random = np.random.default_rng(0)
    data = ClassDataset(
        DocumentArray(
            Document(id=f"d{number}", blob=random.normal(size=6), tags={"finetuner_label": number % 4})
            for number in range(24)
        )
    )
    memory = 16 if loss_name == "triplet" else 0
    torch.manual_seed(1)
    loss = build_loss(loss_name, "class", num_classes=4, embedding_size=8, memory_size=memory)
    sampler = ClassSampler(data.labels, batch_size=8, num_items_per_class=2)
    config = TrainConfig(epochs=3, learning_rate=1e-2)
    train(model, loss, Loader(data, sampler), config, device=CPU, micro_batch=micro_batch)
    return {
        name: value.clone()
        for name, value in (model.state_dict() | loss.state_dict()).items()
        if isinstance(value, torch.Tensor)
    }


@pytest.mark.parametrize("loss", ["proxy_anchor", "triplet"])
def test_a_step_that_did_not_fit_is_made_again_as_if_its_parts_had_been_smaller_from_the_start(
    loss: str, tmp_path: Path
) -> None:
    said: list[str] = []
    failed = trained_weights(Hungry(room=4, since=5), MicroBatch(None, say=said.append), loss)
    (tmp_path / "file").write_text("5 4\n")
    known = trained_weights(Hungry(room=8, since=0), MicroBatch(None, file=tmp_path / "file"), loss)
    whole = trained_weights(Hungry(room=8, since=0), None, loss)
    assert len(said) == 1
    assert "from step 5 on a batch is computed in parts of 4" in said[0]
    for name, value in known.items():
        assert torch.equal(value, failed[name]), name
    assert any(not torch.equal(value, whole[name]) for name, value in known.items())


def test_a_model_without_room_for_one_item_ends_the_training_with_a_sentence() -> None:
    with pytest.raises(OutOfMemory, match="even 1 image at a time"):
        trained_weights(Hungry(room=0, since=0).without_norm(), MicroBatch(None))


# --- what the kernel tells -------------------------------------------------------------------------------------------


def lay_out(root: Path, cgroup: str, files: dict[str, int]) -> None:
    """Files as the kernel shows them to process 7, each with a count of kills."""
    for name, text in {"proc/7/cgroup": cgroup, **{name: counted(kills) for name, kills in files.items()}}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def counted(kills: int) -> str:
    return f"low 0\noom 9\noom_kill {kills}\noom_group_kill 5\n"


V1 = "9:cpu,cpuacct:/box\n4:memory:/box/inner\n0::/\n"
LAYOUTS = {
    "version 2": ("0::/box/inner\n", "sys/fs/cgroup/box/inner/memory.events"),
    "version 2 within a container": ("0::/elsewhere\n", "sys/fs/cgroup/memory.events"),
    "version 1": (V1, "sys/fs/cgroup/memory/box/inner/memory.oom_control"),
    "version 1 within a container": (V1, "sys/fs/cgroup/memory/memory.oom_control"),
    "no cgroup": ("", "proc/vmstat"),
}


@pytest.mark.parametrize(("cgroup", "file"), LAYOUTS.values(), ids=list(LAYOUTS))
def test_a_kill_is_seen_in_the_count_of_the_nearest_group(cgroup: str, file: str, tmp_path: Path) -> None:
    lay_out(tmp_path, cgroup, {"proc/vmstat": 1, file: 2})
    kills = KernelKills(7, tmp_path)
    assert (kills.count(), kills.grew()) == (2, False)
    (tmp_path / file).write_text(counted(3))
    assert kills.grew()


def test_a_kill_elsewhere_on_the_machine_is_not_taken_for_one_of_this_group(tmp_path: Path) -> None:
    cgroup, file = LAYOUTS["version 2"]
    lay_out(tmp_path, cgroup, {file: 0, "proc/vmstat": 4})
    kills = KernelKills(7, tmp_path)
    (tmp_path / "proc/vmstat").write_text(counted(5))
    assert not kills.grew()


def test_a_kernel_that_tells_nothing_is_no_sign_of_a_kill(tmp_path: Path) -> None:
    kills = KernelKills(7, tmp_path)
    assert (kills.count(), kills.grew()) == (None, False)


def test_this_machines_own_count_is_found_and_stands_still() -> None:
    kills = KernelKills(os.getpid())
    assert kills.count() is not None
    assert not kills.grew()


# --- trainers of a supervisor ----------------------------------------------------------------------------------------


def documents(count: int, size: int = 24) -> DocumentArray:
    return DocumentArray(
        Document(id=f"d{number}", blob=coloured(number % 3, number, size), tags={"finetuner_label": number % 3})
        for number in range(count)
    )


@pytest.fixture
def workshop(tmp_path: Path) -> Iterator[Workshop]:
    made = Workshop(tmp_path / "workspace", input_size=128, fit_defaults={"epochs": 1, "promote": "never"})
    yield made
    made.close()


def virtual_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()


def memory_warnings(workshop: Workshop, run: str) -> list[str]:
    return [note for note in workshop.events(run, "warning") if "memory" in note]


@pytest.mark.process
def test_a_trainer_whose_address_space_is_too_small_goes_on_in_smaller_parts(workshop: Workshop) -> None:
    workshop.receive("large", documents(128), batch_size=128, precision="fp32", epochs=1)
    images = workshop.store.workspace.run_folder("large") / "images" / "train-128"
    with workshop.supervised():
        pid = workshop.wait("large", lambda run: run.pid and images.exists() and images.stat().st_size).pid
        assert pid is not None
        assert Path(f"/proc/{pid}/oom_score_adj").read_text() == f"{OOM_SCORE}\n"  # the kernel would take it first
        resource.prlimit(pid, resource.RLIMIT_AS, (virtual_bytes(pid) + 150 * 2**20,) * 2)
        workshop.queue("large")
        run = workshop.wait("large")
    assert run.state is RunState.SUCCEEDED, workshop.log("large")
    (warning,) = memory_warnings(workshop, "large")
    assert warning.startswith("There was too little memory for 128 images at a time: from step 0 on")
    assert workshop.store.workspace.micro_batch_file("large").read_text() == "0 64\n"
    (resumed,) = workshop.events("large", "resumed")
    assert resumed == "the trainer ran out of memory; it goes on from step 0"


class Counted:
    """A machine whose kernel counts its kills in a file that a test may write."""

    def __init__(self, root: Path) -> None:
        self.file = root / "proc" / "vmstat"
        self.file.parent.mkdir(parents=True)
        self.file.write_text(counted(3))

    def kill(self, pid: int) -> None:
        self.file.write_text(counted(int(self.file.read_text().split()[5]) + 1))
        kill(pid)


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Counted:
    monkeypatch.setattr(supervisor, "KernelKills", functools.partial(KernelKills, root=tmp_path))
    return Counted(tmp_path)


def next_pid(workshop: Workshop, run: str, before: int | None) -> int:
    """The trainer of a run, once it is another one than `before`."""
    pid = workshop.wait(run, lambda found: found.pid not in (None, before)).pid
    assert pid is not None
    return pid


@pytest.mark.process
def test_a_trainer_that_the_kernel_killed_for_memory_goes_on_in_smaller_parts_and_one_that_others_killed_as_before(
    workshop: Workshop, kernel: Counted
) -> None:
    workshop.receive("killed", documents(12), batch_size=12)
    workshop.queue("killed")
    with workshop.supervised():
        pid = next_pid(workshop, "killed", None)
        kill(pid)  # by someone else
        for _ in range(3):  # as often as would fail the run, were these attempts without progress
            pid = next_pid(workshop, "killed", pid)
            kernel.kill(pid)
        run = workshop.wait("killed")
    assert run.state is RunState.SUCCEEDED, workshop.log("killed")
    assert run.attempts == 5
    # Only the kernel's kills count: the first of these halves the whole batch.
    assert workshop.store.workspace.micro_batch_file("killed").read_text() == "0 6\n0 3\n0 1\n"
    assert [note.split(": ")[0] for note in memory_warnings(workshop, "killed")] == [
        f"There was too little memory for {items} images at a time" for items in (12, 6, 3)
    ]
    by_someone, *by_the_kernel = workshop.events("killed", "resumed")
    assert "was killed by signal 9" in by_someone
    assert set(by_the_kernel) == {
        "the trainer was killed by the kernel, which had no memory left; it goes on from step 0"
    }


@pytest.mark.process
def test_a_run_that_the_kernel_killed_with_one_image_in_memory_fails_with_what_to_lower(
    workshop: Workshop, kernel: Counted
) -> None:
    workshop.receive("hopeless", documents(12), batch_size=12, micro_batch=1)
    workshop.queue("hopeless")
    with workshop.supervised():
        kernel.kill(next_pid(workshop, "hopeless", None))
        run = workshop.wait("hopeless")
    assert run.state is RunState.FAILED
    assert run.error is not None
    assert "even 1 image at a time; lower input_size" in run.error


KEEPS = """
import resource, numpy
from executor.compute.memory import keep_freed_memory
{call}
numpy.ones(2**26)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    numpy.ones(2**26)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.process
def test_a_process_that_keeps_freed_memory_does_not_ask_the_kernel_for_it_again():
    def faults(call: str) -> int:
        done = subprocess.run(
            [sys.executable, "-c", KEEPS.format(call=call)], capture_output=True, text=True, check=True
        )
        return int(done.stdout)

    assert faults("keep_freed_memory()") * 10 < faults("")
