"""What is different on a GPU. Without one these tests are skipped; the others use one too, where there is one."""

from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import coloured
from executor import Document, DocumentArray, fit
from executor.loading.forward import embed_batches
from executor.models.building import build_model
from executor.models.model import EmbeddingModel, ModelConfig
from executor.serving.inference import AGREEMENT, choose_path, sample_images
from executor.training.config import TrainConfig
from executor.training.gradients import Gradients, compute_gradients
from executor.training.losses import build_loss
from executor.training.micro_batch import MicroBatch
from executor.training.norms import set_training
from executor.training.optimizer import PlainAdamW, parameter_groups
from executor.training.state import TrainState, restore, snapshot

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def untrained(size: int = 64) -> EmbeddingModel:
    return build_model(ModelConfig(model="small", input_size=size))


def a_batch(count: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.arange(count) % 8
    images = np.stack([coloured(int(label), number, size) for number, label in enumerate(labels)])
    return torch.from_numpy(images), labels


def parts(device: torch.device):
    """What `snapshot` copies and `restore` restores."""
    model, loss = untrained().to(device), torch.nn.Identity()
    optimizer = PlainAdamW(parameter_groups(model, loss, TrainConfig()))
    return model, loss, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0), device


def gradient_of(device: torch.device, *, micro_batch: int | None = None) -> torch.Tensor:
    """The gradient of a batch, all parameters one after another, in fp32."""
    model = untrained().to(device)
    set_training(model, fixed_norms=True)
    torch.manual_seed(0)  # of the loss's proxies
    loss = build_loss("auto", "class", num_classes=8, embedding_size=model.dim).to(device)
    images, labels = a_batch(32, 64)
    with torch.backends.cudnn.flags(allow_tf32=False):
        compute_gradients(model, loss, images, labels, device=device, bf16=False, micro_batch=micro_batch)
    return torch.cat([each.grad.reshape(-1).cpu() for each in model.parameters() if each.grad is not None])


@pytest.mark.parametrize("micro_batch", [None, 8])
def test_the_gradient_is_that_of_the_cpu(micro_batch: int | None) -> None:
    exact, found = gradient_of(CPU), gradient_of(GPU, micro_batch=micro_batch)
    assert torch.cosine_similarity(exact, found, dim=0) > 0.999


@pytest.fixture
def little_memory():
    torch.cuda.empty_cache()
    share = (torch.cuda.memory_reserved() + (2 << 30)) / torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction(share)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def test_a_batch_for_which_memory_is_too_small_is_computed_in_halves(little_memory: None) -> None:
    said: list[str] = []
    model = build_model(ModelConfig(input_size=224)).to(GPU)
    set_training(model, fixed_norms=True)
    loss = build_loss("auto", "class", num_classes=8, embedding_size=model.dim).to(GPU)
    gradients = Gradients(model, loss, device=GPU, bf16=False, micro_batch=MicroBatch(None, 128, say=said.append))
    assert np.isfinite(gradients(*a_batch(128, 224), step=0))
    assert said
    assert all(torch.isfinite(each.grad).all() for each in model.parameters() if each.grad is not None)


@pytest.mark.parametrize("to", [GPU, CPU])
def test_a_restored_state_goes_on_here_or_on_the_cpu(to: torch.device) -> None:
    def step(model: EmbeddingModel, device: torch.device) -> None:
        model(torch.randn(4, 3, 64, 64, device=device)).square().mean().backward()

    before = parts(GPU)
    step(before[0], GPU)
    before[2].step()
    state = TrainState(tensors=snapshot(*before))
    drawn = torch.rand(3, device=GPU), torch.rand(3)
    after = parts(to)
    restore(state, *after)
    assert to == CPU or torch.equal(torch.rand(3, device=GPU), drawn[0])
    assert torch.equal(torch.rand(3), drawn[1])
    for old, new in zip(before[0].parameters(), after[0].parameters(), strict=True):
        assert torch.equal(old.cpu(), new.cpu())
    step(after[0], to)
    after[2].step()  # its moments are where the parameters are


def test_a_checkpoint_from_a_machine_with_more_gpus_is_gone_on_with() -> None:
    run = parts(GPU)
    tensors = snapshot(*run)
    tensors["random"]["cuda"] = [tensors["random"]["cuda"]] * (torch.cuda.device_count() + 1)
    drawn = torch.rand(3, device=GPU)
    restore(TrainState(tensors=tensors), *run)
    assert torch.equal(torch.rand(3, device=GPU), drawn)


@pytest.mark.parametrize("kept", ["graph", "fp32 graph"])
def test_a_graph_that_was_chosen_on_a_cpu_is_none_for_a_gpu(kept: str, tmp_path: Path) -> None:
    (tmp_path / "serving").write_text(kept)
    bf16, graph = choose_path(untrained().to(GPU).eval(), 64, GPU, tmp_path)
    assert graph is None
    assert (tmp_path / "serving").read_text() == ("bf16" if bf16 else "fp32")


@pytest.mark.parametrize("bf16", [False, True])
def test_embeddings_are_those_of_the_cpu(bf16: bool) -> None:
    images = sample_images(64)
    exact, found = (
        embed_batches(untrained(), [images], CPU),
        embed_batches(untrained().to(GPU), [images], GPU, bf16=bf16),
    )
    assert (exact * found).sum(axis=1).min() >= AGREEMENT


def test_fit_leaves_the_model_on_the_gpu() -> None:
    docs = DocumentArray(Document(blob=coloured(n % 3, n, 16), tags={"finetuner_label": n % 3}) for n in range(18))
    model = fit(untrained(16), docs, epochs=1, batch_size=9, progress=False)
    assert {each.device.type for each in model.parameters()} == {"cuda"}
