"""What callers and operators are told: no places of the server, one line for a refusal, why it does not serve."""

import inspect
import io
import logging
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from jina import Client
from PIL import Image

import fronts
from conftest import coloured
from executor import Document, FinetunerExecutor, RunStatus
from executor.documents import ERROR_TAG, Problem
from executor.endpoints.outward import Places, outward, outward_documents, outward_error, outward_status, places_of
from executor.errors import ConfigurationError, Conflict, WorkspaceError
from executor.images.libtiff import silence_libtiff
from executor.parameters import ExecutorOptions
from executor.store.lock import WorkspaceLock
from executor.store.workspace import Workspace
from executor.wire.quiet import quieten
from executor.wire.refusals import Refusal
from flows import wait_until_served
from serving import ROOT, Service, free_ports

# --- no places of the server ------------------------------------------------------------------------------------------


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    return Workspace(tmp_path / "workspace")


def test_places_below_the_workspace_and_the_directory_become_relative(workspace: Workspace, tmp_path: Path) -> None:
    said = f"{workspace.spool_file('a')} is damaged; {tmp_path}/cwd/p.png cannot be read; {workspace.root} is full"
    expected = "runs/a/documents.sqlite is damaged; p.png cannot be read; the workspace is full"
    places = Places(workspace.root)
    assert outward(said, places) == expected
    error = outward_error(WorkspaceError(said), places)
    assert (type(error), str(error)) == (WorkspaceError, expected)
    unchanged = Conflict("Run 'a' is queued.")
    assert outward_error(unchanged, places) is unchanged


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("/data/ws/shoes/1.jpg cannot be read", "/data/ws/shoes/1.jpg cannot be read"),
        (
            "/data (1)/ws/1.jpg; /ws_old/1.jpg; /ws-2/1.jpg; /ws.old",
            "/data (1)/ws/1.jpg; /ws_old/1.jpg; /ws-2/1.jpg; /ws.old",
        ),
        ("[Errno 2] '/ws/a.png': see file:///ws/b.png, (/ws/c.png)", "[Errno 2] 'a.png': see file://b.png, (c.png)"),
        (
            "Nobody can write '/ws'. There is no room in /ws.",
            "Nobody can write 'the workspace'. There is no room in the workspace.",
        ),
        ("{cwd}_w/1.png; {cwd}-photos/1.png; /srv{cwd}/1.png", "{cwd}_w/1.png; {cwd}-photos/1.png; /srv{cwd}/1.png"),
        ("{cwd}/1.png is not below {cwd}", "1.png is not below the service's directory"),
        ("/srv/models/vit, not /backup/srv/models/vit", "vit, not /backup/srv/models/vit"),
    ],
)
def test_a_path_that_only_looks_like_one_of_a_place_is_left_as_it_is(said, shown, workspace, tmp_path) -> None:
    places = Places(Path("/ws"), ("/srv/models",))
    cwd = tmp_path / "cwd"  # where the workspace has put us
    assert outward(said.format(cwd=cwd), places) == shown.format(cwd=cwd)


def test_statuses_and_documents_name_no_place_of_the_server(workspace: Workspace) -> None:
    place = str(workspace.log_file("a"))
    status = RunStatus(run="a", state="failed", error=f"see {place}", warnings=[place], verdict=place)
    status.problems.append(Problem(id="d", reason=f"{place} cannot be read"))
    outward_status(status, Places(workspace.root))
    doc = Document(id="d", tags={ERROR_TAG: place})
    outward_documents([doc], Places(workspace.root))
    assert str(workspace.root) not in f"{status.model_dump_json()} {doc.tags}"
    assert status.error == "see runs/a/trainer.log"


def test_what_options_name_is_shown_without_its_folder(workspace: Workspace) -> None:
    options = ExecutorOptions(model="/srv/models/vit", augment="/etc/steps.yml")
    said = "model='/srv/models/vit' has no *.safetensors; /etc/steps.yml is damaged; /srv/photos/1.jpg is none"
    expected = "model='vit' has no *.safetensors; steps.yml is damaged; /srv/photos/1.jpg is none"
    assert outward(said, places_of(workspace.root, options)) == expected
    assert outward(said, places_of(workspace.root, ExecutorOptions(model="/vit"))) == said


@pytest.mark.flow
def test_a_client_reads_no_place_of_the_server_when_a_model_is_damaged(service: Service, run: str) -> None:
    folder = next(service.workspace.glob("*/*/runs.sqlite")).parent / "runs" / run / "model"
    folder.mkdir(parents=True)
    (folder / "model.json").write_text("{")
    answer = service.http("/embed", [{"id": "x", "uri": "data:,x"}], model=run)
    assert f"runs/{run}/model/model.json is missing or damaged" in answer.text
    assert str(service.workspace) not in answer.text


# --- the log ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    made = logging.getLogRecordFactory()
    quieten()
    yield caplog
    logging.setLogRecordFactory(made)


def fail(error: Exception, *, starting: bool = False) -> None:
    """Log as Jina does when an endpoint has failed, or a process could not start."""
    try:
        raise error
    except Exception as caught:
        logging.getLogger("jinas").error(
            f'{caught!r}{" during initialization" * starting}\n add "--quiet-error" to suppress the details',
            exc_info=True,
        )


def test_a_refusal_is_one_line_of_the_log(log: pytest.LogCaptureFixture) -> None:
    fail(Refusal(Conflict("Run 'a' is queued: 100 %s.")))
    (record,) = log.records
    assert (record.getMessage(), record.exc_info) == ("Refused: Run 'a' is queued: 100 %s.", None)
    assert "Traceback" not in log.text


def test_a_request_that_jina_cannot_read_is_one_line_too_and_says_where(log: pytest.LogCaptureFixture) -> None:
    fail(ValueError("no such\nfield"))
    (record,) = log.records
    assert record.getMessage().startswith("Refused: The request cannot be read (ValueError): 'no such\\nfield'. [")
    assert f"{Path(__file__).name}:" in record.getMessage()


def test_what_keeps_it_from_starting_is_one_line_if_a_person_can_mend_it(log: pytest.LogCaptureFixture) -> None:
    fail(ConfigurationError("the executor has no parameter 'modle'."), starting=True)
    fail(ValueError("a bug"), starting=True)
    mendable, bug = log.records
    assert (mendable.getMessage(), mendable.exc_info) == (
        "The service cannot start: the executor has no parameter 'modle'.",
        None,
    )
    assert bug.exc_info


def test_other_errors_keep_their_traceback(log: pytest.LogCaptureFixture) -> None:
    try:
        raise ValueError("a bug")
    except ValueError:
        logging.getLogger("ours").exception("An endpoint failed")
    assert "Traceback" in log.text


def test_libtiff_says_nothing_of_a_damaged_file(capfd: pytest.CaptureFixture[str]) -> None:
    file = io.BytesIO()
    Image.fromarray(coloured(0, size=64)).save(file, "TIFF", compression="tiff_lzw")
    damaged = bytearray(file.getvalue())
    damaged[100:400] = bytes(300)
    silence_libtiff()
    with pytest.raises(OSError, match="decoder error"):
        Image.open(io.BytesIO(bytes(damaged))).load()
    assert capfd.readouterr().err == ""


def test_jina_finds_every_option_in_the_signature() -> None:
    named = inspect.signature(FinetunerExecutor.__init__).parameters
    assert ExecutorOptions.model_fields.keys() <= named.keys()
    assert named["standby_seconds"].default == ExecutorOptions().standby_seconds
    assert next(iter(named)) == "self"


# --- what keeps it from serving ---------------------------------------------------------------------------------------


def serve(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run what `scripts/serve` runs, until it gives up."""
    command = [sys.executable, "-m", "examples.serve", "--workspace", str(folder), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.mark.process
def test_what_keeps_it_from_serving_is_said_in_one_sentence(tmp_path: Path) -> None:

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = serve(tmp_path / "w", "--grpc", str(port))
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (1, "", 1)
    assert ended.stderr.startswith(
        f"Port {port} of 127.0.0.1 cannot be used (Address already in use); end what uses it"
    )
    ended = serve(tmp_path / "w", "--option", "modle=small")
    assert (ended.returncode, ended.stderr.count("\n")) == (1, 1)
    assert "the executor has no parameter 'modle'; it accepts: model" in ended.stderr
    lock = WorkspaceLock(Workspace(tmp_path / "w" / "FinetunerExecutor" / "0"))
    ended = serve(tmp_path / "w")
    lock.release()
    assert (ended.returncode, ended.stderr.count("\n")) == (1, 1)
    assert "is in use by another service" in ended.stderr
    ended = serve(tmp_path / "w", "--option", "model")
    assert (ended.returncode, ended.stderr.splitlines()[-1]) == (
        2,
        "scripts/serve: error: --option model lacks its value; write --option model=VALUE",
    )


FLOW = """
jtype: Flow
with: {port: %d}
gateway: {uses: executor.gateway.FinetunerGateway}
executors:
  - uses: %s
    uses_with: {model: small, modle: small}
"""


@pytest.mark.flow
@pytest.mark.parametrize("command", ["flow", "executor"])
def test_jinas_commands_say_it_too_and_end_with_exit_code_1(tmp_path: Path, command: str) -> None:
    config, file = ROOT / "config.yml", tmp_path / "flow.yml"
    (port,) = free_ports(1)
    file.write_text(FLOW % (port, config))
    uses = [file] if command == "flow" else [config, "--uses-with", "modle: small", "--port", str(port)]
    code, said = fronts.ended(tmp_path, ["-m", "jina", command, "--uses", *map(str, uses)])
    said = " ".join(said.split())
    assert code == 1, said
    assert "The service cannot start: the executor has no parameter 'modle'; it accepts: model" in said


@pytest.mark.flow
def test_a_service_says_in_three_lines_where_it_is_and_ends_as_it_is_told(tmp_path: Path) -> None:
    grpc, http = map(str, free_ports(2))
    place = ("--grpc", grpc, "--http", http, "--workspace", str(tmp_path / "w"))
    command = [sys.executable, "-m", "examples.serve", *place, "--option", "model=small", "--option", "input_size=16"]
    # As `scripts/serve` does.
    quiet = {"JINA_LOG_LEVEL": "ERROR", "PYTHONWARNINGS": "ignore", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=os.environ | quiet, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        lines = [process.stdout.readline().split() for _ in range(3)]
        wait_until_served(int(http), process, health="/readyz")  # the model may be loaded a second later
        answers = Client(host="127.0.0.1", port=int(grpc)).post("/embed", [Document(blob=coloured(0))])
        assert answers[0].embedding is not None
        process.send_signal(signal.SIGTERM)
        rest, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, rest, errors) == (0, "", "")
    assert lines == [
        ["gRPC", f"127.0.0.1:{grpc}"],
        ["HTTP", f"http://127.0.0.1:{http}"],
        ["workspace", str(tmp_path / "w"), "(Ctrl-C", "ends", "the", "service)"],
    ]


@pytest.mark.flow
def test_whether_a_service_is_well_is_asked_of_the_executor(service: Service, tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "scripts" / "healthy", str(service.ports["grpc"])]
    asked = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (asked.returncode, asked.stdout, asked.stderr) == (0, "", "")
    (nothing,) = free_ports(1)
    code, said = fronts.ended(tmp_path, [str(ROOT / "scripts" / "healthy"), str(nothing)])
    assert (code, said.count("\n")) == (1, 1)
    assert f"127.0.0.1:{nothing} is not well" in said
