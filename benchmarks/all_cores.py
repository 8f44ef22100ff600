"""What decoding and the fastest admitted forward pass take while every core does both.

`python -m benchmarks.all_cores WORKSPACE MODEL SIZE` is one of the processes: one for each core, on its own, so that
nobody waits for anybody. They work at the same time, because cores share memory and its bandwidth: an image takes one
of two busy cores longer than it takes the only busy one.
"""

import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from benchmarks.common import jpeg, median, textured
from executor.compute.memory import keep_freed_memory
from executor.documents import Document
from executor.loading.batches import collate
from executor.models.versions import WorkspaceVersions
from executor.parameters import parse_executor_options
from executor.serving.embedder import Embedder
from executor.serving.pipeline import Version, largest_batch
from executor.store.workspace import Workspace

ROOT = Path(__file__).resolve().parent.parent
CLASSES = 16
DIFFERENT = 64  # pictures


def limit_version(workspace: Path, model: str, size: int) -> tuple[Embedder, Version]:
    """Return an embedder of a workspace of its own, and the base version as it would be served."""
    options = parse_executor_options({"model": model, "input_size": size, "allowed_roots": [str(workspace)]})
    embedder = Embedder(WorkspaceVersions(Workspace(workspace), options, lambda: "base"), options)
    return embedder, embedder.version("base")


class AllCores:
    """A process for each core. They compute when they are asked, all at once.

    Args: workspace: a folder for the model. cores: how many.
    """

    def __init__(self, workspace: Path, model: str, size: int, cores: int) -> None:
        embedder, _ = limit_version(workspace, model, size)  # now the way to serve it is measured, and kept
        embedder.close()
        self._command = [sys.executable, "-m", "benchmarks.all_cores", str(workspace), model, str(size)]
        self._cores = cores

    def __enter__(self) -> "AllCores":
        self._processes = [
            subprocess.Popen(self._command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(self._cores)
        ]
        for process in self._processes:
            self._answer(process)  # it is ready
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.communicate()

    def seconds_of_an_image(self, seconds: float) -> float:
        """Return the processor time of an image, in seconds: decoding and forward pass. Args: seconds: to measure."""
        for process in self._processes:
            print(seconds, file=process.stdin, flush=True)
        return median([self._answer(process) for process in self._processes])

    def _answer(self, process: "subprocess.Popen[str]") -> float:
        if process.stdout is None or not (line := process.stdout.readline()):
            raise RuntimeError("A process of benchmarks.all_cores has ended; what it said is above.")
        return float(line)


def main() -> None:
    """Compute for as many seconds as each line of the input says, and print the processor seconds of an image."""
    workspace, model, size = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    torch.set_num_threads(1)
    keep_freed_memory()
    embedder, version = limit_version(workspace, model, size)
    files = [jpeg(textured(number % CLASSES, number)) for number in range(DIFFERENT)]
    batch = largest_batch(version.device, 1)

    def compute(first: int) -> Any:
        numbers = range(first, first + batch)
        return version.embed(collate([version.preprocess(Document(buffer=files[n % DIFFERENT])) for n in numbers]))

    compute(0)
    print(0, flush=True)
    for line in sys.stdin:
        done, end, began = 0, time.perf_counter() + float(line), time.process_time()
        while time.perf_counter() < end or not done:
            compute(done)
            done += batch
        print((time.process_time() - began) / done, flush=True)
    embedder.close()


if __name__ == "__main__":
    main()
