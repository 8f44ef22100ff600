"""The one way to start a process that trains: `python -m executor train`, or one that waits to.

Its standard input is a pipe: it ends when the process that started it does, and the trainer with it.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import IO

from ..parameters import TOKEN_VARIABLE

PACKAGE = Path(__file__).resolve().parent.parent
# OpenMP's threads wait for one another by spinning. On a machine that has other work, such as this service's, they spin
# away the time that the one waited for needs: a step took 20 times as long. With this many rounds an idle machine is
# as fast as ever (with none, OMP_WAIT_POLICY=PASSIVE, a third slower).
SPIN_BRIEFLY = {"GOMP_SPINCOUNT": "10000"}


def start_process(
    command: str,
    workspace: Path,
    *arguments: str,
    output: int | IO[bytes] | None = None,
    environment: dict[str, str] | None = None,
) -> "subprocess.Popen[bytes]":
    """Start `python -m executor COMMAND` on a workspace. What it trains does not need the token, and does not get it.

    Args: output: where it prints; by default where this process does. environment: what differs from this process's.
    """
    inherited = {name: value for name, value in os.environ.items() if name != TOKEN_VARIABLE}
    return subprocess.Popen(
        [sys.executable, "-m", PACKAGE.name, command, "--workspace", str(workspace.resolve()), *arguments],
        cwd=PACKAGE.parent,
        env=SPIN_BRIEFLY | inherited | (environment or {}),
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=output,
    )


def end_process(process: "subprocess.Popen[bytes]") -> None:
    """Kill it and wait until it is gone."""
    process.kill()
    process.wait()
    if process.stdin is not None:
        process.stdin.close()
