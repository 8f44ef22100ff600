"""Leave out an import of another library that would cost much and is hardly used."""

import contextlib
import sys
from collections.abc import Iterator
from types import ModuleType


@contextlib.contextmanager
def not_importing(name: str) -> Iterator[None]:
    """Let `import name` do nothing in this block, unless it has been imported before.

    It is for a module of a package that imports its modules by itself when they are read, as scipy does: so whoever
    imported it in this block gets it when it is used.
    """
    if name in sys.modules:
        yield
        return
    sys.modules[name] = ModuleType(name)
    try:
        yield
    finally:
        del sys.modules[name]
