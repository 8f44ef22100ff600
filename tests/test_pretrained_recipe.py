"""What the recipe does by itself for a network that was trained before, and for one that was not."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from conftest import coloured
from executor import ClassDataset, Document, DocumentArray, fit, load_uri_to_image_blob
from executor.models.batch_norms import batch_norms
from executor.models.building import build_model
from executor.models.model import EmbeddingModel, ModelConfig, is_pretrained
from executor.parameters import TrainingOptions
from executor.training.new_head import principal_components, start_new_head
from executor.training.parts import default_epochs, default_rate

pytestmark = pytest.mark.compute

SIZE = 32
CPU = torch.device("cpu")
STILL = 1e-9  # a learning rate at which nothing moves


def pictures(count: int = 24) -> DocumentArray:
    return DocumentArray(
        Document(id=f"d{number}", blob=coloured(number % 3, number, SIZE), tags={"finetuner_label": number % 3})
        for number in range(count)
    )


def build(model: str = "default", **options: Any) -> EmbeddingModel:
    return build_model(ModelConfig(model=model, input_size=SIZE, **options))


def tune(model: nn.Module, **options: Any) -> nn.Module:
    settings = {"epochs": 1, "batch_size": 12, "precision": "fp32", "device": "cpu", "progress": False}
    return fit(model, pictures(), preprocess_fn=load_uri_to_image_blob, **settings | options)


def statistics(model: nn.Module) -> Tensor:
    return torch.cat([norm.running_var for norm in batch_norms(model)]).clone()


def weights(model: nn.Module) -> Tensor:
    return torch.cat([norm.weight for norm in batch_norms(model)]).detach().clone()


@pytest.mark.parametrize(
    ("model", "option", "stay"),
    [("default", "auto", True), ("default", "trained", False), ("small", "auto", False), ("small", "fixed", True)],
)
def test_batch_norms_keep_their_statistics_if_the_option_says_so_or_the_model_is_pretrained(model, option, stay):
    model = build(model)
    before, weights_before = statistics(model), weights(model)
    tune(model, norm_statistics=option)
    assert torch.equal(statistics(model), before) is stay
    assert not torch.equal(weights(model), weights_before)


def test_the_statistics_stay_when_the_epochs_are_measured_in_between():
    model = build()
    before = statistics(model)
    tune(model, epochs=2, val_split=0.3)
    assert torch.equal(statistics(model), before)


def test_a_network_is_pretrained_once_its_batch_norms_have_met_images():
    model = build("small")
    assert not is_pretrained(model)
    assert is_pretrained(tune(model))
    assert not is_pretrained(nn.Linear(3, 4))


@pytest.mark.parametrize(
    ("model", "options", "rate"),
    [
        ("default", {}, 1e-4),
        ("default", {"freeze": ("stem",)}, 1e-4),
        ("default", {"freeze": True}, 1e-3),
        ("small", {}, 1e-3),
    ],
)
def test_the_learning_rate_is_small_for_a_whole_pretrained_network_only(model, options, rate):
    built = build(model, **options)
    assert default_rate(built, TrainingOptions(**options)) == rate


def test_the_epochs_follow_the_number_of_documents():
    assert [default_epochs(count, pretrained=True) for count in (2, 100, 1000, 4000, 10**6)] == [30, 30, 10, 5, 3]
    assert [default_epochs(count, pretrained=False) for count in (2, 1000, 10**6)] == [30, 10, 10]


# a new head ---------------------------------------------------------------------------------------------------------


def similarities(embeddings: Tensor) -> Tensor:
    unit = nn.functional.normalize(embeddings, dim=1)
    return unit @ unit.T


def test_the_first_components_span_what_the_features_vary_in():
    random = np.random.default_rng(0)
    features = random.normal(size=(50, 3)) @ np.linalg.qr(random.normal(size=(20, 3)))[0].T
    others = np.linalg.qr(random.normal(size=(20, 8)))[0].T
    components = principal_components(features, others)
    assert components.shape == (8, 20)
    np.testing.assert_allclose(components @ components.T, np.eye(8), atol=1e-5)
    np.testing.assert_allclose(features @ components.T @ components, features, atol=1e-5)


def test_fewer_documents_than_dimensions_are_filled_up_with_orthonormal_directions():
    random = np.random.default_rng(0)
    features = random.normal(size=(2, 20))
    components = principal_components(features, np.linalg.qr(random.normal(size=(20, 8)))[0].T)
    np.testing.assert_allclose(components @ components.T, np.eye(8), atol=1e-5)
    np.testing.assert_allclose(features @ components.T @ components, features, atol=1e-5)


def test_a_new_head_starts_out_embedding_about_as_well_as_the_backbone():
    model = build(embedding_dim=16)
    images = model.preprocessing.normalise(torch.from_numpy(np.stack([doc.blob for doc in pictures()])))
    with torch.inference_mode():
        whole, random = (similarities(part) for part in (model.extract_features(images), model(images)))
    tune(model, learning_rate=STILL)
    with torch.inference_mode():
        started = similarities(model(images))
    assert (started - whole).abs().mean() < 0.1 * (random - whole).abs().mean()
    assert not model.head_is_new


def test_a_head_that_was_trained_is_left_as_it_is():
    model = build(embedding_dim=16)
    model.head_is_new = False
    before = model.head.weight.clone()
    start_new_head(model, ClassDataset(pictures(), load_uri_to_image_blob), np.arange(24), None, seed=0, device=CPU)
    assert torch.equal(model.head.weight, before)
