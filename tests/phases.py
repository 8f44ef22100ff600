"""Which files of tests a phase of `scripts/test` has to read.

Each worker imports every file that it is to find tests in, and with a file all that this needs: it takes each seconds.
So a file is left out if nothing in it can match `-m`, by the markers that its text names. That text tells the truth is
checked in each file that is read, and each file is read in some phase: `test_phases.py` proves it.
"""

import re
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from pathlib import Path

import pytest

MARKERS = frozenset({"flow", "process", "compute", "alone", "extra"})


@dataclass(frozen=True)
class Named:
    """The markers that the text of a file names: those of all of its tests, and those that some may have."""

    of_all: frozenset[str]
    of_some: frozenset[str]

    @classmethod
    @cache
    def by(cls, path: Path) -> "Named":
        text = path.read_text()
        marks = re.findall(r"^pytestmark\b.*", text, re.MULTILINE)
        of_all = _markers(marks[0]) if len(marks) == 1 else frozenset()
        return cls(of_all, _markers(text) - of_all)

    def allows(self, markers: frozenset[str]) -> bool:
        """Whether a test of the file may have just these markers."""
        return self.of_all <= markers <= self.of_all | self.of_some

    def may_match(self, expression: str) -> bool:
        """Whether a test of the file may be one that `-m` with this expression selects."""
        return any(matches(expression, self.of_all | some) for some in subsets(self.of_some))


def matches(expression: str, markers: frozenset[str]) -> bool:
    """Whether `-m` with an expression of these markers selects a test with these; any other expression might."""
    if not set(re.findall(r"\w+", expression)) <= MARKERS | {"and", "or", "not"}:
        return True
    return not expression or bool(eval(expression, {}, {name: name in markers for name in MARKERS}))


def check(items: list[pytest.Item]) -> None:
    """Refuse tests with other markers than the text of their file names: a phase might leave them out."""
    for item in items:
        markers = MARKERS & {marker.name for marker in item.iter_markers()}
        if not Named.by(item.path).allows(markers):
            raise pytest.UsageError(
                f"{item.nodeid} has the markers {sorted(markers)}, and the text of its file says something else: write "
                "them there as pytest.mark.NAME, and pytestmark once and in one line (see tests/phases.py)"
            )


def subsets(markers: frozenset[str]) -> list[frozenset[str]]:
    return [frozenset(some) for size in range(len(markers) + 1) for some in combinations(sorted(markers), size)]


def _markers(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\bmark\.(\w+)", text)) & MARKERS
