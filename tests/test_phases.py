"""The phases of `scripts/test` together run every test once, although each reads only some of the files."""

import re
from pathlib import Path

import pytest

import phases
from serving import ROOT

PHASES = re.findall(r'pytest -q .*-m (".*?"|\w+)(?: |$)', (ROOT / "scripts" / "test").read_text(), re.MULTILINE)
FAST, SLOW, ALONE, EXTRA = (phase.strip('"') for phase in PHASES)


def test_whatever_markers_a_test_has_one_phase_selects_it() -> None:
    for markers in phases.subsets(phases.MARKERS):
        assert [phases.matches(phase, markers) for phase in (FAST, SLOW, ALONE)].count(True) == 1
        assert phases.matches(EXTRA, markers) == ("extra" in markers)


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("def test_it(): ...\n", [FAST]),
        ("pytestmark = pytest.mark.compute\n", [SLOW]),
        ("pytestmark = [pytest.mark.flow, pytest.mark.alone]\n", [ALONE]),
        ("pytestmark = [pytest.mark.flow, pytest.mark.extra]\n", [SLOW, EXTRA]),
        ("@pytest.mark.process\ndef test_it(): ...\n", [FAST, SLOW]),
        ("pytestmark = pytest.mark.flow\n@pytest.mark.alone\ndef test_it(): ...\n", [SLOW, ALONE]),
        ("pytestmark = [\n    pytest.mark.flow,\n]\n", [FAST, SLOW]),  # not understood: then it is read once more
        ("pytestmark = pytest.mark.flow\npytestmark = pytest.mark.alone\n", [FAST, SLOW, ALONE]),
    ],
)
def test_a_phase_reads_the_files_that_may_have_tests_for_it(text: str, read: list[str], tmp_path: Path) -> None:
    file = tmp_path / "test_it.py"
    file.write_text(text)
    named = phases.Named.by(file)
    assert [phase for phase in (FAST, SLOW, ALONE, EXTRA) if named.may_match(phase)] == read
    for markers in filter(named.allows, phases.subsets(phases.MARKERS)):  # any test that passes the check of its file
        assert all(named.may_match(phase) for phase in (FAST, SLOW, ALONE, EXTRA) if phases.matches(phase, markers))


@pytest.mark.parametrize("expression", ["", "usefixtures", "flow and usefixtures", "not parametrize"])
def test_with_any_other_choice_each_file_is_read(expression: str, tmp_path: Path) -> None:
    file = tmp_path / "test_it.py"
    file.write_text("def test_it(): ...\n")
    assert phases.Named.by(file).may_match(expression)


@pytest.mark.parametrize(
    ("text", "markers"), [("from helpers import slow\n", ["process"]), ("pytestmark = pytest.mark.flow\n", ["compute"])]
)
def test_a_marker_that_the_text_of_the_file_does_not_name_is_refused(
    text: str, markers: list[str], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    file = tmp_path / "test_it.py"
    file.write_text(text)
    module = pytest.Module.from_parent(request.session, path=file)
    item = pytest.Function.from_parent(module, name="test_it", callobj=lambda: None)
    for name in markers:
        item.add_marker(name)
    with pytest.raises(pytest.UsageError, match=rf"test_it has the markers \['{markers[0]}'\], and the text of"):
        phases.check([item])
