"""A real Flow in its own process, for the tests."""

import base64
import contextlib
import os
import random
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import requests

from forked import Forked

ROOT = Path(__file__).resolve().parent.parent
PROTOCOLS = ("grpc", "http", "websocket")  # of Jina's gateway
DOOR = "door"  # the executor's own over HTTP
DOORS = (*PROTOCOLS, DOOR)
# A small model and short waits, because we test the service and not the quality of the model.
QUICK = {
    "model": "small",
    "input_size": 16,
    "receive_timeout": 2.0,
    "trainer_nice": 0,
    "trainer_yields": False,
    "trainer_threads": 1,
    "standby_seconds": 0,
    "trainer_stall_seconds": 0,  # tests stop trainers to see what happens meanwhile
    "fast_inference": False,  # measuring that takes a third of the start of a Flow; the one of most tests has it
    "augment": "none",  # albumentations, and the choice of a precision, take a quarter of a short run
    "fit_defaults": {"epochs": 2, "batch_size": 16, "precision": "fp32"},
}


def free_ports(count: int) -> list[int]:
    """Return ports that nothing was listening on a moment ago, and that the system gives no client meanwhile."""
    chance = random.SystemRandom()
    with contextlib.ExitStack() as stack:
        sockets: list[socket.socket] = []
        while len(sockets) < count:
            each = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                each.bind(("127.0.0.1", chance.randrange(16_000, 32_000)))
                sockets.append(each)
        return [each.getsockname()[1] for each in sockets]


class Service:
    """A Flow with this executor, over gRPC, HTTP and websocket.

    Args: workspace: Jina's workspace. directory: the service starts in it. gateway: the class of the gateway; None:
        Jina's own. options: `uses_with`; they override `QUICK`.
    """

    def __init__(self, workspace: Path, directory: Path, *, gateway: str | None = None, **options: Any) -> None:
        self.workspace = workspace
        self.directory = directory
        self.gateway = gateway
        self.options = QUICK | options
        self.replicas = 1
        self.flow: dict[str, Any] = {}  # further arguments of the Flow
        self.ports: dict[str, int] = {}
        self.process: Forked | None = None

    def start(self) -> "Service":
        """Start the Flow and wait until all protocols answer."""
        import needs  # only here, because the service runs this file too

        needs.serving()
        self.ports = dict(zip(DOORS, free_ports(len(DOORS)), strict=True))
        self.directory.mkdir(parents=True, exist_ok=True)
        settings = {
            "workspace": str(self.workspace),
            "ports": {protocol: self.ports[protocol] for protocol in PROTOCOLS},
            "gateway": self.gateway,
            "options": {"http_port": self.ports[DOOR] if self.replicas == 1 else 0, **self.options},
            "replicas": self.replicas,
            "flow": self.flow,
        }
        environment = os.environ | {
            "JINA_OPTOUT_TELEMETRY": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(self.directory), str(ROOT), os.environ.get("PYTHONPATH", "")]),
        }
        log = self.directory / "service.log"
        self.process = Forked(_serve, settings, directory=self.directory, environment=environment, log=log)
        if self.process.becomes_ready():
            return self
        raise RuntimeError(f"the service did not start:\n{log.read_text()[-4000:]}")

    def stop(self, how: signal.Signals = signal.SIGINT) -> int:
        """End the Flow by a signal and return its exit code."""
        assert self.process is not None
        self.process.send_signal(how)
        code = self.process.wait(60)
        self.process.close()
        return code

    def kill(self) -> None:
        """Send SIGKILL to every process of the Flow (also to the trainer, if it is still in the same session)."""
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process.close()

    def __enter__(self) -> "Service":
        return self.start()

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()  # how a service ends has tests of its own

    # calls ----------------------------------------------------------------------------------------------------------

    def post(self, endpoint: str, docs: Any = None, *, protocol: str = "grpc", returns: Any, **parameters: Any) -> Any:
        """Call with Jina's client, or as plain JSON; `returns` is the class of the documents in the answer."""
        from docarray import DocList
        from jina import Client

        if protocol == DOOR:
            answer = self.http(endpoint, map(as_json, docs or ()), protocol=DOOR, **parameters)
            answer.raise_for_status()
            return DocList[returns](returns(**doc) for doc in answer.json()["data"])
        client = Client(host="127.0.0.1", port=self.ports[protocol], protocol=protocol)
        return client.post(endpoint, docs, parameters=parameters, return_type=DocList[returns])

    def http(self, endpoint: str, data: Any = (), *, protocol: str = "http", **parameters: Any) -> requests.Response:
        """POST plain JSON, as `curl` would."""
        body = {"data": list(data), "parameters": parameters}
        return requests.post(f"http://127.0.0.1:{self.ports[protocol]}{endpoint}", json=body, timeout=60)

    def status(self, run: str) -> Any:
        """Return the status of one run, over gRPC."""
        from executor.documents import RunStatus

        return self.post("/status", returns=RunStatus, run=run)[0]

    def wait(self, run: str, *, seconds: float = 120.0, until: Any = lambda status: status.ended_at) -> Any:
        """Ask until the run has ended (or `until` is true) and return its status."""
        from executor.documents import RunStatus

        protocol = DOOR if self.replicas == 1 else "grpc"  # asking over gRPC takes three times the processor time
        deadline = time.monotonic() + seconds
        while not until(status := self.post("/status", returns=RunStatus, protocol=protocol, run=run)[0]):
            if time.monotonic() > deadline:
                raise TimeoutError(f"run {run} is still {status.state} ({status.phase})")
            time.sleep(0.1)
        return status

    def cancel(self, run: str) -> None:
        """Cancel a run if there is one; it may have ended."""
        self.http("/cancel", run=run)

    def trainers(self) -> list[psutil.Process]:
        """The processes that train, or wait to."""
        assert self.process is not None
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
                if {"train", "standby"} & set(" ".join(child.cmdline()).split()):
                    found.append(child)
        return found

    def executor(self) -> psutil.Process:
        """The process of the executor: it has written its number into the lock of its workspace."""
        return psutil.Process(int(next(self.workspace.rglob("service.lock")).read_text()))

    def run_folder(self, run: str) -> Path:
        """Return the folder of a run in the workspace."""
        return next(self.workspace.glob(f"*/*/runs/{run}"))


def gone(*processes: psutil.Process, seconds: float = 10.0) -> bool:
    """Whether all of them end in time; a zombie has ended."""

    def ended(process: psutil.Process) -> bool:
        try:
            return bool(process.status() == psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return True

    deadline = time.monotonic() + seconds
    while not all(map(ended, processes)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def as_json(doc: Any) -> dict[str, Any]:
    """A document as an HTTP client writes it."""
    value: dict[str, Any] = {"id": doc.id, "tags": doc.tags, "uri": doc.uri, "text": doc.text}
    if doc.blob is not None:
        value["blob"] = doc.blob.tolist()
    if doc.buffer is not None:
        value["buffer"] = base64.b64encode(doc.buffer).decode()
    value["matches"] = [as_json(match) for match in getattr(doc, "matches", ())]
    return value


@contextlib.contextmanager
def served(folder: Path, **options: Any) -> Iterator[Service]:
    """Start a service with its own workspace and working directory below `folder`."""
    with Service(folder / "workspace", folder / "cwd", **options) as service:
        yield service


def _serve(settings: dict[str, Any], ready: Callable[[], None]) -> None:
    from jina import Flow

    ports = {"protocol": list(settings["ports"]), "port": list(settings["ports"].values())}
    flow = Flow(**ports, host="127.0.0.1", **{"quiet_error": True, **settings["flow"]}).add(
        uses=str(ROOT / "config.yml"),
        uses_with=settings["options"],
        workspace=settings["workspace"],
        replicas=settings["replicas"],
    )
    if settings["gateway"] is not None:
        flow = flow.config_gateway(uses=settings["gateway"])
    with flow:
        ready()
        flow.block()
