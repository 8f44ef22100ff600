"""The benchmarks run. What they measure is not judged here."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.timeout(900)  # they start services and trainers, and never mind a busy machine
@pytest.mark.parametrize(
    "name", ["train", "frozen", "embed", "ingest", "scale", "startup", "proof", "copies", "label_errors"]
)
def test_a_benchmark_runs_and_ends_with_its_figure(name: str) -> None:
    command = [sys.executable, "-m", f"benchmarks.{name}", "--quick", "--tiny"]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr[-4000:]
    figure = re.fullmatch(r"[a-z_0-9]+: (\d+\.\d+)", finished.stdout.splitlines()[-1])
    assert figure is not None, finished.stdout[-1000:]
    assert float(figure[1]) > 0
