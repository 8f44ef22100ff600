"""Pictures in an S3 server on this machine, and in memory, are read below the prefixes that are allowed."""

import json
from pathlib import Path

import fsspec
import pytest

from conftest import coloured, encoded
from executor.errors import BadDocument, ConfigurationError
from executor.images.object_store import check_prefixes, is_below, read_object
from executor.images.policy import ImagePolicy
from extras import run_with_extras

PREFIXES = ("s3://shop/photos/", "gs://other")


@pytest.mark.parametrize(
    ("uri", "allowed"),
    [
        ("s3://shop/photos/1.jpg", True),
        ("s3://shop/photos/a/b/1.jpg", True),
        ("gs://other/1.jpg", True),
        ("s3://shop/photos", False),
        ("s3://shop/photos-private/1.jpg", False),
        ("s3://shop/1.jpg", False),
        ("gs://others/1.jpg", False),
        ("s3://shop/photos/../1.jpg", False),
        ("s3://shop/photos/./1.jpg", False),
        ("s3://shop/photos/1.jpg::file:///etc/passwd", False),
        ("simplecache::s3://shop/photos/1.jpg", False),
        ("S3://shop/photos/1.jpg", False),
    ],
)
def test_only_what_lies_below_a_prefix_is_read(uri, allowed):
    assert is_below(uri, PREFIXES) is allowed


@pytest.mark.parametrize("prefix", ["s3", "shop/photos", "s3://", "file:///photos/", "https://h/", "s3://a::zip://b"])
def test_a_prefix_that_is_none_is_refused(prefix):
    with pytest.raises(ConfigurationError, match="it takes uris such as s3://bucket/folder/"):
        check_prefixes((prefix,))


@pytest.mark.parametrize("prefix", ["s4://bucket/", "gs://bucket/"])
def test_a_scheme_that_cannot_be_read_here_is_refused_at_the_start(prefix):
    with pytest.raises(ConfigurationError, match="which cannot be read here: "):
        check_prefixes((prefix,))


def test_an_object_is_read_and_its_size_is_limited():
    picture = encoded(coloured(0))
    fsspec.filesystem("memory").pipe("/shop/1.png", picture)
    assert read_object("memory://shop/1.png", ImagePolicy()) == picture
    assert read_object("memory://shop/1.png", ImagePolicy(max_image_bytes=len(picture))) == picture
    with pytest.raises(BadDocument, match="has more than the 99 bytes that max_image_bytes allows"):
        read_object("memory://shop/1.png", ImagePolicy(max_image_bytes=99))
    with pytest.raises(BadDocument, match=r"memory://shop/2\.png cannot be fetched: "):
        read_object("memory://shop/2.png", ImagePolicy())


S3 = """
import json, logging, os, socket, sys, threading, time

os.environ |= {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}
logging.getLogger("werkzeug").setLevel(logging.ERROR)
from moto.server import ThreadedMotoServer

server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
host, port = server.get_host_and_port()
os.environ["AWS_ENDPOINT_URL"] = f"http://{host}:{port}"

import boto3

client = boto3.client("s3")
client.create_bucket(Bucket="shop")
picture = open(sys.argv[1], "rb").read()
for number in range(40):
    client.put_object(Bucket="shop", Key=f"photos/{number}.png", Body=picture)
client.put_object(Bucket="shop", Key="photos/large.png", Body=picture + bytes(2**20))
client.put_object(Bucket="shop", Key="photos/empty.png", Body=b"")

from concurrent.futures import ThreadPoolExecutor
from executor.errors import BadDocument
from executor.images.policy import ImagePolicy
from executor.images.uris import check_uri, read_uri

# The first request loads botocore, which takes long where the machine is busy.
policy = ImagePolicy(max_image_bytes=2**20, remote_prefixes=("s3://shop/photos/",), remote_timeout=100.0)

def read(uri, policy=policy):
    try:
        check_uri(uri, policy)
        return read_uri(uri, policy) == picture
    except BadDocument as error:
        return str(error)

with ThreadPoolExecutor(8) as pool:
    said = {"all": list(pool.map(read, [f"s3://shop/photos/{number}.png" for number in range(40)]))}
for name in ("large", "empty", "absent"):
    said[name] = read(f"s3://shop/photos/{name}.png")
said["elsewhere"] = read("s3://shop/1.png")
silent = socket.create_server(("127.0.0.1", 0))
from executor.images import object_store

object_store._store.cache_clear()
os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{silent.getsockname()[1]}"
began = time.monotonic()
said["silent"] = read("s3://shop/photos/1.png", ImagePolicy(remote_timeout=0.5, remote_prefixes=("s3://shop/photos/",)))
said["seconds"] = time.monotonic() - began
print(json.dumps(said), flush=True)
os._exit(0)
"""


SILENT = """
import json, os, socket, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

silent = socket.create_server(("127.0.0.1", 0))
os.environ |= {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}
os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{silent.getsockname()[1]}"
sys.path.insert(0, "tests")
from conftest import images
from executor import Document
from serving import Service

folder = Path(sys.argv[1])
service = Service(folder / "workspace", folder / "cwd", remote_prefixes=["s3://shop/"])
with service as flow, ThreadPoolExecutor(1) as pool:
    flow.post("/embed", images(1), returns=Document)
    docs = [Document(uri=f"s3://shop/{number}.png") for number in range(20)]
    slow = pool.submit(flow.post, "/embed", docs, protocol="door", returns=Document)
    silent.settimeout(60)
    silent.accept()
    began = time.monotonic()
    (doc,) = flow.post("/embed", images(1), returns=Document)
    said = {"seconds": time.monotonic() - began, "embedded": doc.embedding is not None, "waiting": not slow.done()}
    said["errors"] = [doc.tags["finetuner_error"] for doc in slow.result()]
print(json.dumps(said))
"""


@pytest.mark.extra
@pytest.mark.flow
def test_a_store_that_says_nothing_to_one_caller_holds_up_no_other(tmp_path: Path) -> None:
    said = json.loads(run_with_extras(SILENT, tmp_path).splitlines()[-1])
    assert said["waiting"]
    assert said["embedded"]
    assert said["seconds"] < 10
    assert len(said["errors"]) == 20
    assert all("did not arrive within 10 seconds" in error for error in said["errors"])


@pytest.mark.extra
@pytest.mark.process
def test_pictures_are_read_from_a_real_s3_server(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(encoded(coloured(0)))
    said = json.loads(run_with_extras(S3, tmp_path / "1.png").splitlines()[-1])
    assert said["all"] == [True] * 40
    assert "has more than the 1048576 bytes" in said["large"]
    for name in ("empty", "absent"):
        assert said[name].startswith(f"s3://shop/photos/{name}.png cannot be fetched: ")
    assert "s3://shop/1.png lies below none of the remote_prefixes" in said["elsewhere"]
    assert "s3://shop/photos/1.png did not arrive within 0.5 seconds" in said["silent"]
    assert said["seconds"] < 10
