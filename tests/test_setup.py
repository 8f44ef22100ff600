"""`scripts/setup` leaves alone what does not belong to this clone."""

import shutil
import subprocess
from pathlib import Path

import pytest

from serving import ROOT


@pytest.mark.process
def test_an_environment_that_is_a_link_is_refused_and_what_it_leads_to_is_left_alone(tmp_path: Path) -> None:
    clone, other = tmp_path / "clone", tmp_path / "other"
    (clone / "scripts").mkdir(parents=True)
    (clone / "tests").mkdir()
    for file in ("scripts/setup", "requirements.txt", "tests/requirements.txt"):
        shutil.copy(ROOT / file, clone / file)
    other.mkdir()
    (other / "kept").touch()
    (clone / ".venv").symlink_to(other)
    done = subprocess.run([clone / "scripts" / "setup"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "symbolic link" in done.stderr
    assert "rm .venv" in done.stderr
    assert [path.name for path in other.iterdir()] == ["kept"]
