"""A Flow in its own process, with our executor or a peer that we compare it with.

`Served` starts it as `python -m benchmarks.serving SETTINGS`. Do not write `from __future__ import annotations` here:
Jina reads the annotations of the endpoints at run time.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psutil
from docarray import DocList
from jina import Executor, Flow, requests

from benchmarks.common import free_port
from executor.documents import DocumentArray, RunStatus

ROOT = Path(__file__).resolve().parent.parent


class NoOp(Executor):
    """Does nothing with documents of the same schema, so that only the cost of Jina remains."""

    @requests(on="/embed")
    async def embed(self, docs: DocumentArray, **_: Any) -> DocumentArray:
        """Return the documents."""
        return docs

    @requests(on="/fit")
    async def fit(self, docs: DocumentArray, **_: Any) -> DocList[RunStatus]:
        """Return an empty status."""
        return DocList[RunStatus]([RunStatus()])


class Sequential(Executor):
    """An embedding executor as people usually write it: it decodes and embeds one document after the other."""

    def __init__(self, *args: Any, model: str = "small", input_size: int | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        from executor.images.policy import ImagePolicy
        from executor.loading.content import ModelImages
        from executor.models.building import build_model
        from executor.models.model import ModelConfig

        self._model = build_model(ModelConfig(model=model, input_size=input_size))
        self._preprocess = ModelImages(self._model.preprocessing, ImagePolicy())

    @requests(on="/embed")
    def embed(self, docs: DocumentArray, **_: Any) -> DocumentArray:
        """Set the embeddings."""
        import torch

        for doc in docs:
            images = torch.from_numpy(self._preprocess(doc)[None])
            with torch.inference_mode():
                doc.embedding = self._model(self._model.preprocessing.normalise(images))[0].numpy()
        return docs


PEERS = {"noop": NoOp, "sequential": Sequential}


class Served:
    """A Flow over gRPC on a free port, in its own processes. They start at once; `with` waits until the Flow serves.

    If this process ends in any way, they end too.

    Args: what: `ours`, `noop` or `sequential`. folder: for the workspace and the log. options: `uses_with`.
    """

    def __init__(self, what: str, folder: Path, **options: Any) -> None:
        self._log = folder / f"{what}.log"
        self.workspace = folder / what
        self.port = free_port()
        self._settings = {"what": what, "port": self.port, "workspace": str(self.workspace), "options": options}
        self.start()

    def start(self) -> None:
        """Start the processes. After a kill this starts them again, on the same port and workspace."""
        with open(self._log, "a") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.serving", json.dumps(self._settings)],
                cwd=ROOT,
                env=os.environ | {"JINA_OPTOUT_TELEMETRY": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )

    def __enter__(self) -> "Served":
        try:
            self.wait()
        except BaseException:
            self.kill()
            raise
        return self

    def wait(self) -> None:
        """Wait until the Flow serves. Raises: RuntimeError: it has ended instead."""
        assert self._process.stdout is not None
        if not any(line.strip() == "ready" for line in self._process.stdout):
            raise RuntimeError(f"the Flow did not start:\n{self._log.read_text()[-4000:]}")

    def __exit__(self, *_: object) -> None:
        try:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(60)
        finally:
            self.kill()

    def kill(self) -> None:
        """Send SIGKILL to all remaining processes of the Flow, also to its trainer."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def processes(self) -> list[psutil.Process]:
        """Return all processes of the Flow, with its trainer."""
        main = psutil.Process(self._process.pid)
        return [main, *main.children(recursive=True)]

    def cpu(self) -> float:
        """Return the processor time that its present processes have taken so far, in seconds."""
        return sum(times.user + times.system for times in (each.cpu_times() for each in self.processes()))

    def gateway_pid(self) -> int:
        """Return the id of the gateway's process, which is the one that listens on the port."""
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                if any(each.laddr and each.laddr.port == self.port for each in process.net_connections()):
                    return process.pid
        raise RuntimeError(f"nothing listens on port {self.port}")

    def executor_pid(self) -> int:
        """Return the id of the executor's process, which is the one that has locked the workspace."""
        lock = next(self.workspace.rglob("service.lock"))
        return int(lock.read_text())


def words_of(process: psutil.Process) -> set[str]:
    """Return the words of its command line. A trainer that was started in advance has a command line of one part."""
    return set(" ".join(process.cmdline()).split())


def serve(settings: dict[str, Any]) -> None:
    """Serve until interrupted."""
    threading.Thread(target=_die_with_the_benchmark, daemon=True).start()
    told = os.dup(sys.stdout.fileno())  # the benchmark reads this pipe only until "ready"; later output goes
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # to stderr, because a full pipe would block the service
    uses = PEERS.get(settings["what"], str(ROOT / "config.yml"))
    flow = Flow(protocol="grpc", port=settings["port"], host="127.0.0.1", quiet_error=True).add(
        uses=uses, uses_with=settings["options"], workspace=settings["workspace"]
    )
    with flow:
        os.write(told, b"ready\n")
        flow.block()


def _die_with_the_benchmark() -> None:
    """Kill the Flow when standard input ends, because then the benchmark has ended, in whatever way."""
    while os.read(0, 1):
        pass
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
