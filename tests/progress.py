"""Prints every few seconds how many tests are done. Dots do not say that, and a log may hold them back."""

import os
import threading
import time

import pytest

SECONDS = 20.0


class Progress:
    """Counts the tests, wherever they run, and tells on the true standard output, which tests do not have."""

    def __init__(self) -> None:
        self._output = os.dup(1)
        self._total = self._done = 0
        self._began = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._tell, daemon=True)

    def pytest_sessionstart(self) -> None:
        self._thread.start()

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._total = len(session.items)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        self._total = len(ids)  # every worker has found the same

    def pytest_runtest_logfinish(self) -> None:
        self._done += 1

    def pytest_sessionfinish(self) -> None:
        self._ended.set()
        self._thread.join()
        os.close(self._output)

    def _tell(self) -> None:
        while not self._ended.wait(SECONDS):
            seconds = time.monotonic() - self._began
            os.write(self._output, f"\n  {self._done} of {self._total} tests after {seconds:.0f} s\n".encode())
