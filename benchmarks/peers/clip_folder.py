"""Write a small CLIP model with random weights into a folder, with all files that servers need to load it."""

import json
import string
from pathlib import Path

import torch

PATCH = 16  # pixels
DIM = 128  # size of the embeddings


def write_clip(folder: Path, size: int) -> None:
    """Write the weights, configuration, image preprocessing (size × size) and a tokenizer of single letters."""
    from transformers import CLIPConfig, CLIPModel

    text = {
        "vocab_size": 64,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
        "projection_dim": DIM,
    }
    vision = {
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "image_size": size,
        "patch_size": PATCH,
        "projection_dim": DIM,
    }
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=DIM)).save_pretrained(folder)
    tokens = [
        "<|startoftext|>",
        "<|endoftext|>",
        *string.ascii_lowercase,
        *(f"{x}</w>" for x in string.ascii_lowercase),
    ]
    files = {
        "vocab.json": {token: number for number, token in enumerate(tokens)},
        "tokenizer_config.json": {
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": 77,
            "bos_token": tokens[0],
            "eos_token": tokens[1],
            "unk_token": tokens[1],
            "pad_token": tokens[1],
        },
        "preprocessor_config.json": {
            "image_processor_type": "CLIPImageProcessor",
            "do_resize": True,
            "size": {"shortest_edge": size},
            "do_center_crop": True,
            "crop_size": {"height": size, "width": size},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "do_convert_rgb": True,
            "resample": 3,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    (folder / "merges.txt").write_text("#version: 0.2\n")
