"""docs/architecture.md, the front pages of the packages and the code say the same."""

import re
from pathlib import Path

import pytest

from serving import ROOT

EXECUTOR = ROOT / "executor"
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()
TABLE = ARCHITECTURE.split("| where in `executor/` |")[1].split("\n\n")[0]
PACKAGES = sorted(front.parent for front in EXECUTOR.glob("*/**/__init__.py"))


def test_the_architecture_names_every_place_of_the_package():
    places = [place for place in EXECUTOR.iterdir() if place.name not in ("__pycache__", "__init__.py")]
    there = {f"{place.name}/" if place.is_dir() else place.name for place in places}
    assert set(re.findall(r"^\| `([\w/.]+)`", TABLE, re.MULTILINE)) == there


def test_the_architecture_lists_the_places_in_the_order_of_their_imports():
    tomllib = pytest.importorskip("tomllib")
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    order = {name: number for number, layer in enumerate(layers) for name in layer.split(" | ")}
    listed = [order[name] for name in re.findall(r"^\| `(\w+)[/.]", TABLE, re.MULTILINE)]
    assert listed == sorted(listed)


def test_the_files_that_the_architecture_names_are_there():
    named = re.findall(r"`(\w+/\w+\.py)`", ARCHITECTURE)
    assert named
    assert not [name for name in named if not (EXECUTOR / name).exists()]


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_the_front_page_of_a_package_names_each_of_its_files_and_what_it_may_import(package: Path):
    front = (package / "__init__.py").read_text()
    files = {file.name for file in package.iterdir() if file.is_file() and file.name != "__init__.py"}
    assert set(re.findall(r"^([\w.]+\.(?:py|jinja)) ", front, re.MULTILINE)) == files
    assert "May import" in front


def test_no_two_packages_differ_in_two_letters_alone():
    names = [package.name for package in PACKAGES]
    alike = [
        (one, other)
        for one in names
        for other in names
        if one < other and len(one) == len(other) and sum(a != b for a, b in zip(one, other, strict=True)) <= 2
    ]
    assert not alike
