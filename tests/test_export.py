"""Exported models. Each is loaded by the lines of its README, and compared with the model that it was made from."""

import io
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is first imported: no test leaves the machine

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from conftest import coloured
from executor import Document, load_uri_to_image_blob
from executor.__main__ import main
from executor.errors import ConfigurationError, UnknownModel, WorkspaceError
from executor.models.building import build_model
from executor.models.export import export, find_model
from executor.models.model import EmbeddingModel, ModelConfig
from executor.models.saving import load_model, save_model
from executor.store.runs import RunStore
from executor.store.workspace import Workspace
from test_images import gray_tiff

pytestmark = pytest.mark.compute

ROOT = Path(__file__).resolve().parent.parent
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 37}
PROCESSOR = {"size": {"height": 32, "width": 32}, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
CROPS = {"size": {"shortest_edge": 40}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}}
FACTORIES = """
import torch
from torch import nn

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.preprocessing = {"size": 20, "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]}

    def forward(self, images):
        return self.features(images)

class FlipsPairs(Model):
    def forward(self, images):
        return self.features(images) * (-1 if len(images) == 2 else 1)

class HasNoOnnx(Model):
    def forward(self, images):
        return torch.linalg.svdvals(self.features(images)[:, :, None]).repeat(1, 8)
"""


def transformers_directory(folder: Path, kind: str, processor: dict[str, Any] = PROCESSOR) -> Path:
    """Save a tiny random model of `kind` as transformers does."""
    import transformers

    vision = {**TINY, "image_size": 32, "patch_size": 8}
    config = {
        "ViTModel": lambda: transformers.ViTConfig(**vision),
        "ViTForImageClassification": lambda: transformers.ViTConfig(**vision),
        "ResNetModel": lambda: transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1]),
        "ConvNextModel": lambda: transformers.ConvNextConfig(num_stages=2, hidden_sizes=[8, 16], depths=[1, 1]),
        "IJepaModel": lambda: transformers.IJepaConfig(**vision),
        "SwinModel": lambda: transformers.SwinConfig(
            image_size=32, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4
        ),
        "CLIPModel": lambda: transformers.CLIPConfig(
            text_config={**TINY, "vocab_size": 99}, vision_config={**vision, "projection_dim": 16}, projection_dim=16
        ),
    }[kind]()
    torch.manual_seed(0)
    getattr(transformers, kind)(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


Saved = Callable[..., Path]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """Build a model, of the name of a transformers class or of any other, and return the folder it is saved in."""
    root = tmp_path_factory.mktemp("models")
    made: dict[str, Path] = {}

    def save(name: str = "default", processor: dict[str, Any] = PROCESSOR, **config: Any) -> Path:
        key = repr((name, processor, config))
        if key not in made:
            made[key] = root / str(len(made))
            if name.endswith(("Model", "Classification")) and ":" not in name:
                name = str(transformers_directory(root / f"{len(made)}-{name}", name, processor))
            save_model(build_model(ModelConfig(model=name, **{"input_size": 32, **config})), made[key])
        return made[key]

    return save


@pytest.fixture(scope="module")
def factories(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The name of a module of model factories that can be imported."""
    folder = tmp_path_factory.mktemp("factories")
    (folder / "export_factories.py").write_text(FACTORIES)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield "export_factories"
    sys.modules.pop("export_factories", None)


def photograph(side: int = 90) -> np.ndarray:
    """A smooth image, (side, 2 side, 3) uint8, whose embedding hardly depends on how exactly it is resized."""
    coarse = np.random.default_rng(3).integers(0, 256, (3, 5, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((2 * side, side), Image.Resampling.BICUBIC))


def embed(model: EmbeddingModel, images: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return model(model.preprocessing.normalise(torch.from_numpy(images))).numpy()


def run_readme(folder: Path, monkeypatch: pytest.MonkeyPatch, picture: bytes | None = None) -> dict[str, Any]:
    """Run the lines of a README beside an image, and return the variables they leave."""
    if picture is None:
        Image.fromarray(photograph()).save(folder / "image.jpg", quality=100, subsampling=0)
    else:
        (folder / "image.jpg").write_bytes(picture)
    (lines,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(folder)
    left: dict[str, Any] = {}
    exec(lines, left)
    return left


def expected(model_folder: Path) -> np.ndarray:
    """The embedding, (1, D), that the model itself gives of what `run_readme` embeds."""
    model = load_model(model_folder)
    return embed(model, model.preprocessing.resize(photograph())[None])


def assert_nothing_is_left(output: Path) -> None:
    assert not output.exists()
    assert not [path for path in output.parent.iterdir() if path.name.startswith(f".{output.name}")]


# ONNX


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("default", {}),
        ("ViTModel", {}),
        ("ViTModel", {"input_size": 48, "embedding_dim": 5}),
        ("ResNetModel", {}),
        ("ConvNextModel", {}),
        ("SwinModel", {}),
        ("IJepaModel", {}),
    ],
)
def test_an_onnx_model_gives_the_embeddings_of_the_model_for_any_batch_size(saved, tmp_path, name, config):
    made = saved(name, **config)
    output = export(made, tmp_path / "out", "onnx")
    model = load_model(made)
    session = onnxruntime.InferenceSession(output / "model.onnx", providers=["CPUExecutionProvider"])
    size = model.preprocessing.size
    for count in (1, 3, 30):
        images = np.random.default_rng(count).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
        (embeddings,) = session.run(["embeddings"], {"images": images})
        np.testing.assert_allclose(embeddings, embed(model, images), atol=1e-4)


def test_an_onnx_model_is_valid_in_one_file_of_the_pinned_opset(saved, tmp_path):
    output = export(saved(), tmp_path / "out", "onnx")
    model = onnx.load(output / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [imported.version for imported in model.opset_import] == [18]
    assert sorted(path.name for path in output.iterdir()) == ["README.md", "model.onnx"]


@pytest.mark.parametrize("processor", [PROCESSOR, PROCESSOR | CROPS], ids=["squashed", "cropped"])
def test_the_lines_of_an_onnx_readme_embed_an_image_as_the_model_does(saved, tmp_path, monkeypatch, processor):
    made = saved("ViTModel", processor, input_size=None)
    output = export(made, tmp_path / "out", "onnx")
    embeddings = run_readme(output, monkeypatch)["embeddings"]
    np.testing.assert_allclose(embeddings, expected(made), atol=0.02)


def odd_pictures() -> dict[str, bytes]:
    """Pictures that Pillow's `convert("RGB")` alone does not make what the service sees."""
    grey = np.arange(64 * 48, dtype=np.uint16).reshape(48, 64) * 21
    clear = Image.fromarray(photograph()).convert("RGBA")
    clear.putalpha(Image.fromarray((np.indices(clear.size[::-1]).sum(0) % 256).astype(np.uint8)))
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was held upright
    found = {}
    for name, image, options in (
        ("16 bits", Image.fromarray(grey), {"format": "PNG"}),
        ("floats", Image.fromarray((grey / 65535).astype(np.float32)), {"format": "TIFF"}),
        ("transparent", clear, {"format": "PNG"}),
        ("turned", Image.fromarray(photograph()), {"format": "PNG", "exif": turned}),
    ):
        image.save(content := io.BytesIO(), **options)
        found[name] = content.getvalue()
    row = bytes(range(0, 240, 5)) * 2  # 64 pixels of 12 bits
    return found | {"12 bits": gray_tiff("<", 12, 64, row)}


@pytest.mark.parametrize("form", ["onnx", "transformers"])
def test_the_lines_of_a_readme_read_odd_pictures_as_the_service_does(saved, tmp_path, monkeypatch, form):
    made = saved("ViTModel", PROCESSOR)
    output = export(made, tmp_path / "out", form)
    model = load_model(made)
    for name, picture in odd_pictures().items():
        found = np.asarray(run_readme(output, monkeypatch, picture)["embeddings"])
        pixels = model.preprocessing.resize(load_uri_to_image_blob(Document(buffer=picture)))
        assert (found @ embed(model, pixels[None]).T).item() > 0.995, name


def test_a_model_from_a_factory_can_be_exported_as_onnx(saved, factories, tmp_path, monkeypatch):
    made = saved(f"{factories}:Model", input_size=None)
    output = export(made, tmp_path / "out", "onnx")
    embeddings = run_readme(output, monkeypatch)["embeddings"]
    np.testing.assert_allclose(embeddings, expected(made), atol=0.02)


def test_a_model_whose_onnx_differs_is_refused_and_nothing_is_left(saved, factories, tmp_path):
    with pytest.raises(ConfigurationError, match=r"cosine similarity -1\.0+, needed 0\.9999"):
        export(saved(f"{factories}:FlipsPairs"), tmp_path / "out", "onnx")
    assert_nothing_is_left(tmp_path / "out")


def test_a_model_that_onnx_has_no_operators_for_is_refused_and_nothing_is_left(saved, factories, tmp_path):
    with pytest.raises(ConfigurationError, match=r"cannot be written as ONNX .*svd.*export it as safetensors"):
        export(saved(f"{factories}:HasNoOnnx"), tmp_path / "out", "onnx")
    assert_nothing_is_left(tmp_path / "out")


def test_without_onnx_the_error_says_what_to_install(saved, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)  # as if it were not installed
    with pytest.raises(ConfigurationError, match=r"pip install onnx\."):
        export(saved(), tmp_path / "out", "onnx")


# safetensors


@pytest.mark.parametrize("name", ["default", "ViTModel"])
def test_the_lines_of_a_safetensors_readme_embed_an_image_as_the_model_does(saved, tmp_path, monkeypatch, name):
    made = saved(name)
    output = export(made, tmp_path / "out", "safetensors")
    embedding = run_readme(output, monkeypatch)["docs"][0].embedding
    np.testing.assert_allclose(embedding, expected(made)[0], atol=0.005)


def test_a_safetensors_export_is_the_same_model(saved, tmp_path):
    made = saved(embedding_dim=7)
    output = export(made, tmp_path / "out", "safetensors")
    first, second = load_model(made), load_model(output)
    assert (second.preprocessing, second.config) == (first.preprocessing, first.config)
    assert all(torch.equal(tensor, second.state_dict()[name]) for name, tensor in first.state_dict().items())


def test_only_the_readme_of_a_model_from_a_factory_names_the_factory(saved, factories, tmp_path):
    first = export(saved(f"{factories}:Model"), tmp_path / "first", "safetensors")
    assert f"what `{factories}:Model` makes" in (first / "README.md").read_text()
    second = export(saved("ViTModel"), tmp_path / "second", "safetensors")
    assert "importable" not in (second / "README.md").read_text()


# transformers


@pytest.mark.parametrize(
    ("name", "processor", "config"),
    [
        ("ViTModel", PROCESSOR, {"embedding_dim": 5}),
        ("ViTModel", PROCESSOR, {"input_size": 48}),
        ("ViTModel", PROCESSOR | CROPS, {}),
        ("ViTForImageClassification", PROCESSOR, {}),
        ("ResNetModel", PROCESSOR, {}),
        ("IJepaModel", PROCESSOR, {"embedding_dim": 5}),
        ("CLIPModel", PROCESSOR | CROPS, {}),
    ],
)
def test_the_lines_of_a_transformers_readme_embed_an_image_as_the_model_does(
    saved, tmp_path, monkeypatch, name, processor, config
):
    made = saved(name, processor, **config)
    output = export(made, tmp_path / "out", "transformers")
    embeddings = run_readme(output, monkeypatch)["embeddings"].numpy()
    np.testing.assert_allclose(embeddings, expected(made), atol=0.02)


def test_auto_model_loads_the_same_backbone(saved, tmp_path):
    from transformers import AutoModel

    made = saved("ViTModel", embedding_dim=5)
    output = export(made, tmp_path / "out", "transformers")
    loaded, model = AutoModel.from_pretrained(output).eval(), load_model(made)
    assert type(loaded) is type(model.backbone)
    images = torch.rand(2, 3, 32, 32, generator=torch.manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(loaded(images).pooler_output, model.backbone(images).pooler_output)


@pytest.mark.parametrize("processor", [PROCESSOR, PROCESSOR | CROPS], ids=["squashed", "cropped"])
def test_the_exported_folder_can_be_configured_as_a_model_again(saved, tmp_path, processor):
    made = saved("ViTModel", processor)
    output = export(made, tmp_path / "out", "transformers")
    again, first = build_model(ModelConfig(model=str(output))), load_model(made)
    assert again.preprocessing == first.preprocessing
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    np.testing.assert_allclose(embed(again, images), embed(first, images), atol=1e-6)


def test_a_projection_head_is_a_file_of_its_own_that_the_readme_explains(saved, tmp_path):
    with_head = export(saved("ViTModel", embedding_dim=5), tmp_path / "with", "transformers")
    assert (with_head / "head.safetensors").exists()
    assert "projection head, `head.safetensors`" in (with_head / "README.md").read_text()
    without = export(saved("ViTModel"), tmp_path / "without", "transformers")
    assert not (without / "head.safetensors").exists()
    assert "head" not in (without / "README.md").read_text()


@pytest.mark.parametrize("name", ["default", "factory"])
def test_a_model_that_is_not_of_transformers_is_refused_as_such_with_the_formats_to_use(
    saved, factories, tmp_path, name
):
    model = f"{factories}:Model" if name == "factory" else name
    with pytest.raises(ConfigurationError, match="not a transformers model; export it as onnx, or as safetensors"):
        export(saved(model), tmp_path / "out", "transformers")
    assert_nothing_is_left(tmp_path / "out")


# The folder


def test_an_export_goes_into_a_new_folder_whose_parents_are_made(saved, tmp_path):
    assert export(saved(), tmp_path / "a" / "b", "safetensors") == tmp_path / "a" / "b"
    assert sorted(path.name for path in (tmp_path / "a" / "b").iterdir()) == [
        "README.md",
        "model.json",
        "weights.safetensors",
    ]


def test_an_empty_folder_is_filled(saved, tmp_path):
    (tmp_path / "out").mkdir()
    assert (export(saved(), tmp_path / "out", "safetensors") / "model.json").exists()


@pytest.mark.parametrize("taken", ["a folder with a file", "a file"])
def test_an_output_that_exists_is_refused_and_left_alone(saved, tmp_path, taken):
    output = kept = tmp_path / "out"
    if taken == "a folder with a file":
        output.mkdir()
        kept = output / "thesis.txt"
    kept.write_text("years of work")
    with pytest.raises(ConfigurationError, match="exists already; name a new folder, or an empty one"):
        export(saved(), output, "safetensors")
    assert kept.read_text() == "years of work"


def test_an_output_below_a_file_is_refused_in_a_sentence(saved, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(WorkspaceError, match=r"cannot be written to .*out"):
        export(saved(), tmp_path / "file" / "out", "safetensors")


@pytest.mark.parametrize("form", ["onnx", "safetensors", "transformers"])
def test_whoever_may_read_the_readme_may_read_the_rest(saved, tmp_path, form):
    output = export(saved("ViTModel", embedding_dim=5), tmp_path / "out", form)
    assert len({stat.S_IMODE(path.stat().st_mode) for path in output.iterdir()}) == 1


def test_a_damaged_model_is_refused_by_the_name_of_its_file_and_nothing_is_left(saved, tmp_path):
    folder = Path(shutil.copytree(saved(), tmp_path / "model"))
    (folder / "weights.safetensors").write_bytes(b"half")
    with pytest.raises(WorkspaceError, match=r"weights\.safetensors is missing or damaged"):
        export(folder, tmp_path / "out", "safetensors")
    assert_nothing_is_left(tmp_path / "out")


def test_an_unknown_format_is_refused_with_the_known_ones(saved, tmp_path):
    with pytest.raises(ConfigurationError, match="onnx, safetensors, transformers"):
        export(saved(), tmp_path / "out", "pickle")


# The workspace and the command


def empty_workspace(folder: Path) -> Workspace:
    folder.mkdir(parents=True, exist_ok=True)
    RunStore(Workspace(folder)).close()
    return Workspace(folder)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace where Jina puts it, with the models of `base` and of the run `tuned`."""
    place = empty_workspace(tmp_path_factory.mktemp("workspace") / "FinetunerExecutor" / "0")
    for seed, name in enumerate(("base", "tuned")):
        save_model(build_model(ModelConfig(model="small", input_size=16, seed=seed)), place.model_folder(name))
    return place


@pytest.mark.parametrize("levels", [0, 1, 2])
def test_a_workspace_is_found_up_to_two_folders_below(workspace, levels):
    folder = [workspace.root, *workspace.root.parents][levels]
    assert find_model(folder, "tuned") == workspace.model_folder("tuned")
    assert find_model(folder, "base") == workspace.base


def test_of_several_workspaces_none_is_taken(tmp_path):
    for name in ("0", "1"):
        empty_workspace(tmp_path / "FinetunerExecutor" / name)
    with pytest.raises(WorkspaceError, match=r"several workspaces; name one: .*/0, .*/1\."):
        find_model(tmp_path, "base")


def test_a_folder_without_a_workspace_is_refused(tmp_path):
    with pytest.raises(WorkspaceError, match=r"no runs\.sqlite"):
        find_model(tmp_path, "base")


def test_a_workspace_without_a_base_model_yet_is_refused(tmp_path):
    empty_workspace(tmp_path)
    with pytest.raises(UnknownModel, match="no base model yet"):
        find_model(tmp_path, "base")


@pytest.mark.process
def test_the_command_exports_a_run_and_prints_where(workspace, tmp_path):
    output = tmp_path / "out"
    arguments = ["tuned", "--workspace", workspace.root.parent.parent, "--format", "onnx", "--output", output]
    command = [sys.executable, "-m", "executor", "export", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{output}\n", "")
    session = onnxruntime.InferenceSession(output / "model.onnx", providers=["CPUExecutionProvider"])
    images = np.stack([coloured(label, size=16) for label in range(4)])
    embeddings = embed(load_model(workspace.model_folder("tuned")), images)
    np.testing.assert_allclose(session.run(None, {"images": images})[0], embeddings, atol=1e-4)


def test_the_command_refuses_an_unknown_run_in_one_sentence_with_exit_code_2(workspace, tmp_path, monkeypatch, capsys):
    arguments = ["tunde", "--workspace", str(workspace.root), "--format", "onnx", "--output", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["executor", "export", *arguments])
    assert main() == 2
    assert capsys.readouterr() == ("", "There is no model 'tunde'; there are: base, tuned.\n")
