"""A request that is under way when the service is told to end is answered."""

import asyncio
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import fronts
from executor import Document, DocumentArray

SLOW = """
import time
import numpy as np

def load(doc):
    time.sleep(0.3)
    return np.zeros((16, 16, 3), np.uint8)
"""
OPTIONS = {"input_size": 16, "preprocess_fn": "slow:load"}
OURS = {"uses": "executor.gateway.FinetunerGateway"}


def in_flow(folder: Path, gateway: dict[str, Any]) -> tuple[dict[str, int], list[str]]:
    ports = fronts.ports_for("grpc", "http")
    command = fronts.flow(folder, ports, gateway, OPTIONS)
    return ports, command


@pytest.mark.parametrize("gateway", [{}, OURS], ids=["behind Jina's gateway", "behind ours"])
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_what_is_under_way_is_answered(
    protocol: str, gateway: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    ports, command = in_flow(tmp_path, gateway)
    answers: list[Any] = []
    with fronts.serving(tmp_path, ports, command) as served:
        served.client(protocol, None, "/embed", DocumentArray([Document(id="first", text="x")]))  # the model is loaded

        def call() -> None:
            docs = DocumentArray(Document(id=str(number), text="x") for number in range(16))
            try:
                asyncio.set_event_loop(asyncio.new_event_loop())
                answers.append(served.client(protocol, None, "/embed", docs))
            except BaseException as error:
                answers.append(error)

        caller = threading.Thread(target=call)
        caller.start()
        time.sleep(1.0)  # of the 2.4 s that two threads take for 16 documents
        assert not answers
        served.process.send_signal(signal.SIGINT)
        caller.join(60)
        assert served.process.wait(60) == 0
    (answer,) = answers
    assert not isinstance(answer, BaseException), answer
    assert [doc.id for doc in answer if doc.embedding is not None] == [str(number) for number in range(16)]
