"""What a hostile tester and the authors of public bug reports did, done again over one Flow with our gateway.

The tests share the Flow and run in order; the last two look at what it has logged, and end it.
"""

import base64
import io
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from docarray import DocList
from docarray.documents.legacy import LegacyDocument
from jina import Client
from jina.excepts import BadServer
from PIL import Image, PngImagePlugin
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from conftest import coloured, encoded, images
from executor import Document, DocumentArray
from executor.documents import Evaluation, Event, RunStatus
from serving import PROTOCOLS, Service, as_json
from test_formats import TURNED, exif, scans, with_segment

pytestmark = pytest.mark.flow

MOST_QUEUED = 1024  # images waiting in /embed; of a caller few count
WHOLE = {"since": 1_700_000_000_000, "ean": -(2**53), "list": [2**40, {"deep": 2**31}], "small": 7, "half": 0.5}


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("hostile")
    options = {"receive_timeout": 4.0, "trainer_stall_seconds": 3.0, "max_queued_images": MOST_QUEUED}
    service = Service(folder / "workspace", folder / "cwd", gateway="executor.gateway.FinetunerGateway", **options)
    service.flow = {"quiet_error": False}  # as a Flow is by default: what Jina logs of a refusal is looked at here
    with service:
        yield service


def data_uri(file: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(file).decode()


def refused(flow: Service, endpoint: str, docs: Any, **parameters: Any) -> str:
    """Call over gRPC and return the sentence of the refusal."""
    with pytest.raises(BadServer) as raised:
        flow.post(endpoint, docs, returns=RunStatus, **parameters)
    return str(raised.value.args[0].status.description)


@pytest.mark.parametrize("protocol", [*PROTOCOLS, "door"])
def test_whole_numbers_of_up_to_53_bits_come_back_and_harm_no_neighbour(flow: Service, protocol: str) -> None:
    numbers = WHOLE | ({"scalar": np.int64(2**40)} if protocol == "grpc" else {})
    docs = DocumentArray([Document(blob=coloured(0), tags=numbers), Document(blob=coloured(1))])
    first, second = flow.post("/embed", docs, protocol=protocol, returns=Document)
    assert {name: first.tags[name] for name in numbers} == numbers
    assert first.embedding is not None
    assert second.embedding is not None


@pytest.mark.parametrize("protocol", ["http", "door"])
def test_a_larger_number_is_refused_in_a_sentence(flow: Service, protocol: str) -> None:
    docs = [as_json(Document(blob=coloured(0), tags={"n": 2**70})), as_json(Document(blob=coloured(1)))]
    answer = flow.http("/embed", docs, protocol=protocol)
    assert 400 <= answer.status_code < 500
    assert "send it as text" in answer.json()["detail"]


def test_runs_without_a_usable_train_document_end_and_swallow_nothing(flow: Service) -> None:
    flow.post("/fit", images(6), returns=RunStatus, run="eval-alone", split="eval")
    outside = Document(uri="/etc/passwd", tags={"finetuner_label": 0})
    flow.post("/fit", [outside], returns=RunStatus, run="all-refused")
    for name in ("eval-alone", "all-refused"):
        status = flow.wait(name)
        assert status.state == "failed"
        assert status.error
    (found,) = flow.post("/fit", images(2), returns=RunStatus)
    assert found.run not in ("eval-alone", "all-refused")
    flow.cancel(found.run)


def valid_pictures() -> dict[str, tuple[bytes, bytes]]:
    """By name: a picture with something odd beside its pixels, and the same without."""
    picture = Image.fromarray(coloured(0))
    plain, turned, wordy = io.BytesIO(), io.BytesIO(), io.BytesIO()
    picture.save(plain, "JPEG")
    upright = Image.open(io.BytesIO(plain.getvalue())).transpose(Image.Transpose.ROTATE_270)
    upright.save(turned, "PNG")
    words = PngImagePlugin.PngInfo()
    words.add_text("comment", "x" * 3_000_000, zip=True)
    picture.save(wordy, "PNG", pnginfo=words)
    damaged = exif(TURNED, (0x11A, 5, 1, bytes(8)))
    return {
        "a rational of 0/0 in EXIF": (with_segment(damaged, plain.getvalue()), turned.getvalue()),
        "3 MB of text in a PNG": (wordy.getvalue(), encoded(coloured(0))),
    }


@pytest.mark.parametrize("name", valid_pictures())
@pytest.mark.parametrize("field", ["buffer", "uri"])
def test_a_picture_that_can_be_shown_is_embedded_as_it_is_shown(flow: Service, name: str, field: str) -> None:
    odd, plain = valid_pictures()[name]
    docs = [Document(**{field: data if field == "buffer" else data_uri(data)}) for data in (odd, plain)]
    first, second = flow.post("/embed", docs, returns=Document)
    assert first.embedding @ second.embedding > 0.98  # a PNG keeps the pixels, a JPEG nearly


def test_base64_may_have_line_breaks(flow: Service) -> None:
    uri = data_uri(encoded(coloured(0)))
    head, _, text = uri.partition(",")
    broken = "\r\n".join(text[start : start + 76] for start in range(0, len(text), 76))
    answer = flow.http("/embed", [{"uri": uri}, {"uri": f"{head},{broken}"}, {"buffer": broken}])
    assert answer.status_code == 200, answer.text
    first, *others = (doc["embedding"] for doc in answer.json()["data"])
    assert others == [first, first]


def test_a_document_of_jinas_own_is_answered_with_the_name_of_ours(flow: Service) -> None:
    client = Client(host="127.0.0.1", port=flow.ports["grpc"])
    with pytest.raises(Exception, match="from executor import Document"):
        client.post("/fit", DocList[LegacyDocument]([LegacyDocument(text="a")]), return_type=DocList[RunStatus])


def test_documents_beyond_the_first_hundred_are_scored_too_or_it_says_so(flow: Service) -> None:
    docs = [as_json(doc) for doc in images(229)]
    for protocol in ("http", "door"):
        (found,) = flow.http("/evaluate", docs, protocol=protocol).json()["data"]
        assert found["queries"] == 229
    client = Client(host="127.0.0.1", port=flow.ports["grpc"])
    with pytest.raises(BadServer) as raised:  # Jina's client cuts it into three
        client.post("/evaluate", images(229), return_type=DocList[Evaluation])
    assert "say with the parameter 'total' how many documents there are" in raised.value.args[0].status.description
    answers = client.post("/evaluate", images(229), parameters={"total": 229}, return_type=DocList[Evaluation])
    assert {answer.queries for answer in answers} == {229}


@pytest.mark.parametrize("request_size", [100, 1500])
def test_one_call_of_many_more_documents_than_may_wait_is_done(flow: Service, request_size: int) -> None:
    count = 1500
    assert count > MOST_QUEUED
    docs = DocumentArray(Document(id=str(number), blob=coloured(number % 4, size=8)) for number in range(count))
    client = Client(host="127.0.0.1", port=flow.ports["grpc"])
    answers = client.post("/embed", docs, request_size=request_size, return_type=DocumentArray)
    parts = [answers.id[first : first + request_size] for first in range(0, len(docs), request_size)]
    parts.sort(key=lambda ids: int(ids[0]))  # they are handed over as they come, not in the order of the requests
    assert [id for ids in parts for id in ids] == docs.id
    assert all(doc.embedding is not None for doc in answers)


def test_what_unpacks_to_much_more_takes_bounded_memory(flow: Service) -> None:
    large = io.BytesIO()
    Image.new("RGBA", (8000, 8000)).save(large, "PNG")
    pictures = [{"buffer": base64.b64encode(large.getvalue()).decode()}, {"uri": "data:," + "%" * 6_000_000}]
    process = Path("/proc") / str(flow.executor().pid)
    (process / "clear_refs").write_text("5")  # the peak begins anew
    before = peak(process)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: flow.http("/embed", pictures, protocol="door"), range(4)))
    assert [answer.status_code for answer in answers] == [200] * 4
    for answer in answers:
        first, second = answer.json()["data"]
        assert first["embedding"]
        assert second["tags"]["finetuner_error"]
    assert peak(process) - before < 1000  # MB; once it was 1,400 for each picture, and 1,100 for each uri


def peak(process: Path) -> float:
    """The most memory that a process has had, in MB."""
    (kilobytes,) = re.findall(r"VmHWM:\s+(\d+) kB", (process / "status").read_text())
    return int(kilobytes) / 1000


def test_slow_pictures_of_one_caller_hold_up_no_other(flow: Service) -> None:
    slow = [{"buffer": base64.b64encode(scans(1200, 150)).decode()}] * (16 * (os.cpu_count() or 1))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(flow.http, "/embed", slow, protocol="door")
        time.sleep(0.3)
        assert flow.post("/embed", images(1), returns=Document)[0].embedding is not None
        assert not waiting.done()
        assert waiting.result().status_code == 200


SWAPPER = """
import ctypes, sys

libc = ctypes.CDLL(None)
while True:
    libc.renameat2(-100, sys.argv[1].encode(), -100, sys.argv[2].encode(), 2)
"""


def test_a_folder_that_is_swapped_for_a_link_all_the_time_shows_nothing_outside(flow: Service) -> None:
    inside, outside, link = (flow.directory / "inside", flow.directory.parent / "outside", flow.directory / "link")
    for label, folder in enumerate((inside, outside)):
        folder.mkdir()
        (folder / "0.png").write_bytes(encoded(coloured(label)))
        for number in range(1, 1000):
            (folder / f"{number}.png").hardlink_to(folder / "0.png")
    link.symlink_to(outside)
    (shown,) = flow.post("/embed", [Document(blob=coloured(0))], returns=Document)
    docs = [{"uri": str(inside / f"{number}.png")} for number in range(1000)]
    read, refusals = [], 0
    deadline = time.monotonic() + 60
    with subprocess.Popen([sys.executable, "-c", SWAPPER, str(inside), str(link)]) as swapper:
        try:
            # What the folder is, is remembered for a second: chance says whether a call reads all or nothing.
            while (len(read) < 100 or refusals < 100) and time.monotonic() < deadline:
                for doc in flow.http("/embed", docs, protocol="door").json()["data"]:
                    if doc["embedding"] is None:
                        refusals += 1
                    else:
                        read.append(doc["embedding"])
        finally:
            swapper.kill()
    assert len(read) >= 100
    assert refusals >= 100  # it was swapped meanwhile
    np.testing.assert_allclose(read, np.tile(shown.embedding, (len(read), 1)), atol=1e-3)


def test_a_run_whose_documents_are_locked_holds_up_no_other(flow: Service) -> None:
    flow.post("/fit", images(2), returns=RunStatus, run="locked")
    file = flow.run_folder("locked") / "documents.sqlite"
    more = [as_json(doc) for doc in images(2, prefix="more")]
    with ThreadPoolExecutor(1) as pool, closing(sqlite3.connect(file, isolation_level=None)) as lock:
        lock.execute("BEGIN IMMEDIATE")
        waiting = pool.submit(flow.http, "/fit", more, run="locked")
        time.sleep(0.5)
        assert {status.run for status in flow.post("/status", returns=RunStatus)} >= {"locked"}
        (other,) = flow.post("/fit", images(2), returns=RunStatus, run="beside")
        assert other.train_documents == 2
        assert flow.post("/cancel", returns=RunStatus, run="beside")[0].state == "cancelled"
        assert flow.post("/embed", images(1), returns=Document)[0].embedding is not None
        assert not waiting.done()
        lock.execute("ROLLBACK")
        assert waiting.result().json()["data"][0]["train_documents"] == 4
    flow.cancel("locked")


def test_what_is_told_of_enormous_texts_is_short(flow: Service) -> None:
    enormous = "x" * 2_000_000
    docs = [Document(id=f"{number}{enormous}", uri=enormous, tags={"finetuner_label": enormous}) for number in range(3)]
    flow.post("/fit", docs, returns=RunStatus, run="enormous")
    assert len(flow.http("/status", run="enormous").content) < 20_000
    assert len(flow.http("/events", run="enormous").content) < 20_000
    flow.cancel("enormous")


@pytest.fixture(scope="module")
def seen(flow: Service) -> list[RunStatus]:
    """What was seen of the run `-stopped`, whose trainer is stopped, until it ended. Behind it waits the run `--help`.

    Both names begin as options do.
    """
    flow.post("/fit", images(16), returns=RunStatus, run="-stopped", total=16, epochs=60, val_split=0)
    others = images(12, first_seed=500)  # the ids of twelve others: such as stems of files in folders of classes
    contradiction = images(1, first_seed=100)
    contradiction[0].tags["finetuner_label"] = 2
    odd = Document(id="odd", uri="data:image/png," + "%" * 3_000_000, tags={"finetuner_label": 0})
    flow.post("/fit", images(12), returns=RunStatus, run="--help", split="eval")
    flow.post("/fit", images(24, first_seed=100), returns=RunStatus, run="--help")
    flow.post("/fit", [*others, *contradiction, odd], returns=RunStatus, run="--help", start=True)
    flow.wait("-stopped", until=lambda status: status.step > 3)
    (trainer,) = [each for each in flow.trainers() if "--run=-stopped" in " ".join(each.cmdline())]
    trainer.suspend()
    found: list[RunStatus] = []
    flow.wait("-stopped", until=lambda status: found.append(status) or status.ended_at)
    return found


def test_a_stopped_trainer_is_replaced_and_the_runs_behind_it_are_trained(flow: Service, seen: list[RunStatus]) -> None:
    status = seen[-1]
    assert (status.state, status.attempts) == ("succeeded", 2), status.error
    steps = [each.step for each in seen]
    assert steps == sorted(steps)
    assert all(each.eta_seconds is None or each.eta_seconds > 0 for each in seen if each.ended_at is None)
    events = flow.post("/events", returns=Event, run="-stopped")
    assert any("the trainer hangs" in event.message for event in events)
    assert flow.wait("--help").state == "succeeded"


def test_ids_that_splits_and_classes_share_lose_nothing(flow: Service, seen: list[RunStatus]) -> None:
    status = flow.wait("--help")
    assert (status.state, status.attempts) == ("succeeded", 1), status.error
    assert (status.train_documents, status.eval_documents, status.skipped) == (36, 12, 2)
    assert "tuned/mean_average_precision_at_r" in status.metrics
    assert any("12 ids" in warning and "other content" in warning for warning in status.warnings), status.warnings
    problems = {problem.id: problem.reason for problem in status.problems}
    assert "the same id and content came before with the label '0', not '2'" in problems["d0"]
    assert "odd" in problems
    assert flow.post("/embed", images(1), returns=Document, model="--help")[0].embedding is not None
    flow.post("/promote", returns=RunStatus, run="base")
    assert flow.http("/delete", run="--help").status_code == 200


def test_a_refusal_is_one_line_of_the_log_and_jina_says_nothing_of_our_options(flow: Service) -> None:
    sentence = refused(flow, "/embed", images(1), model="nowhere")
    assert "There is no model 'nowhere'" in sentence
    assert "Traceback" not in sentence
    with connect(f"ws://127.0.0.1:{flow.ports['websocket']}", subprotocols=[Subprotocol("bytes")]) as connection:
        connection.send(b"\xff")
        with pytest.raises(ConnectionClosed, match="The message is no request of Jina's"):
            connection.recv(timeout=60)
    log = (flow.directory / "service.log").read_text(errors="replace")
    assert re.search(r"Refused: There is no model .{0,40}'nowhere'", " ".join(log.split()))  # the time stands between
    assert "Refused: The message is no request" in " ".join(log.split())
    assert "Traceback" not in log
    assert "not defined" not in log


def test_after_all_of_it_the_flow_ends_by_ctrl_c(flow: Service) -> None:
    assert flow.stop(signal.SIGINT) == 0
