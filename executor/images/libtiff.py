"""Keeps libtiff from writing to standard error: what is wrong with a file is in the error that Pillow raises."""

import contextlib
import ctypes
from pathlib import Path

import PIL.Image  # noqa: F401  (it loads the library)

_HANDLERS = ("TIFFSetErrorHandler", "TIFFSetWarningHandler")


def silence_libtiff() -> None:
    """Do so in this process, for the libtiff that Pillow brings (Linux; elsewhere nothing is done)."""
    with contextlib.suppress(OSError):
        loaded = Path("/proc/self/maps").read_text().splitlines()
        for file in {line.split()[-1] for line in loaded if "libtiff" in line}:
            library = ctypes.CDLL(file)
            for handler in _HANDLERS:
                getattr(library, handler, lambda none: None)(None)
