"""The comparison with peers runs without them. What it measures is not judged here."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows import ONE_CORE

pytestmark = pytest.mark.process

ROOT = Path(__file__).resolve().parent.parent
PEERS = ("finetuner", "pytorch_metric_learning", "open_metric_learning", "sentence_transformers")


def test_a_peer_that_is_not_installed_is_listed_with_the_command_that_installs_it(tmp_path: Path) -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "benchmarks.peers", "--tiny"],
        cwd=ROOT,
        env=os.environ | ONE_CORE | {"XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-4000:]
    for name in PEERS:
        assert f"| {name} | not installed: python -m benchmarks.peers.environments {name} |" in finished.stdout


def test_what_pip_said_of_a_peer_that_cannot_be_installed_is_shown_in_its_place(tmp_path: Path) -> None:
    folder = tmp_path / "finetuner-peers"
    folder.mkdir()
    (folder / "finetuner.error").write_text("ERROR: No matching distribution found for docarray==0.21.1\n")
    finished = subprocess.run(
        [sys.executable, "-c", "from benchmarks.peers.environments import *; print(problem_of('finetuner'))"],
        cwd=ROOT,
        env=os.environ | ONE_CORE | {"XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert finished.stdout == "ERROR: No matching distribution found for docarray==0.21.1\n"
