"""The package as a user installs it: outside the clone, with the command, and a Flow by the class."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from serving import ROOT, gone

pytestmark = pytest.mark.flow

BY_CLASS = """
import sys, time
import numpy as np
from docarray import DocList
from jina import Flow
import executor
from executor import Document, DocumentArray, FinetunerExecutor, RunStatus

if __name__ == "__main__":
    print(executor.__file__)
    options = {"model": "small", "input_size": 16, "fast_inference": False, "standby_seconds": 0}
    options |= {"trainer_yields": False, "trainer_nice": 0, "trainer_threads": 1}
    noise = np.random.default_rng(0).integers(0, 255, (12, 24, 24, 3), np.uint8)
    with Flow(host="127.0.0.1").add(uses=FinetunerExecutor, uses_with=options, workspace="workspace") as flow:
        black = DocumentArray([Document(blob=np.zeros((8, 8, 3), np.uint8))])
        docs = flow.post("/embed", black, return_type=DocumentArray)
        print(docs[0].embedding.shape, docs[0].tags)
        docs = DocumentArray(Document(blob=blob, tags={"finetuner_label": n % 3}) for n, blob in enumerate(noise))
        forever = {"run": "endless", "total": 12, "epochs": 100_000, "batch_size": 12}
        flow.post("/fit", docs, parameters=forever, return_type=DocList[RunStatus])
        while flow.post("/status", parameters={"run": "endless"}, return_type=DocList[RunStatus])[0].step == 0:
            time.sleep(0.2)
        print("it trains", flush=True)
        sys.stdin.read()
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


def test_a_flow_by_the_class_serves_outside_the_clone_and_closing_it_ends_the_trainer(installed, tmp_path):
    (tmp_path / "by_class.py").write_text(BY_CLASS)
    with (
        open(tmp_path / "log", "w") as log,
        subprocess.Popen(
            [sys.executable, "by_class.py"],
            cwd=tmp_path,
            env=environment(installed),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        ) as flow,
    ):
        try:
            said = []
            for line in flow.stdout:
                said.append(line)
                if line == "it trains\n":
                    break
            assert said[-1:] == ["it trains\n"], (tmp_path / "log").read_text()[-3000:]
            children = psutil.Process(flow.pid).children(recursive=True)
            assert [child for child in children if "train" in child.cmdline()]
            flow.stdin.close()
            assert flow.wait(60) == 0
            assert gone(*children, seconds=60)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(flow.pid, signal.SIGKILL)
    assert said[0] == f"{installed / 'executor' / '__init__.py'}\n"
    assert "(128,) {'finetuner_model': 'base'" in "".join(said)
