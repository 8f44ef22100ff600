"""Read arrays that lie beside a version's weights."""

from pathlib import Path

import numpy as np
from safetensors import safe_open

from ..errors import WorkspaceError


def read_tensors(file: Path, format: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return the arrays of a safetensors file, and its metadata.

    Args: format: what its metadata must have as `format`.
    Raises: WorkspaceError: it is of another format. OSError, SafetensorError: it cannot be read.
    """
    with safe_open(str(file), "np") as opened:
        metadata = opened.metadata() or {}
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  (it is no dict)
    if metadata.get("format") != format:
        raise WorkspaceError(f"{file} has format {metadata.get('format')}; this version reads {format}.")
    return tensors, metadata
