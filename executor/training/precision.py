"""Choose whether to train in mixed precision, by measurement, if the hardware computes in bf16 at all."""

import copy
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..loading.forward import compute_embeddings
from ..store.files import publish_file

WORTHWHILE = 1.15  # a smaller gain is lost in the noise of the measurement, and fp32 is safer
PAIRS = 3
ENOUGH = 16  # images on a CPU: a whole batch gains about as much, and the first step must wait for this


def choose_bf16_once(file: Path, asked: str, model: nn.Module, inputs: Any, device: torch.device) -> bool:
    """Return the choice in `file`; if there is none yet, choose and write it, so that a resumed run uses the same."""
    kept = file.read_bytes() if file.exists() else b""
    if kept not in (b"bf16", b"fp32"):
        kept = b"bf16" if choose_bf16(asked, model, inputs, device) else b"fp32"
        publish_file(file, kept)
    return kept == b"bf16"


def choose_bf16(asked: str, model: nn.Module, images: Tensor, device: torch.device) -> bool:
    """Return whether to train `model` in bf16. The model itself is not changed.

    Args: asked: the option `precision`; `auto` measures both on `images`. images: a typical batch of model input,
        (B, …) float32.
    """
    if asked != "auto":
        return asked == "bf16"
    if not computes_in_bf16(device) or not isinstance(images, Tensor):
        return False
    if device.type == "cpu":
        images = images[:ENOUGH]
    trial = copy.deepcopy(model).train()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        _seconds(trial, images, device, bf16=False)
        _seconds(trial, images, device, bf16=True)
        gains = [
            _seconds(trial, images, device, bf16=False) / _seconds(trial, images, device, bf16=True)
            for _ in range(PAIRS)
        ]
    return statistics.median(gains) >= WORTHWHILE


def computes_in_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 matrices in hardware."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def _seconds(model: nn.Module, images: Tensor, device: torch.device, *, bf16: bool) -> float:
    """Measure one forward and backward pass, in seconds."""
    began = time.perf_counter()
    embeddings = compute_embeddings(model, images, device, bf16=bf16)
    if embeddings.requires_grad:
        embeddings.square().sum().backward()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began
