"""Which device to compute on."""

import torch

from .errors import ConfigurationError
from .parameters import ExecutorOptions


def choose_device(options: ExecutorOptions) -> torch.device:
    """Return the configured device. Raises: ConfigurationError: torch does not have it."""
    name = options.devices[0] if options.devices else options.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigurationError(f"device={name!r} cannot be used: {str(error).splitlines()[0]}") from None
    return device
