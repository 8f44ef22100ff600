"""The README and the reference say what the code does: every code block runs, every table is the code's.

`yaml` and `json` blocks are files, and the line above a block names its file. `bash` and `python` blocks are run in
order, the latter in one interpreter, against the Flow that the README starts. Four things differ from a reader's
machine. The ports are free ones. The trainer does not yield, and none waits for a run: other tests keep the machine
busy. It trains for one epoch, not thirty. And ./scripts/demo and ./scripts/test are not run: test_demo.py runs the
former, and this test is part of the latter.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from conftest import coloured
from docs import tables
from executor import errors
from executor.documents import Problem, RunStatus
from executor.parameters import parse_executor_options
from executor.store.run import LEGAL, RunState
from flows import ONE_CORE, served_by
from serving import ROOT, free_ports

README = (ROOT / "README.md").read_text()
REFERENCE = (ROOT / "docs" / "parameters.md").read_text()
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()
DOCUMENTS = sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md"))
PAGES = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/README.md", *DOCUMENTS]
SERVE = "jina flow --uses flow.yml"
SERVE_ALONE = "python -m executor serve --workspace workspace"  # tests/test_serve.py runs it
PORTS = ("54321", "8080")  # in the README: gRPC, HTTP
BUSY = "\n      trainer_yields: false\n      standby_seconds: 0\n      fit_defaults: {epochs: 1}"


@dataclass(frozen=True)
class Block:
    """A fenced code block; `title` is the last line of text above it."""

    language: str
    title: str
    code: str


def blocks() -> list[Block]:
    """The code blocks of the README, in order; `text` is a drawing, not code."""
    found = re.findall(r"([^\n]*)\n*^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    return [Block(language, title, code) for title, language, code in found if language != "text"]


@dataclass
class Reader:
    """Someone who follows the README in a folder."""

    folder: Path
    ports: dict[str, str]
    outputs: dict[str, str]

    def own(self, text: str) -> str:
        """The text with this reader's ports."""
        for printed, port in self.ports.items():
            text = text.replace(printed, port)
        return text

    def run(self, command: list[str]) -> str:
        """Run a command in the folder and return what it printed."""
        environment = os.environ | ONE_CORE | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command[-1]}\n{done.stdout}{done.stderr}"
        return done.stdout


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """A reader with the clone, some photos and the Flow of the README running."""
    folder = tmp_path_factory.mktemp("reader")
    for name in ("executor", "config.yml"):
        (folder / name).symlink_to(ROOT / name)
    for label, colour in enumerate(("red", "green", "blue")):
        (folder / "photos" / colour).mkdir(parents=True)
        for number in range(10):
            Image.fromarray(coloured(label, number, 64)).save(folder / "photos" / colour / f"{number}.jpg")
    ports = [str(port) for port in free_ports(2)]
    reader = Reader(folder, dict(zip(PORTS, ports, strict=True)), {})
    for block in blocks():
        named = re.search(r"as `([\w.]+)`", block.title)
        if block.language in ("yaml", "json") and named:
            (folder / named[1]).write_text(reader.own(block.code).replace("uses_with:", "uses_with:" + BUSY))
    command = [Path(sys.executable).with_name("jina"), *SERVE.split()[1:]]
    with served_by(command, folder, int(ports[1]), health="/readyz"):
        yield reader


def test_every_code_block_is_of_a_kind_that_is_run():
    assert {block.language for block in blocks()} == {"bash", "python", "yaml", "json"}
    named = [block for block in blocks() if re.search(r"as `([\w.]+)`", block.title)]
    unnamed = [block for block in blocks() if block.language in ("yaml", "json") and block not in named]
    assert [block.code.split(":")[0] for block in unnamed] == ["uses_with"]  # checked by a test of its own
    assert [block.code.strip() for block in blocks() if block.language == "bash"][1] == SERVE


def test_the_two_commands_are_there_to_be_run():
    commands = blocks()[0].code.split()
    assert commands == ["./scripts/demo", "./scripts/test"]
    assert all(os.access(ROOT / command, os.X_OK) for command in commands)


@pytest.mark.timeout(900)  # three runs of the default model and a dozen commands, and never mind a busy machine
@pytest.mark.flow
def test_the_code_blocks_of_the_readme_work_in_their_order(reader):
    """Python blocks share one interpreter, so each bash block is run by it where it stands."""
    steps: list[tuple[str, str]] = [
        (block.language, reader.own(block.code))
        for block in blocks()[1:]
        if block.language in ("python", "bash") and block.code.strip() not in (SERVE, SERVE_ALONE)
    ]
    program = "import subprocess\n"
    for language, code in steps:
        program += code if language == "python" else f"subprocess.run(['bash', '-ec', {code!r}], check=True)\n"
        program += "print('\\n--- block ends', flush=True)\n"
    printed = reader.run([sys.executable, "-c", program]).split("\n--- block ends\n")[:-1]
    assert len(printed) == len(steps)
    posted, embedded, watched, sent, embedded_by_curl, by_commands, _, trained = printed

    assert posted.split()[-1] in ("receiving", "queued", "training")
    assert followed(watched)["state"] == "succeeded"
    status = json.loads(watched[watched.rindex('{"data"') :])["data"][0]
    assert (status["state"], status["train_documents"], status["skipped"]) == ("succeeded", 30, 0)
    assert embedded.startswith("(1280,) ")
    assert len(json.loads(sent)["data"][0]["embedding"]) == 1280
    (query,) = json.loads(embedded_by_curl)["data"]
    assert (query["id"], len(query["embedding"]), query["tags"]["finetuner_model"]) == ("query", 1280, "base")
    assert re.search(r"^shop +succeeded +", by_commands, re.MULTILINE)
    assert "mAP@R of shop minus that of base: " in by_commands
    assert pq.read_table(reader.folder / "photos.parquet").num_rows == 30
    assert trained.split()[-1] == "(64,)"
    for run, kind in {"clicks": "session", "views": "unlabeled"}.items():
        last = followed(reader.run(["curl", "-sN", f"http://127.0.0.1:{reader.ports['8080']}/watch?run={run}"]))
        assert (last["state"], last["error"], last["kind"]) == ("succeeded", None, kind)


def followed(events: str) -> dict[str, Any]:
    """The last status in what /watch sent."""
    return [json.loads(line[6:]) for line in events.splitlines() if line.startswith("data: {")][-1]


def test_the_options_shown_for_a_model_are_options_of_the_executor():
    (block,) = [block for block in blocks() if block.code.startswith("uses_with")]
    options = yaml.safe_load(block.code)["uses_with"]
    assert parse_executor_options(options).model_fields_set == set(options)


@pytest.mark.parametrize("page", tables.PAGES, ids=lambda page: page.name)
def test_the_parameter_tables_have_the_names_defaults_and_meanings_of_the_code(page):
    text = page.read_text()
    assert "<!-- table: " in text
    assert text == tables.up_to_date(text), "run: python -m docs.tables"


def test_the_reference_has_a_table_of_every_parameter_model():
    documented = set(re.findall(r"<!-- table: (\w+)", REFERENCE))
    classes = {
        name
        for name, each in vars(tables.parameters).items()
        if isinstance(each, type)
        and issubclass(each, tables.BaseModel)
        and getattr(each, "model_fields", None)
        and not name.startswith("_")
    }
    assert documented == classes | set(tables.OTHERS)


def test_the_reference_lists_every_field_of_a_status_and_no_other():
    section = REFERENCE.split("## The status of a run")[1].split("\n## ")[0]
    cells = re.findall(r"^\| (`[^|]*) \|", section, re.MULTILINE)
    assert [name for cell in cells for name in re.findall(r"`(\w+)`", cell)] == [
        name for name in RunStatus.model_fields if name != "id"
    ]
    assert set(Problem.model_fields) == {"id", "reason"}


def test_the_reference_lists_every_http_status_of_an_error():
    section = REFERENCE.split("## Errors")[1]
    listed = [int(status) for status in re.findall(r"^\| (\d+) \|", section, re.MULTILINE)]
    classes = [each for each in vars(errors).values() if isinstance(each, type)]
    assert listed == sorted({each.status for each in classes if issubclass(each, errors.FinetunerError)})


def named_in(row: str) -> list[str]:
    """The names in the line of the reference's status table that begins with `row`."""
    (line,) = [line for line in REFERENCE.splitlines() if line.startswith(f"| `{row}` |")]
    return re.findall(r"`(\w+)`", line.split("|")[2])


def test_the_states_named_are_those_of_a_run():
    assert named_in("state") == [state.value for state in RunState]


@pytest.mark.parametrize("text", [README, ARCHITECTURE], ids=["README", "architecture"])
def test_the_drawing_of_the_states_has_them_all(text):
    drawing = next(part for part in re.findall(r"```text\n(.*?)```", text, re.DOTALL) if "receiving" in part)
    assert set(re.findall(r"[a-z]+", drawing)) >= {state.value for state in LEGAL} | {state.value for state in RunState}


def test_the_phases_named_are_those_that_the_trainer_reports():
    code = "".join(file.read_text() for file in (ROOT / "executor").rglob("*.py"))
    reported = set(re.findall(r'phase="(\w+)"', code))
    assert set(named_in("phase")) == reported
    sentence = next(line for line in README.splitlines() if "its `phase` is" in line)
    assert set(re.findall(r"`(\w+)`", sentence.split(". ")[0])) - {"training", "phase"} == reported - {"training"}


def test_the_endpoints_named_are_those_of_the_executor():
    from executor import FinetunerExecutor

    served = set(FinetunerExecutor.requests_by_class["FinetunerExecutor"])
    assert set(re.findall(r"^\| `(/\w+)` \|", README, re.MULTILINE)) == served
    assert set(re.findall(r"^## `(/\w+)`", REFERENCE, re.MULTILINE)) == served


@pytest.mark.parametrize("page", PAGES)
def test_every_link_to_a_file_leads_somewhere(page):
    prose = re.sub(r"^ *```.*?^ *```$", "", (ROOT / page).read_text(), flags=re.DOTALL | re.MULTILINE)
    links = re.findall(r"\]\((?!https?://)([^)#]+)", prose)
    assert not [link for link in links if not (ROOT / page).parent.joinpath(link).exists()]


def test_the_last_section_of_the_readme_and_the_index_lead_to_every_document():
    more = README.rpartition("\n## ")[2]
    index = (ROOT / "docs" / "README.md").read_text()
    there = {page for page in DOCUMENTS if page.count("/") == 1 and page != "docs/README.md"}
    assert {f"docs/{link}" for link in re.findall(r"\]\(([\w-]+\.md)\)", index)} == there
    assert {"CONTRIBUTING.md", "docs/README.md"} <= set(re.findall(r"\]\(([^)]+)\)", more))
