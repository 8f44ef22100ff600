"""From a model's name to a module that embeds images, to a folder, and to files that other programs read.

model.py          `EmbeddingModel`: a backbone, perhaps a projection head, and their preprocessing
preprocessing.py  size, crop and normalisation of an image, saved with the weights
backbones.py      what all backbones have in common; what of a model's output is the embedding
residual.py       the default network
pretrained.py     vision models of transformers
building.py       from a name to a model
saving.py         a model as a folder, and back
versions.py       the versions of a workspace: `base`, and one a succeeded run
lora.py           low-rank updates of a transformers backbone
export.py         a version as ONNX, safetensors or a transformers folder

May import store, compute and what lies below them.
"""

from .saving import load_model

__all__ = ["load_model"]
