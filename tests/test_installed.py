"""The package as a user installs it: outside the clone, with the command, a client and a Flow by the class."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from serving import ROOT

pytestmark = pytest.mark.flow

BY_CLASS = """
import numpy as np
from jina import Client, Flow
import executor
from executor import Document, DocumentArray, FinetunerExecutor, RunStatus

if __name__ == "__main__":
    print(executor.__file__)
    options = {"model": "small", "input_size": 16}
    with Flow(host="127.0.0.1").add(uses=FinetunerExecutor, uses_with=options, workspace="workspace") as flow:
        black = DocumentArray([Document(blob=np.zeros((8, 8, 3), np.uint8))])
        docs = flow.post("/embed", black, return_type=DocumentArray)
        print(docs[0].embedding.shape, docs[0].tags)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `pip install .` puts into an environment, without the requirements, which are here already."""
    copy, target = tmp_path_factory.mktemp("clone"), tmp_path_factory.mktemp("site")
    for name in ("pyproject.toml", "requirements.in", "LICENSE"):
        shutil.copy(ROOT / name, copy)  # a copy, because building leaves files in the clone
    shutil.copytree(ROOT / "executor", copy / "executor", ignore=shutil.ignore_patterns("__pycache__"))
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "--target",
        target,
        copy,
    ]
    subprocess.run(command, check=True, env=os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"})
    return target


def environment(installed: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}


def test_the_command_is_installed_and_is_the_same(installed, tmp_path):
    help_of = {
        name: subprocess.run(command, cwd=tmp_path, env=environment(installed), capture_output=True, text=True)
        for name, command in {
            "script": [installed / "bin" / "finetuner-executor", "--help"],
            "module": [sys.executable, "-m", "executor", "--help"],
        }.items()
    }
    assert help_of["script"].returncode == 0, help_of["script"].stderr
    assert "fit,embed,runs" in help_of["script"].stdout
    assert help_of["script"].stdout == help_of["module"].stdout


def test_all_that_is_no_code_is_installed_too(installed):
    def files(place: Path) -> set[Path]:
        """What is no code, and was not made while it ran."""
        found = (path for path in (place / "executor").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
        return {path.relative_to(place) for path in found if path.suffix != ".py"}

    assert files(installed) == files(ROOT)


def test_a_flow_by_the_class_embeds_for_a_client_outside_the_clone(installed, tmp_path):
    (tmp_path / "by_class.py").write_text(BY_CLASS)
    done = subprocess.run(
        [sys.executable, "by_class.py"], cwd=tmp_path, env=environment(installed), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[0] == str(installed / "executor" / "__init__.py")
    assert "(128,) {'finetuner_model': 'base'" in done.stdout
