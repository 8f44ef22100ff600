"""Which device to compute on."""

import os

import torch

from ..errors import ConfigurationError
from ..parameters import ExecutorOptions


def choose_device(options: ExecutorOptions) -> torch.device:
    """Return the configured device; of several, the one for this process.

    Raises: ConfigurationError: torch cannot use it.
    """
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    name = options.devices[rank % len(options.devices)] if options.devices else options.device
    if name == "auto":
        name = f"cuda:{rank}" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigurationError(f"device={name!r} cannot be used: {str(error).splitlines()[0]}") from None
    return device
