"""The commands: one sentence and the right exit code for each mistake, tables for people and JSON for programs."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from conftest import coloured, encoded, images
from executor.__main__ import main
from executor.commands import COMMANDS, calling, showing
from executor.commands import fit as fit_command
from executor.commands.estimate import Estimate, estimate
from executor.commands.fit import free_name
from executor.commands.local import Reader
from executor.commands.showing import details
from executor.documents import Document, RunStatus
from executor.models.versions import ensure_base
from executor.parameters import RESERVED_NAMES, TrainingOptions, parse_executor_options
from executor.sources import documents
from executor.store.lock import WorkspaceLock, is_held
from executor.store.run import RunState
from executor.store.workspace import Workspace
from flows import ONE_CORE
from serving import DOOR, ROOT, Service, free_ports
from workshop import Workshop

Call = Callable[..., int]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Call:
    """Run a command in this process and return its exit code."""

    def call(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["executor", *map(str, arguments)])
        return main()

    return call


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A workspace with a run that was cancelled and one that is receiving."""
    folder = tmp_path / "workspace"
    workshop = Workshop(folder / "FinetunerExecutor" / "0")
    workshop.receive("first", images(3))
    workshop.store.advance("first", RunState.CANCELLED, train_rows=3, eval_rows=0)
    workshop.receive("second", images(5))
    workshop.close()
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three class folders with six pictures each, one of them for evaluation, and one file that is no picture."""
    folder = tmp_path / "photos"
    for label in range(3):
        for number in range(6):
            place = folder / f"c{label}" / f"{number}.jpg"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(encoded(coloured(label, number), "JPEG"))
    (folder / "c0" / "notes.txt").write_text("of no use")
    return folder


def test_the_runs_are_listed_newest_first(command, workspace, capsys):
    assert command("runs", "--workspace", workspace) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [["second", "receiving"], ["first", "cancelled"]]
    assert command("runs", "--workspace", workspace / "FinetunerExecutor" / "0", "--json") == 0
    statuses = json.loads(capsys.readouterr().out)
    assert [(status["run"], status["state"], status["train_documents"]) for status in statuses] == [
        ("second", "receiving", 5),
        ("first", "cancelled", 3),
    ]


def test_a_workspace_may_be_looked_at_while_a_service_works_in_it(command, workspace, capsys):
    lock = WorkspaceLock(Workspace(workspace / "FinetunerExecutor" / "0"))
    assert command("runs", "--workspace", workspace) == 0
    lock.release()


def test_the_status_of_a_run_is_shown_whole(command, workspace, capsys):
    assert command("status", "first", "--workspace", workspace) == 0
    shown = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines() if len(line.split()) > 1)
    assert shown["state"].strip() == "cancelled"
    assert shown["train_documents"].strip() == "3"
    assert command("status", "--workspace", workspace, "--json") == 0
    assert json.loads(capsys.readouterr().out)["run"] == "second"


def test_the_figures_of_a_status_are_shown_for_people():
    plan = {"from": "base", "advice": "map index", "nothing": [], "map index": [0.22154, 0.2, 0.25]}
    status = RunStatus(
        run="shop", loss=26.494747161865234, images_per_second=123.456, disk_bytes=45604864.0, eta_seconds=61.7,
        index_plan=plan, sources={"feedback": 3.0}, metrics={"tuned/mrr": 0.51234},
    )  # fmt: skip
    names, values = (list(column.cells) for column in details(status).columns)
    shown = dict(zip(names, values, strict=True))
    assert (shown["loss"], shown["images_per_second"]) == ("26.4947", "123 images/s")
    assert (shown["disk_bytes"], shown["eta_seconds"]) == ("45.6 MB", "1:01 left")
    assert shown["eval_documents"] == "0; the model was measured on train documents that were held out"
    assert (shown["sources"], shown["metrics"]) == ("feedback 3", "tuned/mrr 0.512")
    assert shown["index_plan"].splitlines() == [
        "for an index of 'base' vectors: map index; mAP@R of each way:",
        "nothing: impossible, as the sizes differ",
        "map index: 0.222 (0.200 to 0.250)",
    ]


@pytest.mark.parametrize(
    ("epochs", "seconds", "said"),
    [
        (1, 0.01, "At most 1 s for the training alone (1 epoch;"),
        (3, 5.2, "At most 6 s for the training alone (3 epoch"),
    ],
)
def test_an_estimate_is_never_nothing_and_says_what_it_leaves_out(epochs, seconds, said):
    found = str(Estimate(epochs=epochs, seconds=seconds, bytes=2.0**30, most=True))
    assert found.startswith(said)
    assert "starting, measuring and the report come on top" in found


def test_the_table_of_commands_has_them_all():
    page = (ROOT / "docs" / "commands.md").read_text()
    table = page.split("| command |")[1].split("\n\n")[0].splitlines()[2:]
    named = [word.split()[0] for line in table for word in re.findall(r"`([^`]+)`", line.split("|")[1])]
    assert sorted(named) == sorted(COMMANDS)


def test_serve_says_of_its_port_one_thing(capsys, command):
    with pytest.raises(SystemExit):
        command("serve", "--help")
    said = " ".join(capsys.readouterr().out.split())
    assert "0: a free one, which is printed; by default 8080" in said
    assert "by default there is none --http-host" not in said


def test_watching_a_run_that_was_cancelled_ends_with_1(command, workspace, capsys):
    assert command("watch", "first", "--workspace", workspace, "--json") == 1
    said = capsys.readouterr()
    assert json.loads(said.out)["state"] == "cancelled"
    assert said.err == "Run first is cancelled.\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["watch", "third"], "There is no run 'third'; there are: second, first."),
        (["status", "third"], "There is no run 'third'; there are: second, first."),
        (["report", "third"], "There is no report in "),
        (["compare", "base", "base"], "Name the documents to measure on, with --on SOURCE or --run RUN."),
        (["compare", "base", "first"], "Run 'first' has no eval documents"),
        (["compare", "base", "third"], "There is no run 'third'; there are: second, first."),
    ],
)
def test_what_is_not_there_is_named_and_ends_with_2(command, workspace, capsys, arguments, sentence):
    assert command(*arguments, "--workspace", workspace) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(sentence)
    assert said.err.count("\n") == 1


@pytest.mark.parametrize("arguments", [["runs"], ["status"], ["watch", "a"], ["report", "a"], ["compare", "a", "b"]])
def test_no_command_makes_a_workspace_where_it_should_find_one(command, tmp_path, capsys, arguments):
    assert command(*arguments, "--workspace", tmp_path / "nowhere") == 2
    assert "is no workspace: there is no runs.sqlite in it" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_fit_makes_no_workspace_in_a_folder_that_is_used_for_something_else(command, photos, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("!")
    assert command("fit", photos, "--workspace", tmp_path / "mine") == 2
    assert "is no workspace" in capsys.readouterr().err
    assert [place.name for place in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--epochs", "many"], "Parameter 'epochs' of /fit is 'many'"),
        (["--option", "epoch=3"], "/fit has no parameter 'epoch'; it accepts: "),
        (["--option", "epochs"], "--option 'epochs' must be NAME=VALUE."),
        (["--kind", "sorted"], "Parameter 'kind' of /fit is 'sorted'"),
        (["--label-column", "x"], ""),
    ],
)
def test_a_wrong_option_is_refused_before_anything_is_made(command, photos, tmp_path, capsys, arguments, sentence):
    if not sentence:
        photos = tmp_path / "t.csv"
        photos.write_text("uri,label\na.jpg,a\n")
        sentence = f"{photos} has no column 'x' (--label-column); its columns are: uri, label."
    assert command("fit", photos, "--workspace", tmp_path / "new", *arguments) == 2
    assert capsys.readouterr().err.startswith(sentence)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda place: place.mkdir(), "has no folders in it."),
        (lambda place: place.mkdir(), "after it. Or train without labels: --kind unlabeled."),
        (lambda place: (place / "red").mkdir(parents=True), "has no pictures in it"),
        (lambda place: place.write_text(""), "is neither a folder nor a file"),
    ],
)
def test_a_source_with_nothing_to_train_on_is_refused_before_anything_is_made(
    command, tmp_path, capsys, make, sentence
):
    make(tmp_path / "source")
    assert command("fit", tmp_path / "source", "--workspace", tmp_path / "new") == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_table_of_which_no_row_can_be_used_is_refused_with_the_first_reason(command, tmp_path, capsys):
    (tmp_path / "t.csv").write_text("uri,label\na.jpg,\nb.jpg,\n")
    assert command("fit", tmp_path / "t.csv", "--workspace", tmp_path / "new") == 2
    assert capsys.readouterr().err.endswith(
        "has no documents to train on. Of 2 rows none can be used: row 1: the label in the column 'label' is empty.\n"
    )


def test_options_of_the_executor_are_not_for_a_service(command, photos, capsys):
    assert command("fit", photos, "--service", "grpc://127.0.0.1:1", "--with", "model=small") == 2
    assert "a service has its own" in capsys.readouterr().err


def test_another_model_than_that_of_the_workspace_is_refused(command, workspace, photos, capsys):
    place = Workspace(workspace / "FinetunerExecutor" / "0")
    ensure_base(place, parse_executor_options({"model": "small", "input_size": 16}))
    assert command("fit", photos, "--workspace", workspace, "--with", "input_size=32") == 2
    assert "has a base model with input_size=16, not 32" in capsys.readouterr().err


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_a_service_that_is_not_there_is_named_and_ends_with_2(command, scheme, capsys):
    (port,) = free_ports(1)
    assert command("runs", "--service", f"{scheme}://127.0.0.1:{port}") == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"127.0.0.1:{port} does not answer (" in said
    assert said.endswith("See whether it runs, and its host and port.")


@pytest.mark.parametrize("url", ["localhost:8080", "grpc://localhost", "ftp://h:1", "grpc://h:port", "http://"])
def test_a_service_that_is_not_named_by_its_url_is_refused(command, url, capsys):
    assert command("runs", "--service", url) == 2
    assert "must be grpc://host:port" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["runs"], ["runs", "--service", "a", "--workspace", "b"], ["fly"]])
def test_a_command_line_that_is_none_ends_with_2(command, arguments):
    with pytest.raises(SystemExit) as ended:
        command(*arguments)
    assert ended.value.code == 2


def printed_by(code: str) -> list[str]:
    """The lines that a Python of its own prints for this code."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.process
def test_a_trainer_waits_for_nothing_that_other_commands_need():
    code = "import sys; sys.argv[1:] = ['train', '-h']; from executor.__main__ import main\n"
    code += "try: main()\nexcept SystemExit: pass\n"
    code += "print(sorted(set(sys.modules) & {'numpy', 'docarray', 'rich', 'pyarrow', 'requests', 'pydantic'}))"
    assert printed_by(code)[-1] == "[]"


@pytest.mark.process
def test_a_trainer_does_not_import_what_it_hardly_uses():
    code = "import executor.worker.trainer, sys; print(sorted(set(sys.modules) & {'jina', 'scipy.stats', 'sympy'}))\n"
    code += "import pytorch_metric_learning.utils.common_functions as common\n"
    code += "print({label: int(rank) for label, rank in common.make_label_to_rank_dict([7, 3]).items()})\n"
    code += "from scipy.stats import rankdata"  # it is there for whoever wants it
    assert printed_by(code) == ["[]", "{7: 1, 3: 0}"]


@pytest.mark.process
@pytest.mark.parametrize(
    "words",
    [
        ["status", "--service", "http://127.0.0.1:9"],
        ["runs", "--service=grpc://127.0.0.1:9"],
        ["suggest", "shop", "--service", "http://127.0.0.1:9"],
        ["status", "--workspace", "nowhere"],
        ["elsewhere", "--workspace", "nowhere", "--run", "first", "--train-command", "train {job}"],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_a_command_that_computes_nothing_does_not_import_torch_and_leaves_it_to_whoever_does(words, tmp_path):
    code = f"import os, sys; sys.argv[1:] = {words}; from executor.__main__ import main; os.chdir({str(tmp_path)!r})\n"
    code += "assert main() in (1, 2, 6)\n"  # nobody answers, or there is nothing
    code += "print('docarray' in sys.modules, 'torch' in sys.modules)\n"
    if words[0] == "runs":  # all leave it in one way, and importing it takes most of this test's time
        code += "import torch; print(torch.zeros(1).item())"
    assert printed_by(code) == ["True False", *(["0.0"] if words[0] == "runs" else [])]


def test_a_run_without_a_name_is_called_after_its_source(workspace):
    reader = Reader(Workspace(workspace / "FinetunerExecutor" / "0"))
    assert free_name(reader, "my photos (2)") == "my-photos-2"
    assert free_name(reader, "second") == "second-2"
    assert free_name(reader, "…") == "run"
    assert [free_name(reader, name) for name in RESERVED_NAMES] == ["base-2", "promoted-2"]
    reader.close()


def test_a_run_that_nobody_serves_is_not_watched_for_ever(command, workspace, capsys, monkeypatch):
    monkeypatch.setattr(showing, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(showing, "QUIET_SECONDS", 0.05)
    assert command("watch", "second", "--workspace", workspace, "--json") == 2
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 1
    assert said.err.startswith("Run 'second' is receiving, and no service works in its workspace, so it does not go on")


def test_whether_a_service_works_in_a_workspace_is_seen_without_hindering_it(workspace):
    place = Workspace(workspace / "FinetunerExecutor" / "0")
    held = WorkspaceLock(place)
    assert [is_held(place) for _ in range(3)] == [True] * 3
    held.release()
    assert not is_held(place)
    WorkspaceLock(place).release()
    place.lock.unlink()
    assert not is_held(place)


# with a service, and with a trainer -----------------------------------------------------------------------------------


NAMES = ("photo", "what", "visit", "part")


def table(folder: Path, photos: Path) -> Path:
    """A table of the photos: one of each class is for evaluation, and two rows cannot be used."""
    lines: list[list[Any]] = [[*NAMES]]
    for place in sorted(photos.glob("*/*.jpg")):
        part = "eval" if place.stem in "45" else "train"
        lines.append([place, place.parent.name, f"{place.parent.name}-{place.stem}", part])
    lines += [["", "c0", "", "train"], [photos / "c0" / "0.jpg", "", "", "train"]]
    with open(folder / "photos.csv", "w", newline="") as file:
        csv.writer(file).writerows(lines)
    return folder / "photos.csv"


def test_a_training_is_estimated_from_a_step(tmp_path, photos):
    place, options = Workspace(tmp_path / "new"), parse_executor_options({"model": "small", "input_size": 32})
    some = list(documents(photos))[:4]

    def found(count: int, **wanted: Any) -> Estimate:
        one = estimate(place, options, TrainingOptions(**wanted), count, some)
        assert one is not None
        return one

    few, many = found(100, epochs=2), found(100_000, epochs=2, batch_size=512)
    assert (few.epochs, found(1000).epochs) == (2, 10)  # by the number of documents
    assert many.seconds > 100 * few.seconds
    assert many.bytes > few.bytes
    assert str(few).startswith("About ")
    assert str(found(100, epochs=2, freeze=True)).startswith("At most ")
    assert "are free, so set --option micro_batch=8." in str(
        Estimate(epochs=1, seconds=9000.0, bytes=2.0**50, most=False)
    )
    assert estimate(place, options, TrainingOptions(), 100, [Document(uri="/nowhere.jpg")]) is None


class Taker:
    """In the place of a service: it has a run that goes on receiving until it is told to start."""

    def __init__(self) -> None:
        self.state, self.calls = "receiving", []

    def call(self, path: str, docs: Any = (), **parameters: Any) -> list[RunStatus]:
        if path == "/fit":
            self.calls.append(parameters)
            self.state = "succeeded"
        found = [RunStatus(run="shop", state=self.state, ended_at="now" if self.state == "succeeded" else None)]
        return found if "run" in parameters else []

    def stream(self, path: str, docs: Any, answered: Any, **parameters: Any) -> None:
        self.calls.append({**parameters, "sent": len(list(docs))})

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("ending", "options", "said"),
    [
        ("csv", [], "has no column 'label' (its columns: uri, foo), so it is trained without labels. Name the labels'"),
        ("parquet", [], "has no column 'label' (its columns: uri, foo), so it is trained without labels. Name the"),
        ("txt", [], "has no labels: only a table or class folders have them, so it is trained without labels."),
        ("csv", ["--kind", "class"], "has no column 'label' (its columns: uri, foo), so --kind class needs them."),
        ("csv", ["--kind", "unlabeled"], None),
        ("csv", ["--label-column", "FOO"], None),
    ],
)
def test_a_source_without_labels_is_named_before_it_is_trained_on(
    command, photos, tmp_path, capsys, monkeypatch, ending, options, said
):
    source, uri = tmp_path / f"shop.{ending}", str(photos / "c0" / "1.jpg")
    if ending == "parquet":
        parquet.write_table(pa.table({"uri": [uri], "foo": ["a"]}), source)
    else:
        source.write_text(f"{uri}\n" if ending == "txt" else f"uri,foo\n{uri},a\n")
    monkeypatch.setattr(fit_command, "connect", lambda url: Taker())
    assert command("fit", source, "--service", "http://here", *options) == 0
    lines = capsys.readouterr().err.splitlines()
    told = [line for line in lines if "--kind unlabeled" in line]
    assert [line.startswith(f"{source} {said}") for line in told] == ([] if said is None else [True])
    assert not said or lines.index(told[0]) < lines.index("Run shop.")


class Gone(Taker):
    """Makes the run when its first document has come, as a service does."""

    def stream(self, path: str, docs: Any, answered: Any, **parameters: Any) -> None:
        assert not list(docs)

    def call(self, path: str, docs: Any = (), **parameters: Any) -> list[RunStatus]:
        assert (path, parameters) == ("/status", {})
        return []


def test_pictures_none_of_which_can_be_read_are_counted_and_named(command, tmp_path, capsys, monkeypatch):
    source = tmp_path / "gone.txt"
    source.write_text("/nowhere/a.jpg\n/nowhere/b.jpg\n")
    monkeypatch.setattr(fit_command, "connect", lambda url: Gone())
    assert command("fit", source, "--service", "http://here") == 2
    said = capsys.readouterr().err
    assert "2 left out:\n  /nowhere/a.jpg: " in said
    assert said.endswith(f"None of the 2 pictures of {source} can be read; nothing was sent.\n")


def test_a_run_that_is_called_a_number_is_a_base(command, photos, monkeypatch):
    place = Taker()
    monkeypatch.setattr(fit_command, "connect", lambda url: place)
    options = ["--base", "20240501", "--option", "precision=fp32", "--epochs", "3"]
    assert command("fit", photos, "--service", "http://here", "--run", "shop", *options) == 0
    wanted = {"base": "20240501", "precision": "fp32", "epochs": 3}
    assert {name: place.calls[0][name] for name in wanted} == wanted


def test_files_that_cannot_be_sent_are_not_among_the_documents_announced_in_the_end(
    command, photos, capsys, monkeypatch
):
    place = Taker()
    monkeypatch.setattr(fit_command, "connect", lambda url: place)
    (photos / "c1" / "0.jpg").unlink()
    (photos / "c1" / "0.jpg").symlink_to("nowhere.jpg")
    assert command("fit", photos, "--service", "http://here", "--run", "shop") == 0
    assert place.calls == [{"run": "shop", "total": 18, "sent": 17}, {"run": "shop", "start": True, "total": 17}]
    assert "2 left out:" in capsys.readouterr().err


@pytest.mark.flow
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_table_is_sent_to_a_service_and_followed_to_the_verdict(
    command, service: Service, photos, tmp_path, capsys, protocol
):
    url, run = f"{protocol}://127.0.0.1:{service.ports[protocol]}", f"table-{protocol}"
    columns = [
        f"--{name}-column={column}" for name, column in zip(("uri", "label", "group", "split"), NAMES, strict=True)
    ]
    options = ["--run", run, "--epochs", 1, "--option", "val_split=0", "--json"]
    assert command("fit", table(tmp_path, photos), "--service", url, *columns, *options) == 0
    said = capsys.readouterr()
    status = json.loads(said.out)
    assert (status["run"], status["state"], status["kind"]) == (run, "succeeded", "class")
    assert (status["train_documents"], status["eval_documents"], status["skipped"]) == (12, 6, 0)
    assert "12 documents to train on of 3 labels, 6 to evaluate with." in said.err
    assert "2 left out:\n  row 19: there is no picture in the column 'photo'\n  row 20: the label" in said.err
    assert command("watch", run, "--service", url, "--json") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["state"] == "succeeded"
    assert command("compare", "base", run, "--service", url, "--on", photos, "--json") == 0
    compared = json.loads(capsys.readouterr().out)
    assert [(each["model"], each["queries"]) for each in compared["versions"]] == [("base", 18), (run, 18)]


def test_a_request_has_fewer_documents_where_they_are_large(monkeypatch):
    monkeypatch.setattr(calling, "REQUEST_BYTES", 1000)
    sizes = [300, 300, 500, 2000, 10, 10]
    docs = (Document(id=str(number), buffer=b"x" * size) for number, size in enumerate(sizes))
    assert [len(batch) for batch in calling.batched(docs)] == [3, 1, 2]
    assert [len(batch) for batch in calling.batched([Document(id="d")] * 250)] == [100, 100, 50]


@pytest.mark.flow
def test_large_pictures_after_small_ones_are_sent_in_requests_of_their_own(monkeypatch, service: Service, run):
    monkeypatch.setattr(calling, "REQUEST_BYTES", 60_000)
    place = calling.connect(f"grpc://127.0.0.1:{service.ports['grpc']}")
    small = [Document(id=f"s{n}", buffer=encoded(coloured(n, n)), tags={"finetuner_label": n}) for n in range(8)]
    large = [Document(id=f"l{n}", blob=coloured(n, n, 100), tags={"finetuner_label": n}) for n in range(8)]
    found: list[Any] = []
    place.stream("/fit", iter([*small, *large]), found.extend, run=run)
    place.close()
    assert max(status.train_documents for status in found) == 16
    assert len(found) == 1 + 3  # eight small ones and two large, then two large ones each


@pytest.mark.flow
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_pictures_of_which_few_fit_into_a_request_come_back_in_order(monkeypatch, service: Service, protocol):
    monkeypatch.setattr(calling, "REQUEST_BYTES", 2000)
    place = calling.connect(f"{protocol}://127.0.0.1:{service.ports['grpc' if protocol == 'grpc' else DOOR]}")
    docs = [Document(id=f"d{number}", buffer=encoded(coloured(number, number))) for number in range(30)]
    answers = place.call("/embed", docs)
    place.close()
    assert [doc.id for doc in answers] == [doc.id for doc in docs]
    assert all(doc.embedding is not None for doc in answers)


@pytest.mark.flow
def test_a_run_that_takes_no_more_documents_is_named(command, service: Service, photos, run, capsys):
    url = f"grpc://127.0.0.1:{service.ports['grpc']}"
    service.post("/fit", images(4), returns=RunStatus, run=run)
    service.cancel(run)
    assert command("fit", photos, "--service", url, "--run", run) == 2
    assert f"Run '{run}' is cancelled and takes no more documents" in capsys.readouterr().err


@pytest.mark.timeout(600)  # two trainers and three commands, one after the other
@pytest.mark.process
def test_a_folder_is_trained_on_without_a_service_also_if_that_is_interrupted_and_both_versions_are_compared(
    command, photos, tmp_path, capsys, monkeypatch
):
    """Only the command that is interrupted is a process of its own; the others are called here."""
    here = ["--workspace", str(tmp_path / "new")]
    (photos / "c1" / "broken.jpg").write_bytes(b"no picture")
    quick = ["--with", "model=small", "--with", "input_size=16", "--epochs", "40", "--promote", "always"]
    fit = ["fit", photos, *quick, "--option", "batch_size=8", "--option", "val_split=0.3", "--run", "shop", "--json"]
    place = Workspace(tmp_path / "new" / "FinetunerExecutor" / "0")
    line = [sys.executable, "-m", "executor", *map(str, fit), *here]
    for name, value in ONE_CORE.items():
        monkeypatch.setenv(name, value)
    with subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as first:
        while first.poll() is None and not (place.database.exists() and training(place, "shop")):
            time.sleep(0.1)
        first.send_signal(signal.SIGINT)
        printed, said = first.communicate(timeout=60)
    assert (first.returncode, printed) == (130, "")
    assert said.endswith("Interrupted. The same command goes on where it was, given the same --run.\n")
    assert re.search(r"^About [1-9]\d* s for the training alone \(40 epochs; .*\), and [\d.]+ GiB of ", said, re.M)

    code, told = command(*fit, *here), capsys.readouterr()
    assert code == 0, told.err
    status = json.loads(told.out)
    assert (status["run"], status["state"], status["promoted"], status["epoch"]) == ("shop", "succeeded", True, 40)
    assert (status["train_documents"], status["attempts"]) == (18, 2)
    assert "1 left out:\n  c0/notes.txt is no picture, by its name" in told.err
    assert "1 could not be used:\n  c1/broken.jpg: " in told.err
    code, told = command("compare", "base", "shop", *here), capsys.readouterr()
    assert code == 0, told.err
    assert "mAP@R of shop minus that of base: " in told.out


def training(place: Workspace, run: str) -> bool:
    """Whether a run has made a few steps."""
    return any(status.run == run and status.step > 3 for status in Reader(place).call("/status"))


@pytest.mark.process
def test_a_thread_that_still_computes_does_not_change_how_a_command_ended(tmp_path: Path) -> None:
    """Python aborts a process whose thread comes back from C++ while it takes itself apart."""
    (tmp_path / "sitecustomize.py").write_text(
        "import threading, cv2, numpy\n"  # OpenCV, as torch takes ten times as long to import
        "def compute():\n"
        "    while True:\n"
        "        cv2.dct(square)\n"
        "square = numpy.ones((300, 300), numpy.float32)\n"
        "for _ in range(3):\n"
        "    threading.Thread(target=compute, daemon=True).start()\n"
    )
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}", "OMP_NUM_THREADS": "1"}
    for words, code, printed in (
        (["--help"], 0, "export"),
        (["runs"], 2, ""),
        (["status", "--workspace=/nowhere"], 2, ""),
    ):
        command = [sys.executable, "-m", "executor", *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert (done.returncode, "terminate called" in done.stderr) == (code, False), done.stderr
        assert printed in done.stdout
