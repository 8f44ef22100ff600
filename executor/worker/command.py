"""The one way to start a process that trains: `python -m executor train`, or `standby`, which waits for a run.

Standard input of the new process is a pipe from its parent. When the parent ends, the pipe ends, and so does the
trainer, unless it is stopped: then it is ended by whoever looks for it, or by the kernel.
"""

import contextlib
import ctypes
import itertools
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO

import psutil

from ..parameters import TOKEN_VARIABLE

PACKAGE = Path(__file__).resolve().parent.parent
_BY_A_SERVICE = {"--tied", "standby"}  # words of a command line that only a service gives
# OpenMP's threads spin while they wait for each other. On a machine with other work, such as this service's, they take
# CPU time from the thread that they wait for: a step took 20 times as long. With this number of spins, training on an
# idle machine is as fast as by default. With no spins (OMP_WAIT_POLICY=PASSIVE) it is a third slower.
SPIN_BRIEFLY = {"GOMP_SPINCOUNT": "10000"}
# The threads of numpy's and scipy's library wait in the same way, and cannot be told to give way: on two busy cores a
# trainer that yields spent minutes in a decomposition that takes a third of a second. Torch has threads of its own.
ONE_THREAD_IN_NUMPY = {"OPENBLAS_NUM_THREADS": "1"}
_PR_SET_PDEATHSIG = 1
_SECRET = re.compile("TOKEN|SECRET|PASSW|CREDENTIAL|(^|_)KEY", re.IGNORECASE)


def start_process(
    command: str,
    *arguments: str,
    output: int | IO[bytes] | None = None,
    environment: dict[str, str] | None = None,
    before: Callable[[], object] | None = None,
) -> "subprocess.Popen[bytes]":
    """Start `python -m executor COMMAND`. It does not need the token, and does not get it.

    Args:
        output: where it prints; by default, where this process prints.
        environment: variables that it gets besides those of this process, or instead of them.
        before: what the new process calls first; little may be done there.
    """
    inherited = {name: value for name, value in os.environ.items() if name != TOKEN_VARIABLE}
    return subprocess.Popen(
        [sys.executable, "-m", PACKAGE.name, command, *arguments],
        cwd=PACKAGE.parent,
        env=SPIN_BRIEFLY | ONE_THREAD_IN_NUMPY | inherited | (environment or {}),
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=output,
        preexec_fn=before,
    )


def when_the_parent_ends(number: signal.Signals) -> Callable[[], object]:
    """Return what a new process calls to get a signal from the kernel when its parent ends, even by a crash.

    SIGKILL ends it even if it is stopped. To the kernel the parent is the thread that starts the process: that must be
    one that lives as long as its process, such as the first.
    """
    prctl = ctypes.CDLL(None).prctl  # looked up here, because little may be done between fork and exec
    return lambda: prctl(_PR_SET_PDEATHSIG, number)


def on_workspace(workspace: Path) -> tuple[str, str]:
    """Return the arguments that name a workspace."""
    return "--workspace", str(workspace.resolve())


def public_environment() -> dict[str, str]:
    """Return this process's environment without what looks like a secret, for a program that is not ours."""
    return {name: value for name, value in os.environ.items() if not _SECRET.search(name)}


def is_trainer_of(process: psutil.Process, workspace: Path, run: str | None = None) -> bool:
    """Whether a service has started this process to train on a workspace. It may have named itself anew.

    Args: run: the one that it trains; by default any, or none yet.
    """
    with contextlib.suppress(psutil.Error):
        words = process.cmdline()
        if len(words) > 1:
            place = words[words.index("--workspace") + 1] if "--workspace" in words[:-1] else ""
            given = set(words)
            return (
                PACKAGE.name in given
                and place == str(workspace.resolve())
                and bool(_BY_A_SERVICE & given)
                and (run is None or f"--run={run}" in given)
            )
        title = "".join(words).rstrip("\0 ")  # a trainer that had waited for its run
        return (
            title.endswith(" --tied" if run is None else f" --run={run} --tied")
            and f" -m {PACKAGE.name} train --workspace {workspace.resolve()} --run=" in title
        )
    return False


def is_trainer_of_job(process: psutil.Process, address: str) -> bool:
    """Whether this process trains the job at a path or url. The launcher that has started it does not, and is not."""
    with contextlib.suppress(psutil.Error, ValueError):
        words = process.cmdline()
        module = words.index("-m")
        if words[module + 1 : module + 3] == [PACKAGE.name, "train"] and all(
            word.startswith("-") for word in words[1:module]
        ):
            given = words[module + 3 :]
            return f"--job={address}" in given or ("--job", address) in itertools.pairwise(given)
    return False


def end_process(process: "subprocess.Popen[bytes]") -> None:
    """Kill a process and wait until it is gone."""
    process.kill()
    process.wait()
    if process.stdin is not None:
        process.stdin.close()
