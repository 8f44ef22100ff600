"""In which precision a version serves, and with how many threads."""

import contextlib
from pathlib import Path

import numpy as np
import pytest
import torch

from executor.loading.forward import embed_batches
from executor.models.building import build_model
from executor.models.model import EmbeddingModel, ModelConfig
from executor.serving.inference import (
    AGREEMENT,
    LIGHT_IMAGES,
    LIGHT_SECONDS,
    WAYS,
    _graph_of,
    agrees_and_is_faster,
    choose_path,
    embed_by_graph,
    faster_graph,
    is_light,
    sample_images,
    torch_threads,
    way_of,
)
from executor.training.precision import computes_in_bf16

pytestmark = pytest.mark.compute

CPU = torch.device("cpu")
in_hardware = pytest.mark.skipif(not computes_in_bf16(CPU), reason="this processor does not compute in bf16")


@pytest.fixture(scope="module")
def model() -> EmbeddingModel:
    return build_model(ModelConfig(model="small", input_size=64))


class Cancelling(torch.nn.Module):
    """Its outputs are small differences of large numbers, which bf16 cannot hold."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        large = torch.nn.functional.linear(images.mean(dim=(2, 3)), torch.eye(3)) + 1000.0
        return torch.nn.functional.linear(large, torch.eye(3)) - 1000.0


@in_hardware
def test_a_network_embeds_alike_in_bf16_and_no_image_depends_on_its_neighbours(model: EmbeddingModel) -> None:
    images = sample_images(64)
    exact, rounded = embed_batches(model, [images], CPU), embed_batches(model, [images], CPU, bf16=True)
    alone = embed_batches(model, list(images.split(1)), CPU, bf16=True)
    assert (exact * rounded).sum(axis=1).min() >= AGREEMENT
    assert not np.array_equal(exact, rounded)  # it was another computation
    np.testing.assert_allclose(alone, rounded, atol=1e-5)


def test_a_network_that_loses_too_much_in_bf16_serves_in_fp32() -> None:
    assert not agrees_and_is_faster(Cancelling(), sample_images(16), CPU)


@in_hardware
@pytest.mark.parametrize("like", WAYS)
def test_another_version_of_a_network_is_served_like_the_first(
    like: str, model: EmbeddingModel, tmp_path: Path
) -> None:
    bf16, graph = choose_path(model, 64, CPU, tmp_path, like=like)
    assert way_of(bf16, graph) == like == (tmp_path / "serving").read_text()


@in_hardware
@pytest.mark.parametrize("like", ["graph", "bf16"])
def test_a_version_that_does_not_agree_is_measured(like: str, tmp_path: Path) -> None:
    model = build_model(ModelConfig(model="small", input_size=16))
    model.backbone, model.head = Cancelling(), None
    bf16, graph = choose_path(model, 16, CPU, tmp_path, like=like)
    assert not bf16  # a graph in fp32 may be faster
    assert (tmp_path / "serving").read_text() == way_of(bf16, graph)


@in_hardware
@pytest.mark.parametrize("kept", WAYS)
def test_what_was_chosen_once_for_a_version_holds(kept: str, model: EmbeddingModel, tmp_path: Path) -> None:
    (tmp_path / "serving").write_text(kept)
    bf16, graph = choose_path(model, 64, CPU, tmp_path)
    assert way_of(bf16, graph) == kept
    assert (bf16, graph is not None) == WAYS[kept]


@in_hardware
@pytest.mark.parametrize("kept", [None, b"", b"int4", b"\xff\xfe\x00"], ids=["none", "empty", "unknown", "no text"])
def test_the_choice_is_measured_where_none_can_be_read_and_written_down(
    kept: bytes | None, model: EmbeddingModel, tmp_path: Path
) -> None:
    if kept is not None:
        (tmp_path / "serving").write_bytes(kept)
    bf16, graph = choose_path(model, 64, CPU, tmp_path)
    assert (tmp_path / "serving").read_text() == way_of(bf16, graph)


@in_hardware
@pytest.mark.parametrize(("kept", "agreement"), [("graph", AGREEMENT), ("fp32 graph", 1 - 1e-6)])
def test_a_graph_embeds_alike_in_batches_of_any_size_and_again_after_a_restart(
    kept: str, agreement: float, model: EmbeddingModel, tmp_path: Path
) -> None:
    (tmp_path / "serving").write_text(kept)
    _, graph = choose_path(model, 64, CPU, tmp_path)
    _, again = choose_path(model, 64, CPU, tmp_path)
    assert graph is not None
    assert again is not None
    images = sample_images(64)
    exact, traced = embed_batches(model, [images], CPU), embed_by_graph(graph, images)
    assert (exact * traced).sum(axis=1).min() >= agreement
    assert not np.array_equal(exact, traced)  # it was another computation
    for size in (1, 2, 3, 7):
        parts = [embed_by_graph(again, part) for part in images.split(size)]
        np.testing.assert_allclose(np.concatenate(parts), traced, atol=1e-5)


def test_a_model_that_cannot_be_traced_has_no_graph(model: EmbeddingModel) -> None:
    class ForOneBatch(EmbeddingModel):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if images.shape[0] == 1:
                raise ValueError
            return super().forward(images).reshape(16, -1)  # a size that the tracer takes for constant

    other = build_model(ModelConfig(model="small", input_size=64))
    other.__class__ = ForOneBatch
    assert faster_graph(other, sample_images(64), bf16=False) is None


class Lasting:
    """Takes so many seconds in turn, on a clock of its own; the last of them for ever after."""

    def __init__(self, *seconds: float) -> None:
        self.now = 0.0
        self.seconds = list(seconds)

    def clock(self) -> float:
        return self.now

    def embed(self, images: torch.Tensor) -> np.ndarray:
        assert (len(images), torch.get_num_threads()) == (LIGHT_IMAGES, 1)
        self.now += self.seconds.pop(0) if len(self.seconds) > 1 else self.seconds[0]
        return images.float().mean(dim=(1, 2)).numpy()


@pytest.mark.parametrize(
    ("model", "light"),
    [
        (Lasting(LIGHT_IMAGES * LIGHT_SECONDS / 2), True),
        (Lasting(LIGHT_IMAGES * LIGHT_SECONDS * 2), False),
        (Lasting(1.0, 1.0, LIGHT_IMAGES * LIGHT_SECONDS / 2), True),  # other processes may have held up one try or two
    ],
)
def test_a_model_is_light_if_one_thread_embeds_a_batch_at_once(model: Lasting, light: bool) -> None:
    assert is_light(model.embed, 16, clock=model.clock) is light


def test_the_number_of_threads_is_as_before_afterwards_also_where_the_model_fails() -> None:
    before = torch.get_num_threads()
    with contextlib.suppress(RuntimeError), torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise RuntimeError
    assert torch.get_num_threads() == before


class Head(torch.nn.Linear):
    """Two of them that differ in what they do, not in what they have, look alike."""

    def __init__(self, seed: int, factor: float = 1.0) -> None:
        torch.manual_seed(seed)
        super().__init__(256, 8)
        self.register_buffer("shift", torch.full((8,), float(seed)), persistent=False)
        self.factor = factor

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return super().forward(features) * self.factor + self.shift


def graph_and_model(head: Head) -> tuple[np.ndarray, np.ndarray]:
    """What the graph and the model with this head give for the same images."""
    model = build_model(ModelConfig(model="small", input_size=16))
    model.head = head
    graph = _graph_of(model.eval(), sample_images(16), bf16=False)
    assert graph is not None
    return embed_by_graph(graph, sample_images(16)), embed_batches(model, [sample_images(16)], CPU)


def test_a_network_is_traced_once_and_each_version_has_its_own_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is traced is never freed: a service that is fine-tuned every day would grow by a model a day."""
    traced = []
    trace = torch.jit.trace
    monkeypatch.setattr(torch.jit, "trace", lambda *args, **named: traced.append(1) or trace(*args, **named))
    for seed in (0, 0, 1):
        np.testing.assert_allclose(*graph_and_model(Head(seed)), atol=1e-6)
    assert len(traced) == 2  # the last has another `shift`, which is none of its weights
    np.testing.assert_allclose(*graph_and_model(Head(1, factor=-3.0)), atol=1e-6)
    assert len(traced) == 3
