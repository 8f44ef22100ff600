"""A receiver of documents on a workspace, in the place of the service, and a clock that goes on when told to."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from executor import Document, DocumentArray, DocumentArrayMemmap
from executor.lifecycle.receiving import Receiver
from executor.parameters import FitParameters, parse_executor_options
from executor.store.run import Run, RunState
from executor.store.runs import RunStore
from executor.store.workspace import Workspace

SILENCE = 5.0
T = TypeVar("T")


class Clock:
    """In place of the module `time`: it goes on when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Desk:
    """A receiver on a workspace, in the place of the service."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.woken = 0
        self.store = RunStore(Workspace(folder))
        self.receiver = self.another(**options)

    def another(self, **options: Any) -> Receiver:
        """A further receiver on the same workspace, as of a service that was started again."""
        asked = {"receive_timeout": SILENCE, **options}
        return Receiver(self.store, parse_executor_options(asked).with_roots(), wake=self._wake)

    def _wake(self) -> None:
        self.woken += 1

    def post(self, docs: DocumentArray, **parameters: Any) -> Run:
        """One request of `/fit`."""
        return self.store.get(self.receiver.receive(docs, FitParameters(**parameters)))

    def stored(self, run: str, split: str = "train") -> list[str]:
        """The ids in the spool of a run."""
        with DocumentArrayMemmap(self.store.workspace.spool_file(run), split=split) as docs:
            return list(docs.ids())

    def reasons(self, run: str) -> dict[str, str]:
        """Why documents of a run were quarantined, by id."""
        return dict(self.store.problems(run))

    def finish(self, run: str, *way: RunState, model: bool = True) -> None:
        """Let a queued run have been trained."""
        for state in way or (RunState.TRAINING, RunState.SUCCEEDED):
            self.store.advance(run, state)
        if model:
            self.store.workspace.model_folder(run).mkdir(parents=True)

    def close(self) -> None:
        self.receiver.close()
        self.store.close()


def opened(kind: Callable[..., T], folder: Path) -> Iterator[Callable[..., T]]:
    """Give what makes desks of a kind on a folder, one after the other, and close them all in the end."""
    with contextlib.ExitStack() as stack:

        def make(**options: Any) -> T:
            return stack.enter_context(contextlib.closing(kind(folder, **options)))

        yield make


def documents(count: int = 4, prefix: str = "d", **fields: Any) -> DocumentArray:
    return DocumentArray(
        Document(
            **{"id": f"{prefix}{number}", "uri": "data:,x", "tags": {"finetuner_label": number % 2}, **fields},
        )
        for number in range(count)
    )


NOTHING = DocumentArray()
