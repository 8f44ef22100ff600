"""In which precision a version serves, and with how many threads."""

import contextlib
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from executor.evaluation import embed_batches
from executor.inference import (
    AGREEMENT,
    LIGHT_SECONDS,
    agrees_and_is_faster,
    is_light,
    sample_images,
    serves_in_bf16,
    torch_threads,
)
from executor.models import EmbeddingModel, ModelConfig, build_model
from executor.precision import computes_in_bf16

CPU = torch.device("cpu")
in_hardware = pytest.mark.skipif(not computes_in_bf16(CPU), reason="this processor does not compute in bf16")


@pytest.fixture(scope="module")
def model() -> EmbeddingModel:
    return build_model(ModelConfig(input_size=64))


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
@pytest.mark.parametrize("kept", ["bf16", "fp32"])
def test_what_was_chosen_once_for_a_version_holds(kept: str, model: EmbeddingModel, tmp_path: Path) -> None:
    (tmp_path / "serving").write_text(kept)
    assert serves_in_bf16(model, 64, CPU, tmp_path, light=True) is (kept == "bf16")


@in_hardware
def test_the_choice_is_measured_where_none_was_made_and_written_down(model: EmbeddingModel, tmp_path: Path) -> None:
    chosen = serves_in_bf16(model, 64, CPU, tmp_path, light=True)
    assert (tmp_path / "serving").read_text() == ("bf16" if chosen else "fp32")


def test_a_model_is_light_if_one_thread_embeds_an_image_at_once(model: EmbeddingModel) -> None:
    class Heavy(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            time.sleep(2 * LIGHT_SECONDS)
            return images.mean(dim=(2, 3))

    assert is_light(model, 16, CPU)
    assert not is_light(Heavy(), 16, CPU)


def test_the_number_of_threads_is_as_before_afterwards_also_where_the_model_fails() -> None:
    before = torch.get_num_threads()
    with contextlib.suppress(RuntimeError), torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise RuntimeError
    assert torch.get_num_threads() == before
