"""Fine-tune image embedding models on your documents, and use them."""

import argparse
import atexit
import contextlib
import importlib
import os
import sys
from typing import Any

from .commands import COMMANDS, WITHOUT_TORCH, command
from .errors import FinetunerError, InternalError, LimitExceeded, NotReady, OutOfMemory, Overloaded

FAILED, WRONG_USAGE, INTERRUPTED = 1, 2, 130
GO_ON = ("fit", "embed", "map")  # embed and map from the last part that was written whole
# What no other command line would mend
OF_THE_WORK = (InternalError, LimitExceeded, NotReady, OutOfMemory, Overloaded)


def main() -> int:
    """Run a command and return its exit code: 0 done, 1 the run, some rows or the service failed, 2 wrong usage."""
    os.environ.setdefault("JINA_OPTOUT_TELEMETRY", "1")
    os.environ.setdefault("JINA_LOG_LEVEL", "CRITICAL")  # a command says in its own words what went wrong
    parser = argparse.ArgumentParser(prog="python -m executor", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    if sys.argv[1:2] and (sys.argv[1] in WITHOUT_TORCH or any(word.split("=")[0] == "--service" for word in sys.argv)):
        _import_docarray_without_torch()
    called = [name for name in sys.argv[1:2] if name in COMMANDS]
    for name in called or COMMANDS:  # all only where help is needed
        command(name).add(commands)
    arguments = parser.parse_args()
    try:
        return command(arguments.command).run(arguments)
    except FinetunerError as error:
        print(error, file=sys.stderr)
        return FAILED if isinstance(error, OF_THE_WORK) else WRONG_USAGE
    except KeyboardInterrupt:
        given = ", given the same --run" if arguments.command == "fit" else ""
        goes_on = arguments.command in GO_ON
        print(
            f"Interrupted. The same command goes on where it was{given}." if goes_on else "Interrupted.",
            file=sys.stderr,
        )
        return INTERRUPTED
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def _import_docarray_without_torch() -> None:
    """Import DocArray, which imports torch wherever that is installed: three quarters of the time such a command takes.

    It is then without classes for tensors of torch. Our documents have none, and code of other people runs only where
    models do. Whoever imports torch later gets it.
    """
    if "torch" in sys.modules or "docarray" in sys.modules:
        return
    modules: dict[str, Any] = sys.modules
    modules["torch"] = None  # an ImportError for whoever asks
    try:
        importlib.import_module("docarray")
    finally:
        del modules["torch"]


class _Ending:
    """Ends this process with its exit code once all else that is called at its end has been.

    Without it Python then takes itself apart, and a thread that returns from C++ meanwhile aborts the process: one of
    gloo, which outlive their group, or one that a preprocess_fn has left in a computation. A run that had succeeded
    counted as crashed.
    """

    def __init__(self) -> None:
        self.code = FAILED  # where an exception ends it
        atexit.register(self._end)  # before all others, so it is called last

    def _end(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):  # it is closed, or nobody reads it any more
                stream.flush()
        os._exit(self.code)


if __name__ == "__main__":
    ending = _Ending()
    try:
        ending.code = main()
    except SystemExit as end:  # of argparse
        ending.code = end.code if isinstance(end.code, int) else FAILED
        raise
    sys.exit(ending.code)
