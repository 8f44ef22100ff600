"""The folder of a job on an object store: what both sides see of it, and a run that is trained through a real one."""

import json
import shutil
import tarfile
import uuid
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from executor.errors import ConfigurationError
from executor.store.job import Job, check_jobs, open_job
from extras import run_with_extras


@pytest.fixture
def url() -> str:
    return f"memory://jobs/{uuid.uuid4().hex}"


@pytest.fixture
def service(tmp_path: Path, url: str) -> Job:
    """The service's copy of a job."""
    job = Job(tmp_path / "service", url)
    write(job.version("base") / "weights", b"base")
    write(job.folder / "job.json", b"{}")
    job.begin_attempt()
    job.exchange.send("inputs")
    return job


@pytest.fixture
def rank(service: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """A rank's copy."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return open_job(service.address, 0)


def write(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_rank_gets_what_the_service_has_written_and_sees_it_change(service: Job, rank: Job) -> None:
    assert contents(rank.folder) == contents(service.folder)
    attempt = rank.attempt()
    assert attempt is not None
    service.ask_to_stop(attempt)
    service.exchange.send("inputs")
    rank.exchange.bring("inputs")
    told = rank.attempt()
    assert told is not None
    assert told.stop
    service.end_attempts()
    service.exchange.send("inputs")
    rank.exchange.bring("inputs")
    assert rank.attempt() is None


def test_which_version_is_served_is_told_after_that_version_and_before_the_attempt(
    service: Job, rank: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []
    put = MemoryFileSystem.put_file
    monkeypatch.setattr(
        MemoryFileSystem,
        "put_file",
        lambda files, here, there, **more: sent.append(there) or put(files, here, there, **more),
    )
    write(service.version("zebra") / "weights", b"striped")
    write(service.folder / "served.json", b"{}")
    service.begin_attempt()
    service.exchange.send("inputs")
    assert [name.rpartition("/")[2] for name in sent] == ["zebra.tar", "served.json", "attempt.json"]


def test_the_service_gets_what_a_rank_makes_and_a_folder_only_as_a_whole(service: Job, rank: Job) -> None:
    write(rank.made / "progress.json", b"1")
    write(rank.made / "checkpoints" / "000010" / "model", b"ten")
    write(rank.made / "checkpoints" / ".000020-half" / "model", b"twen")
    write(rank.made / "features" / "0", b"too much")
    rank.exchange.send("made")
    service.exchange.bring("made")
    assert contents(service.made) == {"progress.json": b"1", "checkpoints/000010/model": b"ten"}
    write(rank.made / "progress.json", b"22")
    write(rank.made / "checkpoints" / "000030" / "model", b"thirty")
    for file in (rank.made / "checkpoints" / "000010").iterdir():
        file.unlink()
    (rank.made / "checkpoints" / "000010").rmdir()
    rank.exchange.send("made")
    service.exchange.bring("made")
    assert contents(service.made) == {"progress.json": b"22", "checkpoints/000030/model": b"thirty"}


def test_what_has_not_changed_is_not_sent_again(service: Job, rank: Job) -> None:
    write(rank.made / "progress.json", b"1")
    rank.exchange.send("made")
    there = fsspec.filesystem("memory")
    place = f"{service.address.removeprefix('memory:/')}/made/progress.json"
    there.rm_file(place)  # if it were sent again, it would be there again
    rank.exchange.send("made")
    assert not there.exists(place)


def test_nothing_unfinished_is_left_and_what_vanished_meanwhile_is_passed_over(
    service: Job, rank: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = rank.made / "checkpoints" / "000010"
    write(place / "model", b"ten")
    add = tarfile.TarFile.add

    def too_late(tar: tarfile.TarFile, *arguments: object) -> None:
        shutil.rmtree(place, ignore_errors=True)
        add(tar, *arguments)

    monkeypatch.setattr(tarfile.TarFile, "add", too_late)
    rank.exchange.send("made")
    service.exchange.bring("made")
    assert contents(service.made) == {}
    assert not [file for job in (service, rank) for file in job.folder.rglob(".*")]


def test_another_attempt_goes_on_from_what_is_there(service: Job, rank: Job, tmp_path: Path) -> None:
    write(rank.made / "checkpoints" / "000010" / "model", b"ten")
    rank.exchange.send("made")
    again = open_job(service.address, 1)
    assert contents(again.made) == {"checkpoints/000010/model": b"ten"}
    assert again.folder != rank.folder


def test_a_job_that_is_removed_is_gone_there_too(service: Job) -> None:
    service.remove()
    there = fsspec.filesystem("memory")
    while there.exists(service.address):
        pass
    assert not service.folder.exists()


def test_an_object_with_a_name_outside_the_folder_is_left_alone(service: Job, rank: Job, tmp_path: Path) -> None:
    there = fsspec.filesystem("memory")
    packed = tmp_path / "packed.tar"
    write(tmp_path / "evil", b"evil")
    with tarfile.open(packed, "w") as tar:
        tar.add(tmp_path / "evil", "../evil")
        tar.add(tmp_path / "evil", "model")
    there.put_file(str(packed), f"{service.address}/made/checkpoints/000010.tar")
    there.pipe_file(f"{service.address}/made/.hidden", b"evil")
    service.exchange.bring("made")
    assert contents(service.made) == {"checkpoints/000010/model": b"evil"}


@pytest.mark.parametrize("place", ["nowhere://jobs", "file:///jobs", "s4://jobs"])
def test_a_place_where_no_job_can_lie_is_refused_at_the_start(place: str) -> None:
    with pytest.raises(ConfigurationError, match=place):
        check_jobs(place)
    check_jobs("/a/path")
    check_jobs(None)


def test_a_store_that_does_not_answer_is_an_error_that_can_be_tried_again(
    service: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no route")

    monkeypatch.setattr(MemoryFileSystem, "find", broken)
    with pytest.raises(OSError, match="does not answer: no route"):
        service.exchange.bring("made")


PROGRAM = """
import json, logging, os, sys, time
from pathlib import Path

folder = Path(sys.argv[1])
os.environ["HOME"] = str(folder)  # from where the ranks have the credentials: the command's environment has none
(folder / ".aws").mkdir()
(folder / ".aws" / "credentials").write_text("[default]\\naws_access_key_id = a\\naws_secret_access_key = b\\n")
logging.getLogger("werkzeug").setLevel(logging.ERROR)
from moto.server import ThreadedMotoServer

server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
host, port = server.get_host_and_port()
os.environ |= {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_DEFAULT_REGION": "us-east-1"}
import boto3

bucket = boto3.client("s3")
bucket.create_bucket(Bucket="jobs")

def names():
    return sorted(each["Key"].split("/", 2)[2] for each in bucket.list_objects_v2(Bucket="jobs").get("Contents", ()))

sys.path.insert(0, "tests")
from test_elsewhere import DOCUMENTED, OPTIONS, queue
from workshop import Workshop

command = DOCUMENTED[1].strip('"')
workshop = Workshop(folder / "workspace", train_command=command, train_jobs="s3://jobs/here", fit_defaults=OPTIONS)
queue(workshop, "one")
seen = set()
with workshop.supervised():
    run = workshop.wait("one", lambda run: seen.update(names()) or run.state.ended, seconds=280)
    while names():
        time.sleep(0.1)
model = workshop.store.workspace.model_folder("one")
said = {
    "state": run.state.value,
    "log": workshop.log("one"),
    "attempts": run.attempts,
    "promoted": workshop.store.promoted(),
    "seen": sorted(seen),
    "model": sorted(file.name for file in model.iterdir()) if model.is_dir() else [],
    "epochs": len(workshop.events("one", "epoch")),
}
print(json.dumps(said), flush=True)
os._exit(0)
"""


@pytest.mark.extra
@pytest.mark.process
def test_two_ranks_train_a_run_through_a_real_s3_server(tmp_path: Path) -> None:
    said = json.loads(run_with_extras(PROGRAM, tmp_path).splitlines()[-1])
    assert said["state"] == "succeeded", said["log"]
    assert said["promoted"] == "one"
    assert said["epochs"] >= 5, said  # more if a busy machine has cost an attempt
    assert "model.json" in said["model"]
    assert {"job.json", "documents.sqlite", "attempt.json", "versions/base.tar", "made/progress.json"} <= {
        *said["seen"]
    }
