"""The default model: our EfficientNet-Lite0 is the published one, weight by weight and layer by layer.

`efficientnet_lite0.json` holds what the package `efficientnet-lite-pytorch` 0.1.0 computes from `wave`: of each layer
the mean, the standard deviation, the first and the last value; of the features every hundredth.
"""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from executor.errors import ConfigurationError
from executor.models import efficientnet
from executor.models.building import build_model
from executor.models.efficientnet import (
    FEATURES,
    PRETRAINED,
    file_name,
    pretrained_efficientnet,
    read_weights,
    weights_file,
)
from executor.models.model import SMALLEST_INPUT, ModelConfig
from executor.models.saving import load_model, save_model

REFERENCE = json.loads((Path(__file__).parent / "efficientnet_lite0.json").read_text())


def wave(size: int) -> Tensor:
    """A smooth image, (1, 3, size, size) float32, that any program can compute."""
    y, x = torch.meshgrid(torch.arange(size) / size, torch.arange(size) / size, indexing="ij")
    return torch.stack([torch.sin(6 * x + 4 * y * y), torch.cos(9 * y * x + 1), torch.sin(13 * x * x - 5 * y)])[None]


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    return pretrained_efficientnet(None).module.eval()


def test_every_layer_computes_what_the_reference_computes(network):
    found: dict[str, list[float]] = {}

    def note(name: str, output: Tensor) -> None:
        found[name] = [output.mean(), output.std(), output[0, 0, 0, 0], output[0, -1, -1, -1]]

    for name in REFERENCE["layers"]:
        network.get_submodule(name).register_forward_hook(lambda _, __, output, name=name: note(name, output))
    with torch.inference_mode():
        network(wave(96))
    for name, expected in REFERENCE["layers"].items():
        assert [float(value) for value in found[name]] == pytest.approx(expected, rel=1e-3, abs=1e-3), name


@pytest.mark.parametrize("size", [64, 96, 160, 224])
def test_the_features_are_those_of_the_reference_at_any_size(network, size):
    with torch.inference_mode():
        features = network(wave(size))
    assert features.shape == (1, FEATURES)
    assert features[0, ::100].tolist() == pytest.approx(REFERENCE["features"][str(size)], rel=1e-3, abs=1e-3)


def test_every_weight_of_the_file_but_the_classifiers_is_used(network):
    in_file = set(read_weights(weights_file()))
    assert {file_name(name) for name in network.state_dict()} == in_file - {"_fc.weight", "_fc.bias"}


def test_a_fresh_default_model_has_the_pretrained_weights_and_their_preprocessing():
    model = build_model(ModelConfig())
    assert (model.dim, model.head, model.preprocessing) == (FEATURES, None, PRETRAINED)
    stem = model.backbone.stem.conv.weight
    assert torch.equal(stem, read_weights(weights_file())["_conv_stem.weight"])


def test_a_saved_default_model_is_loaded_without_the_package_of_weights(tmp_path, monkeypatch):
    model = build_model(ModelConfig(input_size=64))
    save_model(model, tmp_path / "model")
    monkeypatch.setattr(efficientnet, "PACKAGE", "no_such_package")
    loaded = load_model(tmp_path / "model")
    with torch.inference_mode():
        assert torch.equal(loaded(wave(64)), model(wave(64)))


def test_missing_weights_are_refused_with_the_remedy(monkeypatch):
    monkeypatch.setattr(efficientnet, "PACKAGE", "no_such_package")
    with pytest.raises(ConfigurationError, match=r"install no-such-package, as requirements\.txt does"):
        build_model(ModelConfig())


def test_a_changed_file_of_weights_is_refused_before_it_is_read_as_one(tmp_path):
    changed = tmp_path / "weights.pth"
    changed.write_bytes(weights_file().read_bytes()[:-1] + b"?")
    with pytest.raises(ConfigurationError, match="not the file of weights that was published"):
        read_weights(changed)


def test_the_smallest_input_has_a_right_gradient_in_bf16(network):
    """In torch 2.13 a convolution of stride 2 over one position has a wrong gradient in bf16 on a CPU."""
    images = wave(SMALLEST_INPUT).repeat(4, 1, 1, 1)
    gradients = []
    for bf16 in (False, True):
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            features = network(images)
        features.float().square().sum().backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in network.parameters()]))
    assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > 0.95
