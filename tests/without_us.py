"""What processes of `forked` do that have not imported our package yet. So nothing of it may be imported here."""

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any


def load_config(path: str, options: dict[str, Any], ready: Callable[[], None]) -> None:
    """Load an executor by the path of its config, as Jina does, and print its name."""
    from jina import Executor

    assert "executor" not in sys.modules
    print(Executor.load_config(path, uses_with=options).metas.name, flush=True)
    ready()
    os._exit(0)  # the executor is not served, so nothing closes it


def fork_with_jina_before_us(program: str, ready: Callable[[], None]) -> None:
    """Import our package after Jina, which the fork server has imported, fork, and run a program in the fork."""
    assert "jina" in sys.modules
    assert "executor" not in sys.modules
    importlib.import_module("executor")
    ready()
    if child := os.fork():
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    exec(program, {"os": os})
