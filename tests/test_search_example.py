"""The example of an image search: its index goes over to another model in four ways, while queries come."""

import re
import subprocess
from pathlib import Path

import pytest
from PIL import Image

import needs
from extras import PYTHON, extras_environment
from serving import ROOT

ROW = re.compile(r"^(before|nothing|map queries|map index|embed anew) +(\d+) +(\d\.\d+) +(\d+) +(\d+)$", re.MULTILINE)


@pytest.mark.extra
@pytest.mark.flow
def test_no_query_fails_or_crosses_spaces_in_any_of_the_four_ways(tmp_path: Path) -> None:
    needs.serving()
    command = [PYTHON, "-m", "examples.search", "--quick", "--output", tmp_path]
    environment = extras_environment() | {"JINA_OPTOUT_TELEMETRY": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    rows = {
        way: (int(queries), float(recall), int(failed), int(across))
        for way, queries, recall, failed, across in ROW.findall(done.stdout)
    }
    assert list(rows) == ["before", "nothing", "map queries", "map index", "embed anew"]
    assert all(queries >= 40 and failed == 0 for queries, _, failed, _ in rows.values())
    assert {way for way, (*_, across) in rows.items() if across} == {"nothing"}  # there it is what was advised or not
    assert rows["embed anew"][1] > rows["nothing"][1]
    with Image.open(tmp_path / "recall.png") as plot:
        assert len(set(plot.convert("RGB").getdata())) > 10
