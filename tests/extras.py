"""The environment of the extras, .venv-extras: it sees all of .venv and has what the extras need beside it."""

import os
import subprocess
from pathlib import Path

from serving import ROOT

PYTHON = ROOT / ".venv-extras" / "bin" / "python"


def extras_environment() -> dict[str, str]:
    """The variables for a program there: it finds this package, and nobody is told anything.

    Ray's workers run at niceness 15 by default: beside other tests they would hardly run.
    """
    quiet = {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    return os.environ | {"PYTHONPATH": str(ROOT)} | quiet


def run_with_extras(program: str, *arguments: object, cwd: Path = ROOT) -> str:
    """Run a program there and return what it printed."""
    done = subprocess.run(
        [PYTHON, "-c", program, *map(str, arguments)],
        cwd=cwd,
        env=extras_environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout
