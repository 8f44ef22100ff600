"""Models by name: built, frozen, saved, loaded. The transformers models are tiny, random and on disk."""

import json
import os
import re
import shutil
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is first imported: no test leaves the machine

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from executor.errors import ConfigurationError, WorkspaceError
from executor.models.backbones import Reading, embedding_of
from executor.models.building import build_model
from executor.models.model import ModelConfig
from executor.models.preprocessing import Preprocessing
from executor.models.saving import load_model, save_model, space_of
from executor.models.versions import ensure_base
from executor.parameters import ExecutorOptions
from executor.store.workspace import Workspace

pytestmark = pytest.mark.compute

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 37}
PROCESSOR = {"size": {"height": 32, "width": 32}, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
FACTORIES = """
import torch
from torch import nn

def good():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model.preprocessing = {"size": 20, "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]}
    return model

def returns_text():
    return "a model"

def fails():
    raise RuntimeError("no licence found")

def one_dimensional():
    return nn.Flatten(0)

not_callable = 3
"""


def images_for(model: nn.Module, count: int = 4) -> Tensor:
    size = model.preprocessing.size
    images = torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=torch.manual_seed(1))
    return model.preprocessing.normalise(images)


@torch.inference_mode()
def embed(model: nn.Module, images: Tensor) -> Tensor:
    return model(images)


def train_one_step(model: nn.Module) -> None:
    model.train()
    optimizer = torch.optim.SGD([each for each in model.parameters() if each.requires_grad], lr=0.1)
    model(images_for(model))[:, 0].sum().backward()
    optimizer.step()
    model.eval()


def transformers_directory(folder: Path, kind: str) -> Path:
    """Save a tiny random model of `kind` as transformers does, with its image processor's settings."""
    import transformers

    vision = {**TINY, "image_size": 32, "patch_size": 8}
    config = {
        "ViT": lambda: transformers.ViTConfig(**vision),
        "Dinov2": lambda: transformers.Dinov2Config(**vision),
        "ResNet": lambda: transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1]),
        "ConvNext": lambda: transformers.ConvNextConfig(num_stages=2, hidden_sizes=[8, 16], depths=[1, 1]),
        "CLIP": lambda: transformers.CLIPConfig(
            text_config={**TINY, "vocab_size": 99}, vision_config={**vision, "projection_dim": 16}, projection_dim=16
        ),
        "Siglip": lambda: transformers.SiglipConfig(text_config={**TINY, "vocab_size": 99}, vision_config=vision),
        "Bert": lambda: transformers.BertConfig(**TINY, vocab_size=99),
        "ViTForImageClassification": lambda: transformers.ViTConfig(**vision),
    }[kind]()
    model_class = getattr(transformers, kind if "For" in kind else f"{kind}Model")
    torch.manual_seed(0)
    model_class(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return folder


@pytest.fixture
def factories(importable):
    return importable("some_factories", FACTORIES)


# The default model


def test_the_same_seed_gives_the_same_default_model_and_another_seed_another():
    first, again, other = (build_model(ModelConfig(model="small", seed=seed)) for seed in (3, 3, 4))
    images = images_for(first)
    assert torch.equal(embed(first, images), embed(again, images))
    assert not torch.allclose(embed(first, images), embed(other, images))


def test_building_and_loading_leave_the_callers_random_generator_alone(tmp_path):
    config = ModelConfig(model="small", seed=5)
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    save_model(build_model(config), tmp_path / "m")
    load_model(tmp_path / "m", embedding_dim=7)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("size", [16, 32, 65])
def test_the_default_model_embeds_squares_of_any_size_as_unit_vectors(size):
    model = build_model(ModelConfig(model="small", input_size=size))
    embeddings = embed(model, images_for(model))
    assert embeddings.shape == (4, model.dim) == (4, 128)
    assert embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(4))


def test_embeddings_are_float32_unit_vectors_under_bf16_autocast():
    model = build_model(ModelConfig(model="small", input_size=32))
    with torch.autocast("cpu", torch.bfloat16):
        embeddings = embed(model, images_for(model))
    assert embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(4))


def test_an_embedding_does_not_depend_on_its_batch_mates():
    model = build_model(ModelConfig(model="small", input_size=32))
    images = images_for(model, 8)
    torch.testing.assert_close(embed(model, images)[:1], embed(model, images[:1]), atol=1e-5, rtol=0)


def test_the_untrained_default_model_already_groups_handwritten_digits():
    from sklearn.datasets import load_digits

    digits = load_digits()
    model = build_model(ModelConfig(model="small", input_size=32))
    images = [
        model.preprocessing.resize(np.repeat((each * 15).astype(np.uint8)[..., None], 3, 2))
        for each in digits.images[:500]
    ]
    embeddings = embed(model, model.preprocessing.normalise(torch.from_numpy(np.stack(images))))
    nearest = (embeddings @ embeddings.T).fill_diagonal_(-1).argmax(dim=1).numpy()
    assert (digits.target[:500][nearest] == digits.target[:500]).mean() > 0.8


@pytest.mark.parametrize("wrong", [{"input_size": 15}, {"embedding_dim": 0}])
def test_impossible_sizes_are_refused_by_name(wrong):
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        ModelConfig(**wrong)


# Saving and loading


def test_a_saved_model_gives_the_same_embeddings_bit_for_bit(tmp_path):
    config = ModelConfig(model="small", input_size=32, embedding_dim=24)
    model = build_model(config)
    train_one_step(model)
    save_model(model, tmp_path / "runs" / "m")
    loaded = load_model(tmp_path / "runs" / "m")
    assert loaded.preprocessing == model.preprocessing
    assert not loaded.training
    assert torch.equal(embed(model, images_for(model)), embed(loaded, images_for(model)))


def test_saving_again_replaces_the_folder_and_leaves_nothing_beside_it(tmp_path):
    for seed in (1, 2):
        save_model(build_model(ModelConfig(model="small", seed=seed)), tmp_path / "m")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    second = build_model(ModelConfig(model="small", seed=2))
    assert torch.equal(embed(load_model(tmp_path / "m"), images_for(second)), embed(second, images_for(second)))


def test_a_model_that_cannot_be_saved_leaves_no_folder(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WorkspaceError, match="file/m"):
        save_model(build_model(ModelConfig(model="small")), tmp_path / "file" / "m")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_no_saved_file_is_a_pickle(tmp_path):
    save_model(build_model(ModelConfig(model="small")), tmp_path / "m")
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == ["model.json", "weights.safetensors"]


def test_a_truncated_weights_file_is_refused_by_name(tmp_path):
    save_model(build_model(ModelConfig(model="small")), tmp_path / "m")
    weights = tmp_path / "m" / "weights.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    with pytest.raises(WorkspaceError, match=r"weights\.safetensors is missing or damaged"):
        load_model(tmp_path / "m")


def test_weights_of_another_model_are_refused_by_name(tmp_path):
    for name, dim in (("a", 8), ("b", 9)):
        config = ModelConfig(model="small", embedding_dim=dim)
        save_model(build_model(config), tmp_path / name)
    shutil.copy(tmp_path / "a" / "weights.safetensors", tmp_path / "b")
    with pytest.raises(
        WorkspaceError, match=r"does not belong to the model\.json beside it; restore both, or train again"
    ):
        load_model(tmp_path / "b")


@pytest.mark.parametrize("content", [None, "{", "[]", '{"format": 99}'])
def test_a_missing_or_damaged_description_is_refused_by_name(tmp_path, content):
    save_model(build_model(ModelConfig(model="small")), tmp_path / "m")
    (tmp_path / "m" / "model.json").unlink()
    if content is not None:
        (tmp_path / "m" / "model.json").write_text(content)
    with pytest.raises(WorkspaceError, match=r"model\.json"):
        load_model(tmp_path / "m")


def test_another_embedding_dim_keeps_the_backbone_and_puts_a_new_head_on_it(tmp_path):
    model = build_model(ModelConfig(model="small"))
    save_model(model, tmp_path / "m")
    loaded = load_model(tmp_path / "m", embedding_dim=32)
    assert embed(loaded, images_for(model)).shape == (4, 32)
    assert all(map(torch.equal, model.backbone.state_dict().values(), loaded.backbone.state_dict().values()))


def test_a_head_as_wide_as_the_backbone_keeps_all_similarities(tmp_path):
    model = build_model(ModelConfig(model="small", embedding_dim=256))
    save_model(model, tmp_path / "m")
    with_head = load_model(tmp_path / "m", freeze=True)
    plain, projected = embed(model, images_for(model)), embed(with_head, images_for(model))
    assert model.head is None
    assert with_head.head is not None
    torch.testing.assert_close(plain @ plain.T, projected @ projected.T)
    torch.testing.assert_close(projected, plain)  # what an index holds is still found, and every run starts alike


# Freezing


def test_a_frozen_backbone_keeps_weights_and_norm_statistics_through_a_training_step():
    model = build_model(ModelConfig(model="small", input_size=32, freeze=True))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train_one_step(model)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"head.weight"}


def test_named_layers_are_frozen_and_the_others_train():
    model = build_model(ModelConfig(model="small", input_size=32, freeze=("stem", "stage1")))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train_one_step(model)
    changed = {name.split(".")[1] for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"stage2", "stage3", "stage4", "weight"}


def test_a_name_is_not_taken_for_the_beginning_of_another_name():
    with pytest.raises(ConfigurationError, match=r"'stage'.*stem, stage1, stage2, stage3, stage4"):
        build_model(ModelConfig(model="small", freeze=("stage",)))


def test_loading_freezes_what_it_is_told_instead_of_what_was_saved(tmp_path):
    config = ModelConfig(model="small", freeze=("stem",))
    save_model(build_model(config), tmp_path / "m")

    def frozen(model):
        return {name.split(".")[0] for name, each in model.backbone.named_parameters() if not each.requires_grad}

    assert frozen(load_model(tmp_path / "m")) == {"stem"}
    assert frozen(load_model(tmp_path / "m", freeze=("stage4",))) == {"stage4"}
    assert frozen(load_model(tmp_path / "m", freeze=False)) == set()


def test_a_loaded_model_is_saved_with_what_it_was_loaded_as(tmp_path):
    save_model(build_model(ModelConfig(model="small", seed=4)), tmp_path / "base")
    tuned = load_model(tmp_path / "base", freeze=("stem", "stage1"), embedding_dim=16)
    save_model(tuned, tmp_path / "tuned")
    expected = ModelConfig(model="small", seed=4, freeze=("stem", "stage1"), embedding_dim=16)
    assert load_model(tmp_path / "tuned").config == tuned.config == expected


# Preprocessing


def test_resizing_squashes_the_whole_image_so_that_no_border_is_lost():
    image = np.zeros((40, 100, 3), np.uint8)
    image[:, -10:] = 255
    resized = Preprocessing(size=20).resize(image)
    assert resized.shape == (20, 20, 3)
    assert (resized[:, -2:] == 255).all()
    assert (resized[:, :-2] == 0).all()


def test_cropping_takes_the_middle_and_keeps_the_aspect_ratio():
    image = np.zeros((40, 100, 3), np.uint8)
    image[5:35, 35:65] = 255  # exactly the middle 30 of 40 pixels
    resized = Preprocessing(size=24, crop=True, shorter_side=32).resize(image)
    assert resized.shape == (24, 24, 3)
    assert (resized == 255).all()


@pytest.mark.parametrize("shape", [(8, 8), (500, 3), (3, 500), (1, 1)])
def test_images_of_any_shape_are_resized_without_changing_a_flat_colour(shape):
    resized = Preprocessing(size=32).resize(np.full((*shape, 3), 77, np.uint8))
    assert resized.shape == (32, 32, 3)
    assert resized.dtype == np.uint8
    assert (resized == 77).all()


def test_normalising_subtracts_the_mean_and_divides_by_the_deviation_of_each_channel():
    preprocessing = Preprocessing(size=2, mean=(0.0, 0.5, 1.0), std=(1.0, 0.5, 0.25))
    images = torch.full((5, 2, 2, 3), 255, dtype=torch.uint8)
    normalised = preprocessing.normalise(images)
    torch.testing.assert_close(normalised[0, :, 0, 0], torch.tensor([1.0, 1.0, 0.0]))
    assert normalised.is_contiguous(memory_format=torch.channels_last)
    assert (images == 255).all()


# transformers models


@pytest.mark.parametrize(
    ("kind", "dim"), [("ViT", 32), ("Dinov2", 32), ("ResNet", 16), ("ConvNext", 16), ("CLIP", 16), ("Siglip", 32)]
)
def test_a_transformers_model_survives_the_loss_of_its_directory(tmp_path, kind, dim):
    directory = transformers_directory(tmp_path / "original", kind)
    config = ModelConfig(model=str(directory))
    model = build_model(config)
    assert model.dim == dim
    assert model.preprocessing.size == 32
    torch.testing.assert_close(model.preprocessing.mean, (0.1, 0.2, 0.3))
    torch.testing.assert_close(model.preprocessing.std, (0.4, 0.5, 0.6))
    save_model(model, tmp_path / "m")
    shutil.rmtree(directory)
    loaded = load_model(tmp_path / "m")
    assert loaded.preprocessing == model.preprocessing
    assert torch.equal(embed(loaded, images_for(model)), embed(model, images_for(model)))


def test_a_transformers_model_embeds_as_transformers_does(tmp_path):
    import transformers

    directory = transformers_directory(tmp_path, "ViT")
    model = build_model(ModelConfig(model=str(directory)))
    images = images_for(model)
    with torch.inference_mode():
        pooled = transformers.AutoModel.from_pretrained(directory).eval()(images).pooler_output
    torch.testing.assert_close(embed(model, images), nn.functional.normalize(pooled))


def test_the_embedding_of_a_text_and_vision_model_is_its_image_embedding(tmp_path):
    import transformers

    directory = transformers_directory(tmp_path, "CLIP")
    model = build_model(ModelConfig(model=str(directory)))
    images = images_for(model)
    with torch.inference_mode():
        expected = transformers.CLIPModel.from_pretrained(directory).eval().get_image_features(images)
    torch.testing.assert_close(embed(model, images), nn.functional.normalize(embedding_of(expected, Reading())))


def test_a_classifier_without_pooler_weights_embeds_by_its_class_token_not_by_a_random_pooler(tmp_path):
    import transformers

    directory = transformers_directory(tmp_path / "original", "ViTForImageClassification")
    config = ModelConfig(model=str(directory))
    model = build_model(config)
    images = images_for(model)
    with torch.inference_mode():
        token = transformers.AutoModel.from_pretrained(directory).eval()(images).last_hidden_state[:, 0]
    torch.testing.assert_close(embed(model, images), nn.functional.normalize(token))
    save_model(model, tmp_path / "m")
    assert torch.equal(embed(load_model(tmp_path / "m"), images), embed(model, images))


def test_another_input_size_interpolates_the_position_embeddings(tmp_path):
    config = ModelConfig(model=str(transformers_directory(tmp_path / "original", "ViT")), input_size=48)
    model = build_model(config)
    save_model(model, tmp_path / "m")
    images = images_for(model)
    assert images.shape == (4, 3, 48, 48)
    assert torch.equal(embed(load_model(tmp_path / "m"), images), embed(model, images))


def test_layers_of_a_transformers_model_are_frozen_by_their_own_names(tmp_path):
    directory = str(transformers_directory(tmp_path, "ViT"))
    model = build_model(ModelConfig(model=directory, freeze=("embeddings.cls_token", "layernorm")))
    frozen = {name for name, each in model.backbone.named_parameters() if not each.requires_grad}
    assert frozen == {"embeddings.cls_token", "layernorm.weight", "layernorm.bias"}


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        ({"size": 32}, {"size": 32, "crop": False}),
        ({"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}, "do_center_crop": True},
         {"size": 32, "crop": True, "shorter_side": 40}),
        ({"size": {"shortest_edge": 32}, "crop_pct": 0.8}, {"size": 32, "crop": True, "shorter_side": 40}),
        ({"size": 32, "do_normalize": False}, {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}),
        ({"size": 32, "rescale_factor": 2 / 255, "image_mean": [1, 1, 1], "image_std": [1, 1, 1]},
         {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}),
        (None, {"size": 32, "mean": (0.485, 0.456, 0.406)}),
    ],
)  # fmt: skip
def test_the_published_image_processor_is_followed(tmp_path, processor, expected):
    directory = transformers_directory(tmp_path, "ViT")
    (directory / "preprocessor_config.json").unlink()
    if processor is not None:
        (directory / "preprocessor_config.json").write_text(json.dumps(processor))
    preprocessing = build_model(ModelConfig(model=str(directory))).preprocessing
    for name, value in expected.items():
        assert getattr(preprocessing, name) == pytest.approx(value)


@pytest.mark.parametrize(
    ("processor", "reason"),
    [
        ({"size": {"height": 32, "width": 64}}, "squares"),
        ({"size": 32, "do_flip_channel_order": True}, "do_flip_channel_order is True"),
    ],
)
def test_an_image_processor_that_cannot_be_followed_is_refused(tmp_path, processor, reason):
    directory = transformers_directory(tmp_path, "ViT")
    (directory / "preprocessor_config.json").write_text(json.dumps(processor))
    with pytest.raises(ConfigurationError, match=reason):
        build_model(ModelConfig(model=str(directory)))


def test_a_text_model_is_refused_by_what_it_reads(tmp_path):
    with pytest.raises(ConfigurationError, match="Bert, which reads input_ids, not pixel_values"):
        build_model(ModelConfig(model=str(transformers_directory(tmp_path, "Bert"))))


def test_a_directory_without_config_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match=r"without config\.json"):
        build_model(ModelConfig(model=str(tmp_path)))


def test_pickled_weights_are_refused(tmp_path):
    directory = transformers_directory(tmp_path, "ViT")
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    with pytest.raises(ConfigurationError, match="pickled weights are never loaded"):
        build_model(ModelConfig(model=str(directory)))


def test_weights_that_lack_a_layer_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    weights = transformers_directory(tmp_path, "ViT") / "model.safetensors"
    tensors = load_file(weights)
    del tensors["embeddings.cls_token"]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(ConfigurationError, match=r"lack 1 tensors of ViTModel, embeddings\.cls_token"):
        build_model(ModelConfig(model=str(tmp_path)))


def test_a_truncated_checkpoint_is_refused(tmp_path):
    weights = transformers_directory(tmp_path, "ViT") / "model.safetensors"
    os.truncate(weights, 1000)
    with pytest.raises(ConfigurationError, match="cannot be loaded"):
        build_model(ModelConfig(model=str(tmp_path)))


def test_a_hub_model_without_network_is_refused_with_the_remedy():
    with pytest.raises(ConfigurationError, match=r"hub.* give its directory"):
        build_model(ModelConfig(model="no-such-organisation/no-such-model"))


def test_a_path_that_does_not_exist_is_refused_with_the_forms_of_a_model():
    with pytest.raises(
        ConfigurationError, match=r"`default`, `small`, a transformers vision model.*, or `package\.module:factory`"
    ):
        build_model(ModelConfig(model="/no/such/model"))


# Factories


def test_a_factory_is_called_and_its_preprocessing_honoured(factories, tmp_path):
    config = ModelConfig(model=f"{factories}:good")
    model = build_model(config)
    assert model.preprocessing == Preprocessing(size=20, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
    save_model(model, tmp_path / "m")
    assert torch.equal(embed(load_model(tmp_path / "m"), images_for(model)), embed(model, images_for(model)))


@pytest.mark.parametrize(
    ("factory", "reason"),
    [
        ("no_such_module:f", "cannot be imported: ModuleNotFoundError"),
        ("some_factories:nothing", "cannot be imported: AttributeError"),
        ("some_factories:not_callable", "not callable but of type int"),
        ("some_factories:returns_text", "returned str"),
        ("some_factories:fails", "no licence found"),
        ("some_factories:one_dimensional", r"shape \(301056,\)"),
    ],
)
def test_a_wrong_factory_is_refused_with_the_reason(factories, factory, reason):
    with pytest.raises(ConfigurationError, match=reason):
        build_model(ModelConfig(model=factory))


# Outputs


def test_an_output_without_embedding_is_refused_naming_what_it_has():
    with pytest.raises(ConfigurationError, match=r"pooler_output, image_embeds, last_hidden_state \(it has: logits\)"):
        embedding_of({"logits": torch.zeros(2, 3)}, Reading())


@pytest.mark.parametrize(("shape", "expected"), [((2, 5), 1.0), ((2, 5, 1, 1), 1.0), ((2, 5, 3, 3), 1.0)])
def test_tensors_and_feature_maps_become_one_vector_an_image(shape, expected):
    embeddings = embedding_of(torch.ones(shape), Reading())
    assert embeddings.shape == (2, 5)
    assert (embeddings == expected).all()


def as_first_format(folder: Path) -> None:
    """Rewrite a saved `small` model as it was saved when that network was called `default`."""
    settings = json.loads((folder / "model.json").read_text())
    settings["format"], settings["config"]["model"] = 1, "default"
    (folder / "model.json").write_text(json.dumps(settings))


def test_a_model_saved_when_small_was_called_default_embeds_as_before(tmp_path):
    model = build_model(ModelConfig(model="small", input_size=32))
    save_model(model, tmp_path / "m")
    as_first_format(tmp_path / "m")
    loaded = load_model(tmp_path / "m")
    assert loaded.config == model.config
    assert torch.equal(embed(loaded, images_for(loaded)), embed(model, images_for(model)))


def test_a_base_of_the_old_default_makes_room_for_the_new_one(tmp_path):
    workspace = Workspace(tmp_path)
    save_model(build_model(ModelConfig(model="small", embedding_dim=None)), workspace.base)
    as_first_format(workspace.base)
    ensure_base(workspace, ExecutorOptions())
    assert load_model(workspace.base).dim == 1280


def test_the_space_of_a_model_is_that_of_its_weights_and_its_preprocessing(tmp_path):
    spaces = {}
    for name, config in {
        "one": ModelConfig(model="small"),
        "same": ModelConfig(model="small"),
        "other weights": ModelConfig(model="small", seed=1),
        "other size": ModelConfig(model="small", input_size=65),
    }.items():
        save_model(build_model(config), tmp_path / name)
        spaces[name] = space_of(tmp_path / name)
    assert re.fullmatch("[0-9a-f]{12}", spaces["one"])
    assert spaces["one"] == spaces["same"]
    assert len(set(spaces.values())) == 3
