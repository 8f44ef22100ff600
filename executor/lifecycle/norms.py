"""Whether a run would train the batch norms of its model on single images, which they cannot learn from."""

import json
from pathlib import Path
from typing import Any

from ..errors import InvalidParameter
from ..parameters import TrainingOptions


def check_parts(options: TrainingOptions, model: Path) -> None:
    """Refuse parts of one image where a batch norm needs two. What cannot be known yet, the trainer finds out.

    Args: model: the folder of the version that the run starts from.
    Raises: InvalidParameter: the message says what to set instead.
    """
    if options.micro_batch != 1 or options.freeze or options.lora_rank:
        return
    stated = _stated(model)
    untrained = not stated.get("pretrained", True)
    free = untrained if options.norm_statistics == "auto" else options.norm_statistics == "trained"
    if free and stated.get("norms_of_vectors"):
        raise InvalidParameter(
            "Parameter 'micro_batch' is 1, so a batch norm of the model would be trained on one image alone, which has "
            "no variance; set micro_batch to 2 or more with an even batch_size, leave it out, or set norm_statistics "
            "to 'fixed'."
        )


def _stated(folder: Path) -> dict[str, Any]:
    try:
        stated = json.loads((folder / "model.json").read_text())
    except (OSError, ValueError):  # `base` is not built yet, or damaged: its trainer says so
        return {}
    return stated if isinstance(stated, dict) else {}
