"""Do the tests notice when the code is wrong? Mutants of the modules in which a mistake would cost users the most.

A mutant is a copy of a module with one small change: `<` becomes `<=`, an argument or a call is left out. The tests of
the module that need no service and no training are run for each. If one fails, the mutant is killed. A mutant that
survives either behaves like the original (it is equivalent), or shows something that no test asks for. The file
`benchmarks/survivors.txt` lists the survivors that a person has looked at, with a judgement; others are printed.

The changes are those of mutmut, and four that it does not make: a condition is inverted, a call is left out, a set
loses a member, a function returns nothing. mutmut's own runner is not used. It redirects calls within one process,
which processes started by the tests do not see. Here the changed file lies in a copy of the repository, and each
mutant is tested in a process that is forked from one that has imported torch and other large packages already. Only
the tests that reach the changed lines are run, the fastest first.

    pip install mutmut==3.8.1                           # not among the requirements
    python -m benchmarks.mutation                       # every third mutant of each module
    python -m benchmarks.mutation supervisor --every 1  # all mutants of one module
"""

import contextlib
import difflib
import functools
import gc
import importlib
import importlib.metadata
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import coverage
import hypothesis
import libcst as cst
import pytest
from libcst.metadata import MetadataWrapper, PositionProvider
from mutmut.mutation.mutators import mutation_operators, operator_string

from .common import options, print_headline, print_machine, print_table

ROOT = Path(__file__).resolve().parent.parent
JUDGED = Path(__file__).with_name("survivors.txt")
QUICK = ("deadlines", "proof", "samplers")  # their tests take seconds
WANTED = 0.85  # of the mutants that change behaviour, in each module
SHORTEST_LIMIT = 20.0  # seconds for the tests of a mutant; if longer, three times as long as without a change
# Large packages that the tests import. They are imported once, before the forks.
HEAVY = ("torch", "docarray", "requests", "psutil", "jinja2", "scipy.stats")
HEAVY_FOR_METRICS = ("sklearn.metrics", "pytorch_metric_learning.utils.accuracy_calculator")


@dataclass(frozen=True)
class Module:
    """A file to change, and the tests that must notice.

    Attributes:
        path: below `executor`. tests: arguments for pytest. functions: change only these; empty: the whole file.
    """

    path: str
    tests: tuple[str, ...]
    functions: frozenset[str] = field(default_factory=frozenset)


QUIETLY = ("-m", "not flow and not process")
RUN_TESTS = (
    "tests/test_runs.py",
    "tests/test_delete.py",
    "tests/test_disk.py::test_a_run_is_deleted_from_a_full_disk_and_its_room_is_free",
    *QUIETLY,
)
RECEIVING_TESTS = (
    *("tests/test_receiving.py", "tests/test_feedback.py", "tests/test_hold_ups.py", "tests/test_delete.py"),
    "tests/test_damage.py",
    *QUIETLY,
)
RUN_MOVES = (
    *("create", "get", "in_state", "advance", "delete", "finish_deletes", "_check_deletable", "_remove_discarded"),
    *("promoted", "promote", "_append_event"),
)
MODULES = {
    "run": Module("store/run.py", ("tests/test_supervisor.py", *RUN_TESTS[:-1], "not flow", "-k", "not in_the_middle")),
    "runs": Module(
        "store/runs.py",
        RUN_TESTS,
        frozenset(RUN_MOVES),
    ),
    "samplers": Module("loading/samplers.py", ("tests/test_samplers.py",)),
    "metrics": Module("evaluation/metrics.py", ("tests/test_metrics.py",)),
    "proof": Module("evaluation/proof.py", ("tests/test_verdict.py", "tests/test_proof_intervals.py")),
    "intervals": Module("evaluation/intervals.py", ("tests/test_proof_intervals.py", "tests/test_metrics.py")),
    "receiving": Module("lifecycle/receiving.py", RECEIVING_TESTS),
    "deadlines": Module("lifecycle/deadlines.py", ("tests/test_deadlines.py",)),
    "supervisor": Module("lifecycle/supervisor.py", ("tests/test_supervisor.py",)),
    "promotion": Module("lifecycle/promotion.py", ("tests/test_supervisor.py",)),
    "spool": Module("store/spool.py", ("tests/test_memmap.py", *QUIETLY)),
}


# --- mutants ---------------------------------------------------------------------------------------------------------


class Mutant(NamedTuple):
    """One change of a module: its lines, their text before and after, and the whole file after it."""

    lines: range
    before: str
    after: str
    code: str


def invert(node: cst.If | cst.While) -> Iterator[cst.CSTNode]:
    """`if x` becomes `if not x`. mutmut changes the conditions that have an operator."""
    if not isinstance(node.test, cst.Comparison | cst.BooleanOperation | cst.UnaryOperation):
        yield node.with_changes(test=cst.UnaryOperation(cst.Not(), node.test))


def leave_out_call(node: cst.Expr) -> Iterator[cst.CSTNode]:
    """A call is left out, if nothing uses its result."""
    if isinstance(node.value, cst.Call):
        yield node.with_changes(value=cst.Name("None"))


def leave_out_member(node: cst.Set) -> Iterator[cst.CSTNode]:
    """A set loses a member."""
    for left_out in node.elements if len(node.elements) > 1 else ():
        yield node.with_changes(elements=[element for element in node.elements if element is not left_out])


def return_nothing(node: cst.Return) -> Iterator[cst.CSTNode]:
    """A function returns nothing."""
    if node.value is not None and not (isinstance(node.value, cst.Name) and node.value.value == "None"):
        yield node.with_changes(value=cst.Name("None"))


Operator = tuple[type | tuple[type, ...], Callable[..., Iterator[cst.CSTNode]]]
OPERATORS: list[Operator] = [
    *mutation_operators,
    ((cst.If, cst.While), invert),
    (cst.Expr, leave_out_call),
    (cst.Set, leave_out_member),
    (cst.Return, return_nothing),
]


class Changes(cst.CSTVisitor):
    """Collects the changes, each with its line, a node and what replaces it. Types and log messages are left alone."""

    METADATA_DEPENDENCIES = (PositionProvider,)

    def __init__(self, functions: frozenset[str]) -> None:
        super().__init__()
        self.found: list[tuple[range, cst.CSTNode, cst.CSTNode]] = []
        self._functions = functions
        self._within: list[str] = []
        self._statement = range(0)

    def on_visit(self, node: cst.CSTNode) -> bool:
        if isinstance(node, cst.Annotation | cst.Import | cst.ImportFrom | cst.Decorator) or _logs(node):
            return False
        if isinstance(node, cst.FunctionDef):
            self._within.append(node.name.value)
        if isinstance(node, cst.SimpleStatementLine):
            self._statement = self._lines(node)
        if not self._functions or not self._functions.isdisjoint(self._within):
            for kinds, operator in OPERATORS:
                if isinstance(node, kinds):
                    changed = list(operator(node))
                    if operator is operator_string:  # the others only change upper and lower case
                        changed = changed[:1]
                    lines = self._lines(node) if changed else range(0)
                    if lines and lines[0] in self._statement:
                        lines = self._statement
                    self.found += [(lines, node, each) for each in changed]
        return True

    def _lines(self, node: cst.CSTNode) -> range:
        place = self.get_metadata(PositionProvider, node)
        return range(place.start.line, place.end.line + 1)

    def on_leave(self, node: cst.CSTNode) -> None:
        if isinstance(node, cst.FunctionDef):
            self._within.pop()


def _logs(node: cst.CSTNode) -> bool:
    return (
        isinstance(node, cst.Call)
        and isinstance(node.func, cst.Attribute)
        and isinstance(node.func.value, cst.Name)
        and node.func.value.value == "_log"
    )


def mutants_of(source: str, functions: frozenset[str], share: Callable[[int], list[int]]) -> tuple[int, list[Mutant]]:
    """Count the mutants of a file and make some of them. Args: share: takes the count, returns which ones to make."""
    wrapper = MetadataWrapper(cst.parse_module(source), unsafe_skip_copy=True)
    changes = Changes(functions)
    wrapper.visit(changes)
    made = []
    for number in share(len(changes.found)):
        lines, node, changed = changes.found[number]
        code = wrapper.module.deep_replace(node, changed).code
        before, after = difference(source, code)
        made.append(Mutant(lines, before, after, code))
    return len(changes.found), made


def difference(source: str, code: str) -> tuple[str, str]:
    """Return the lines that a change removes and those that it adds, each joined to one line, without comments."""
    lines = [line for line in difflib.ndiff(source.splitlines(), code.splitlines()) if line[:2] in ("- ", "+ ")]
    code_of = [(line[0], line[2:].partition("  # ")[0].strip()) for line in lines]
    before, after = (" ".join(text for found, text in code_of if found == sign) for sign in "-+")
    return before, after


# --- tests -----------------------------------------------------------------------------------------------------------


class Reached(NamedTuple):
    """What a test needs and what it runs: seconds, and lines of the module."""

    seconds: float
    lines: frozenset[int]


class Recorder:
    """A plugin for pytest that writes down what each test reaches. Args: file: the module. report: where to write."""

    def __init__(self, file: Path, report: Path) -> None:
        self._file = str(file)
        self._report = report
        self._coverage = coverage.Coverage(data_file=None, include=[self._file])
        self._seconds: dict[str, float] = {}

    def pytest_sessionstart(self) -> None:
        self._coverage.start()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        began = time.monotonic()
        self._coverage.switch_context(item.nodeid)
        try:
            return (yield)
        finally:
            self._coverage.switch_context("")
            self._seconds[item.nodeid] = time.monotonic() - began

    def pytest_sessionfinish(self) -> None:
        self._coverage.stop()
        data = self._coverage.get_data()
        reached = {}
        for test, seconds in self._seconds.items():
            data.set_query_context(test)
            reached[test] = seconds, data.lines(self._file) or []
        self._report.write_text(json.dumps(reached))


class Bench:
    """A copy of the repository: changes one file at a time and runs its tests in a process of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for part in ("executor", "tests", "pyproject.toml", "benchmarks"):
            copy: Callable[..., object] = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
            copy(ROOT / part, folder / part)

    def source(self, module: Module) -> str:
        """The code of a module without any change."""
        return (self.folder / "executor" / module.path).read_text()

    def try_out(self, module: Module) -> dict[str, Reached]:
        """Run the tests of an unchanged module; return what each one reaches. Raises: SystemExit: one fails."""
        report = self.folder / "reached.json"
        recorder = Recorder(self.folder / "executor" / module.path, report)
        passed, output = self._run(module.tests, 300, recorder)
        if not passed:
            sys.exit(f"The tests of {module.path} fail without any change:\n{output}")
        return {
            test: Reached(seconds, frozenset(lines))
            for test, (seconds, lines) in json.loads(report.read_text()).items()
        }

    def survives(self, module: Module, mutant: Mutant, tests: dict[str, Reached]) -> bool:
        """Whether no test notices a mutant."""
        chosen = [test for test in tests if not tests[test].lines.isdisjoint(mutant.lines)] or list(tests)
        limit = max(SHORTEST_LIMIT, 3 * sum(tests[test].seconds for test in chosen))
        file = self.folder / "executor" / module.path
        original = file.read_text()
        for compiled in (file.parent / "__pycache__").glob(f"{file.stem}.*"):  # Python compares whole seconds
            compiled.unlink()
        file.write_text(mutant.code)
        try:
            return self._run(("-x", *sorted(chosen, key=lambda test: tests[test].seconds)), limit)[0]
        finally:
            file.write_text(original)

    def _run(self, arguments: tuple[str, ...], limit: float, recorder: "Recorder | None" = None) -> tuple[bool, str]:
        log = self.folder / "log.txt"
        child = os.fork()
        if child == 0:
            try:
                os.setsid()
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                self._test(arguments, log, recorder)
            finally:
                os._exit(99)
        deadline, status = time.monotonic() + limit, None
        try:
            while status is None and time.monotonic() < deadline:
                done, code = os.waitpid(child, os.WNOHANG)
                status = code if done else None
                time.sleep(0.005)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)  # its tests may have started further processes
            if status is None:
                os.waitpid(child, 0)
        return status == 0, log.read_text(errors="replace")[-4000:]

    def _test(self, arguments: tuple[str, ...], log: Path, recorder: "Recorder | None") -> None:
        os.chdir(self.folder)
        with open(log, "w") as printed:
            os.dup2(printed.fileno(), 1)
            os.dup2(printed.fileno(), 2)
        sys.dont_write_bytecode = recorder is None
        os.environ |= {"PYTHONDONTWRITEBYTECODE": "1" if recorder is None else ""}
        os.environ |= {"OMP_NUM_THREADS": "1", "JINA_OPTOUT_TELEMETRY": "1"}
        for name in [name for name in sys.modules if name.partition(".")[0] == "benchmarks"]:
            del sys.modules[name]
        sys.path[:] = [str(self.folder), *(place for place in sys.path if place not in ("", str(ROOT)))]
        asked = ["-q", "-p", "no:cacheprovider", "--basetemp", str(self.folder / "tmp"), *arguments]
        os._exit(pytest.main(asked, plugins=[recorder] if recorder else []))


def prepare(imports: Iterable[str]) -> None:
    """Do the work once that every process would otherwise do for itself."""
    for plugin in importlib.metadata.entry_points(group="pytest11"):
        plugin.load()
    for name in imports:
        importlib.import_module(name)
    hypothesis.settings.register_profile("mutation", phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate])
    hypothesis.settings.load_profile("mutation")  # a failure is enough, no search for a shorter example
    gc.freeze()


# --- judgements ------------------------------------------------------------------------------------------------------


def judged() -> dict[tuple[str, str, str], str]:
    """Read the judgements: from (module, line before, line after) to what was found."""
    found = {}
    module, before = "", ""
    for line in JUDGED.read_text().splitlines() if JUDGED.exists() else ():
        sign, _, text = line.partition(" ")
        if sign == "#":
            module = text
        elif sign == "-":
            before = text
        elif sign == "+":
            after = text
        elif sign == "=":
            found[module, before, after] = text
    return found


# --- all of it -------------------------------------------------------------------------------------------------------


def measure(name: str, bench: Bench, share: Callable[[int], list[int]], until: float) -> tuple[Counter[str], int]:
    """Try mutants of one module, print new survivors; return the counts and how many mutants there are.

    Args: until: the time to stop, by `time.monotonic`.
    """
    module, known = MODULES[name], judged()
    tests = bench.try_out(module)
    if not bench.survives(module, Mutant(range(0), "", "", bench.source(module)), tests):
        sys.exit(f"The tests of {module.path} fail in the order of their duration.")
    there_are, mutants = mutants_of(bench.source(module), module.functions, share)
    counts: Counter[str] = Counter()
    for mutant in mutants:
        if time.monotonic() > until:
            break
        counts["tried"] += 1
        if not bench.survives(module, mutant, tests):
            counts["killed"] += 1
            continue
        judgement = known.get((module.path, mutant.before, mutant.after), "not judged")
        counts[judgement.partition(":")[0]] += 1
        if judgement == "not judged":
            print(f"{module.path}:{mutant.lines[0]} survives, and is not in {JUDGED.name}:")
            print(f"- {mutant.before}\n+ {mutant.after}\n", flush=True)
    print(f"{name}: {counts['killed']} of {counts['tried']} killed\n", flush=True)
    return counts, there_are


def share_of_changes(counts: Counter[str]) -> float:
    """Return the share of killed mutants among those that change behaviour: all but the equivalent ones."""
    return counts["killed"] / max(1, counts["tried"] - counts["equivalent"])


def main() -> int:
    """Return the exit code: 1 if the tests of a module kill too few of its mutants."""
    parser = options(__doc__)
    parser.add_argument("modules", nargs="*", help=f"of {', '.join(MODULES)}; by default all")
    parser.add_argument("--every", type=int, default=3, help="try one of so many mutants (3)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of mutants")
    arguments = parser.parse_args()
    if unknown := set(arguments.modules) - MODULES.keys():
        parser.error(f"no such module: {', '.join(sorted(unknown))}")
    names = arguments.modules or list(QUICK if arguments.quick or arguments.tiny else MODULES)
    brief = {"quick": 50.0, "tiny": 10.0}.get("tiny" if arguments.tiny else "quick" if arguments.quick else "")

    def share(name: str, count: int) -> list[int]:
        chosen = random.Random(f"{arguments.seed} {name}").sample(range(count), -(-count // arguments.every))
        return chosen if brief else sorted(chosen)

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
    print_machine()
    prepare((*HEAVY, *(HEAVY_FOR_METRICS if {"metrics", "proof"} & set(names) else ())))
    total: Counter[str] = Counter()
    rows, weakest = [], 1.0
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        bench = Bench(Path(folder))
        for position, name in enumerate(names, 1):
            until = began + brief * position / len(names) if brief else float("inf")
            counts, there_are = measure(name, bench, functools.partial(share, name), until)
            total += counts
            weakest = min(weakest, share_of_changes(counts))
            judgements = (counts[each] for each in ("equivalent", "not promised", "not judged"))
            rows.append((name, there_are, counts["tried"], counts["killed"], *judgements, share_of_changes(counts)))
    print_table(("module", "mutants", "tried", "killed", "equivalent", "not promised", "not judged", "share"), rows)
    print_headline("killed_share", share_of_changes(total))
    return 0 if weakest >= WANTED or brief else 1


if __name__ == "__main__":
    sys.exit(main())
