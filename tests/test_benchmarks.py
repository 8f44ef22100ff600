"""The benchmarks run. What they measure is not judged here."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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


@pytest.mark.timeout(900)
def test_the_recipe_is_compared_on_a_folder_of_photographs(tmp_path: Path) -> None:
    for part, count in (("train", 6), ("test", 4)):
        for label in range(6):
            folder = tmp_path / part / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = np.random.default_rng([label, number, count]).integers(0, 90, (24, 24, 3)) + 25 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.jpg")
    command = [
        sys.executable,
        "-m",
        "benchmarks.recipe",
        "--photos",
        str(tmp_path),
        "--part",
        "all",
        "--quick",
        "--tiny",
    ]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr[-4000:]
    assert re.fullmatch(r"least_gain_of_the_second_setting: -?\d\.\d+", finished.stdout.splitlines()[-1])
