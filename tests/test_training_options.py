"""What training options promise: large batches in little memory, averages, a memory of embeddings, LoRA."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from conftest import coloured
from executor import Document, DocumentArray, fit
from executor.errors import ConfigurationError, InvalidParameter
from executor.loading.datasets import make_dataset
from executor.models.building import build_model
from executor.models.lora import add_lora, merge_lora
from executor.models.model import ModelConfig
from executor.parameters import TrainingOptions, parse
from executor.training.gradients import compute_gradients
from executor.training.loop import Interrupted, train
from executor.training.losses import BATCH_LOSSES, LOSSES, build_loss
from executor.training.optimizer import interpolated
from executor.training.parts import make_config, make_loader, make_loss, prepare_model
from executor.training.precision import choose_bf16, computes_in_bf16
from executor.worker.checkpoints import load_checkpoint, save_checkpoint

pytestmark = pytest.mark.compute

CPU = torch.device("cpu")


def vectors(count: int = 48, classes: int = 4, seed: int = 0) -> DocumentArray:
    """Labelled documents with separable float vectors, (8,)."""
    random = np.random.default_rng(seed)
    return DocumentArray(
        Document(
            id=str(number),
            blob=(random.normal(0, 0.4, 8) + 2 * np.eye(8)[number % classes]).astype(np.float32),
            tags={"finetuner_label": number % classes},
        )
        for number in range(count)
    )


def network(seed: int = 0, dropout: float = 0.0) -> nn.Module:
    """A small perceptron, (B, 8) to (B, 4)."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 4))


def run(model: nn.Module, options: dict[str, Any], **hooks: Any) -> dict[str, list[float]]:
    """Train on `vectors` and return the history."""
    chosen = TrainingOptions(**{"epochs": 3, "batch_size": 16, "precision": "fp32"} | options)
    dataset = make_dataset(vectors())
    loader = make_loader(dataset, np.arange(len(dataset)), chosen)
    loss = make_loss(dataset, chosen, 4, CPU)
    return train(
        model, loss, loader, make_config(chosen, model, documents=len(dataset), bf16=False), device=CPU, **hooks
    ).history


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("micro_batch", [1, 4, 5])
def test_the_gradient_in_parts_is_that_of_the_large_batch_for_every_loss(kind: str, micro_batch: int) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(16, 8)
    labels = torch.arange(16) % 4
    if kind == "session":
        labels = torch.stack([torch.arange(16) // 4, torch.tensor([0, 1, 1, -1] * 4)], dim=1)
    for name in LOSSES[kind]:
        model = network(dropout=0.5)
        loss = build_loss(name, kind, num_classes=4, embedding_size=4)
        found = []
        for parts in (None, micro_batch):
            model.zero_grad()
            loss.zero_grad()
            model.eval()  # the dropout of parts is drawn in parts: compare without it
            value = compute_gradients(model, loss, inputs, labels, device=CPU, bf16=False, micro_batch=parts)
            gradients = [p.grad.clone() for p in (*model.parameters(), *loss.parameters()) if p.grad is not None]
            found.append((value, gradients))
        assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
        for whole, parted in zip(found[0][1], found[1][1], strict=True):
            torch.testing.assert_close(whole, parted, rtol=1e-4, atol=1e-5)


def test_parts_see_the_same_dropout_in_both_passes() -> None:
    """Else the gradient belongs to other embeddings than the loss saw, and a step along it need not lower the loss."""
    model, loss = network(dropout=0.5).train(), build_loss("supcon", "class", num_classes=4, embedding_size=4)
    seen: list[torch.Tensor] = []
    model[2].register_forward_hook(lambda module, inputs, output: seen.append(output.detach().clone()))
    compute_gradients(model, loss, torch.randn(8, 8), torch.arange(8) % 4, device=CPU, bf16=False, micro_batch=4)
    assert len(seen) == 4
    assert torch.equal(seen[0], seen[2])
    assert torch.equal(seen[1], seen[3])
    assert (seen[0] == 0).any()


def test_parts_update_the_norm_statistics_once() -> None:
    model = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4)).train()
    loss = build_loss("supcon", "class", num_classes=4, embedding_size=4)
    compute_gradients(model, loss, torch.randn(8, 8), torch.arange(8) % 4, device=CPU, bf16=False, micro_batch=4)
    assert int(model[1].num_batches_tracked) == 2


def test_training_in_parts_ends_with_the_weights_of_training_with_the_whole_batch() -> None:
    whole, parted = network(), network()
    run(whole, {"loss": "multi_similarity"})
    run(parted, {"loss": "multi_similarity", "micro_batch": 3})
    for one, other in zip(whole.parameters(), parted.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_a_moving_average_is_what_remains_of_the_training() -> None:
    plain, averaged = network(), network()
    start = network()
    run(plain, {})
    run(averaged, {"ema": 0.99})
    moved = [float((p - s).detach().norm()) for p, s in zip(plain.parameters(), start.parameters(), strict=True)]
    lagging = [float((p - s).detach().norm()) for p, s in zip(averaged.parameters(), start.parameters(), strict=True)]
    assert 0 < sum(lagging) < sum(moved)


def test_wise_ft_ends_between_the_base_and_the_tuned_weights() -> None:
    start, tuned, between = network(), network(), network()
    run(tuned, {})
    run(between, {"wise_ft": 0.25})
    expected = interpolated(start.state_dict(), tuned.state_dict(), 0.25)
    for name, tensor in between.state_dict().items():
        torch.testing.assert_close(tensor, expected[name])


def test_the_backbone_may_learn_more_slowly_than_the_head() -> None:
    class WithHead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.backbone = nn.Linear(8, 8)
            self.head = nn.Linear(8, 4)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.head(self.backbone(inputs))

    still = WithHead()
    run(still, {"backbone_rate": 0.0, "weight_decay": 0.0})
    assert torch.equal(still.backbone.weight, WithHead().backbone.weight)
    assert not torch.equal(still.head.weight, WithHead().head.weight)


@pytest.mark.parametrize("loss", BATCH_LOSSES)
def test_cross_batch_memory_goes_with_every_loss_that_compares_items(loss: str) -> None:
    history = run(network(), {"loss": loss, "memory_size": 64})
    assert np.isfinite(history["loss"]).all()


@pytest.mark.parametrize(
    ("counts", "batch_size"),
    [((20, 2), 4), ((60, 2), 16), ((7, 3), 6), ((9, 4), 5), ((7,), 2), ((7,), 3), ((7,), 5)],
    ids=str,
)
def test_a_memory_as_large_as_batch_size_grows_where_a_batch_is_larger(
    counts: tuple[int, ...], batch_size: int
) -> None:
    random = np.random.default_rng(0)
    docs = DocumentArray(
        Document(
            id=f"{label}-{number}",
            blob=random.integers(0, 256, (16, 16, 3), dtype=np.uint8),
            tags={"finetuner_label": label} if len(counts) > 1 else {},
        )
        for label, count in enumerate(counts)
        for number in range(count)
    )
    images = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    loss = "contrastive" if len(counts) > 1 else "ntxent"
    fit(images, docs, epochs=2, batch_size=batch_size, memory_size=batch_size, loss=loss, progress=False)


def test_a_resumed_run_keeps_the_size_of_memory_that_it_began_with() -> None:
    small, large = (build_loss("triplet", "class", num_classes=2, embedding_size=4, memory_size=n) for n in (8, 12))
    labels = torch.arange(8) % 2
    for step in range(2):
        embeddings = torch.nn.functional.normalize(torch.randn(8, 4, generator=torch.manual_seed(step)))
        small(embeddings, labels)
    large.load_state_dict(small.state_dict())
    torch.testing.assert_close(large(embeddings, labels), small(embeddings, labels))


def test_cross_batch_memory_is_refused_where_nothing_is_compared_across_batches() -> None:
    with pytest.raises(InvalidParameter, match="memory_size does not go with the loss 'proxy_anchor_supcon'"):
        run(network(), {"memory_size": 64})
    with pytest.raises(InvalidParameter, match="a batch of 64 has to fit"):
        parse(TrainingOptions, {"memory_size": 32}, where="/fit")


@pytest.mark.parametrize(
    "options",
    [{}, {"ema": 0.9}, {"wise_ft": 0.5}, {"loss": "supcon", "memory_size": 32}, {"micro_batch": 5}],
    ids=["plain", "ema", "wise_ft", "memory", "micro_batch"],
)
def test_a_run_resumed_in_the_middle_of_an_epoch_ends_with_the_same_weights(
    options: dict[str, Any], tmp_path: Path
) -> None:
    undisturbed = network(dropout=0.3)
    expected = run(undisturbed, options)

    def save(state: Callable[[], Any], epoch_ended: bool) -> None:
        written = state()
        save_checkpoint(tmp_path, written, written.done)

    calls = iter(range(100))
    with pytest.raises(Interrupted):
        run(network(dropout=0.3), options, save=save, stop=lambda: next(calls) == 4)
    resumed = network(dropout=0.3)
    history = run(resumed, options, resume=load_checkpoint(tmp_path))
    assert history == expected
    for name, tensor in resumed.state_dict().items():
        assert torch.equal(tensor, undisturbed.state_dict()[name]), name


def test_precision_is_chosen_by_measurement_only_where_the_hardware_has_bf16() -> None:
    images = torch.randn(4, 8)
    assert choose_bf16("fp32", network(), images, CPU) is False
    assert choose_bf16("bf16", network(), images, CPU) is True
    if not computes_in_bf16(CPU):
        assert choose_bf16("auto", network(), images, CPU) is False


def test_the_measurement_of_precision_leaves_the_model_and_the_random_state_alone() -> None:
    model = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    choose_bf16("auto", model, torch.randn(4, 8, generator=torch.Generator().manual_seed(0)), CPU)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny vision transformer, saved."""
    import transformers

    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=16, patch_size=8
    )
    folder = tmp_path_factory.mktemp("vit")
    transformers.ViTModel(config).save_pretrained(folder)
    return folder


def test_lora_starts_as_the_model_it_is_added_to_and_merges_into_a_plain_one(vit: Path) -> None:
    images = torch.randn(2, 3, 16, 16)
    model = build_model(ModelConfig(model=str(vit)))
    before = model(images)
    names = set(model.state_dict())
    add_lora(model, 2)
    torch.testing.assert_close(model.eval()(images), before)
    assert all("lora_" in name for name, p in model.named_parameters() if p.requires_grad)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    adapted = model.eval()(images)
    assert not torch.allclose(adapted, before, atol=1e-3)
    merge_lora(model)
    torch.testing.assert_close(model.eval()(images), adapted, rtol=1e-4, atol=1e-5)
    assert set(model.state_dict()) == names


def test_lora_trains_through_fit_and_leaves_a_plain_model(vit: Path) -> None:
    docs = DocumentArray(
        Document(blob=coloured(number % 3, number, 16), tags={"finetuner_label": number % 3}) for number in range(18)
    )
    from executor import load_uri_to_image_blob

    model = build_model(ModelConfig(model=str(vit)))
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fit(model, docs, preprocess_fn=load_uri_to_image_blob, lora_rank=2, epochs=1, batch_size=9, learning_rate=0.05)
    changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor.cpu(), weights[name])]
    assert changed
    assert set(weights) == set(model.state_dict())


def test_lora_on_a_model_without_linear_layers_says_what_to_do() -> None:
    model = build_model(ModelConfig(model="small", input_size=16))
    with pytest.raises(ConfigurationError, match="lora_rank needs a transformers backbone; 'small' is a"):
        prepare_model(model, TrainingOptions(lora_rank=4))
