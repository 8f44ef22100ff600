"""`python -m executor serve`: without a Flow and without Jina, up soon, and ended as gracefully as the executor."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

import needs
from conftest import coloured, encoded
from sentences import assert_plain
from serving import QUICK, ROOT

pytestmark = pytest.mark.flow
SMALL = ["--model", "small", "--input-size", "16", "--http-port", "0", "--standby-seconds", "0"]


class Command:
    """The command, running in a folder."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        needs.serving()
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self.log = open(folder / "log", "w+")  # noqa: SIM115  (closed in end)
        self.process = subprocess.Popen(
            [sys.executable, "-X", "importtime", "-m", "executor", "serve", *arguments],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )
        assert self.process.stdout is not None
        self.said = [self.process.stdout.readline().strip() for _ in range(3)]
        self.address = self.said[1].split()[1].rstrip(";") if self.said[1] else ""

    def end(self, how: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(how)
        code = self.process.wait(60)
        self.log.close()
        return code


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("serve")


@pytest.fixture(scope="module")
def command(folder: Path) -> Iterator[Command]:
    (folder / "photo.jpg").write_bytes(encoded(coloured(0), "JPEG"))
    running = Command(folder, *SMALL)
    yield running
    if running.process.poll() is None:
        running.end(signal.SIGKILL)


def test_the_command_that_it_prints_embeds_a_picture(command, folder):
    assert command.said[2].startswith("Try: curl --data-binary @photo.jpg ")
    done = subprocess.run(command.said[2].removeprefix("Try: "), shell=True, cwd=folder, capture_output=True, text=True)
    assert len(json.loads(done.stdout)["data"][0]["embedding"]) == 128


def test_it_imports_no_jina(command, folder):
    imported = {line.rpartition("|")[2].strip() for line in (folder / "log").read_text().splitlines() if "|" in line}
    assert "executor.web.app" in imported
    assert not [name for name in imported if name.split(".")[0] == "jina"]


def test_it_keeps_its_workspace_where_a_flow_would(command, folder):
    assert (folder / "workspace" / "FinetunerExecutor" / "0" / "runs.sqlite").is_file()
    assert command.said[0] == f"FinetunerExecutor serves {folder}/workspace/FinetunerExecutor/0"


def test_a_second_one_on_the_same_workspace_is_refused_in_one_sentence(command, folder):
    done = subprocess.run(
        [sys.executable, "-m", "executor", "serve", *SMALL, "--workspace", "workspace/FinetunerExecutor/0"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert_plain(done.stderr.strip(), "is in use by another service", str(command.process.pid))


def test_told_to_end_it_cuts_off_who_watches_and_the_next_start_has_all_that_was_acknowledged(command, folder):
    docs = [{"uri": "photo.jpg", "tags": {"finetuner_label": number % 3}} for number in range(12)]
    body = {"data": docs, "parameters": {"run": "kept", "total": 99}}
    assert requests.post(f"{command.address}/fit", json=body, timeout=60).status_code == 200
    with requests.get(f"{command.address}/watch?run=kept", stream=True, timeout=60) as watching:
        assert next(watching.iter_lines(chunk_size=1)) == b"event: update"
        assert command.end() == 0
    assert not [line for line in (folder / "log").read_text().splitlines() if "Traceback" in line]
    again = Command(folder, *SMALL)
    try:
        ask = {"parameters": {"run": "kept"}}
        (status,) = requests.post(f"{again.address}/status", json=ask, timeout=60).json()["data"]
        assert (status["state"], status["train_documents"]) == ("receiving", 12)
        requests.post(f"{again.address}/cancel", json=ask, timeout=60)
    finally:
        assert again.end(signal.SIGINT) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--input-size", "3"], "Parameter 'input_size' of the executor is 3"),
        (["--config", "nothing.yml"], "The config nothing.yml cannot be read"),
        (["--config", "list.yml"], "must be a mapping"),
        (["--config", "wrong.yml"], "has no parameter 'nonsense'"),
        (["--http-host", "192.0.2.1"], "cannot listen on 192.0.2.1"),
    ],
)
def test_a_wrong_option_ends_it_with_one_sentence(capsys, monkeypatch, tmp_path, arguments, words):
    from executor.__main__ import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.yml").write_text("[1]")
    (tmp_path / "wrong.yml").write_text("with: {nonsense: 1}")
    monkeypatch.setattr(sys, "argv", ["executor", "serve", *arguments])
    assert main() == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    assert words in sentence
    assert not (tmp_path / "workspace").exists()


def test_flags_come_before_the_config_and_this_before_the_defaults(tmp_path):
    import argparse

    from executor.commands import serve

    parser = argparse.ArgumentParser()
    serve.add(parser.add_subparsers())
    (tmp_path / "config.yml").write_text("jtype: FinetunerExecutor\nwith: {model: small, input_size: 32, freeze: true}")
    flags = ["serve", "--config", str(tmp_path / "config.yml"), "--input-size", "64", "--fit-defaults", '{"epochs": 3}']
    options = serve.options_of(parser.parse_args(flags))
    assert (options.model, options.input_size, options.freeze, options.http_port) == ("small", 64, True, 8080)
    assert options.fit_defaults == {"epochs": 3}
    assert set(QUICK) <= set(type(options).model_fields)
