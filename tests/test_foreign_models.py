"""Models that are not ours: what their output is taken to be, and what they state of their preprocessing.

The transformers models are tiny, random and on disk; the image processors are compared with those of transformers.
"""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is first imported: no test leaves the machine

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from conftest import coloured
from doors import opened
from executor import Document, DocumentArray, fit
from executor import embed as embed_documents
from executor.errors import ConfigurationError, InvalidParameter
from executor.models.backbones import Reading, embedding_of, reading_of
from executor.models.building import build_backbone, build_model, seeded
from executor.models.export import export
from executor.models.lora import add_lora, merge_lora
from executor.models.model import EmbeddingModel, ModelConfig
from executor.models.preprocessing import Preprocessing
from executor.models.saving import load_model, save_model
from executor.models.stated import published_preprocessing
from executor.models.versions import ensure_base, load_version
from executor.parameters import parse_executor_options
from executor.store.run import RunState
from executor.store.workspace import Workspace
from serving import ROOT
from workshop import Workshop

pytestmark = pytest.mark.compute

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
VISION = TINY | {"image_size": 32, "patch_size": 8}
STAGES = {"image_size": 32, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4, "embed_dim": 16, "patch_size": 4}
PYRAMID = {"image_size": 32, "hidden_sizes": [8, 16, 16, 32], "depths": [1] * 4, "num_attention_heads": [1, 1, 1, 2]}
DECODER = {f"decoder_{name}": value for name, value in (*TINY.items(), ("intermediate_size", 32))}
HIERA = {
    "image_size": [32, 32],
    "patch_size": [7, 7],
    "patch_stride": [4, 4],
    "embed_dim": 16,
    "depths": [1, 1],
    "num_heads": [1, 2],
    "masked_unit_size": [4, 4],
    "num_query_pool": 1,
    "query_stride": [2, 2],
}
CONFIGS: dict[str, dict[str, Any]] = {
    "ViT": VISION,
    "DeiT": VISION,
    "Beit": VISION,
    "Dinov2": VISION,
    "Dinov2WithRegisters": VISION,
    "DINOv3ViT": VISION,
    "ViTMSN": VISION,
    "IJepa": VISION,
    "ViTMAE": VISION | DECODER,
    "SiglipVision": VISION,
    "CLIPVision": VISION,
    "Yolos": VISION | {"image_size": [32, 32], "num_detection_tokens": 4},
    "Swin": STAGES,
    "Swinv2": STAGES,
    "Hiera": HIERA,
    "FocalNet": {"image_size": 32, "embed_dim": 16, "depths": [1, 1], "focal_levels": [1, 1], "focal_windows": [3, 3]},
    "PvtV2": PYRAMID,
    "Segformer": PYRAMID,
    "ConvNext": {"num_stages": 2, "hidden_sizes": [8, 16], "depths": [1, 1]},
    "ResNet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]},
    "PoolFormer": {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]},
}
PROCESSOR = {
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "rescale_factor": 1 / 255,
    "size": {"height": 32, "width": 32},
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.25, 0.2, 0.3],
}
FACTORIES = """
import torch
from torch import nn

class Patches(nn.Module):
    preprocessing = {"size": 32, "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]}

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 6, 8, 8)

    def forward(self, images):
        return self.patches(images)  # (B, 6, 4, 4)

class Unstated(Patches):
    preprocessing = None

class Tokens(Patches):
    def forward(self, images):
        return super().forward(images).flatten(2).transpose(1, 2)  # (B, 16, 6)

class WithClassToken(Tokens):
    def __init__(self):
        super().__init__()
        self.cls_token = nn.Parameter(torch.ones(1, 1, 6))

    def forward(self, images):
        return torch.cat([self.cls_token * images.mean((1, 2, 3))[:, None, None], super().forward(images)], 1)

class WithRegisters(WithClassToken):
    def forward(self, images):
        tokens = super().forward(images)
        return torch.cat([tokens[:, :1], tokens.new_ones(len(images), 3, 6), tokens[:, 1:]], 1)

class WithNamelessClassToken(Tokens):
    def forward(self, images):
        return torch.cat([images.mean((1, 2, 3))[:, None, None].expand(-1, -1, 6), super().forward(images)], 1)

class LeavesOutClassToken(WithClassToken):
    def forward(self, images):
        return super().forward(images)[:, 1:]

class ChannelsLast(Patches):
    def forward(self, images):
        return super().forward(images).permute(0, 2, 3, 1)  # (B, 4, 4, 6), as Swin of torchvision and timm

class PlainDict(Patches):
    def forward(self, images):
        return {"logits": images, "last_hidden_state": super().forward(images)}

class Random(Patches):
    def forward(self, images):
        return super().forward(images).mean((2, 3)) * torch.rand(len(images), 6)

class LooksAtTheBatch(Patches):
    def forward(self, images):
        return nn.functional.batch_norm(super().forward(images).mean((2, 3)), None, None, training=True)

class NotANumber(Patches):
    def forward(self, images):
        return super().forward(images).mean((2, 3)) / 0 * 0

def stated(**preprocessing):
    module = Patches()
    module.preprocessing = preprocessing
    return module

def without_mean(): return stated(size=32, std=[1, 1, 1])
def unknown_field(): return stated(size=32, mean=[0, 0, 0], std=[1, 1, 1], colour="RGB")
def not_square(): return stated(size=(32, 64), mean=[0, 0, 0], std=[1, 1, 1])
def no_size(): return stated(size=0, mean=[0, 0, 0], std=[1, 1, 1])
def two_means(): return stated(size=32, mean=[0, 0], std=[1, 1, 1])
def zero_std(): return stated(size=32, mean=[0, 0, 0], std=[1, 1, 0])
def sides(): return stated(size=32, mean=[0, 0, 0], std=[1, 1, 1], shorter_side=[40, 40])
def filter(): return stated(size=32, mean=[0, 0, 0], std=[1, 1, 1], interpolation="cubic")
def perhaps(): return stated(size=32, mean=[0, 0, 0], std=[1, 1, 1], crop="perhaps")
def text(): return stated(size=32, mean="half", std=[1, 1, 1])
def too_small(): return stated(size=4, mean=[0, 0, 0], std=[1, 1, 1])

def not_a_mapping():
    module = Patches()
    module.preprocessing = lambda image: image
    return module

def ends_in_batch_norm():
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(8))

def ends_in_seen_batch_norm():
    module = ends_in_batch_norm()
    module[-1].running_mean.fill_(1.0)
    return module

def has_batch_norm_of_maps():
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8))

class Folded(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, images):
        tokens = images[:, :, ::4, ::4].flatten(2).transpose(1, 2)
        return self.norm(tokens.flatten(0, 1)).reshape(tokens.shape)

def has_batch_norm_of_tokens():
    return Folded()
"""


def directory(folder: Path, kind: str, processor: dict[str, Any] | None = PROCESSOR, **changes: Any) -> Path:
    """Save a tiny random model of `kind` as transformers does."""
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**CONFIGS[kind] | changes)
    getattr(transformers, f"{kind}Model")(config).save_pretrained(folder)
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


@pytest.fixture
def factories(importable):
    return importable("foreign_factories", FACTORIES)


def images_for(model: EmbeddingModel, count: int = 4) -> Tensor:
    size = model.preprocessing.size
    images = torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=torch.manual_seed(1))
    return model.preprocessing.normalise(images)


@torch.inference_mode()
def embed(model: nn.Module, images: Tensor) -> Tensor:
    return model(images)


@torch.inference_mode()
def output_of(model: EmbeddingModel, images: Tensor) -> Any:
    return model.backbone(images, **model.options)


def assert_embeds_as(model: EmbeddingModel, images: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(embed(model, images), nn.functional.normalize(expected))


# Outputs of transformers


@pytest.mark.parametrize(
    ("kind", "taken"),
    [
        *((kind, "pooler") for kind in ("ViT", "DeiT", "Beit", "Dinov2", "Dinov2WithRegisters", "DINOv3ViT", "Yolos")),
        *((kind, "pooler") for kind in ("SiglipVision", "CLIPVision", "Swin", "Swinv2", "Hiera", "FocalNet")),
        *((kind, "pooler") for kind in ("ConvNext", "ResNet")),
        *((kind, "places") for kind in ("PvtV2", "Segformer", "PoolFormer")),
        ("ViTMSN", "class token"),
        ("IJepa", "tokens"),
    ],
)
def test_the_embedding_of_each_kind_of_transformers_model_is_what_it_means_it_to_be(tmp_path, kind, taken):
    model = build_model(ModelConfig(model=str(directory(tmp_path / "model", kind))))
    images = images_for(model)
    output = output_of(model, images)
    expected = {
        "pooler": lambda: output.pooler_output.flatten(1),
        "places": lambda: output.last_hidden_state.mean((2, 3)),
        "class token": lambda: output.last_hidden_state[:, 0],
        "tokens": lambda: output.last_hidden_state.mean(1),
    }[taken]()
    assert_embeds_as(model, images, expected)


@pytest.mark.parametrize(("kind", "changes"), [("Siglip", {"vision_use_head": False}), ("Dinov2", {}), ("ViTMSN", {})])
def test_without_a_pooler_tokens_are_averaged_only_where_none_of_them_is_a_class_token(tmp_path, kind, changes):
    name = f"{kind}Vision" if kind == "Siglip" else kind
    model = build_model(ModelConfig(model=str(directory(tmp_path / "model", name, **changes))))
    sequence = output_of(model, images_for(model)).last_hidden_state
    assert reading_of(model.backbone, sequence, images_for(model)).class_token == (kind != "Siglip")


def test_an_averaged_model_stays_averaged_when_it_is_saved_frozen_adapted_and_exported(tmp_path, monkeypatch):
    model = build_model(ModelConfig(model=str(directory(tmp_path / "original", "IJepa")), embedding_dim=5))
    images = images_for(model)
    save_model(model, tmp_path / "m")
    shutil.rmtree(tmp_path / "original")
    loaded = load_model(tmp_path / "m")
    assert loaded.reading == Reading(class_token=False)
    assert torch.equal(embed(loaded, images), embed(model, images))
    add_lora(loaded, 2)
    torch.testing.assert_close(embed(loaded, images), embed(model, images))
    merge_lora(loaded)
    torch.testing.assert_close(embed(loaded, images), embed(model, images))
    assert torch.equal(embed(load_model(tmp_path / "m", freeze=True), images), embed(model, images))
    readme = export(tmp_path / "m", tmp_path / "out", "transformers") / "README.md"
    assert ".last_hidden_state.mean(1)\n" in readme.read_text()


def test_a_model_saved_before_there_was_a_choice_is_read_as_it_was_then(tmp_path):
    model = build_model(ModelConfig(model=str(directory(tmp_path / "original", "IJepa"))))
    images = images_for(model)
    save_model(model, tmp_path / "m")
    settings = json.loads((tmp_path / "m" / "model.json").read_text())
    del settings["reading"]
    (tmp_path / "m" / "model.json").write_text(json.dumps(settings))
    assert_embeds_as(load_model(tmp_path / "m"), images, output_of(model, images).last_hidden_state[:, 0])


def test_random_masks_are_refused_with_how_to_switch_them_off(tmp_path):
    with pytest.raises(ConfigurationError, match=r"same image differently.*set mask_ratio to 0 in config\.json"):
        build_model(ModelConfig(model=str(directory(tmp_path / "masked", "ViTMAE"))))
    model = build_model(ModelConfig(model=str(directory(tmp_path / "whole", "ViTMAE", mask_ratio=0.0))))
    images = images_for(model)
    torch.testing.assert_close(embed(model, images), embed(model, images))


@pytest.mark.parametrize(
    ("kind", "changes", "size"),
    [
        ("ViT", {"image_size": [32, 64]}, None),
        ("ViT", {"patch_size": 32}, 16),
        ("Swin", {"image_size": [32, 40]}, None),
    ],
)
def test_a_size_that_a_model_cannot_see_is_refused_in_a_sentence(tmp_path, kind, changes, size):
    folder = directory(tmp_path / "model", kind, None, **changes)
    with pytest.raises(ConfigurationError, match=r"only squares|set input_size"):
        build_model(ModelConfig(model=str(folder), input_size=size))


@pytest.mark.parametrize("change", [{"hidden_size": "wide"}, {"num_attention_heads": 0}, {"hidden_act": "no such"}])
def test_odd_settings_of_a_model_are_refused_in_a_sentence(tmp_path, change):
    folder = directory(tmp_path / "model", "ViT")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ConfigurationError, match=f"{folder}.*cannot be loaded|{folder}.*is not usable"):
        build_model(ModelConfig(model=str(folder)))


# Outputs of factories


@pytest.mark.parametrize(
    ("factory", "expected"),
    [
        ("Patches", lambda output: output.mean((2, 3))),
        ("ChannelsLast", lambda output: output.mean((1, 2))),
        ("PlainDict", lambda output: output["last_hidden_state"].mean((2, 3))),
        ("Tokens", lambda output: output.mean(1)),
        ("LeavesOutClassToken", lambda output: output.mean(1)),
        ("WithClassToken", lambda output: output[:, 0]),
        ("WithRegisters", lambda output: output[:, 0]),
        ("WithNamelessClassToken", lambda output: output[:, 0]),
    ],
)
def test_the_output_of_a_factorys_model_is_read_alike_when_built_loaded_and_given_to_embed(
    factories, tmp_path, factory, expected
):
    model = build_model(ModelConfig(model=f"{factories}:{factory}"))
    images = images_for(model)
    assert_embeds_as(model, images, expected(output_of(model, images)))
    save_model(model, tmp_path / "m")
    assert torch.equal(embed(load_model(tmp_path / "m"), images), embed(model, images))
    docs = DocumentArray([Document(blob=image) for image in images.numpy()])  # float32: given to the module as it is
    embed_documents(docs, model.backbone, device="cpu")
    np.testing.assert_allclose([doc.embedding for doc in docs], embed(model, images).numpy(), atol=1e-6)


@pytest.mark.parametrize("factory", ["ChannelsLast", "PlainDict", "Tokens"])
def test_fit_trains_a_module_that_averages_what_it_returns(factories, factory):
    module = build_model(ModelConfig(model=f"{factories}:{factory}")).backbone
    before = module.patches.weight.clone()
    docs = [Document(blob=coloured(label, size=32), tags={"finetuner_label": label}) for label in (0, 1) * 6]
    fit(module, DocumentArray(docs), epochs=1, batch_size=8, progress=False)
    assert not torch.equal(module.patches.weight.cpu(), before)


@pytest.mark.parametrize("factory", ["Random", "LooksAtTheBatch", "NotANumber"])
def test_a_model_that_gives_the_same_image_different_embeddings_is_refused(factories, factory):
    with pytest.raises(ConfigurationError, match="embeds the same image differently the second time"):
        build_model(ModelConfig(model=f"{factories}:{factory}"))


def test_trying_a_model_on_images_does_not_change_the_weights_of_its_head():
    config = ModelConfig(model="small", seed=3, input_size=16, embedding_dim=5)
    with seeded(config.seed):
        build_backbone(config)
        expected = nn.init.orthogonal_(nn.Linear(256, 5, bias=False).weight)
    head = build_model(config).head
    assert head is not None
    assert torch.equal(head.weight, expected)


@pytest.mark.parametrize(("size", "patch"), [(32, 8), (224, 16), (384, 14), (518, 14), (100, 30)])
def test_tokens_are_counted_against_the_patches_even_where_a_margin_is_left(size, patch):
    patches, image = (size // patch) ** 2, torch.zeros(1, 3, size, size)
    named, nameless = nn.ParameterDict({"cls_token": torch.zeros(1)}), nn.Identity()
    for tokens, expected in ((patches, (False, False)), (patches + 1, (True, True)), (patches + 5, (True, False))):
        sequence = torch.zeros(1, tokens, 8)
        found = tuple(reading_of(module, sequence, image).class_token for module in (named, nameless))
        assert found == expected


def test_an_output_of_the_wrong_shape_is_refused_with_its_shape():
    with pytest.raises(ConfigurationError, match=r"shape \(2, 3, 4, 5, 6\); expected \(B, D\)"):
        embedding_of(torch.zeros(2, 3, 4, 5, 6), Reading())


# Image processors


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"do_rescale": False, "image_mean": [123.0, 116.0, 103.0], "image_std": [58.0, 57.0, 57.0]},
        {"do_rescale": None},
        {"do_normalize": False},
        {"do_normalize": None},
        {"do_rescale": False, "do_normalize": False},
        {"image_mean": 0.5, "image_std": 0.25},
        {"rescale_factor": 1 / 127.5},
        {"image_processor_type": "EfficientNetImageProcessor"},
        {"image_processor_type": "EfficientNetImageProcessor", "include_top": False},
        {"image_processor_type": "EfficientNetImageProcessor", "include_top": True, "do_normalize": False},
        {"image_processor_type": "EfficientNetImageProcessor", "rescale_offset": True, "rescale_factor": 1 / 127.5},
    ],
    ids=str,
)
def test_the_colours_that_a_model_sees_are_those_of_the_image_processor_of_transformers(tmp_path, change):
    from transformers import ViTConfig
    from transformers.models.efficientnet.image_processing_pil_efficientnet import EfficientNetImageProcessorPil
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSOR | change))
    processor = EfficientNetImageProcessorPil if "image_processor_type" in change else ViTImageProcessorPil
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    theirs = processor.from_pretrained(tmp_path)(image, return_tensors="pt").pixel_values
    ours, _ = published_preprocessing(str(tmp_path), ViTConfig(image_size=32))
    torch.testing.assert_close(ours.normalise(torch.from_numpy(image)[None]), theirs.float(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"size": 40}, {"size": 40}),
        ({"size": 40.0}, {"size": 40}),
        ({"size": [40, 40]}, {"size": 40}),
        ({"size": {"shortest_edge": 40, "longest_edge": None}}, {"size": 40, "crop": False}),
        ({"size": None}, {"size": 32}),
        ({"do_resize": False}, {"size": 32}),
        ({"do_center_crop": None, "crop_size": None}, {"size": 32, "crop": False}),
        ({"size": 40, "do_center_crop": True, "crop_size": 32}, {"size": 32, "shorter_side": 40}),
        ({"size": 40, "do_center_crop": True, "crop_size": 32, "crop_pct": 0.8}, {"size": 32, "shorter_side": 50}),
        ({"size": 32, "crop_pct": None}, {"size": 32, "shorter_side": 36}),
        ({"image_mean": [0.5], "image_std": [0.25]}, {"mean": (0.5,) * 3, "std": (0.25,) * 3}),
        ({"do_convert_rgb": True, "do_reduce_labels": True}, {"size": 32}),
    ],
    ids=str,
)
def test_the_entries_of_an_image_processor_are_honoured(tmp_path, change, expected):
    folder = directory(tmp_path / "model", "ViT", PROCESSOR | change)
    preprocessing = build_model(ModelConfig(model=str(folder))).preprocessing
    for name, value in expected.items():
        assert getattr(preprocessing, name) == pytest.approx(value)


@pytest.mark.parametrize(
    "change",
    [
        {"size": {"longest_edge": 32}},
        {"size": {"shortest_edge": 32, "longest_edge": 64}},
        {"size": {"height": 32, "width": 64}},
        {"size": "32"},
        {"size": 0},
        {"size": 1_000_000},
        {"size": True},
        {"size": {}},
        {"crop_size": 64, "do_center_crop": True},
        {"crop_pct": "0.9"},
        {"do_resize": False, "do_center_crop": True},
        {"do_flip_channel_order": True},
        {"do_pad": True},
        {"do_something_new": True},
        {"do_rescale": "no"},
        {"rescale_factor": None},
        {"rescale_factor": 0},
        {"image_mean": None},
        {"image_mean": [0.5] * 4},
        {"image_mean": "half"},
        {"image_std": None},
        {"image_std": [0.2, 0.0, 0.2]},
    ],
    ids=str,
)
def test_an_entry_that_cannot_be_honoured_is_refused_by_its_name(tmp_path, change):
    folder = directory(tmp_path / "model", "ViT", PROCESSOR | change)
    with pytest.raises(ConfigurationError, match=f"{next(iter(change))} is .* in the image processor of model="):
        build_model(ModelConfig(model=str(folder)))


@pytest.mark.parametrize("content", ["[]", "{", '{"image_processor": [1]}'])
def test_an_image_processor_that_is_no_object_is_refused_by_the_name_of_its_file(tmp_path, content):
    folder = directory(tmp_path / "model", "ViT", None)
    (folder / "preprocessor_config.json").write_text(content)
    with pytest.raises(ConfigurationError, match=r"preprocessor_config\.json of model=.* cannot be read"):
        build_model(ModelConfig(model=str(folder)))


def test_the_size_of_an_image_processor_goes_before_that_of_the_model(tmp_path):
    folder = directory(tmp_path / "model", "Segformer", PROCESSOR, image_size=[32, 64])
    assert build_model(ModelConfig(model=str(folder))).preprocessing.size == 32


def test_an_image_processor_without_a_size_still_says_how_to_normalise(tmp_path):
    folder = directory(tmp_path / "model", "ViT", {"image_mean": [0.5] * 3, "image_std": [0.25] * 3})
    preprocessing = build_model(ModelConfig(model=str(folder))).preprocessing
    assert (preprocessing.size, preprocessing.mean) == (32, (0.5, 0.5, 0.5))


# What is stated, and what is assumed


@pytest.mark.parametrize(
    ("factory", "reason"),
    [
        ("without_mean", "size, mean and std"),
        ("unknown_field", "no other fields than size, mean, std, crop, shorter_side, interpolation"),
        ("not_a_mapping", "must be a mapping with size, mean and std"),
        ("not_square", r"size=\(32, 64\); it must be a number of pixels, 1 to 4096"),
        ("no_size", "size=0; it must be a number of pixels"),
        ("filter", "interpolation='cubic'; it must be one of area, bilinear, bicubic, lanczos"),
        ("sides", r"shorter_side=\[40, 40\]; it must be a number of pixels"),
        ("perhaps", "crop='perhaps'; it must be true or false"),
        ("two_means", r"mean=\[0, 0\]; it must be three numbers"),
        ("zero_std", r"std=\[1, 1, 0\]; it must be three numbers above 0"),
        ("text", "mean='half'"),
        ("too_small", r"\(2, 3, 4, 4\).*set input_size"),
    ],
)
def test_a_preprocessing_that_cannot_be_used_is_refused_by_the_field(factories, factory, reason):
    with pytest.raises(ConfigurationError, match=reason):
        build_model(ModelConfig(model=f"{factories}:{factory}"))


def test_a_factorys_preprocessing_may_be_ours(factories):
    module = sys.modules.get(factories) or __import__(factories)
    stated = Preprocessing(size=32, mean=(0.1, 0.2, 0.3), std=(0.2, 0.2, 0.2), crop=True, shorter_side=40)
    module.Patches.preprocessing = stated
    assert build_model(ModelConfig(model=f"{factories}:Patches")).preprocessing == stated


def test_what_is_assumed_of_a_model_is_said_once_and_only_where_nothing_is_stated(factories, tmp_path, caplog):
    def notes(model: str, workspace: str) -> list[str]:
        caplog.clear()
        load_version(Workspace(tmp_path / workspace), parse_executor_options({"model": model}), "base")
        return [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]

    (note,) = notes(f"{factories}:Unstated", "unstated")
    assert "does not state its preprocessing. Assumed: squares of 224 pixels" in note
    assert "attribute `preprocessing`, as docs/training.md shows" in note
    assert notes(f"{factories}:Unstated", "unstated") == []
    assert notes(f"{factories}:Patches", "stated") == []
    (note,) = notes(str(directory(tmp_path / "bare", "ViT", None)), "bare")
    assert "Assumed: squares of 32 pixels" in note
    assert notes(str(directory(tmp_path / "complete", "ViT")), "complete") == []


def example_of_the_page() -> str:
    page = (ROOT / "docs" / "training.md").read_text()
    return page.split("as `my_models.py`:\n\n```python\n")[1].split("```")[0]


def test_the_example_of_a_factory_runs_as_it_stands(tmp_path, monkeypatch):
    (tmp_path / "my_models.py").write_text(example_of_the_page())
    monkeypatch.syspath_prepend(tmp_path)
    try:
        model = build_model(ModelConfig(model="my_models:make"))
    finally:
        sys.modules.pop("my_models", None)
    assert model.notes == ()
    assert model.preprocessing.size == 96
    assert embed(model, images_for(model)).shape == (4, 32)


# Runs


def labelled(count: int = 16) -> DocumentArray:
    return DocumentArray(
        [Document(id=f"d{n}", blob=coloured(n), tags={"finetuner_label": n % 2}) for n in range(count)]
    )


@pytest.mark.process
def test_parts_of_one_image_and_batch_norm_fail_a_run_at_its_first_attempt_and_the_first_run_says_what_it_assumed(
    tmp_path, factories
):
    """The model states no preprocessing either: the run that builds it says what was assumed, and the next does not."""
    workshop = Workshop(tmp_path / "workspace", model=f"{factories}:ends_in_batch_norm")
    runs = {"first": {"micro_batch": 1, "batch_size": 8}, "second": {"micro_batch": 2, "batch_size": 3}}
    for run, options in runs.items():
        workshop.receive(run, labelled(), **options)  # nothing was built yet, so nobody knows
        workshop.queue(run)
    with workshop.supervised():
        ended = [workshop.wait(run) for run in runs]
    for run in ended:
        assert run.state is RunState.FAILED
        assert "set micro_batch to 2 or more" in (run.error or "")
        assert run.attempts == 1
    said = ["preprocessing" in " ".join(workshop.events(run, "warning")) for run in runs]
    assert said == [True, False]


@pytest.mark.parametrize(
    ("name", "options", "refused"),
    [
        ("ends_in_batch_norm", {"micro_batch": 1}, True),
        ("ends_in_batch_norm", {"micro_batch": 3}, False),
        ("ends_in_batch_norm", {"batch_size": 3}, False),
        ("ends_in_batch_norm", {"micro_batch": 1, "freeze": True}, False),
        ("ends_in_batch_norm", {"micro_batch": 1, "norm_statistics": "fixed"}, False),
        ("ends_in_seen_batch_norm", {"micro_batch": 1}, False),
        ("ends_in_seen_batch_norm", {"micro_batch": 1, "norm_statistics": "trained"}, True),
        ("has_batch_norm_of_maps", {"micro_batch": 1}, False),
        ("has_batch_norm_of_tokens", {"micro_batch": 1}, False),
    ],
    ids=str,
)
def test_parts_of_one_image_are_refused_at_once_where_a_batch_norm_needs_two(
    tmp_path, factories, name, options, refused
):
    workshop = Workshop(tmp_path / "workspace", model=f"{factories}:{name}")
    ensure_base(workshop.store.workspace, workshop.options)
    if not refused:
        workshop.receive("run", labelled(), **options)
        return
    with pytest.raises(InvalidParameter, match=r"'micro_batch' is 1, .* set micro_batch to 2 or more"):
        workshop.receive("run", labelled(), **options)
    workshop.receive("run", labelled())
    with pytest.raises(InvalidParameter, match="which has no variance"):  # named by a later request
        workshop.receive("run", labelled(), **options)


def test_a_model_that_cannot_be_used_is_refused_in_a_sentence_at_every_endpoint(tmp_path):
    folder = directory(tmp_path / "model", "ViT", PROCESSOR | {"image_mean": None})
    with opened(tmp_path, model=str(folder), input_size=None) as door:
        body = [{"blob": coloured(0).tolist(), "tags": {"finetuner_label": 0}}]
        for endpoint in ("/embed", "/evaluate"):
            answer = door.post(endpoint, body)
            assert answer.status_code == 500
            assert answer.json()["detail"].startswith("image_mean is None in the image processor of model=")
