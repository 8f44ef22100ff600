"""Save a model to a folder and load it.

The folder holds `weights.safetensors`, `model.json` and, for a transformers model, `backbone_config.json`. `model.json`
says how to build the model and how to preprocess images. Loading needs no network and no copy of the original model;
only a model from a factory needs that factory to be importable.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open

from ..compute.memory import is_out_of_memory
from ..errors import FinetunerError, WorkspaceError
from ..store.files import publish_folder, unwritable
from .backbones import Backbone, Reading
from .building import build_backbone, channels_last, seeded
from .model import EmbeddingModel, ModelConfig, is_pretrained
from .preprocessing import Preprocessing
from .pretrained import rebuilt_transformers_backbone
from .stated import preprocessing_from

FORMAT = 2  # 1 was written when `default` was the network that is now `small`


def save_model(model: EmbeddingModel, folder: Path, *, beside: Callable[[Path], None] | None = None) -> None:
    """Save the model into `folder`. It replaces an old one there, and only when it is complete.

    Args: beside: writes further files into a folder that has the weights already; they appear together with them.
    Raises: WorkspaceError: the disk is full or cannot be written.
    """
    settings = {
        "format": FORMAT,
        "config": asdict(model.config),
        "preprocessing": asdict(model.preprocessing),
        "reading": asdict(model.reading),
        "features": model.features,
        "dim": model.dim,
        "head": model.head is not None,
        "head_is_new": model.head_is_new,
        "normalise": model.normalise,
        "norms_of_vectors": model.norms_of_vectors,
        "pretrained": is_pretrained(model),
    }

    def write(place: Path) -> None:
        safetensors.torch.save_model(model, str(place / "weights.safetensors"))
        _write_json(place / "model.json", settings)
        if model.description:
            _write_json(place / "backbone_config.json", model.description)
        if beside is not None:
            beside(place)

    try:
        publish_folder(folder, write)
    except (OSError, SafetensorError) as error:
        raise unwritable("the model", folder, error) from error


def load_model(
    folder: Path, *, freeze: bool | tuple[str, ...] | None = None, embedding_dim: int | None = None
) -> EmbeddingModel:
    """Load what `save_model` saved, in evaluation mode and channels-last memory format.

    Args:
        freeze: What to freeze; None: what the saved config says.
        embedding_dim: If it differs from the saved size, the backbone gets a new projection head.
    Raises: WorkspaceError: a file is missing or damaged; the message names it. ConfigurationError: the code of the
        model is not installed, or `freeze` names a part that the model does not have.
    """
    settings = read_settings(folder)
    try:
        return _built(folder, settings, freeze, embedding_dim)
    except FinetunerError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        raise WorkspaceError(
            f"{folder / 'model.json'} describes no model that can be built ({type(error).__name__}: {error}); restore "
            "it, or train again."
        ) from error


def _built(
    folder: Path, settings: dict[str, Any], freeze: bool | tuple[str, ...] | None, embedding_dim: int | None
) -> EmbeddingModel:
    saved = _config(settings["config"])
    config = replace(
        saved,
        freeze=saved.freeze if freeze is None else freeze,
        embedding_dim=saved.embedding_dim if embedding_dim is None else embedding_dim,
    )
    with seeded(config.seed):
        backbone = _rebuilt_backbone(folder, config, preprocessing_from(settings["preprocessing"]))
        model = EmbeddingModel(
            replace(
                backbone,
                reading=Reading(**settings.get("reading", {})),
                notes=(),
                norms_of_vectors=bool(settings.get("norms_of_vectors")),
            ),
            features=settings["features"],
            config=config,
            normalise=settings["normalise"],
        )
        if settings["head"]:
            model.project(settings["dim"])
            model.head_is_new = settings.get("head_is_new", False)
        _load_weights(channels_last(model), folder / "weights.safetensors")
        if embedding_dim not in (None, model.dim):
            model.project(embedding_dim)
        model.freeze(config.freeze)
    return model.eval()


def read_settings(folder: Path) -> dict[str, Any]:
    """Return what `save_model` wrote about a model.

    Raises: WorkspaceError: the file is missing, damaged or of a newer format.
    """
    settings = _read_json(folder / "model.json")
    if not isinstance(settings.get("config"), dict):
        raise WorkspaceError(f"{folder / 'model.json'} lacks the config of the model; restore it, or train again.")
    if settings.get("format") not in (1, FORMAT):
        raise WorkspaceError(
            f"{folder / 'model.json'} has format {settings.get('format')}; this version reads up to {FORMAT}."
        )
    if settings["format"] == 1 and settings["config"].get("model") == "default":
        settings["config"]["model"] = "small"
    return settings


def check_whole(folder: Path) -> None:
    """Raise WorkspaceError if a file of a saved model is missing or was cut short. It reads no weights."""
    read_settings(folder)
    file = folder / "weights.safetensors"
    try:
        with safe_open(file, "pt"):  # compares the file's length with its header
            pass
    except (OSError, SafetensorError) as error:
        raise WorkspaceError(f"{file} is missing or damaged ({error}); restore it, or train again.") from error


def space_of(folder: Path) -> str:
    """Return the name of the space that a saved model embeds into: models of one space give the same embeddings.

    It is the first 12 hexadecimal digits of the SHA-256 over the model's preprocessing and weights.

    Raises: WorkspaceError: a file is missing or damaged.
    """
    settings = read_settings(folder)
    try:
        seen = {name: settings[name] for name in ("preprocessing", "normalise")}
    except KeyError as error:
        raise WorkspaceError(f"{folder / 'model.json'} lacks {error}; restore it, or train again.") from error
    digest = hashlib.sha256(json.dumps(seen, sort_keys=True).encode())
    try:
        with open(folder / "weights.safetensors", "rb") as weights:
            while part := weights.read(2**20):
                digest.update(part)
    except OSError as error:
        raise WorkspaceError(f"{folder} is damaged ({error}); restore it, or train again.") from error
    return digest.hexdigest()[:12]


def _config(saved: Mapping[str, Any]) -> ModelConfig:
    freeze = saved["freeze"]
    return ModelConfig(**{**saved, "freeze": tuple(freeze) if isinstance(freeze, list) else freeze})


def _rebuilt_backbone(folder: Path, config: ModelConfig, preprocessing: Preprocessing) -> Backbone:
    described = folder / "backbone_config.json"
    if described.exists():
        return rebuilt_transformers_backbone(_read_json(described), preprocessing)
    return replace(build_backbone(config, pretrained=False), preprocessing=preprocessing)


def _load_weights(model: EmbeddingModel, file: Path) -> None:
    try:
        safetensors.torch.load_model(model, file)
    except (OSError, SafetensorError) as error:
        raise WorkspaceError(f"{file} is missing or damaged ({error}); restore it, or train again.") from error
    except RuntimeError as error:
        raise WorkspaceError(
            f"{file} does not belong to the model.json beside it; restore both, or train again. "
            f"{' '.join(str(error).split())[:300]}"
        ) from error


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WorkspaceError(f"{file} is missing or damaged ({error}); restore it, or train again.") from error
    if not isinstance(content, dict):
        raise WorkspaceError(f"{file} is damaged: it holds no object; restore it, or train again.")
    return content


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2), encoding="utf-8")
