"""The files around the code: those that Jina Hub reads, the pinned requirements, the scripts, the image."""

import ast
import functools
import importlib
import json
import os
import re
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from forked import Forked
from fronts import SMALL
from without_us import load_config

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "executor").rglob("*.py"))
PYTHONS = ["3.10", "3.11"]


def requirements(path: str) -> list[Requirement]:
    """The requirements named in a file itself, without the files that it includes."""
    lines = (line.split("#")[0].strip() for line in (ROOT / path).read_text().splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith("-r ")]


def pinned_for(python: str) -> dict[str, list[str]]:
    """The versions that requirements.txt names for a Python version, by package."""
    environment = {**default_environment(), "python_version": python}
    pins: dict[str, list[str]] = {}
    for requirement in requirements("requirements.txt"):
        if requirement.marker is None or requirement.marker.evaluate(environment):
            (pin,) = requirement.specifier
            pins.setdefault(canonicalize_name(requirement.name), []).append(pin.version)
    return pins


def project() -> dict[str, Any]:
    """What pyproject.toml says of the package."""
    tomllib = pytest.importorskip("tomllib")
    content: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return content


@functools.cache
def nodes_of(source: Path) -> list[ast.AST]:
    """All of a file's code."""
    return list(ast.walk(ast.parse(source.read_text())))


@functools.cache
def imports(source: Path) -> set[str]:
    """Every module that a file imports absolutely, at its top or anywhere within."""
    nodes = nodes_of(source)
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return plain | {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 0}


def modules_of(package: str) -> set[str]:
    """What can be imported of an installed package, by the names at the top of its files."""
    installed = distribution(package)
    named = (installed.read_text("top_level.txt") or "").split()
    return set(named) or {file.parts[0].removesuffix(".py") for file in installed.files or () if file.suffix == ".py"}


def instructions(name: str) -> list[str]:
    """The arguments of every instruction of this name in the Dockerfile, in order."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    return re.findall(rf"^{name} +(.+)$", text, re.MULTILINE)


@pytest.mark.parametrize(
    "name", ["config.yml", "manifest.yml", "requirements.txt", "Dockerfile", "README.md", "LICENSE", "executor"]
)
def test_the_top_level_has_what_jina_hub_expects(name):
    assert (ROOT / name).exists()


def test_the_config_names_the_executor_class_and_the_module_it_is_in():
    import executor

    config = yaml.safe_load((ROOT / "config.yml").read_text())
    assert config["jtype"] in executor.__all__
    assert [ROOT / module for module in config["py_modules"]] == [Path(executor.__file__)]
    assert set(config["metas"]) == {"name", "description"}


def test_the_manifest_and_the_config_describe_the_same_executor():
    manifest = yaml.safe_load((ROOT / "manifest.yml").read_text())
    metas = yaml.safe_load((ROOT / "config.yml").read_text())["metas"]
    assert manifest["manifest_version"] == 1
    assert {name: manifest[name] for name in metas} == metas


@pytest.mark.process
def test_jina_loads_the_config_from_another_directory(tmp_path):
    environment = {**os.environ, "JINA_OPTOUT_TELEMETRY": "1", "HOME": str(tmp_path)}
    loading = Forked(
        load_config, str(ROOT / "config.yml"), SMALL, directory=tmp_path, environment=environment, log=tmp_path / "log"
    )
    loading.becomes_ready()
    assert loading.wait(120) == 0, (tmp_path / "log").read_text()
    loading.close()
    assert (tmp_path / "log").read_text().splitlines()[-1] == "FinetunerExecutor"


def test_the_license_is_the_whole_of_apache_2_0():
    text = (ROOT / "LICENSE").read_text()
    assert text.split()[:5] == ["Apache", "License", "Version", "2.0,", "January"]
    assert "9. Accepting Warranty or Additional Liability." in text
    assert "END OF TERMS AND CONDITIONS" in text


@pytest.mark.parametrize("path", ["requirements.txt", "tests/requirements.txt"])
def test_every_requirement_is_pinned_to_one_public_version(path):
    named = requirements(path)
    assert named
    for requirement in named:
        assert [pin.operator for pin in requirement.specifier] == ["=="], requirement
        assert not re.search(r"[+*]", str(requirement.specifier)), f"{requirement} has a local version or a wildcard"
        assert requirement.url is None


@pytest.mark.parametrize("path", ["requirements.in", "requirements.txt", "tests/requirements.txt"])
def test_the_requirements_name_no_index_no_path_and_no_url(path):
    lines = [line.split("#")[0] for line in (ROOT / path).read_text().splitlines()]
    options = [line for line in lines if line.startswith("-")]
    assert options == (["-r ../requirements.txt"] if path.startswith("tests/") else [])
    assert not [line for line in lines if "://" in line or "@" in line or line.startswith(("/", "."))]


@pytest.mark.parametrize("python", PYTHONS)
def test_each_python_gets_one_pin_of_a_package_within_the_limits_of_requirements_in(python):
    pinned = pinned_for(python)
    assert not {name: versions for name, versions in pinned.items() if len(versions) != 1}
    for wanted in requirements("requirements.in"):
        (version,) = pinned[canonicalize_name(wanted.name)]
        assert wanted.specifier.contains(version), f"{wanted} does not admit {version}"


def test_no_gpu_library_is_pinned_beside_torch():
    assert not [name for name in pinned_for("3.11") if name.startswith(("nvidia", "cuda", "triton"))]


def test_every_package_the_code_imports_is_a_direct_requirement_or_an_extra():
    direct = {canonicalize_name(requirement.name) for requirement in requirements("requirements.in")}
    optional = {Requirement(line).name for lines in project()["optional-dependencies"].values() for line in lines}
    declared = sys.stdlib_module_names | optional | {module for name in direct for module in modules_of(name)}
    undeclared = {
        f"{source.name}: {module}"
        for source in SOURCES
        for module in (name.split(".")[0] for name in imports(source))
        if module not in declared
    }
    assert not undeclared


def test_the_package_imports_itself_relatively():
    """Jina loads it under the name `user_module`."""
    own = {"executor", "user_module"}
    assert not [source.name for source in SOURCES if own & {name.split(".")[0] for name in imports(source)}]


def test_nothing_imports_a_package_that_this_project_avoids():
    avoided = {"torchvision", "timm", "lightning", "pytorch_lightning", "litserve"}
    assert not [source.name for source in SOURCES if avoided & {name.split(".")[0] for name in imports(source)}]


def test_nothing_reads_or_writes_a_pickle_but_the_published_weights_by_a_loader_that_runs_no_code():
    picklers = {"pickle", "cloudpickle", "dill", "joblib", "shelve"}
    assert not [source.name for source in SOURCES if picklers & {name.split(".")[0] for name in imports(source)}]
    for source in SOURCES:
        for node in nodes_of(source):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in {"torch.load", "torch.save"}:
                assert source.name == "efficientnet.py", f"{source.name}:{node.lineno}"
                assert "weights_only=True" in ast.unparse(node), f"{source.name}:{node.lineno}"
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert ast.unparse(node.value) == "False", f"{source.name}:{node.lineno}"


@pytest.mark.parametrize("name", ["documents.py", "service.py"])
def test_annotations_that_jina_reads_are_not_postponed(name):
    assert "__future__" not in imports(ROOT / "executor" / name)


def test_the_package_exports_these_names_and_no_others():
    import executor

    assert sorted(executor.__all__) == [
        "ClassDataset",
        "Document",
        "DocumentArray",
        "DocumentArrayMemmap",
        "Evaluation",
        "Event",
        "FinetunerExecutor",
        "InstanceDataset",
        "RunStatus",
        "SessionDataset",
        "embed",
        "fit",
        "load_uri_to_image_blob",
    ]
    assert not [name for name in executor.__all__ if not hasattr(executor, name)]


@pytest.mark.process
@pytest.mark.parametrize("name", ["scripts/setup", "scripts/test", "scripts/demo", ".ci/run"])
def test_a_script_is_executable_and_valid_bash(name):
    script = ROOT / name
    assert os.access(script, os.X_OK)
    assert script.read_text().startswith("#!/usr/bin/env bash\n")
    assert subprocess.run(["bash", "-n", script]).returncode == 0


@pytest.mark.process
@pytest.mark.skipif(
    Path(sys.prefix) != ROOT / ".venv", reason="only in the environment that scripts/setup has made, else it makes one"
)
def test_setup_does_nothing_and_says_nothing_the_second_time(tmp_path):
    done = subprocess.run([ROOT / "scripts/setup"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_image_copies_what_exists_and_what_dockerignore_admits():
    admitted = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    sources = [source.rstrip("/") for copy in instructions("COPY") for source in copy.split()[:-1]]
    assert sorted(sources) == ["config.yml", "executor", "requirements.txt", "scripts/healthy"]
    assert set(sources) == admitted
    assert not [source for source in sources if not (ROOT / source).exists()]


def test_the_image_runs_the_config_from_its_working_directory_and_not_as_root():
    assert [json.loads(entry) for entry in instructions("ENTRYPOINT")] == [["jina", "executor", "--uses", "config.yml"]]
    assert f"config.yml {instructions('WORKDIR')[-1]}/" in instructions("COPY")
    assert instructions("USER")[-1] not in {"root", "0"}


def test_the_image_installs_packages_before_it_copies_the_code():
    text = (ROOT / "Dockerfile").read_text()
    assert text.index("COPY requirements.txt") < text.index("RUN pip install") < text.index("COPY executor/")


PROGRAMS = [file for file in sorted((ROOT / "benchmarks").glob("*.py")) if file.stem != "mutation"]  # needs mutmut


@pytest.mark.parametrize("file", PROGRAMS, ids=lambda file: file.stem)
def test_what_a_benchmark_uses_is_there(file: Path) -> None:
    """Those that are not run here shall not break unnoticed."""
    importlib.import_module(f"benchmarks.{file.stem}")
