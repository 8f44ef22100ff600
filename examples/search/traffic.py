"""Queries that come all the time, and what each of them found."""

import threading
import time
from dataclasses import dataclass
from itertools import count
from typing import Any

from jina import Client

from executor import DocumentArray
from executor.documents import ERROR_TAG, SPACE_TAG

CALLERS = 2
PAUSE_SECONDS = 0.05  # of a caller, after an answer


@dataclass(frozen=True)
class Answer:
    """What came of a query.

    Attributes: at: seconds since the first one. way: how the index was treated when it was sent; empty: while that
        changed. hit: whether the nearest picture shows what the query shows. across: whether that picture's vector is
        in another space than the query's, and `meant` whether the way has it so. failed: why there is no answer.
    """

    at: float
    way: str
    hit: bool
    across: bool
    meant: bool
    failed: str | None


class Traffic:
    """Callers that send query after query, from the beginning of a `with` block to its end.

    Attributes: parameters: what is sent with each query. mixing: whether queries may meet vectors of another space.
        answers: what came so far.
    """

    def __init__(self, port: int, queries: DocumentArray, labels: dict[str, str]) -> None:
        self._port = port
        self._queries = queries
        self._labels = labels
        self._numbers = count()
        self._way = ""
        self._ended = threading.Event()
        self._began = time.monotonic()
        self._sent = [0] * CALLERS  # queries of each caller
        self._callers = [threading.Thread(target=self._ask, args=(number,)) for number in range(CALLERS)]
        self.parameters: dict[str, Any] = {}
        self.mixing = False
        self.answers: list[Answer] = []

    def __enter__(self) -> "Traffic":
        for caller in self._callers:
            caller.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for caller in self._callers:
            caller.join()

    def one_round(self, way: str) -> None:
        """Wait until each query was asked once more, and answered, while the index is treated in a way."""
        self._way = way
        while len(self.by_way().get(way, ())) < len(self._queries) and not self._ended.is_set():
            time.sleep(0.05)
        self._way = ""

    def by_way(self) -> dict[str, list[Answer]]:
        """Return the answers by how the index was treated, without those from between."""
        found: dict[str, list[Answer]] = {}
        for answer in list(self.answers):
            if answer.way:
                found.setdefault(answer.way, []).append(answer)
        return found

    def settle(self) -> None:
        """Wait until every query that is under way is answered."""
        before = list(self._sent)
        while any(now == then for now, then in zip(self._sent, before, strict=True)) and not self._ended.is_set():
            time.sleep(0.01)

    def _ask(self, caller: int) -> None:
        client = Client(host="127.0.0.1", port=self._port)
        while not self._ended.wait(PAUSE_SECONDS):
            self._sent[caller] += 1
            query = self._queries[next(self._numbers) % len(self._queries)]
            way, mixing = self._way, self.mixing
            failed, hit, across = None, False, False
            try:
                (found,) = client.post("/search", query, parameters=self.parameters, return_type=DocumentArray)
            except Exception as error:  # whatever it is, a user of this search would see it
                failed = f"{type(error).__name__}: {error}"
            else:
                failed = found.tags.get(ERROR_TAG) or (None if len(found.matches) else "nothing was found")
                if failed is None:
                    first = next(match for match in found.matches if match.uri != query.uri)
                    hit = self._labels[first.id] == query.id.partition("/")[0]
                    across = first.tags[SPACE_TAG] != found.tags[SPACE_TAG]
            # Whether it changed meanwhile: then the answer may be of either.
            way = way if way == self._way else ""
            self.answers.append(Answer(time.monotonic() - self._began, way, hit, across, mixing or self.mixing, failed))
