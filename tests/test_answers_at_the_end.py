"""A request that is under way when the service is told to end is answered; a new one is not."""

import asyncio
import json
import signal
import socket
import threading
import time
from collections.abc import Callable

import grpc
import pytest
from jina import Client

import fronts
from executor import Document, DocumentArray
from serving import PROTOCOLS, ROOT

pytestmark = pytest.mark.flow

# A model that waits for a file once it has something to embed, so that requests are under way for as long as we want.
HELD = """
import time
from pathlib import Path
import numpy as np
import torch

def load(doc):
    Path(f"begun-{doc.text}").touch()
    return np.zeros((16, 16, 3), np.uint8)

class Held(torch.nn.Module):
    def forward(self, images):
        while list(Path().glob("begun-*")) and not Path("go").exists():
            time.sleep(0.02)
        return images.mean(dim=(2, 3))
"""
OPTIONS = fronts.SMALL | {"preprocess_fn": "held:load", "model": "held:Held"}
OURS = {"uses": "executor.gateway.FinetunerGateway"}


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def listens(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


class Ended:
    """What became of a service that was told to end while a request over each protocol was under way."""

    def __init__(
        self, served: fronts.Served, how: signal.Signals, before: Callable[[fronts.Served], None] = lambda served: None
    ) -> None:
        until(lambda: "ready to serve" in served.log or how is signal.SIGTERM)  # before, Jina does not hear a SIGINT
        before(served)
        self.answered: set[str] = set()
        self.errors: list[BaseException | None] = []
        caller = threading.Thread(target=asyncio.run, args=(self._calls(served.ports),))
        caller.start()
        until(lambda: len(list(served.folder.glob("begun-*"))) == len(served.ports))
        served.process.send_signal(how)
        until(lambda: not any(listens(port) for port in served.ports.values()))  # it takes no more requests
        (served.folder / "go").touch()
        caller.join(60)
        assert not caller.is_alive()
        self.exit_code = served.process.wait(60)

    async def _calls(self, ports: dict[str, int]) -> None:
        """Make a call over each protocol, all at once."""
        self.errors += await asyncio.gather(*(self._call(*server) for server in ports.items()), return_exceptions=True)

    async def _call(self, protocol: str, port: int) -> None:
        client = Client(host="127.0.0.1", port=port, protocol=protocol, asyncio=True)
        docs = DocumentArray([Document(id="a", text=protocol)])
        async for answer in client.post("/embed", docs, return_type=DocumentArray):
            assert answer[0].embedding is not None, answer[0].tags
            self.answered.add(protocol)


def no_request(served: fronts.Served) -> None:
    """Make a call that is none. For the executors that it is counted with, Jina's own gateway would wait for ever."""
    with grpc.insecure_channel(f"127.0.0.1:{served.ports['grpc']}") as channel, pytest.raises(grpc.RpcError):
        list(channel.stream_stream("/jina.JinaRPC/Call")(iter([b"\xff"]), timeout=30))


@pytest.fixture(scope="module")
def behind_ours(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """A Flow with our gateway."""
    folder, ports = tmp_path_factory.mktemp("ours"), fronts.ports_for(*PROTOCOLS)
    (folder / "held.py").write_text(HELD)
    with fronts.serving(folder, ports, fronts.flow(folder, ports, OURS, OPTIONS)) as served:
        return Ended(served, signal.SIGINT, no_request)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """The executor by itself."""
    folder, ports = tmp_path_factory.mktemp("alone"), fronts.ports_for("grpc", "http")
    (folder / "held.py").write_text(HELD)
    served_by = ["--protocol", *ports, "--port", *map(str, ports.values()), "--host", "127.0.0.1", "--native"]
    settings = ["--workspace", str(folder / "workspace"), "--uses-with", json.dumps(OPTIONS)]
    command = ["-m", "jina", "executor", "--uses", str(ROOT / "config.yml"), *served_by, *settings]
    with fronts.serving(folder, ports, command) as served:
        return Ended(served, signal.SIGTERM)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_behind_our_gateway_what_is_under_way_is_answered(behind_ours: Ended, protocol: str) -> None:
    assert protocol in behind_ours.answered, behind_ours.errors


def test_our_gateway_ends_also_after_a_call_that_was_no_request(behind_ours: Ended) -> None:
    assert behind_ours.exit_code == 0


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_by_the_executor_alone_what_is_under_way_is_answered(alone: Ended, protocol: str) -> None:
    assert protocol in alone.answered, alone.errors


def test_the_executor_alone_ends_with_exit_code_0(alone: Ended) -> None:
    assert alone.exit_code == 0
