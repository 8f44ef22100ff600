"""A Flow in a process of its own: our executor, or one of the peers it is compared with.

`python -m benchmarks.serving SETTINGS` serves; `Served` starts that. No `from __future__ import annotations`: Jina
reads the endpoints' annotations at run time.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from docarray import DocList
from jina import Executor, Flow, requests

from executor.documents import DocumentArray, RunStatus

ROOT = Path(__file__).resolve().parent.parent


class NoOp(Executor):
    """Does nothing with documents of the same schema: what is left is Jina's."""

    @requests(on="/embed")
    async def embed(self, docs: DocumentArray, **_: Any) -> DocumentArray:
        """Return the documents."""
        return docs

    @requests(on="/fit")
    async def fit(self, docs: DocumentArray, **_: Any) -> DocList[RunStatus]:
        """Return an empty status."""
        return DocList[RunStatus]([RunStatus()])


class Sequential(Executor):
    """An embedding executor as it is usually written: each document alone, first decoded, then embedded."""

    def __init__(self, *args: Any, input_size: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        from executor.images import ImagePolicy
        from executor.loading import ModelImages
        from executor.models import ModelConfig, build_model

        self._model = build_model(ModelConfig(input_size=input_size))
        self._preprocess = ModelImages(self._model.preprocessing, ImagePolicy())

    @requests(on="/embed")
    def embed(self, docs: DocumentArray, **_: Any) -> DocumentArray:
        """Fill the embeddings."""
        import torch

        for doc in docs:
            images = torch.from_numpy(self._preprocess(doc)[None])
            with torch.inference_mode():
                doc.embedding = self._model(self._model.preprocessing.normalise(images))[0].numpy()
        return docs


PEERS = {"noop": NoOp, "sequential": Sequential}


class Served:
    """A Flow over gRPC on a free port, in a process of its own, which starts at once; entering waits until it serves.

    Args: what: `ours`, `noop` or `sequential`. folder: for its workspace and its log. options: `uses_with`.
    """

    def __init__(self, what: str, folder: Path, **options: Any) -> None:
        self._log = folder / f"{what}.log"
        self._workspace = folder / what
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        settings = {"what": what, "port": self.port, "workspace": str(self._workspace), "options": options}
        with open(self._log, "w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.serving", json.dumps(settings)],
                cwd=ROOT,
                env=os.environ | {"JINA_OPTOUT_TELEMETRY": "1"},
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def __enter__(self) -> "Served":
        assert self._process.stdout is not None
        if not any(line.strip() == "ready" for line in self._process.stdout):
            raise RuntimeError(f"the Flow did not start:\n{self._log.read_text()[-4000:]}")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGINT)
        self._process.communicate(timeout=60)

    def executor_pid(self) -> int:
        """The process of the executor, whatever Jina's other processes are: the one that holds the workspace."""
        lock = next(self._workspace.rglob("service.lock"))
        return int(lock.read_text())


def serve(settings: dict[str, Any]) -> None:
    """Serve until interrupted."""
    uses = PEERS.get(settings["what"], str(ROOT / "config.yml"))
    flow = Flow(protocol="grpc", port=settings["port"], host="127.0.0.1", quiet_error=True).add(
        uses=uses, uses_with=settings["options"], workspace=settings["workspace"]
    )
    with flow:
        print("ready", flush=True)
        flow.block()


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
