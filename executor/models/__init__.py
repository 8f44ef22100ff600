"""Build models that embed images, save and load them, and export them for other programs.

model.py          `EmbeddingModel`: a backbone, an optional projection head, and their preprocessing
preprocessing.py  resize, crop and normalise an image; the settings are saved with the weights
backbones.py      what all backbones have in common, and how to find the embedding in a model's output
stated.py         the preprocessing that a model states, by its image processor or its own attribute
efficientnet.py   the network `default`, with pretrained weights
residual.py       the network `small`, with random weights
batch_norms.py    the batch norms of a network, and what they have seen
pretrained.py     vision models of transformers
building.py       build a model from its name
saving.py         save a model to a folder and load it
versions.py       the versions in a workspace: `base`, and one for each succeeded run
space_map.py      the map between the spaces of two versions, which lies beside the weights
small_vectors.py  shorten and encode embeddings
tensors.py        read the arrays of those two
lora.py           low-rank updates of a transformers backbone
export.py         export a version as ONNX, safetensors or a transformers folder

May import store, compute and the packages below them.
"""

from typing import Any

__all__ = ["load_model"]


def __getattr__(name: str) -> Any:
    """Import `load_model` when it is first used: the front page of a package imports nothing by itself.

    Else a thread that imports one file of the package could find another half imported by a second thread.
    """
    if name == "load_model":
        from .saving import load_model

        return load_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
