"""The benchmarks run. What they measure is not judged here."""

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.common import jpeg, textured
from flows import ONE_CORE

pytestmark = pytest.mark.process

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.timeout(900)  # they start services and trainers, and never mind a busy machine
@pytest.mark.parametrize(
    "name",
    ["train", "ingest"],  # the others take longer; a fast test imports them
)
def test_a_benchmark_runs_and_ends_with_its_figure(name: str) -> None:
    assert figure_of(name) > 0


@pytest.mark.timeout(900)
def test_peers_are_compared_on_photographs_and_a_stopped_run_goes_on(tmp_path: Path) -> None:
    write_visits(tmp_path)
    arguments = "--photos", str(tmp_path), "--keep", str(tmp_path / "kept")
    figure = figure_of("quality", *arguments)
    kept = (tmp_path / "kept").read_text()
    assert '"pytorch-metric-learning, our rate and norms"' in kept
    assert figure_of("quality", *arguments) == figure
    assert (tmp_path / "kept").read_text() == kept, "nothing was measured twice"


def write_visits(folder: Path) -> None:
    """Write `train` and `test`, each with six class folders of four images."""
    for visit, label, number in itertools.product(("train", "test"), range(6), range(4)):
        file = folder / visit / str(label) / f"{number}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(jpeg(textured(label, number + 4 * (visit == "test"), 64, 64)))


def figure_of(name: str, *arguments: str) -> float:
    """Run a benchmark and return the figure in its last line."""
    command = [sys.executable, "-m", f"benchmarks.{name}", "--quick", "--tiny", *arguments]
    finished = subprocess.run(command, cwd=ROOT, env=os.environ | ONE_CORE, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr[-4000:]
    figure = re.fullmatch(r"[a-z_0-9]+: (-?\d+\.\d+)", finished.stdout.splitlines()[-1])
    assert figure is not None, finished.stdout[-1000:]
    return float(figure[1])
