"""The program of `test_faults.py`, interrupted. In a file of its own, so that both can run at a time."""

import signal
from pathlib import Path

import pytest

from test_faults import start, started_in

SOON = 7  # the seed by which the first kill comes at once


@pytest.mark.process
@pytest.mark.alone
@pytest.mark.timeout(300)
def test_an_interrupted_program_ends_all_processes_that_it_started(tmp_path: Path) -> None:
    process = start(tmp_path, SOON)
    assert process.stdout is not None
    try:
        assert any("kill 1:" in line for line in process.stdout)
        alive = started_in(tmp_path)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=120)
    finally:
        process.kill()
    assert alive
    assert started_in(tmp_path) == []
