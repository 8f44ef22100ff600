"""CONTRIBUTING.md can be followed: its diffs apply to a copy of the repository, and the commands below them pass there.

Two things differ from a contributor's clone. The copy gets no environment of its own: the Python that runs this test
replaces `.venv/bin/python` and `./scripts/test`. And the sections share one copy and one run of pytest, because imports
take longer than these tests. It runs the files that any section names, and the tests that any `-k` selects.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from serving import ROOT

GUIDE = (ROOT / "CONTRIBUTING.md").read_text()
PROSE = re.sub(r"^ *```.*?^ *```$", "", GUIDE, flags=re.DOTALL | re.MULTILINE)
EXAMPLES = {"lifted_structure", "gradient_norm"}  # what the guide adds, and the code does not have
COPIED = ("executor", "tests", "docs", "benchmarks", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "pyproject.toml")
# What a section adds, and tests that must have passed with it, among others.
FOLLOWED = {
    "A loss": {
        "test_every_loss_trains[class-lifted_structure]",
        "test_every_loss_trains[unlabeled-lifted_structure]",
        "test_every_argument_that_is_offered_can_be_given[class-lifted_structure]",
        "test_a_batch_in_which_all_embeddings_are_equal_has_finite_gradients[unlabeled-lifted_structure]",
        "test_cross_batch_memory_goes_with_every_loss_that_compares_items[lifted_structure]",
        "test_every_loss_of_a_kind_is_accepted_for_it[class]",
    },
    "A metric": {
        "test_relevant_items_at_ranks_2_4_and_5_score_as_worked_by_hand[r_precision]",
        "test_a_perfect_ranking_scores_one[r_precision]",
        "test_classes_agree_with_pytorch_metric_learning",
        "test_every_metric_has_a_row_with_two_bars",
    },
    "An endpoint": {
        "test_the_endpoints_named_are_those_of_the_executor",
        "test_the_reference_has_a_table_of_every_parameter_model",
    },
    "An option": {
        "test_an_ill_typed_parameter_is_refused_by_name_and_value[gradient_norm-0]",
        "test_a_gradient_that_is_cut_to_almost_nothing_moves_almost_nothing",
    },
}
TABLES_COMMAND = [".venv/bin/python", "-m", "docs.tables"]
TABLES = "test_the_parameter_tables_have_the_names_defaults_and_meanings_of_the_code[parameters.md]"


def section(title: str) -> str:
    """The text below a heading of the second level."""
    return GUIDE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language, in order, without the indentation of their list."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^\1```$", text, re.DOTALL | re.MULTILINE)
    return ["".join(line.removeprefix(indent) for line in code.splitlines(True)) for indent, code in found]


def apply(diff: str, copy: Path) -> None:
    """Change the files of a copy as a diff says."""
    ceiling = {"GIT_CEILING_DIRECTORIES": str(copy.parent)}  # a repository around the copy is not its own
    command = ["git", "apply", "-"]
    done = subprocess.run(command, cwd=copy, env=os.environ | ceiling, input=diff, capture_output=True, text=True)
    assert done.returncode == 0, f"CONTRIBUTING.md has a diff that no longer applies: {done.stderr}\n{diff}"


def run(copy: Path, *arguments: str) -> str:
    """Run Python in a copy and return what it printed."""
    done = subprocess.run([sys.executable, *arguments], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, f"{arguments}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def passed(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The tests that passed when the sections had been followed."""
    copy = tmp_path_factory.mktemp("contributor") / "copy"
    copy.mkdir()
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, copy)
    files, selections = set[str](), list[str]()
    for title in FOLLOWED:
        for diff in blocks(section(title), "diff"):
            apply(diff, copy)
        (commands,) = blocks(section(title), "bash")
        tables, tests = map(shlex.split, commands.splitlines())
        assert tables == TABLES_COMMAND
        assert (tests[0], tests[-2]) == ("./scripts/test", "-k")
        files |= set(tests[1:-2])
        selections.append(f"({tests[-1]})")
    run(copy, *TABLES_COMMAND[1:])
    report = ("-p", "no:cacheprovider", "-rA", "--color=no")
    printed = run(copy, "-m", "pytest", *report, *sorted(files), "-k", " or ".join(selections))
    return set(re.findall(r"^PASSED \S+?::(.+)$", printed, re.MULTILINE))


@pytest.mark.process
@pytest.mark.parametrize("title", FOLLOWED)
def test_the_steps_of_a_section_lead_to_a_change_that_is_tested(passed, title):
    assert passed >= FOLLOWED[title] | {TABLES}


def test_every_diff_and_every_command_belongs_to_a_section_that_is_followed():
    for language in ("diff", "bash"):
        followed = [block for title in FOLLOWED for block in blocks(section(title), language)]
        assert sorted(followed) == sorted(blocks(GUIDE, language))


def test_the_files_that_the_guide_names_are_there():
    quoted = {each.split()[0].removeprefix("./") for each in re.findall(r"`([^`]+)`", PROSE)}
    named = {each for each in quoted if re.fullmatch(r"[\w./-]*(/|\.(py|md|toml))[\w./-]*", each)}
    assert len(named) > 20
    outside = {".venv", ".venv/bin/python", ".venv-extras/bin/python", "/fit", "/problems", "/evaluate"}
    assert not [name for name in named - outside if not (ROOT / name).exists()]


def test_the_names_of_the_code_that_the_guide_uses_are_there():
    files = [file for folder in ("executor", "tests") for file in (ROOT / folder).rglob("*.py")]
    code = "\n".join(file.read_text() for file in files if file.name != Path(__file__).name)
    named = set(re.findall(r"`([A-Za-z_]\w+)`", PROSE))
    assert named > EXAMPLES
    assert {name for name in named if not re.search(rf"\b{name}\b", code)} == EXAMPLES  # else they would show nothing
