"""Checks that a test starts no more than its markers say; else it fails.

`pyproject.toml` describes the markers. Tests without a marker start nothing but the few tools below. So there can be
many of them, and they take seconds: `./scripts/test --fast`.
"""

import sys
from pathlib import Path
from typing import Any

import pytest

TOOLS = {"du", "mount", "openssl", "umount", "uname"}  # programs that are no work of ours, and done at once
SERVING = "flow"
STARTING = ("flow", "process")
_STARTS = {"os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system", "subprocess.Popen"}

_running: pytest.Item | None = None  # the test whose turn it is, from its first fixture to its last


def now(item: pytest.Item | None) -> None:
    """Say whose turn it is."""
    global _running
    _running = item


def serving() -> None:
    """Called by all that serves: the test has to have the marker for it."""
    _need("serves", SERVING)


def _need(does: str, *markers: str) -> None:
    if _running is not None and not any(_running.get_closest_marker(name) for name in markers):
        pytest.fail(f"{_running.nodeid} {does}, but has not the marker {' or '.join(markers)}")


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event in _STARTS and _running is not None:
        program = Path(str(arguments[0])).name if event == "subprocess.Popen" else ""
        if program not in TOOLS:
            _need(f"starts a process ({event} {program})", *STARTING)


sys.addaudithook(_watch)
