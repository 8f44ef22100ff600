"""The shop, and the four ways to go over to another version of the model while queries come."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from docarray import DocList
from jina import Client

from examples.search.pictures import Pictures
from examples.search.serving import ROOT
from examples.search.traffic import Traffic
from executor import DocumentArray
from executor.documents import RunStatus

RUN = "tuned"


class Shop:
    """A gallery in the vector store, whose model changes.

    Attributes: port: of the Flow.
    """

    def __init__(self, output: Path, port: int, pictures: Pictures) -> None:
        self._output = output
        self._pictures = pictures
        self._client = Client(host="127.0.0.1", port=port)
        self._old = self._new = ""  # spaces
        self._base = ""  # the collection of the vectors that `base` made
        self.port = port

    def open(self) -> RunStatus:
        """Put the gallery into the store, embedded by `base`, and train a run. Return its status."""
        self._base = self._load(self._embed("base"), prefix="base")
        self._old = self._base.removeprefix("base-")
        self._search(self._old, self._base)
        status = self._train()
        self._new = status.space or ""
        return status

    def _train(self) -> RunStatus:
        train = self._pictures.train
        self._client.post(
            "/fit",
            train,
            parameters={"run": RUN, "total": len(train), "promote": "never", **self._pictures.options},
            return_type=DocList[RunStatus],
        )
        while not (status := self._call("/status", RunStatus, run=RUN)[0]).ended_at:
            time.sleep(0.2)
        if status.state != "succeeded":
            sys.exit(f"The run {status.state}: {status.error}")
        return status

    def changes(self) -> dict[str, Callable[[Traffic], None]]:
        """Return the four ways, by the names that the advice has for them."""
        return {
            "nothing": self._do_nothing,
            "map queries": self._map_queries,
            "map index": self._map_index,
            "embed anew": self._embed_anew,
        }

    def go_back(self, traffic: Traffic) -> None:
        """Serve `base` again, and forget the new space when its last query is answered."""
        self._promote("base")
        traffic.settle()
        traffic.parameters, traffic.mixing = {}, False
        self._call("/alias", DocumentArray.doc_type, space=self._new)

    def _do_nothing(self, traffic: Traffic) -> None:
        traffic.mixing = True
        self._search(self._new, self._base)
        self._promote(RUN)

    def _map_queries(self, traffic: Traffic) -> None:
        traffic.parameters = {"finetuner__space": "base"}  # `base` answers that as well
        traffic.settle()
        self._promote(RUN)

    def _map_index(self, traffic: Traffic) -> None:
        mapped = self._output / "mapped.parquet"
        self._command("map", self._output / "base.parquet", mapped, "--from", "base", "--to", RUN, *self._workspace)
        self._search(self._new, self._load(mapped, prefix="mapped"))
        self._promote(RUN)

    def _embed_anew(self, traffic: Traffic) -> None:
        self._search(self._new, self._load(self._embed(RUN), prefix="anew"))
        self._promote(RUN)

    # steps ----------------------------------------------------------------------------------------------------------

    def _embed(self, version: str) -> Path:
        file = self._output / f"{version}.parquet"
        service = f"grpc://127.0.0.1:{self.port}"
        self._command("embed", self._pictures.gallery, "--to", file, "--model", version, "--service", service)
        return file

    @property
    def _workspace(self) -> tuple[str, Path]:
        return "--workspace", self._output / "workspace"

    def _command(self, *words: object) -> None:
        subprocess.run([sys.executable, "-m", "executor", *map(str, words)], cwd=ROOT, check=True, capture_output=True)

    def _load(self, file: Path, prefix: str) -> str:
        """Load a file into a collection of its own, and return its name."""
        (answer,) = self._call("/load", DocumentArray.doc_type, file=str(file), prefix=prefix)
        return str(answer.text)

    def _search(self, space: str, collection: str) -> None:
        """Swap the alias of a space: its queries are searched in this collection from now on."""
        self._call("/alias", DocumentArray.doc_type, space=space, collection=collection)

    def _promote(self, version: str) -> None:
        self._call("/promote", RunStatus, run=version)

    def _call(self, path: str, returns: Any, **parameters: Any) -> Any:
        return self._client.post(path, parameters=parameters, return_type=DocList[returns])
