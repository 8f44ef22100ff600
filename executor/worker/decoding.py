"""Tries every document once, while the run is still receiving, and quarantines those that do not decode."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from ..compute.cores import usable_cores
from ..compute.memory import is_out_of_memory
from ..errors import BadDocument
from ..evaluation.fingerprints import Fingerprint
from ..evaluation.kinship import print_of
from ..images.policy import ImagePolicy
from ..images.remote import given
from ..loading.cache import ImageCache
from ..loading.datasets import DATASETS, Dataset
from ..loading.fetches import Fetch, Fetches
from ..store.runs import Quarantined, RunStore
from ..store.spool import DocumentArrayMemmap
from .inspection import Inspection


class Decoded:
    """One split of a run's spool. Each document is tried once, and those that cannot be used are quarantined.

    Args:
        preprocess: turns a document into its content. cache: keeps the contents; None: nothing is kept.
        with_matches: whether the matches of the documents are tried, too.
    """

    CHUNK = 64

    def __init__(
        self,
        split: str,
        store: RunStore,
        run: str,
        preprocess: Callable[[Any], Any],
        cache: ImageCache | None,
        *,
        with_matches: bool,
    ) -> None:
        self.docs = DocumentArrayMemmap(store.workspace.spool_file(run), split=split)
        self.cache = cache
        self._split = split
        self._store = store
        self._run = run
        self._preprocess = preprocess
        self._with_matches = with_matches
        self._pool = ThreadPoolExecutor(usable_cores(), thread_name_prefix="decode")
        self._fetches = Fetches()
        self.inspection = Inspection()
        self._next_doc = 0
        self._next_item = 0
        self.bad_items: set[int] = set()  # items found so far that cannot be used
        self._bad_docs = 0

    def decode_next(self) -> bool:
        """Try the next few documents. Return false if none was waiting."""
        docs = self.docs[self._next_doc : self._next_doc + self.CHUNK]
        if not docs:
            return False
        for doc in docs:
            self.inspection.see(doc)
        parts: list[tuple[Any, Any]] = []
        places: list[str] = []
        for position, doc in enumerate(docs, self._next_doc):
            members = (doc, *(doc.matches if self._with_matches else ()))
            parts += [(doc, part) for part in members]
            places += [str(position), *(f"{position}.{number}" for number in range(1, len(members)))]
        trying = [self._start(item, pair) for item, pair in enumerate(parts, self._next_item)]
        tried = [each.result() for each in trying]
        faults = [found if isinstance(found, str) else None for found in tried]
        self.inspection.prints += [
            None if isinstance(found, str) else found
            for (root, part), found in zip(parts, tried, strict=True)
            if part is root
        ]
        for split, bad in ((self._split, True), (f"{self._split} match", False)):
            problems = [
                Quarantined(place, part.id, fault)
                for place, (root, part), fault in zip(places, parts, faults, strict=True)
                if fault is not None and (part is root) is bad
            ]
            if problems:
                self._store.quarantine(self._run, split, problems, spooled=True)
            self._bad_docs += len(problems) if bad else 0
        self.bad_items |= {self._next_item + number for number, fault in enumerate(faults) if fault is not None}
        self._next_doc += len(docs)
        self._next_item += len(parts)
        return True

    def _start(self, item: int, pair: tuple[Any, Any]) -> Future[str | Fingerprint | None]:
        """Try a document in another thread. What is remote is fetched before, so that no decoding waits for it."""
        remote = getattr(self._preprocess, "remote", lambda _: None)(pair[1])
        if remote is None or (self.cache is not None and self.cache.get(item) is not None):
            return self._pool.submit(self._try, item, pair)
        return self._fetch(item, pair, *remote)

    def _fetch(
        self, item: int, pair: tuple[Any, Any], uri: str, policy: ImagePolicy
    ) -> Future[str | Fingerprint | None]:
        outcome: Future[str | Fingerprint | None] = Future()

        def decode(fetch: Fetch) -> None:
            try:
                with given(fetch.fetched):
                    outcome.set_result(self._try(item, pair))
            except Exception as error:
                outcome.set_exception(error)
            finally:
                self._fetches.finish(fetch)

        self._fetches.start(Fetch(self, uri, policy, lambda fetch: self._pool.submit(decode, fetch)))
        return outcome

    def _try(self, item: int, pair: tuple[Any, Any]) -> str | Fingerprint | None:
        """Return why the document cannot be used, or its fingerprint; None for a match that can be used."""
        root, part = pair
        content = None if self.cache is None else self.cache.get(item)
        if content is not None:
            return print_of(content, self._next_doc) if part is root else None
        try:
            content = self._preprocess(part)
        except BadDocument as error:
            return str(error)
        except Exception as error:  # a custom preprocess_fn may raise anything
            if is_out_of_memory(error):
                raise  # not the document's fault
            return f"preprocess_fn raised {type(error).__name__}: {error}"
        if self.cache is not None:
            self.cache.put(item, content)
        return print_of(content, self._next_doc) if part is root else None

    def __len__(self) -> int:
        """How many of the documents tried so far can be used."""
        return self._next_doc - self._bad_docs

    def dataset(self, kind: str) -> tuple[Dataset, np.ndarray]:
        """Return all documents as a dataset, and its usable items (n,) int64. A session with a bad root is left out."""
        dataset = DATASETS[kind](self.docs, self._preprocess)
        items = np.arange(len(dataset))
        bad = np.isin(items, list(self.bad_items))
        if kind == "session":
            roots = dataset.labels[:, 1] == 0
            bad |= np.isin(dataset.labels[:, 0], dataset.labels[roots & bad, 0])
        return dataset, items[~bad]
