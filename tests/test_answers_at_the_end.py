"""A request that is under way when the service is told to end is answered; a new one is not."""

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import grpc
import pytest

import fronts
from serving import ROOT

pytestmark = pytest.mark.flow

# An image whose loading waits for a file, so that the request is under way for as long as the test wants.
HELD = """
import time
from pathlib import Path
import numpy as np

def load(doc):
    if doc.text == "held":
        Path("begun").touch()
        while not Path("go").exists():
            time.sleep(0.02)
    return np.zeros((16, 16, 3), np.uint8)
"""
CALL = """
import sys
from jina import Client
from executor import Document, DocumentArray

client = Client(host="127.0.0.1", port=int(sys.argv[2]), protocol=sys.argv[1])
answer = client.post("/embed", DocumentArray([Document(id="a", text="held")]), return_type=DocumentArray)
assert answer[0].embedding is not None, answer[0].tags
"""
OPTIONS = {"input_size": 16, "preprocess_fn": "held:load"}
OURS = {"uses": "executor.gateway.FinetunerGateway"}


def until(condition: Any) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def listens(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


def check(folder: Path, command: list[str], protocol: str, ports: dict[str, int], how: signal.Signals) -> None:
    """Serve, end while a request is under way, and see it answered and the service gone."""
    (folder / "held.py").write_text(HELD)
    port = ports[protocol]
    with fronts.serving(folder, ports, command) as served:
        caller = subprocess.Popen(
            [sys.executable, "-c", CALL, protocol, str(port)], cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
        until((folder / "begun").exists)
        served.process.send_signal(how)
        until(lambda: not listens(port))  # it takes no more requests
        (folder / "go").touch()
        _, errors = caller.communicate(timeout=60)
        assert caller.returncode == 0, errors[-2000:]
        assert served.process.wait(60) == 0


@pytest.mark.parametrize("protocol", ["grpc", "http", "websocket"])
def test_behind_our_gateway_what_is_under_way_is_answered(protocol: str, tmp_path: Path) -> None:
    ports = fronts.ports_for("grpc", "http", "websocket")
    check(tmp_path, fronts.flow(tmp_path, ports, OURS, OPTIONS), protocol, ports, signal.SIGINT)


def test_our_gateway_ends_after_a_call_that_was_no_request(tmp_path: Path) -> None:
    """Jina's own would wait for ever for the executors that such a call is counted with."""
    ports = fronts.ports_for("grpc", "http")
    with fronts.serving(tmp_path, ports, fronts.flow(tmp_path, ports, OURS, {"input_size": 16})) as served:
        with grpc.insecure_channel(f"127.0.0.1:{ports['grpc']}") as channel, pytest.raises(grpc.RpcError):
            list(channel.stream_stream("/jina.JinaRPC/Call")(iter([b"\xff"]), timeout=30))
        until(lambda: "ready to serve" in served.log)  # while it starts, `jina flow` does not hear the signal
        served.process.send_signal(signal.SIGINT)
        assert served.process.wait(60) == 0


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_by_the_executor_alone_what_is_under_way_is_answered(protocol: str, tmp_path: Path) -> None:
    ports = fronts.ports_for("grpc", "http")
    served_by = ["--protocol", *ports, "--port", *map(str, ports.values()), "--host", "127.0.0.1", "--native"]
    settings = ["--workspace", str(tmp_path / "workspace"), "--uses-with", json.dumps(OPTIONS)]
    command = [sys.executable, "-m", "jina", "executor", "--uses", str(ROOT / "config.yml"), *served_by, *settings]
    check(tmp_path, command, protocol, ports, signal.SIGTERM)
