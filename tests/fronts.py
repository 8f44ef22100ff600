"""Serve the executor in each possible way, by the command that a user would give, and call it. See `serving`.

The commands are what a user writes after `python`. They are run by `forked`, for half of what a Flow takes until it
serves is the import of its libraries. tests/test_lifecycle.py runs one as it is.
"""

import contextlib
import json
import os
import re
import runpy
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import requests
import yaml
from docarray import DocList
from jina import Client
from jina.proto import jina_pb2_grpc
from jina.types.request.data import SingleDocumentRequest

import needs
from executor.documents import DocumentArray, RunQuery, RunStatus
from executor.parameters import TOKEN_VARIABLE
from forked import Forked
from serving import ROOT, free_ports

# Small, and without what costs time at a start and is tested elsewhere: a measurement, and a trainer in advance.
SMALL: dict[str, Any] = {"model": "small", "input_size": 16, "fast_inference": False, "standby_seconds": 0}
DEPLOYMENT = """
import json, sys
from jina import Deployment

if __name__ == "__main__":
    with Deployment(**json.loads(sys.argv[1])) as served:
        served.block()
"""


@dataclass
class Served:
    """A served executor: its ports by protocol, and the folder with its log and workspace."""

    ports: dict[str, int]
    folder: Path
    process: Forked
    certificate: Path | None = None

    @property
    def url(self) -> str:
        return f"http{'s' if self.certificate else ''}://localhost:{self.ports['http']}"

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def get(self, path: str, authorization: Any = None) -> requests.Response:
        headers = {} if authorization is None else {"Authorization": authorization}
        return requests.get(self.url + path, headers=headers, timeout=60, verify=str(self.certificate or True))

    def post(self, path: str, authorization: Any = None, **body: Any) -> requests.Response:
        headers = {} if authorization is None else {"Authorization": authorization}
        body = {"data": [], **body}
        address = self.url + path
        return requests.post(address, json=body, headers=headers, timeout=60, verify=str(self.certificate or True))

    def client(self, protocol: str, authorization: str | None, path: str = "/status", docs: Any = None) -> Any:
        """Call with Jina's client, and pass the token in the way of the protocol."""
        presented = {}
        if authorization is not None and protocol == "grpc":
            presented = {"metadata": (("authorization", authorization),)}
        elif authorization is not None:
            presented = {"headers": {"Authorization": authorization}}
        client = Client(host="localhost", port=self.ports[protocol], protocol=protocol, tls=bool(self.certificate))
        returns = DocumentArray if path == "/embed" else DocList[RunStatus]
        return client.post(path, docs, return_type=returns, on_error=_raise, **presented)

    def watch(self, authorization: str | None) -> list[RunStatus]:
        """Follow a run over gRPC. We call gRPC directly, because Jina's client cannot send metadata with a stream."""
        request = SingleDocumentRequest()
        request.header.exec_endpoint = "/watch"
        request.document_cls = RunQuery
        request.data.doc = RunQuery(run="absent")
        metadata = () if authorization is None else (("authorization", authorization),)
        found = []
        with grpc.insecure_channel(f"localhost:{self.ports['grpc']}") as channel:
            stub = jina_pb2_grpc.JinaSingleDocumentRequestRPCStub(channel)
            for answer in stub.stream_doc(request, metadata=metadata, timeout=30):
                answer.document_cls = RunStatus
                found.append(answer.data.doc)
        return found


def _raise(response: Any) -> None:
    """Raise the error of a response: over a websocket Jina's client loses errors unless a callback raises them."""
    raise RuntimeError(response.header.status.description)


def flow(folder: Path, ports: dict[str, int], gateway: dict[str, Any], options: dict[str, Any]) -> list[str]:
    """Return the command that serves a Flow with this gateway."""
    settings = {
        "jtype": "Flow",
        "with": {"protocol": [*ports], "port": [*ports.values()], "host": "127.0.0.1", "quiet_error": True},
        **({"gateway": gateway} if gateway else {}),
        "executors": [{"uses": str(ROOT / "config.yml"), "workspace": str(folder / "workspace"), "uses_with": options}],
    }
    (folder / "flow.yml").write_text(yaml.safe_dump(settings, sort_keys=False))
    return ["-m", "jina", "flow", "--uses", str(folder / "flow.yml")]


def deployment(folder: Path, ports: dict[str, int]) -> list[str]:
    """Return the command that serves the executor itself, over several protocols."""
    (folder / "deployment.py").write_text(DEPLOYMENT)
    settings = {"uses": str(ROOT / "config.yml"), "workspace": str(folder / "workspace"), "host": "127.0.0.1"}
    settings |= {"protocol": [*ports], "port": [*ports.values()], "include_gateway": False, "quiet_error": True}
    settings |= {"uses_with": SMALL}
    return [str(folder / "deployment.py"), json.dumps(settings)]


def executor(folder: Path, ports: dict[str, int]) -> list[str]:
    """Return Jina's command that serves the executor over HTTP."""
    options = ["--port", str(ports["http"]), "--host", "127.0.0.1", "--workspace", str(folder / "workspace")]
    options += ["--uses-with", json.dumps(SMALL)]
    config = str(ROOT / "config.yml")
    return ["-m", "jina", "executor", "--uses", config, "--protocol", "http", *options]


def ports_for(*protocols: str) -> dict[str, int]:
    return dict(zip(protocols, free_ports(len(protocols)), strict=True))


@contextlib.contextmanager
def serving(
    folder: Path, ports: dict[str, int], command: list[str], token: str | None = None, certificate: Path | None = None
) -> Iterator[Served]:
    """Serve until the end of the block."""
    environment = {} if token is None else {TOKEN_VARIABLE: token}
    process = _started(folder, command, environment)
    served = Served(ports, folder, process, certificate)
    try:
        process.becomes_ready()
        _wait(served)
        yield served
    finally:
        # How a service ends has tests of its own; Jina's own gateway takes 20 s now and then.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.close()


def ended(folder: Path, command: list[str]) -> tuple[int, str]:
    """Serve what cannot, until it gives up; return its exit code and what it said."""
    process = _started(folder, command, {})
    process.becomes_ready()
    code = process.wait(120)
    process.close()
    # Jina breaks a sentence into lines, and writes the time into it.
    return code, re.sub(r"\[[\d/]+ [\d:]+\]", "", (folder / "log").read_text())


def _started(folder: Path, command: list[str], environment: dict[str, str]) -> Forked:
    needs.serving()
    places = os.pathsep.join([str(ROOT), str(folder)])
    environment = {**os.environ, "JINA_OPTOUT_TELEMETRY": "1", "PYTHONPATH": places, **environment}
    return Forked(_program, command, directory=folder, environment=environment, log=folder / "log")


def _program(command: list[str], ready: Callable[[], None]) -> None:
    """Do what `python` does with these arguments: `-m` and a module, or a file, and what is passed to it."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as for any program, so that it is Jina which hears it
    ready()
    if command[0] == "-m":
        sys.argv = command[1:]
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = command
        runpy.run_path(command[0], run_name="__main__")


def _wait(served: Served) -> None:
    """Wait until all protocols are served; the health check needs no token."""
    deadline = time.monotonic() + 120
    while True:
        with contextlib.suppress(requests.ConnectionError):
            if served.get("/").ok:
                break
        assert served.process.poll() is None, served.log[-3000:]
        assert time.monotonic() < deadline, served.log[-3000:]
        time.sleep(0.1)
    if "grpc" in served.ports and served.certificate is None:
        with grpc.insecure_channel(f"localhost:{served.ports['grpc']}") as channel:
            grpc.channel_ready_future(channel).result(timeout=60)
